/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bytes that are secret: in pages of their own, locked if the limit allows, not in core dumps, wiped when they go. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct locked {
    uint8_t *data; /* a zero byte follows the last one */
    size_t length, room;
};

/* Makes room for `length` bytes behind those that are there, and returns where; NULL if there is no memory. The length
 * does not change. */
uint8_t *locked_reserve(struct locked *locked, size_t length);
bool locked_append(struct locked *locked, const void *data, size_t length);
/* Wipes and gives back; the struct is empty afterwards. */
void locked_free(struct locked *locked);
