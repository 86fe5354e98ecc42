/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Printing JSON trees in QEMU's two layouts. */
#pragma once

#include <jansson.h>
#include <stdio.h>

/* Adds a name that may be any bytes; NULL adds nothing. */
void json_add_name(json_t *object, const char *key, const char *name);
/* As --output=json prints: 4 spaces a level, `"key": value`, insertion order, escapes as \u00E4; a line feed at the
 * end. */
void json_print(const json_t *value, FILE *out);
/* As `info` prints format-specific information: `key: value` lines, `-` in keys as a blank; lists as `[0]:`. */
void json_print_human(const json_t *value, int indent, FILE *out);
