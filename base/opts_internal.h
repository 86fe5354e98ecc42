/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The set of options as opts.c, opts_typed.c and opts_json.c see it; nobody else does. */
#pragma once

#include <base/opts.h>

/* Where a value came from: text may be read as any type, a JSON value must fit. A JSON string counts as text too,
 * because json: file names that programs write hold sizes such as "1k" and switches such as "on". */
enum value_kind { VALUE_TEXT, VALUE_INTEGER, VALUE_REAL, VALUE_BOOL, VALUE_NULL };

struct opt {
    char *key;
    char *value; /* as text, never NULL */
    enum value_kind kind;
    bool consumed;
};

/* Keys are unique; the order is that of insertion. Sets are small, so look-up is a plain walk. */
struct opts {
    struct opt *items;
    size_t count, capacity;
};

struct opt *opts_lookup(const struct opts *opts, const char *key);
/* Takes ownership of value; replaces a value that is there, in its place. */
void opts_put(struct opts *opts, const char *key, char *value, enum value_kind kind);
