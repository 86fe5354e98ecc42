/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bitmap.c: the directory of persistent dirty bitmaps. */
#pragma once

#include "state.h"

#define QCOW2_MAX_BITMAP_DIRECTORY (UINT64_C(64) << 20)
#define QCOW2_MAX_BITMAP_TABLE (UINT64_C(64) << 20)

/* Table offset (8), table entries (4), flags (4), type, granularity, name length (2), extra length (4); then the extra
 * data and the name. */
#define QCOW2_BITMAP_ENTRY 24u

#define QCOW2_BITMAP_TYPE_DIRTY 1u
#define QCOW2_MAX_BITMAPS 65535u
/* An entry's flags. */
#define QCOW2_BITMAP_IN_USE (1u << 0)           /* not written back: it says nothing */
#define QCOW2_BITMAP_AUTO (1u << 1)             /* changes are recorded */
#define QCOW2_BITMAP_EXTRA_COMPATIBLE (1u << 2) /* who does not know the extra data may use it */
#define QCOW2_BITMAP_KNOWN_FLAGS (QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO | QCOW2_BITMAP_EXTRA_COMPATIBLE)
/* A bitmap table's entry without an offset: its bits are all clear, or all set. */
#define QCOW2_BITMAP_ALL_ONES UINT64_C(1)
#define QCOW2_BITMAP_TABLE_RESERVED UINT64_C(0xff000000000001fe)

/* An entry; name and extra data point into the directory. */
struct qcow2_bitmap {
    uint64_t table_offset;
    uint32_t table_entries, flags, extra_length;
    uint8_t type, granularity_bits;
    uint16_t name_length;
    const uint8_t *extra;
    const char *name; /* no terminator */
};

/* Are there any? What the header's extension says counts while the autoclear bit is set. */
bool qcow2_has_bitmaps(const struct qcow2 *s);
/* The directory's bytes, s->bitmap_directory_size of them; the caller frees them. -EFBIG: more than one can have. */
coroutine_fn int qcow2_co_bitmap_directory(struct qcow2 *s, uint8_t **directory);
/* The entry at *at, which moves on to the next. false: the end, or an entry that reaches past it. */
bool qcow2_bitmap_next(const uint8_t *directory, uint64_t size, uint64_t *at, struct qcow2_bitmap *bitmap);
