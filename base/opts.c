/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The set of options, and its `key=value,key=value` form.
 *
 * Keys are unique and keep the order in which they came. A value remembers its origin (text or JSON type) and whether
 * it has been consumed; opts_typed.c reads values through a table, opts_json.c goes from and to JSON.
 */
#include "opts_internal.h"

#include <base/compiler.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct opts *opts_new(void) { return xcalloc(1, sizeof(struct opts)); }

/* A value may be a password. */
static void free_value(char *value)
{
    explicit_bzero(value, strlen(value));
    free(value);
}

void opts_free(struct opts *opts)
{
    if (!opts)
        return;
    for (size_t i = 0; i < opts->count; i++) {
        free(opts->items[i].key);
        free_value(opts->items[i].value);
    }
    free(opts->items);
    free(opts);
}

struct opt *opts_lookup(const struct opts *opts, const char *key)
{
    for (size_t i = 0; i < opts->count; i++) {
        if (!strcmp(opts->items[i].key, key))
            return &opts->items[i];
    }
    return NULL;
}

void opts_put(struct opts *opts, const char *key, char *value, enum value_kind kind)
{
    struct opt *opt = opts_lookup(opts, key);
    if (opt) {
        free_value(opt->value);
    } else {
        if (opts->count == opts->capacity) {
            opts->capacity = opts->capacity ? opts->capacity * 2 : 8;
            opts->items = xrealloc(opts->items, opts->capacity * sizeof(*opts->items));
        }
        opt = &opts->items[opts->count++];
        opt->key = xstrdup(key);
    }
    opt->value = value;
    opt->kind = kind;
    opt->consumed = false;
}

/* The pair's memory is the caller's afterwards. */
static struct opt remove_at(struct opts *opts, size_t index)
{
    struct opt opt = opts->items[index];
    memmove(&opts->items[index], &opts->items[index + 1], (opts->count - index - 1) * sizeof(opt));
    opts->count--;
    return opt;
}

struct opts *opts_clone(const struct opts *opts)
{
    struct opts *clone = opts_new();
    for (size_t i = 0; i < opts->count; i++) {
        const struct opt *opt = &opts->items[i];
        opts_put(clone, opt->key, xstrdup(opt->value), opt->kind);
        clone->items[i].consumed = opt->consumed;
    }
    return clone;
}

/* Reads up to a single comma, a doubled one being part of the text. Moves *text past the comma. */
static char *parse_value(const char **text)
{
    char *value = xmalloc(strlen(*text) + 1);
    char *to = value;
    const char *p = *text;
    for (; *p; p++) {
        if (*p == ',') {
            if (p[1] != ',') {
                p++;
                break;
            }
            p++;
        }
        *to++ = *p;
    }
    *to = '\0';
    *text = p;
    return value;
}

/* `name` alone is name=on, `noname` is name=off. Takes `word`. */
static void parse_switch(char *word, bool warn, char **key, char **value)
{
    bool off = !strncmp(word, "no", 2);
    *key = xstrdup(off ? word + 2 : word);
    *value = xstrdup(off ? "off" : "on");
    if (warn && *word && strcmp(word, "help") != 0) {
        warn_report("short-form boolean option '%s' deprecated", word);
        fprintf(stderr, "Please use %s=%s instead\n", *key, *value);
    }
    free(word);
}

/* One `key=value`, `key` or implied value. On return *key and *value belong to the caller. */
static void parse_pair(const char **text, const char *implied, bool warn, char **key, char **value)
{
    size_t length = strcspn(*text, "=,");
    if ((*text)[length] == '=') {
        *key = xasprintf("%.*s", (int)length, *text);
        *text += length + 1;
        *value = parse_value(text);
    } else if (implied) {
        *key = xstrdup(implied);
        *value = parse_value(text);
    } else {
        char *word = xasprintf("%.*s", (int)length, *text);
        *text += length + ((*text)[length] == ',');
        parse_switch(word, warn, key, value);
    }
}

