/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * JSON in QEMU's layout, so that a script that compares text sees no difference: one item a line, also in lists; an
 * empty list is "[\n    ]"; characters beyond ASCII are \uXXXX. A name may be any bytes (json_add_name()): what is no
 * UTF-8 becomes \uFFFD here, and is printed as it is for people. Trees come from drivers, never from images: their
 * depth is bounded by the code that builds them.
 */
#include "json_out.h"

#include <base/utf8.h>

#include <string.h>

enum { INDENT = 4 };

static void print_string(const char *text, FILE *out)
{
    static const char escapes[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    fputc('"', out);
    while (*text) {
        uint32_t code = utf8_decode(text, &text);
        const char *escape = code < 0x80 ? strchr(escapes, (int)code) : NULL;
        if (escape)
            fprintf(out, "\\%c", letters[escape - escapes]);
        else if (code >= 0x20 && code < 0x7f)
            fputc((int)code, out);
        else if (code >= 0x10000)
            fprintf(out, "\\u%04X\\u%04X", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + ((code - 0x10000) & 0x3ff));
        else
            fprintf(out, "\\u%04X", code);
    }
    fputc('"', out);
}

void json_add_name(json_t *object, const char *key, const char *name)
{
    if (name)
        json_object_set_new(object, key, json_string_nocheck(name));
}

static void print_value(const json_t *value, int indent, FILE *out);

static void print_items(const json_t *value, int indent, FILE *out)
{
    const char *separator = "\n";
    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++, separator = ",\n") {
            fprintf(out, "%s%*s", separator, indent, "");
            print_value(json_array_get(value, i), indent, out);
        }
        return;
    }
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)value, key, member)
    {
        fprintf(out, "%s%*s", separator, indent, "");
        print_string(key, out);
        fputs(": ", out);
        print_value(member, indent, out);
        separator = ",\n";
    }
}

static void print_value(const json_t *value, int indent, FILE *out)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
    case JSON_ARRAY:
        fputc(json_is_array(value) ? '[' : '{', out);
        print_items(value, indent + INDENT, out);
        fprintf(out, "\n%*s%c", indent, "", json_is_array(value) ? ']' : '}');
        break;
    case JSON_STRING: print_string(json_string_value(value), out); break;
    case JSON_INTEGER: fprintf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value)); break;
    case JSON_REAL: fprintf(out, "%.17g", json_real_value(value)); break;
    case JSON_TRUE: fputs("true", out); break;
    case JSON_FALSE: fputs("false", out); break;
    case JSON_NULL: fputs("null", out); break;
    }
}

void json_print(const json_t *value, FILE *out)
{
    print_value(value, 0, out);
    fputc('\n', out);
}

static void print_human_item(const char *label, const json_t *value, int indent, FILE *out)
{
    fprintf(out, "%*s%s:", indent, "", label);
    if (json_is_object(value) || json_is_array(value)) {
        fputc('\n', out);
        json_print_human(value, indent + INDENT, out);
        return;
    }
    fputc(' ', out);
    if (json_is_string(value))
        fputs(json_string_value(value), out);
    else
        print_value(value, 0, out);
    fputc('\n', out);
}

void json_print_human(const json_t *value, int indent, FILE *out)
{
    char label[128];
    if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            snprintf(label, sizeof(label), "[%zu]", i);
            print_human_item(label, json_array_get(value, i), indent, out);
        }
        return;
    }
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)value, key, member)
    {
        snprintf(label, sizeof(label), "%s", key);
        for (char *p = label; (p = strchr(p, '-'));)
            *p = ' ';
        print_human_item(label, member, indent, out);
    }
}
