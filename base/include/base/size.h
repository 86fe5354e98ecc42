/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes as people write and read them. Any thread. */
#pragma once

#include <base/error.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Parses a size in bytes with an optional suffix k/K, M, G, T, P, E (powers of 1024; b/B is bytes) and an optional
 * fraction ("1.5G"), or a hexadecimal number, as qemu-img does; with a suffix (k, M, G, T, P) that prints its warning.
 * `default_suffix` multiplies a decimal number that has none ('B' for bytes, 'M' as in `-m`). The whole text must be
 * used. Returns 0, -EINVAL (not a size) or -ERANGE (negative, or 2^63 and more).
 */
int size_parse(const char *text, char default_suffix, uint64_t *out);

/* "1.5 GiB", "196 KiB", "0 B": three significant digits, as `qemu-img info` prints sizes. Writes into buf, returns
 * buf. */
char *size_format(uint64_t bytes, char *buf, size_t buf_size);
