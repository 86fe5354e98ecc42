/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* entropy.c: is it worth while to compress this? */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Deflate with a window of 4 KiB would save less than about half a percent: the bytes are evenly spread, and what they
 * repeat is next to nothing. Of short data it is never said. Pure. */
bool qcow2_looks_random(const uint8_t *data, size_t length);
