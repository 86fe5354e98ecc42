/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes and numbers on the command line, refused with QEMU's words. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Parses a size in [min, max] (max at most INT64_MAX). `what` is the "start offset" of "Invalid start offset
 * specified." Returns false after reporting. */
bool img_size_arg(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *out);
/* Parses a whole number in [0, max]; no words of its own. */
bool img_number_arg(const char *text, uint64_t max, uint64_t *out);
