/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading options through a table: types, defaults, and QEMU's words for a value that does not fit.
 *
 * Reading marks a key as consumed also where its value is bad. A JSON null counts as absent. A default is checked by
 * the same code as a given value, and must pass.
 */
#include "opts_internal.h"

#include <base/compiler.h>
#include <base/size.h>

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct opt_desc *opts_find(const struct opt_desc *table, const char *name)
{
    for (; table->name; table++) {
        if (!strcmp(table->name, name))
            return table;
    }
    return NULL;
}

static int parse_bool(const char *name, const char *text, bool *out, struct error **errp)
{
    static const char *const words[] = { "on", "yes", "true", "y", "off", "no", "false", "n" };
    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (!strcmp(text, words[i])) {
            *out = i < ARRAY_SIZE(words) / 2;
            return 0;
        }
    }
    return error_set(errp, -EINVAL, "Parameter '%s' expects 'on' or 'off'", name);
}

static int parse_number(const char *name, const char *text, uint64_t *out, struct error **errp)
{
    char *end;
    const char *digits = text;
    while (isspace((unsigned char)*digits))
        digits++;
    if (*digits == '-')
        return error_set(errp, -EINVAL, "Parameter '%s' expects a non-negative number", name);
    errno = 0;
    unsigned long long value = strtoull(digits, &end, 0);
    if (end == digits || *end)
        return error_set(errp, -EINVAL, "Parameter '%s' expects a number", name);
    if (errno == ERANGE)
        return error_set(errp, -ERANGE, "Value '%s' is too large for parameter '%s'", text, name);
    *out = value;
    return 0;
}

static int parse_size(const struct opt_desc *desc, const char *text, uint64_t *out, struct error **errp)
{
    int ret = size_parse(text, desc->default_suffix ? desc->default_suffix : 'B', out);
    if (ret == -ERANGE && !strchr(text, '-'))
        return error_set(errp, ret, "Value '%s' is out of range for parameter '%s'", text, desc->name);
    if (ret < 0) {
        return error_set(errp, -EINVAL,
                         "Parameter '%s' expects a non-negative number below 2^64\n"
                         "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                         "and exabytes, respectively.",
                         desc->name);
    }
    return 0;
}

static int parse_enum(const struct opt_desc *desc, const char *text, int *out, struct error **errp)
{
    for (int i = 0; desc->values[i]; i++) {
        if (!strcmp(desc->values[i], text)) {
            *out = i;
            return 0;
        }
    }
    if (desc->flags & OPT_TERSE)
        return error_set(errp, -EINVAL, "invalid parameter value: %s", text);
    return error_set(errp, -EINVAL, "Parameter '%s' does not accept value '%s'", desc->name, text);
}

/* Does a JSON value's type suit the table's? */
static int check_kind(const struct opt_desc *desc, enum value_kind kind, struct error **errp)
{
    const char *expected = NULL;
    if (kind == VALUE_TEXT)
        return 0;
    switch (desc->type) {
    case OPT_BOOL: expected = kind == VALUE_BOOL ? NULL : "boolean"; break;
    case OPT_NUMBER:
    case OPT_SIZE: expected = kind == VALUE_INTEGER ? NULL : "integer"; break;
    case OPT_STRING:
    case OPT_ENUM: expected = "string"; break;
    }
    return expected ? error_set(errp, -EINVAL, "Invalid parameter type for '%s', expected: %s", desc->name, expected)
                    : 0;
}

/* Any type's result. */
union value {
    const char *string;
    bool boolean;
    uint64_t number;
    int index;
};

static int parse_any(const struct opt_desc *desc, const char *text, union value *out, struct error **errp)
{
    switch (desc->type) {
    case OPT_BOOL: return parse_bool(desc->name, text, &out->boolean, errp);
    case OPT_NUMBER: return parse_number(desc->name, text, &out->number, errp);
    case OPT_SIZE: return parse_size(desc, text, &out->number, errp);
    case OPT_ENUM: return parse_enum(desc, text, &out->index, errp);
    case OPT_STRING: break;
    }
    out->string = text;
    return 0;
}

