/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Arithmetic on numbers that nobody vouches for (from an image, a guest, a server, a person). Each function returns
 * true and leaves the result in *out, or false where it does not fit. Inline, any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline bool checked_sub(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_sub_overflow(a, b, out); }
static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *out) { return !__builtin_mul_overflow(a, b, out); }

/* Is [offset, offset + length) inside [0, end)? An empty range at the end is inside. */
static inline bool range_inside(uint64_t offset, uint64_t length, uint64_t end)
{
    return offset <= end && length <= end - offset;
}

/* Do [a, a + a_length) and [b, b + b_length) share a byte? An empty range shares nothing. Neither range may wrap. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
    return a_length && b_length && a < b + b_length && b < a + a_length;
}

/* `alignment` is a power of two. align_up() wraps where value is within alignment of 2^64: check the value first. */
static inline uint64_t align_down(uint64_t value, uint64_t alignment) { return value & ~(alignment - 1); }
static inline uint64_t align_up(uint64_t value, uint64_t alignment)
{
    return (value + alignment - 1) & ~(alignment - 1);
}
static inline bool is_aligned(uint64_t value, uint64_t alignment) { return (value & (alignment - 1)) == 0; }
static inline bool is_power_of_two(uint64_t value) { return value && (value & (value - 1)) == 0; }
static inline uint64_t div_round_up(uint64_t value, uint64_t divisor)
{
    return value / divisor + (value % divisor != 0);
}
static inline unsigned log2_floor(uint64_t value) { return 63u - (unsigned)__builtin_clzll(value); } /* value != 0 */
