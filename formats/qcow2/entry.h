/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An L2 entry: what it says of one guest cluster. Everything that reads or makes entries does so through this file, so
 * that the bitmap of sub-clusters, which extended L2 entries have beside the word, has one place to come to.
 */
#pragma once

#include "format.h"

#include <base/endian.h>

struct qcow2_entry {
    uint64_t word; /* host order */
};

/* Bytes that an entry takes in an L2 table: log2 of them. */
#define QCOW2_ENTRY_SHIFT 3u

enum qcow2_kind { QCOW2_UNALLOCATED, QCOW2_ZERO_PLAIN, QCOW2_ZERO_ALLOCATED, QCOW2_NORMAL, QCOW2_IS_COMPRESSED };

/* ---- what it says ---- */

/* Host bytes; 0 if the entry names no place, or the first one of an external data file. Not for compressed ones. */
static inline uint64_t qcow2_entry_host(struct qcow2_entry entry) { return entry.word & QCOW2_OFFSET_MASK; }

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
static inline bool qcow2_entry_equal(struct qcow2_entry a, struct qcow2_entry b) { return a.word == b.word; }

/* The place of a compressed cluster: bytes, the last sector counted whole. */
void qcow2_entry_compressed_place(struct qcow2_entry entry, unsigned cluster_bits, uint64_t *offset, uint64_t *length);

/* ---- making one ---- */

static inline struct qcow2_entry qcow2_entry_absent(void) { return (struct qcow2_entry){ 0 }; }
static inline struct qcow2_entry qcow2_entry_zero(void) { return (struct qcow2_entry){ QCOW2_ZERO }; }
/* A compressed one at these host bytes, 0 < length <= a cluster. */
struct qcow2_entry qcow2_entry_compressed(uint64_t offset, uint64_t length, unsigned cluster_bits);
/* Where a compressed cluster can end at most. */
static inline uint64_t qcow2_entry_compressed_end(unsigned cluster_bits)
{
    return UINT64_C(1) << (62 - (cluster_bits - 8));
}
/* A cluster of our own with data. */
static inline struct qcow2_entry qcow2_entry_data(uint64_t host) { return (struct qcow2_entry){ host | QCOW2_COPIED }; }
/* Reading as zeroes, its place kept. */
static inline struct qcow2_entry qcow2_entry_zeroed(struct qcow2_entry entry)
{
    return (struct qcow2_entry){ entry.word | QCOW2_ZERO };
}
static inline struct qcow2_entry qcow2_entry_with_copied(struct qcow2_entry entry, bool copied)
{
    return (struct qcow2_entry){ copied ? entry.word | QCOW2_COPIED : entry.word & ~QCOW2_COPIED };
}

/* Without an external data file the flag means nothing where no place is named: it goes. */
static inline struct qcow2_entry qcow2_entry_normal(struct qcow2_entry entry, bool external)
{
    bool pointless = !external && !(entry.word & (QCOW2_OFFSET_MASK | QCOW2_COMPRESSED));

    return pointless ? qcow2_entry_with_copied(entry, false) : entry;
}

/* ---- in a table as it lies on disk; external: its image has an external data file ---- */

static inline struct qcow2_entry qcow2_entry_load(const uint64_t *table, uint64_t index, bool external)
{
    return qcow2_entry_normal((struct qcow2_entry){ be64toh(table[index]) }, external);
}
static inline void qcow2_entry_store(uint64_t *table, uint64_t index, struct qcow2_entry entry)
{
    table[index] = htobe64(entry.word);
}