static int check_opt(const struct opt_desc *desc, const struct opt *opt, union value *out, struct error **errp)
{
    int ret = check_kind(desc, opt->kind, errp);
    return ret < 0 ? ret : parse_any(desc, opt->value, out, errp);
}

/* 1: given; 0 and *have_default: not given; negative errno. */
static int read_key(struct opts *opts, const struct opt_desc *table, const char *key, enum opt_type type,
                    union value *out, bool *have_default, struct error **errp)
{
    const struct opt_desc *desc = opts_find(table, key);
    assert(desc && desc->type == type);
    (void)type;
    struct opt *opt = opts_lookup(opts, key);
    *have_default = false;
    if (opt) {
        opt->consumed = true;
        if (opt->kind != VALUE_NULL) {
            int ret = check_opt(desc, opt, out, errp);
            return ret < 0 ? ret : 1;
        }
    }
    if (desc->def) {
        int ret = parse_any(desc, desc->def, out, NULL);
        assert(ret == 0);
        *have_default = ret == 0;
    }
    return 0;
}

int opts_string(struct opts *opts, const struct opt_desc *table, const char *key, const char **out, struct error **errp)
{
    union value value;
    bool have_default;
    int ret = read_key(opts, table, key, OPT_STRING, &value, &have_default, errp);
    if (ret > 0 || have_default)
        *out = value.string;
    return ret;
}

int opts_bool(struct opts *opts, const struct opt_desc *table, const char *key, bool *out, struct error **errp)
{
    union value value;
    bool have_default;
    int ret = read_key(opts, table, key, OPT_BOOL, &value, &have_default, errp);
    if (ret > 0 || have_default)
        *out = value.boolean;
    return ret;
}

int opts_number(struct opts *opts, const struct opt_desc *table, const char *key, uint64_t *out, struct error **errp)
{
    union value value;
    bool have_default;
    int ret = read_key(opts, table, key, OPT_NUMBER, &value, &have_default, errp);
    if (ret > 0 || have_default)
        *out = value.number;
    return ret;
}

int opts_size(struct opts *opts, const struct opt_desc *table, const char *key, uint64_t *out, struct error **errp)
{
    union value value;
    bool have_default;
    int ret = read_key(opts, table, key, OPT_SIZE, &value, &have_default, errp);
    if (ret > 0 || have_default)
        *out = value.number;
    return ret;
}

int opts_enum(struct opts *opts, const struct opt_desc *table, const char *key, int *out, struct error **errp)
{
    union value value;
    bool have_default;
    int ret = read_key(opts, table, key, OPT_ENUM, &value, &have_default, errp);
    if (ret > 0 || have_default)
        *out = value.index;
    return ret;
}

int opts_read(struct opts *opts, const struct opt_desc *table, void *into, struct error **errp)
{
    int ret = 0;

    for (const struct opt_desc *desc = table; ret >= 0 && desc->name; desc++) {
        void *place = desc->at ? (char *)into + desc->at - 1 : NULL;
        if (!place)
            continue;
        switch (desc->type) {
        case OPT_STRING: ret = opts_string(opts, table, desc->name, place, errp); break;
        case OPT_BOOL: ret = opts_bool(opts, table, desc->name, place, errp); break;
        case OPT_NUMBER: ret = opts_number(opts, table, desc->name, place, errp); break;
        case OPT_SIZE: ret = opts_size(opts, table, desc->name, place, errp); break;
        case OPT_ENUM: ret = opts_enum(opts, table, desc->name, place, errp); break;
        }
    }
    return ret < 0 ? ret : 0;
}

int opts_validate(const struct opts *opts, const struct opt_desc *table, struct error **errp)
{
    for (size_t i = 0; i < opts->count; i++) {
        const struct opt *opt = &opts->items[i];
        const struct opt_desc *desc = opts_find(table, opt->key);
        union value value;
        if (!desc)
            return error_set(errp, -EINVAL, "Invalid parameter '%s'", opt->key);
        int ret = opt->kind == VALUE_NULL ? 0 : check_opt(desc, opt, &value, errp);
        if (ret < 0)
            return ret;
    }
    return 0;
}
