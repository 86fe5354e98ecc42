/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The text of -object: read from a copy that is wiped, while what is secret in the text itself is overwritten.
 *
 * Overwritten is the value of every `data=`, wherever it stands, and what follows it without a '=', which is the rest
 * of a password whose comma was not doubled. Of JSON everything is overwritten if it mentions "data" or has an escape
 * that could hide the word. Invariant: no message of this file contains a part of the text but names of keys.
 */
#include <objects/object.h>

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN '*'

static void hide(char *text, size_t length) { memset(text, HIDDEN, length); }

/* The length of a value: up to a single comma. */
static size_t value_length(const char *text)
{
    size_t length = 0;
    while (text[length] && (text[length] != ',' || text[length + 1] == ','))
        length += text[length] == ',' ? 2 : 1;
    return length;
}

static void hide_values(char *text)
{
    for (char *at = strstr(text, "data="); at; at = strstr(at, "data=")) {
        at += strlen("data=");
        size_t length = value_length(at);
        hide(at, length);
        at += length;
        while (*at == ',') {
            length = value_length(at + 1);
            if (memchr(at + 1, '=', length))
                break;
            hide(at + 1, length);
            at += 1 + length;
        }
    }
}

/* `key` alone is no option of an object. */
static int check_pairs(const char *text, struct error **errp)
{
    const char *at = text + value_length(text); /* the first may be the kind alone */
    while (*at == ',' && at[1]) {
        size_t length = value_length(++at), key = strcspn(at, "=,");
        if (key >= length) {
            if (strstr(text, "data="))
                return error_set(errp, -EINVAL,
                                 "Expected '=' after every parameter; a comma in a value is written twice");
            return error_set(errp, -EINVAL, "Expected '=' after parameter '%.*s'", (int)length, at);
        }
        at += length;
    }
    return 0;
}

static int parse_copy(struct opts *opts, const char *text, struct error **errp)
{
    if (*text == '{') {
        /* The words of the JSON parser may quote the text. */
        struct error *error = NULL;
        int err = opts_parse_json(opts, text, &error);
        if (err)
            error_set(errp, err, strstr(text, "data") || strchr(text, '\\') ? "Invalid JSON syntax" : "%s",
                      error_text(error));
        error_free(error);
        return err;
    }
    int err = check_pairs(text, errp);
    return err ? err : opts_parse(opts, text, "qom-type", OPTS_LAST_WINS, errp);
}

struct opts *object_parse(char *text, struct error **errp)
{
    struct opts *opts = opts_new();
    char *copy = xstrdup(text);
    if (*text != '{')
        hide_values(text);
    else if (strstr(text, "data") || strchr(text, '\\'))
        hide(text, strlen(text));
    int err = parse_copy(opts, copy, errp);
    explicit_bzero(copy, strlen(copy));
    free(copy);
    if (!err)
        return opts;
    opts_free(opts);
    return NULL;
}