int opts_parse(struct opts *opts, const char *text, const char *implied, unsigned flags, struct error **errp)
{
    size_t before = opts->count;
    while (*text) {
        char *key, *value;
        int ret = 0;
        parse_pair(&text, implied, flags & OPTS_WARN_SHORT, &key, &value);
        implied = NULL;
        if (!*key)
            ret = error_set(errp, -EINVAL, "Invalid parameter ''");
        else if (!(flags & OPTS_LAST_WINS) && opts_lookup(opts, key))
            ret = error_set(errp, -EINVAL, "Parameter '%s' is given more than once", key);
        if (ret == 0)
            opts_put(opts, key, value, VALUE_TEXT);
        else
            free(value);
        free(key);
        if (ret < 0) {
            while (opts->count > before) { /* leave no half of a bad text behind */
                struct opt opt = remove_at(opts, opts->count - 1);
                free(opt.key);
                free(opt.value);
            }
            return ret;
        }
    }
    return 0;
}

void opts_set(struct opts *opts, const char *key, const char *value)
{
    opts_put(opts, key, xstrdup(value), VALUE_TEXT);
}

void opts_set_bool(struct opts *opts, const char *key, bool value)
{
    opts_put(opts, key, xstrdup(value ? "on" : "off"), VALUE_BOOL);
}

void opts_set_number(struct opts *opts, const char *key, int64_t value)
{
    opts_put(opts, key, xasprintf("%" PRId64, value), VALUE_INTEGER);
}

char *opts_take(struct opts *opts, const char *key)
{
    struct opt *opt = opts_lookup(opts, key);
    if (!opt)
        return NULL;
    struct opt taken = remove_at(opts, (size_t)(opt - opts->items));
    free(taken.key);
    return taken.value;
}

const char *opts_key(const struct opts *opts, size_t index)
{
    return index < opts->count ? opts->items[index].key : NULL;
}

void opts_copy(struct opts *opts, const struct opts *from, const char *key)
{
    const struct opt *opt = opts_lookup(from, key);

    opts_put(opts, key, xstrdup(opt->value), opt->kind);
}

bool opts_del(struct opts *opts, const char *key)
{
    char *value = opts_take(opts, key);
    free(value);
    return value != NULL;
}

const char *opts_text(const struct opts *opts, const char *key)
{
    const struct opt *opt = opts_lookup(opts, key);
    return opt ? opt->value : NULL;
}

bool opts_has(const struct opts *opts, const char *key) { return opts_lookup(opts, key) != NULL; }

static bool below_prefix(const char *key, const char *prefix, size_t length)
{
    return !strncmp(key, prefix, length) && key[length] == '.' && key[length + 1];
}

bool opts_has_prefix(const struct opts *opts, const char *prefix)
{
    size_t length = strlen(prefix);
    for (size_t i = 0; i < opts->count; i++) {
        if (below_prefix(opts->items[i].key, prefix, length))
            return true;
    }
    return false;
}

size_t opts_count(const struct opts *opts) { return opts->count; }

void opts_each(const struct opts *opts, void (*fn)(const char *key, const char *value, void *arg), void *arg)
{
    for (size_t i = 0; i < opts->count; i++)
        fn(opts->items[i].key, opts->items[i].value, arg);
}

struct opts *opts_take_prefix(struct opts *opts, const char *prefix)
{
    struct opts *taken = opts_new();
    size_t length = strlen(prefix);
    for (size_t i = 0; i < opts->count;) {
        if (!below_prefix(opts->items[i].key, prefix, length)) {
            i++;
            continue;
        }
        struct opt opt = remove_at(opts, i);
        opts_put(taken, opt.key + length + 1, opt.value, opt.kind);
        free(opt.key);
    }
    return taken;
}

const char *opts_unused(const struct opts *opts)
{
    for (size_t i = 0; i < opts->count; i++) {
        if (!opts->items[i].consumed)
            return opts->items[i].key;
    }
    return NULL;
}
