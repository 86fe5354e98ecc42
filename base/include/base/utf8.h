/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Text that may be any bytes, such as a file name, as Unicode. From memory, any thread. */
#pragma once

#include <stdint.h>

/* What stands for bytes that are no UTF-8. */
#define UTF8_REPLACEMENT 0xfffdu

/* The character at `text`, which is not the end of it; *next is behind it. UTF8_REPLACEMENT stands for a malformed
 * sequence: a lead byte with those of the bytes it asks for that are there. Also for what is no character:
 * surrogates, too large numbers, sequences that are longer than they need to be, U+FFFE and the like. */
uint32_t utf8_decode(const char *text, const char **next);
/* A copy that is valid UTF-8, with U+FFFD for what is not. The caller frees it. */
char *utf8_clean(const char *text);
