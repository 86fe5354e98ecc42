/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Options from and to JSON.
 *
 * {"file": {"filename": "x"}} flattens to file.filename=x, lists to children.0, children.1, …; back again, keys nest
 * and an object whose keys are exactly 0 to n-1 becomes a list. Text may quote with '…' as QEMU's JSON does. Depth is
 * bounded, so a hostile json: name cannot exhaust the stack.
 */
#include "opts_internal.h"

#include <base/compiler.h>
#include <base/utf8.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

static int flatten(struct opts *opts, const char *prefix, const json_t *value, int depth, struct error **errp);

static int flatten_member(struct opts *opts, const char *prefix, const char *name, const json_t *value, int depth,
                          struct error **errp)
{
    char *key = *prefix ? xasprintf("%s.%s", prefix, name) : xstrdup(name);
    int ret = *name ? flatten(opts, key, value, depth, errp) : error_set(errp, -EINVAL, "Invalid parameter '%s'", key);
    free(key);
    return ret;
}

static int flatten_container(struct opts *opts, const char *prefix, const json_t *value, int depth, struct error **errp)
{
    if (depth >= MAX_DEPTH)
        return error_set(errp, -EINVAL, "Parameter '%.40s' is nested too deeply", prefix);
    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            char name[24];
            snprintf(name, sizeof(name), "%zu", i);
            int ret = flatten_member(opts, prefix, name, json_array_get(value, i), depth + 1, errp);
            if (ret < 0)
                return ret;
        }
        return 0;
    }
    const char *name;
    json_t *member;
    json_object_foreach((json_t *)value, name, member)
    {
        int ret = flatten_member(opts, prefix, name, member, depth + 1, errp);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int flatten(struct opts *opts, const char *prefix, const json_t *value, int depth, struct error **errp)
{
    if (json_is_object(value) || json_is_array(value))
        return flatten_container(opts, prefix, value, depth, errp);
    if (opts_lookup(opts, prefix))
        return error_set(errp, -EINVAL, "Parameter '%s' is given more than once", prefix);
    if (json_is_string(value))
        opts_put(opts, prefix, xstrdup(json_string_value(value)), VALUE_TEXT);
    else if (json_is_integer(value))
        opts_put(opts, prefix, xasprintf("%" JSON_INTEGER_FORMAT, json_integer_value(value)), VALUE_INTEGER);
    else if (json_is_real(value))
        opts_put(opts, prefix, xasprintf("%.17g", json_real_value(value)), VALUE_REAL);
    else if (json_is_boolean(value))
        opts_put(opts, prefix, xstrdup(json_is_true(value) ? "on" : "off"), VALUE_BOOL);
    else
        opts_put(opts, prefix, xstrdup(""), VALUE_NULL);
    return 0;
}

int opts_from_json(struct opts *opts, const json_t *object, struct error **errp)
{
    if (!json_is_object(object))
        return error_set(errp, -EINVAL, "Invalid JSON object given");
    return flatten(opts, "", object, 0, errp);
}

/* JSON text with '…' strings turned into "…" strings; everything else as it is. */
static char *normalise_quotes(const char *text)
{
    char *out = xmalloc(strlen(text) * 2 + 1); /* each character becomes two at most */
    char *to = out;
    char quote = '\0';
    for (const char *p = text; *p; p++) {
        if (!quote) {
            quote = *p == '"' || *p == '\'' ? *p : '\0';
            *to++ = quote ? '"' : *p;
        } else if (*p == '\\' && p[1]) {
            if (*++p != '\'')
                *to++ = '\\';
            *to++ = *p;
        } else if (*p == quote) {
            quote = '\0';
            *to++ = '"';
        } else {
            if (*p == '"')
                *to++ = '\\';
            *to++ = *p;
        }
    }
    *to = '\0';
    return out;
}

static int report_parse_error(const char *text, const json_error_t *error, struct error **errp)
{
    if (!text[strspn(text, " \t\r\n")])
        return error_set(errp, -EINVAL, "Expecting a JSON value");
    switch (json_error_code(error)) {
    case json_error_premature_end_of_input: return error_set(errp, -EINVAL, "JSON parse error, premature EOI");
    case json_error_end_of_input_expected: return error_set(errp, -EINVAL, "Expecting at most one JSON value");
    case json_error_duplicate_key: return error_set(errp, -EINVAL, "JSON parse error, duplicate key");
    default: return error_set(errp, -EINVAL, "JSON parse error, %s", error->text);
    }
}

int opts_parse_json(struct opts *opts, const char *text, struct error **errp)
{
    json_error_t error;
    char *normal = normalise_quotes(text);
    json_t *value = json_loads(normal, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    free(normal);
    if (!value)
        return report_parse_error(text, &error, errp);
    int ret = opts_from_json(opts, value, errp);
    json_decref(value);
    return ret;
}

static json_t *to_json_value(const struct opt *opt)
{
    switch (opt->kind) {
    case VALUE_INTEGER: return json_integer(strtoll(opt->value, NULL, 10));
    case VALUE_REAL: return json_real(strtod(opt->value, NULL));
    case VALUE_BOOL: return json_boolean(!strcmp(opt->value, "on"));
    case VALUE_NULL: return json_null();
    case VALUE_TEXT: break;
    }
    AUTO_FREE char *text = utf8_clean(opt->value); /* a file name may be any bytes, JSON text may not */
    return json_string(text);
}

json_t *opts_json_value(const struct opts *opts, const char *key)
{
    const struct opt *opt = opts_lookup(opts, key);
    return opt ? to_json_value(opt) : NULL;
}

/* Fails where the name is no UTF-8. */
static int make_member(json_t *object, const char *name)
{
    return json_object_get(object, name) ? 0 : json_object_set_new(object, name, json_object());
}

/*
 * Goes down one object a dot. Where the way down is a plain value of its own (`a=1,a.b=2`) or the depth limit is
 * reached, the rest of the key stays one dotted name, so that nothing is lost and the result flattens to the same set.
 */
static void nest(const struct opts *opts, json_t *object, const struct opt *opt)
{
    const char *name = opt->key;
    const char *dot;
    for (int depth = 1; depth < MAX_DEPTH && (dot = strchr(name, '.')) && dot > name && dot[1];
         depth++, name = dot + 1) {
        char *path AUTO_FREE = xasprintf("%.*s", (int)(dot - opt->key), opt->key);
        const char *part = path + (name - opt->key);
        if (opts_lookup(opts, path) || make_member(object, part) < 0)
            break;
        object = json_object_get(object, part);
    }
    if (json_object_set_new(object, name, to_json_value(opt)) < 0)
        json_object_set_new(object, "?", to_json_value(opt)); /* no UTF-8 */
}

/* Objects with the keys 0 to n-1 become lists, from the leaves up. Nesting is at most as deep as a key has dots. */
static json_t *listify(json_t *value)
{
    const char *name;
    json_t *member;
    void *tmp;
    bool is_list = json_object_size(value) > 0;
    if (!json_is_object(value))
        return json_incref(value);
    json_object_foreach_safe(value, tmp, name, member) { json_object_set_new(value, name, listify(member)); }
    for (size_t i = 0; is_list && i < json_object_size(value); i++) {
        char index[24];
        snprintf(index, sizeof(index), "%zu", i);
        is_list = json_object_get(value, index) != NULL;
    }
    if (!is_list)
        return json_incref(value);
    json_t *list = json_array();
    for (size_t i = 0; i < json_object_size(value); i++) {
        char index[24];
        snprintf(index, sizeof(index), "%zu", i);
        json_array_append(list, json_object_get(value, index));
    }
    return list;
}

json_t *opts_to_json(const struct opts *opts)
{
    json_t *object = json_object();
    for (size_t i = 0; i < opts->count; i++)
        nest(opts, object, &opts->items[i]);
    const char *name;
    json_t *member;
    void *tmp;
    json_object_foreach_safe(object, tmp, name, member) { json_object_set_new(object, name, listify(member)); }
    return object;
}
