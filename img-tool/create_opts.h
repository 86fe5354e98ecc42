/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The options of a new image, for create, convert and dd: -o, -b, -F, a size; the tables of its format and protocol. */
#pragma once

#include <block/image.h>
#include <stdbool.h>

struct create_opts {
    char *text; /* all -o, joined; NULL: none */
    const struct blk_driver *format;
    const struct blk_driver *protocol; /* NULL until the file name is known */
    struct opt_desc *table;            /* both tables' options, format first, each name once */
    struct opts *opts;
};

/* One more -o. Returns false after reporting a list that is none. */
bool create_opts_add(struct create_opts *create, const char *text);
bool create_opts_want_help(const struct create_opts *create);
/* Prints the help; filename may be NULL: then the format's options only. Returns the exit status. */
int create_opts_help(const char *format, const char *filename);

/* Finds the drivers, parses -o and checks the values' types. Words that an enumeration refuses are left to the
 * driver. */
int create_opts_resolve(struct create_opts *create, const char *format, const char *filename, struct error **errp);
/* "-b" and "-F": refused by name if the format has none. Either may be NULL. */
int create_opts_backing(struct create_opts *create, const char *file, const char *format, struct error **errp);
/* An option's value as text, or NULL; valid until the options change. */
const char *create_opts_get(const struct create_opts *create, const char *key);
/* "name=value …" with defaults, sizes in bytes, in the tables' order. */
void create_opts_print(const struct create_opts *create);
void create_opts_finish(struct create_opts *create);
