/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A sub-command's options, each said once: one table has letters, long names, arguments and a line of help. What
 * getopt_long() wants, the list that `--help` prints and the shells' completion are made from it.
 */
#pragma once

#include <base/compiler.h>
#include <getopt.h>
#include <stdbool.h>

/* The argument is what help calls it. In brackets it is optional, and follows the long name alone, after '='. FMT,
 * CACHE, OPTIONS (of a new image), CHANGES (to an image's options) and a choice as in a|b|c also say what completion
 * offers; for any other word it offers files. */
struct img_option {
    int value;            /* the option's letter, or a number from 256 on if it has none; 0 ends the table */
    const char *name;     /* the long name; NULL: it has none */
    const char *argument; /* NULL: it takes none */
    const char *help;     /* one line; NULL: another spelling of the row above it */
    /* qemu-img 7.2 does not have the name: what fits the beginning of one that it has, too, means that one. */
    bool newer;
};

/* The row that every table begins with. */
/* clang-format off */
#define IMG_HELP_OPTION { 'h', "help", NULL, "print this and exit" }
/* clang-format on */

/* What getopt_long() takes. */
enum { IMG_OPTIONS_MAX = 48 };
struct img_getopt {
    char letters[3 * IMG_OPTIONS_MAX];
    struct option names[IMG_OPTIONS_MAX + 1];
};
/* `prefix` begins the letters, as in getopt(3): ":" to tell apart what is wrong, "+" to end at the first operand. */
void img_getopt_build(const struct img_option *options, const char *prefix, struct img_getopt *out);

/*
 * getopt_long() with QEMU's words. Returns the option's value, -1 at the end of the options, or IMG_OPT_BAD after
 * it has reported a bad one: return 1 then. IMG_OPT_HELP: print help and return 0 (img_command_help()).
 */
enum { IMG_OPT_BAD = 0x1000, IMG_OPT_HELP };
int img_getopt(int argc, char **argv, const struct img_option *options);
/* The same for options before a sub-command's name: ends at the first operand. */
int img_getopt_first(int argc, char **argv, const struct img_option *options);

/* Is the row's value a letter, and does no row before it have that letter? */
bool img_option_has_letter(const struct img_option *options, const struct img_option *option);

/* The list for people, a line or two for each option. */
void img_options_print(const struct img_option *options);
