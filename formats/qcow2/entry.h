/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An L2 entry: what it says of one guest cluster. Everything that reads or makes entries does so through this file.
 *
 * An extended entry has a bitmap beside the word: for each of the cluster's 32 subclusters whether it is allocated (the
 * low half) or reads as zeroes (the high half); neither: it is not there. Bit 0 of the word says nothing then. In other
 * images the bitmap is always 0.
 */
#pragma once

#include "format.h"

#include <base/endian.h>

struct qcow2_entry {
    uint64_t word, subclusters; /* host order */
};

#define QCOW2_SUBCLUSTERS 32u

/* How an image's entries lie in its tables. */
struct qcow2_layout {
    bool extended; /* with bitmaps of subclusters */
    bool external; /* they name places in an external data file */
};

/* Bytes that an entry takes in an L2 table: log2 of them. */
static inline unsigned qcow2_entry_shift(bool extended) { return extended ? 4 : 3; }

enum qcow2_kind { QCOW2_UNALLOCATED, QCOW2_ZERO_PLAIN, QCOW2_ZERO_ALLOCATED, QCOW2_NORMAL, QCOW2_IS_COMPRESSED };

/* ---- what it says ---- */

/* Host bytes; 0 if the entry names no place, or the first one of an external data file. Not for compressed ones. */
static inline uint64_t qcow2_entry_host(struct qcow2_entry entry) { return entry.word & QCOW2_OFFSET_MASK; }

/* Of the whole cluster; of an extended entry: whether it has a cluster, or is compressed. */
static inline enum qcow2_kind qcow2_entry_kind(struct qcow2_entry entry)
{
    if (entry.word & QCOW2_COMPRESSED)
        return QCOW2_IS_COMPRESSED;
    if (entry.word & QCOW2_ZERO)
        return qcow2_entry_host(entry) ? QCOW2_ZERO_ALLOCATED : QCOW2_ZERO_PLAIN;
    /* Place 0 with the flag: the first cluster of an external data file. */
    return entry.word & (QCOW2_OFFSET_MASK | QCOW2_COPIED) ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
}

/* Does it name a whole host cluster, with data or reading as zeroes? */
static inline bool qcow2_entry_has_cluster(struct qcow2_entry entry)
{
    enum qcow2_kind kind = qcow2_entry_kind(entry);

    return kind == QCOW2_NORMAL || kind == QCOW2_ZERO_ALLOCATED;
}

/* The active layer owns the cluster alone: its refcount is one. */
static inline bool qcow2_entry_copied(struct qcow2_entry entry) { return entry.word & QCOW2_COPIED; }
static inline bool qcow2_entry_zero_flag(struct qcow2_entry entry)
{
    return !(entry.word & QCOW2_COMPRESSED) && (entry.word & QCOW2_ZERO);
}
static inline bool qcow2_entry_reserved_bits(struct qcow2_entry entry) { return entry.word & QCOW2_L2_RESERVED; }
static inline bool qcow2_entry_equal(struct qcow2_entry a, struct qcow2_entry b)
{
    return a.word == b.word && a.subclusters == b.subclusters;
}

/* ---- subclusters ---- */

static inline uint32_t qcow2_entry_allocated(struct qcow2_entry entry) { return (uint32_t)entry.subclusters; }
static inline uint32_t qcow2_entry_zeroes(struct qcow2_entry entry) { return (uint32_t)(entry.subclusters >> 32); }
static inline uint64_t qcow2_subclusters(uint32_t allocated, uint32_t zeroes)
{
    return (uint64_t)zeroes << 32 | allocated;
}
/* What an extended entry says of its subcluster. */
static inline enum qcow2_kind qcow2_entry_kind_of(struct qcow2_entry entry, unsigned subcluster)
{
    enum qcow2_kind kind = qcow2_entry_kind(entry);

    if (kind == QCOW2_IS_COMPRESSED)
        return kind;
    if (qcow2_entry_allocated(entry) >> subcluster & 1)
        return QCOW2_NORMAL;
    if (qcow2_entry_zeroes(entry) >> subcluster & 1)
        return kind == QCOW2_NORMAL ? QCOW2_ZERO_ALLOCATED : QCOW2_ZERO_PLAIN;
    return QCOW2_UNALLOCATED;
}
/* Can an extended entry's bitmap be? A compressed cluster has none, whatever is there. */
static inline bool qcow2_entry_subclusters_valid(struct qcow2_entry entry)
{
    enum qcow2_kind kind = qcow2_entry_kind(entry);

    if (kind == QCOW2_IS_COMPRESSED)
        return true;
    return !(qcow2_entry_allocated(entry) & qcow2_entry_zeroes(entry)) &&
           (kind == QCOW2_NORMAL || qcow2_entry_allocated(entry) == 0);
}

