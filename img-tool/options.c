/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tables of options: for getopt_long(), and for people. */
#include "options.h"
#include "command.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* Up to here an option and its argument may reach before the help beside them goes to the next line. */
enum { HELP_COLUMN = 32 };

static int argument_kind(const struct img_option *option)
{
    if (!option->argument)
        return no_argument;
    return option->argument[0] == '[' ? optional_argument : required_argument;
}

static void build_names(const struct img_option *options, bool newer, struct option *names)
{
    for (const struct img_option *option = options; option->value; option++) {
        if (option->name && (newer || !option->newer))
            *names++ = (struct option){ option->name, argument_kind(option), NULL, option->value };
    }
    *names = (struct option){ 0 };
}

void img_getopt_build(const struct img_option *options, const char *prefix, struct img_getopt *out)
{
    size_t letters = strlen(prefix);

    memset(out, 0, sizeof(*out));
    memcpy(out->letters, prefix, letters);
    build_names(options, true, out->names);
    for (const struct img_option *option = options; option->value; option++) {
        assert(option - options < IMG_OPTIONS_MAX);
        if (option->value >= 256 || strchr(out->letters, option->value))
            continue;
        out->letters[letters++] = (char)option->value;
        if (argument_kind(option) == required_argument)
            out->letters[letters++] = ':';
    }
}

/* Is `word` ("--name" or "--name=argument") the beginning of the row's name? *whole: all of it. */
static bool begins_name(const char *word, const struct img_option *option, bool *whole)
{
    size_t length = strcspn(word + 2, "=");

    *whole = option->name && strlen(option->name) == length;
    return option->name && !strncmp(option->name, word + 2, length);
}

/* Takes newer names out of the table if the word may be short for an older one. */
static void prefer_older(const struct img_option *options, const char *word, struct img_getopt *table)
{
    bool older = false, whole;

    if (strncmp(word, "--", 2) != 0)
        return;
    for (const struct img_option *option = options; option->value; option++) {
        bool begins = begins_name(word, option, &whole);
        if (begins && whole)
            return;
        older = older || (begins && !option->newer);
    }
    if (older)
        build_names(options, false, table->names);
}

/* What getopt_long() looks at next: it passes over operands. "" if there is no more. */
static const char *next_word(int argc, char **argv)
{
    int i = MAX(optind, 1);

    while (i < argc && argv[i][0] != '-')
        i++;
    return i < argc ? argv[i] : "";
}

static int next_option(int argc, char **argv, const struct img_option *options, const char *prefix)
{
    struct img_getopt table;

    img_getopt_build(options, prefix, &table);
    prefer_older(options, next_word(argc, argv), &table);
    opterr = 0;
    int option = getopt_long(argc, argv, table.letters, table.names, NULL);
    if (option == 'h')
        return IMG_OPT_HELP;
    if (option == ':') {
        img_usage_error("missing argument for option '%s'", argv[optind - 1]);
        return IMG_OPT_BAD;
    }
    if (option == '?') {
        img_usage_error("unrecognized option '%s'", argv[optind - 1]);
        return IMG_OPT_BAD;
    }
    return option;
}

int img_getopt(int argc, char **argv, const struct img_option *options)
{
    return next_option(argc, argv, options, ":");
}

int img_getopt_first(int argc, char **argv, const struct img_option *options)
{
    return next_option(argc, argv, options, "+:");
}

bool img_option_has_letter(const struct img_option *options, const struct img_option *option)
{
    for (const struct img_option *other = options; other < option; other++) {
        if (other->value == option->value)
            return false;
    }
    return option->value < 256;
}

/* ---- for people ---- */

static int print_spelling(const struct img_option *option, bool with_letter)
{
    int width = with_letter ? printf("  -%c", option->value) : printf("    ");

    if (option->name)
        width += printf("%s--%s", with_letter ? ", " : "  ", option->name);
    if (option->argument)
        width += printf("%s%s", argument_kind(option) == required_argument ? " " : "", option->argument);
    return width;
}

static void print_same(const struct img_option *option)
{
    if (option->name)
        printf("the same as --%s\n", option->name);
    else
        printf("the same as -%c\n", option->value);
}

void img_options_print(const struct img_option *options)
{
    const struct img_option *described = NULL;

    for (const struct img_option *option = options; option->value; option++) {
        int width = print_spelling(option, img_option_has_letter(options, option));
        if (width + 2 > HELP_COLUMN)
            width = printf("\n") - 1;
        printf("%*s", HELP_COLUMN - width, "");
        if (option->help) {
            described = option;
            printf("%s\n", option->help);
        } else {
            assert(described);
            print_same(described);
        }
    }
}
