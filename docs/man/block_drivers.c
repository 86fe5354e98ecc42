/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Prints the option tables of all block drivers as mdoc(7), for vmm-block-drivers.7. They are the tables that parse the
 * options, so the manual cannot differ from the program.
 */
#include <block/image.h>

#include <stdio.h>
#include <string.h>

/* Text that roff takes literally. */
static void print_text(const char *text)
{
    for (; *text; text++) {
        if (*text == '\\')
            fputs("\\e", stdout);
        else if (*text == '-')
            fputs("\\-", stdout);
        else if (*text == '\n')
            putchar(' ');
        else
            putchar(*text);
    }
}

static void print_value(const struct opt_desc *option)
{
    static const char *const words[] = {
        [OPT_STRING] = "text",
        [OPT_BOOL] = "on | off",
        [OPT_NUMBER] = "number",
        [OPT_SIZE] = "size",
    };
    if (option->type != OPT_ENUM) {
        fputs(words[option->type], stdout);
        return;
    }
    for (const char *const *value = option->values; *value; value++) {
        fputs(value == option->values ? "" : " | ", stdout);
        print_text(*value);
    }
}

static void print_table(const struct opt_desc *table)
{
    puts(".Bl -tag -width Ds");
    for (const struct opt_desc *option = table; option->name; option++) {
        fputs(".It Xo\n.Cm ", stdout);
        print_text(option->name);
        fputs(" Ns = Ns\n.No ", stdout);
        print_value(option);
        puts("\n.Xc");
        /* Begins with \& so that no text can be taken for a request. */
        fputs("\\&", stdout);
        print_text(option->help ? option->help : "");
        if (option->def) {
            fputs(" (default: ", stdout);
            print_text(option->def);
            putchar(')');
        }
        if (option->flags & OPT_MISSING)
            fputs(" (refused for now)", stdout);
        putchar('\n');
    }
    puts(".El");
}

static const char *kind_of(const struct blk_driver *driver)
{
    if (driver->flags & BLK_DRIVER_PROTOCOL)
        return "A protocol: it reaches bytes itself.";
    if (driver->flags & BLK_DRIVER_FILTER)
        return "A filter: the same bytes as its child \"file\".";
    return "A format: it lays out a disk in its child \"file\".";
}

static void print_driver(const struct blk_driver *driver, void *arg)
{
    fputs(".Ss ", stdout);
    print_text(driver->name);
    printf("\n%s\n", kind_of(driver));
    for (const char *const *prefix = driver->protocol_prefixes; prefix && *prefix; prefix++) {
        fputs("File names that begin with\n.Ql ", stdout);
        print_text(*prefix);
        puts(":\nare its.");
    }
    if (driver->options && driver->options->name) {
        puts(".Pp\nOptions for opening:");
        print_table(driver->options);
    }
    if (driver->create_options && driver->create_options->name) {
        puts(".Pp\nOptions for creating\n.Pq Nm img\\-tool Cm create Fl o :");
        print_table(driver->create_options);
    }
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "common") == 0)
        print_table(blk_node_options);
    else
        blk_driver_each(print_driver, NULL);
    return fflush(stdout) ? 1 : 0;
}
