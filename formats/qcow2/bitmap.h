/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bitmap.c: the directory of persistent dirty bitmaps. */
#pragma once

#include "state.h"

#define QCOW2_MAX_BITMAP_DIRECTORY (UINT64_C(64) << 20)
#define QCOW2_MAX_BITMAP_TABLE (UINT64_C(64) << 20)

/* Table offset (8), table entries (4), flags (4), type, granularity, name length (2), extra length (4); then the extra
 * data and the name. */
#define QCOW2_BITMAP_ENTRY 24u

/* An entry; the name points into the directory. */
struct qcow2_bitmap {
    uint64_t table_offset;
    uint32_t table_entries, flags;
    uint8_t type, granularity_bits;
    uint16_t name_length;
    const char *name; /* no terminator */
};

/* Are there any? What the header's extension says counts while the autoclear bit is set. */
bool qcow2_has_bitmaps(const struct qcow2 *s);
/* The directory's bytes, s->bitmap_directory_size of them; the caller frees them. -EFBIG: more than one can have. */
coroutine_fn int qcow2_co_bitmap_directory(struct qcow2 *s, uint8_t **directory);
/* The entry at *at, which moves on to the next. false: the end, or an entry that reaches past it. */
bool qcow2_bitmap_next(const uint8_t *directory, uint64_t size, uint64_t *at, struct qcow2_bitmap *bitmap);
