/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A table of options as people read it, in the layout that `qemu-img create -o help` made known: sorted by name, one
 * line an option, the explanation in column 28 where the name leaves room for it.
 */
#include <base/compiler.h>
#include <base/opts.h>

#include <stdlib.h>
#include <string.h>

static const char *type_name(enum opt_type type)
{
    switch (type) {
    case OPT_BOOL: return "bool (on/off)";
    case OPT_NUMBER: return "num";
    case OPT_SIZE: return "size";
    case OPT_STRING:
    case OPT_ENUM: break;
    }
    return "str";
}

static int by_name(const void *a, const void *b)
{
    const struct opt_desc *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

void opts_print_help(const struct opt_desc *table, FILE *out)
{
    size_t count = 0;
    while (table[count].name)
        count++;
    const struct opt_desc **sorted = xcalloc(count, sizeof(const struct opt_desc *));
    for (size_t i = 0; i < count; i++)
        sorted[i] = &table[i];
    qsort(sorted, count, sizeof(*sorted), by_name);
    for (size_t i = 0; i < count; i++) {
        const struct opt_desc *desc = sorted[i];
        char *left = xasprintf("%s=<%s>", desc->name, type_name(desc->type));
        if (desc->help)
            fprintf(out, "  %-22s - %s", left, desc->help);
        else
            fprintf(out, "  %s", left);
        if (desc->def)
            fprintf(out, " (default: %s)", desc->def);
        fputc('\n', out);
        free(left);
    }
    free(sorted);
}
