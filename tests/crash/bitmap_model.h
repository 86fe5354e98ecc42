/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a dirty bitmap owes: a part of the disk that is not what it was when the bitmap was made is marked, or the
 * bitmap says that it says nothing. */
#pragma once

#include <base/checked.h>
#include <base/coroutine.h>
#include <block/bitmap.h>
#include <block/image.h>
#include <string.h>

static inline bool bitmap_marks(const struct blk_bitmap *bitmap, uint64_t offset)
{
    uint64_t bit = offset >> bitmap->granularity_bits;

    return atomic_load(&bitmap->words[bit / 64]) >> bit % 64 & 1;
}

/* The first sector that owes a mark and has none; -1: there is none. `bitmap` is in memory. */
static inline int64_t bitmap_misses(const struct blk_bitmap *bitmap, const uint8_t *before, const uint8_t *now,
                                    uint64_t length)
{
    for (uint64_t at = 0; at < length; at += 512) {
        if (memcmp(before + at, now + at, 512) != 0 && !bitmap_marks(bitmap, at))
            return (int64_t)(at / 512);
    }
    return -1;
}
