/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The options of a new image: one table made of the format's and the protocol's, one set of options made of -o and what
 * other flags stand for. A bad key or number is refused before anything is printed or made; what a word means is the
 * driver's to judge.
 */
#include "create_opts.h"

#include <block/front.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- -o ---- */

/* Not empty, and neither begins nor ends with a comma that stands alone. */
static bool is_list(const char *text)
{
    size_t length = strlen(text), commas = 0;
    while (commas < length && text[length - 1 - commas] == ',')
        commas++;
    return length && text[0] != ',' && commas % 2 == 0;
}

bool create_opts_add(struct create_opts *create, const char *text)
{
    if (!is_list(text)) {
        error_report("Invalid option list: %s", text);
        return false;
    }
    char *all = create->text ? xasprintf("%s,%s", create->text, text) : xstrdup(text);
    free(create->text);
    create->text = all;
    return true;
}

bool create_opts_want_help(const struct create_opts *create)
{
    for (const char *p = create->text; p && *p;) {
        size_t length = strcspn(p, ",");
        if ((length == 4 && !strncmp(p, "help", 4)) || (length == 1 && *p == '?'))
            return true;
        p += length + (p[length] == ',');
    }
    return false;
}

/* ---- tables ---- */

static size_t table_length(const struct opt_desc *table)
{
    size_t length = 0;
    while (table && table[length].name)
        length++;
    return length;
}

static struct opt_desc *merge_tables(const struct opt_desc *first, const struct opt_desc *second)
{
    size_t length = table_length(first);
    struct opt_desc *merged = xcalloc(length + table_length(second) + 1, sizeof(*merged));
    if (length)
        memcpy(merged, first, length * sizeof(*merged));
    for (; second && second->name; second++) {
        if (!opts_find(merged, second->name))
            merged[length++] = *second;
    }
    return merged;
}

int create_opts_help(const char *format, const char *filename)
{
    struct error *error = NULL;
    const struct blk_driver *driver = blk_driver_find(format), *protocol = NULL;
    if (!driver) {
        error_report("Unknown file format '%s'", format);
        return 1;
    }
    if (!driver->create_options) {
        error_report("Format driver '%s' does not support image creation", format);
        return 1;
    }
    if (filename && !(protocol = blk_protocol_for(filename, &error))) {
        error_report_free(error);
        return 1;
    }
    if (filename)
        printf("Supported options:\n");
    else
        printf("Supported %s options:\n", format);
    struct opt_desc *table = merge_tables(driver->create_options, protocol ? protocol->create_options : NULL);
    for (struct opt_desc *desc = table; desc->name; desc++)
        desc->def = NULL; /* qemu-img tells defaults when it creates, not here */
    opts_print_help(table, stdout);
    free(table);
    if (!filename) {
        printf("\nThe protocol level may support further options.\n");
        printf("Specify the target filename to include those options.\n");
    }
    return 0;
}

/* ---- resolving ---- */

static int check_values(const struct create_opts *create, struct error **errp)
{
    struct opt_desc *loose = merge_tables(create->table, NULL);
    for (struct opt_desc *desc = loose; desc->name; desc++) {
        if (desc->type == OPT_ENUM)
            desc->type = OPT_STRING;
    }
    int ret = opts_validate(create->opts, loose, errp);
    free(loose);
    return ret;
}

/* Sizes as plain numbers: that is how they are printed, and a suffix that is warned of is read no more. */
static void normalise_sizes(struct create_opts *create)
{
    for (const struct opt_desc *desc = create->table; desc->name; desc++) {
        uint64_t size;
        if (desc->type != OPT_SIZE || !opts_has(create->opts, desc->name) ||
            opts_size(create->opts, create->table, desc->name, &size, NULL) < 0)
            continue;
        AUTO_FREE char *text = xasprintf("%" PRIu64, size);
        opts_set(create->opts, desc->name, text);
    }
}

int create_opts_resolve(struct create_opts *create, const char *format, const char *filename, struct error **errp)
{
    create->opts = opts_new();
    create->format = blk_driver_find(format);
    if (!create->format)
        return error_set(errp, -EINVAL, "Unknown file format '%s'", format);
    create->protocol = blk_protocol_for(filename, errp);
    if (!create->protocol)
        return -EINVAL;
    if (!create->format->create_options)
        return error_set(errp, -ENOTSUP, "Format driver '%s' does not support image creation", format);
    if (!create->protocol->create_options)
        return error_set(errp, -ENOTSUP, "Protocol driver '%s' does not support image creation",
                         create->protocol->name);
    create->table = merge_tables(create->format->create_options, create->protocol->create_options);
    int ret = create->text ? opts_parse(create->opts, create->text, NULL, OPTS_LAST_WINS, errp) : 0;
    if (ret == 0)
        ret = check_values(create, errp);
    if (ret == 0)
        normalise_sizes(create);
    return ret;
}

int create_opts_backing(struct create_opts *create, const char *file, const char *format, struct error **errp)
{
    if (file && !opts_find(create->table, "backing_file"))
        return error_set(errp, -EINVAL, "Backing file not supported for file format '%s'", create->format->name);
    if (format && !opts_find(create->table, "backing_fmt"))
        return error_set(errp, -EINVAL, "Backing file format not supported for file format '%s'", create->format->name);
    if (file)
        opts_set(create->opts, "backing_file", file);
    if (format)
        opts_set(create->opts, "backing_fmt", format);
    return 0;
}

const char *create_opts_get(const struct create_opts *create, const char *key) { return opts_text(create->opts, key); }

/* ---- printing ---- */

static void print_escaped(const char *value)
{
    for (; *value; value++) {
        putchar(*value);
        if (*value == ',')
            putchar(',');
    }
}

void create_opts_print(const struct create_opts *create)
{
    for (const struct opt_desc *desc = create->table; desc->name; desc++) {
        const char *value = create_opts_get(create, desc->name);
        if (!value)
            value = desc->def;
        if (!value)
            continue;
        printf(" %s=", desc->name);
        print_escaped(value);
    }
}

void create_opts_finish(struct create_opts *create)
{
    free(create->text);
    free(create->table);
    opts_free(create->opts);
    memset(create, 0, sizeof(*create));
}