/* The place of a compressed cluster: bytes, the last sector counted whole. */
void qcow2_entry_compressed_place(struct qcow2_entry entry, unsigned cluster_bits, uint64_t *offset, uint64_t *length);

/* ---- making one ---- */

static inline struct qcow2_entry qcow2_entry_absent(void) { return (struct qcow2_entry){ 0, 0 }; }
static inline struct qcow2_entry qcow2_entry_zero(bool extended)
{
    return extended ? (struct qcow2_entry){ 0, qcow2_subclusters(0, UINT32_MAX) }
                    : (struct qcow2_entry){ QCOW2_ZERO, 0 };
}
/* A compressed one at these host bytes, 0 < length <= a cluster. */
struct qcow2_entry qcow2_entry_compressed(uint64_t offset, uint64_t length, unsigned cluster_bits);
/* Where a compressed cluster can end at most. */
static inline uint64_t qcow2_entry_compressed_end(unsigned cluster_bits)
{
    return UINT64_C(1) << (62 - (cluster_bits - 8));
}
/* A cluster of our own with data; all of it, or these subclusters. */
static inline struct qcow2_entry qcow2_entry_data(uint64_t host, uint64_t subclusters)
{
    return (struct qcow2_entry){ host | QCOW2_COPIED, subclusters };
}
/* Reading as zeroes, its place kept. Not extended. */
static inline struct qcow2_entry qcow2_entry_zeroed(struct qcow2_entry entry)
{
    return (struct qcow2_entry){ entry.word | QCOW2_ZERO, 0 };
}
/* The same of these subclusters. */
static inline struct qcow2_entry qcow2_entry_zeroed_in(struct qcow2_entry entry, uint32_t which)
{
    uint32_t allocated = qcow2_entry_allocated(entry) & ~which, zeroes = qcow2_entry_zeroes(entry) | which;

    return (struct qcow2_entry){ entry.word, qcow2_subclusters(allocated, zeroes) };
}
static inline struct qcow2_entry qcow2_entry_with_copied(struct qcow2_entry entry, bool copied)
{
    entry.word = copied ? entry.word | QCOW2_COPIED : entry.word & ~QCOW2_COPIED;
    return entry;
}

/* As it is read: without an external data file the flag means nothing where no place is named, and in an extended entry
 * bit 0 never does. */
static inline struct qcow2_entry qcow2_entry_normal(struct qcow2_entry entry, struct qcow2_layout layout)
{
    bool compressed = entry.word & QCOW2_COMPRESSED;

    if (layout.extended && !compressed)
        entry.word &= ~QCOW2_ZERO;
    if (!layout.external && !compressed && !(entry.word & QCOW2_OFFSET_MASK))
        entry.word &= ~QCOW2_COPIED;
    return entry;
}

/* ---- in a table as it lies on disk ---- */

static inline struct qcow2_entry qcow2_entry_load(const uint64_t *table, uint64_t index, struct qcow2_layout layout)
{
    const uint64_t *at = table + (layout.extended ? index * 2 : index);
    struct qcow2_entry entry = { be64toh(at[0]), layout.extended ? be64toh(at[1]) : 0 };

    return qcow2_entry_normal(entry, layout);
}
static inline void qcow2_entry_store(uint64_t *table, uint64_t index, struct qcow2_entry entry,
                                     struct qcow2_layout layout)
{
    uint64_t *at = table + (layout.extended ? index * 2 : index);

    at[0] = htobe64(entry.word);
    if (layout.extended)
        at[1] = htobe64(entry.subclusters);
}
