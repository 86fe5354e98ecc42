/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The hot path: from a guest range to an extent, from memory only.
 *
 * Takes no lock: the L1 table, the directory of slices and each entry are read by atomic loads, all inside the caller's
 * epoch. Runs of entries of one kind at consecutive places become one extent. A write maps only to clusters that the
 * active layer owns alone (the COPIED flag); a durable one only where the slice holds nothing that is not on disk yet.
 */
#include "driver.h"
#include "l2.h"

/* Longest run that one call looks at: bounds the time spent here. */
#define MAX_RUN_ENTRIES 1024u

static void set_extent(struct blk_extent *extent, enum blk_kind kind, unsigned flags, uint64_t length)
{
    extent->kind = kind;
    extent->flags = flags;
    extent->length = length;
    extent->child = NULL;
    extent->child_offset = 0;
}

/* No L2 table here: how far does that reach? */
static uint64_t absent_length(const struct qcow2 *s, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, at = (offset >> s->l1_shift) + 1;

    for (unsigned i = 0; i < 64 && (at << s->l1_shift) < end; i++, at++) {
        if (at < s->l1_size && (qcow2_l1_entry(s, at) & QCOW2_OFFSET_MASK))
            break;
    }
    return MIN(end, at << s->l1_shift) - offset;
}

/* Does the entry go on with the run: the same kind, at the next place where it has one? */
static inline bool continues(struct qcow2_entry entry, struct qcow2_entry first, uint64_t expected)
{
    enum qcow2_kind kind = qcow2_entry_kind(entry);

    if (kind != qcow2_entry_kind(first) || qcow2_entry_copied(entry) != qcow2_entry_copied(first))
        return false;
    return kind == QCOW2_UNALLOCATED || kind == QCOW2_ZERO_PLAIN || qcow2_entry_host(entry) == expected;
}

/* Bytes from offset on that form one run with `first`; goes on into the next slices where they are in memory. */
static uint64_t run_length(const struct qcow2 *s, struct qcow2_slice *slice, struct qcow2_entry first, uint64_t offset,
                           uint64_t length, bool one_slice)
{
    uint64_t start = qcow2_cluster_start(s, offset), end = offset + length;
    uint64_t expected = qcow2_entry_host(first), at = start;
    uint32_t index = qcow2_slice_index(s, offset);

    for (unsigned n = 0; n < MAX_RUN_ENTRIES; n++) {
        at += s->cluster_size;
        expected += s->cluster_size;
        if (at >= end)
            return length;
        if (++index == qcow2_slice_entries(s)) {
            index = 0;
            if (one_slice || (at >> s->l1_shift) >= s->l1_size)
                break;
            slice = qcow2_slice_find(s, at);
            if (!slice || slice->suspect)
                break;
        }
        if (!continues(qcow2_slice_entry(s, slice, index), first, expected))
            break;
    }
    return at - offset;
}

/* The same by subclusters, within the slice. */
static uint64_t run_of_subclusters(const struct qcow2 *s, const struct qcow2_slice *slice, struct qcow2_entry first,
                                   uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, at = align_down(offset, qcow2_sub_size(s));
    uint64_t slice_end = (slice->number + 1) << s->slice_shift, start = qcow2_cluster_start(s, offset);
    enum qcow2_kind kind = qcow2_kind_at(s, first, offset);
    struct qcow2_entry entry = first;
    bool placed = qcow2_entry_has_cluster(first);

    for (unsigned n = 0; n < MAX_RUN_ENTRIES; n++) {
        at += qcow2_sub_size(s);
        if (at >= end || at >= slice_end)
            break;
        if (qcow2_in_cluster(s, at) == 0)
            entry = qcow2_slice_entry(s, slice, qcow2_slice_index(s, at));
        uint64_t expected = qcow2_entry_host(first) + (qcow2_cluster_start(s, at) - start);
        if (qcow2_kind_at(s, entry, at) != kind || qcow2_entry_copied(entry) != qcow2_entry_copied(first) ||
            qcow2_entry_has_cluster(entry) != placed || (placed && qcow2_entry_host(entry) != expected))
            break;
    }
    return MIN(at, end) - offset;
}

/* The run of an extended entry's subclusters; an absent one may have a place too. */
static void describe_extended(const struct qcow2 *s, const struct qcow2_slice *slice, enum blk_op op, uint64_t offset,
                              uint64_t length, struct blk_extent *extent)
{
    unsigned changes = atomic_load_explicit(&slice->changes, memory_order_acquire);
    struct qcow2_entry entry = qcow2_slice_entry(s, slice, qcow2_slice_index(s, offset));
    enum qcow2_kind kind = qcow2_kind_at(s, entry, offset);
    bool placed = qcow2_entry_has_cluster(entry);

    if ((op == BLK_OP_WRITE && (kind != QCOW2_NORMAL || !qcow2_entry_copied(entry))) || changes % 2 ||
        !qcow2_entry_subclusters_valid(entry)) {
        set_extent(extent, BLK_SLOW, 0, length);
        return;
    }
    if (kind == QCOW2_IS_COMPRESSED) {
        set_extent(extent, BLK_SLOW, BLK_EXTENT_COMPRESSED, MIN(length, s->cluster_size - qcow2_in_cluster(s, offset)));
        return;
    }
    uint64_t run = run_of_subclusters(s, slice, entry, offset, length);
    unsigned flags = placed ? BLK_EXTENT_OFFSET_VALID : 0;
    switch (kind) {
    case QCOW2_NORMAL: set_extent(extent, BLK_DATA, 0, run); break;
    case QCOW2_UNALLOCATED: set_extent(extent, BLK_ABSENT, flags, run); break;
    default: set_extent(extent, BLK_ZERO, BLK_EXTENT_ALLOCATED | flags, run); break;
    }
    if (placed) {
        extent->child = qcow2_data_file(s);
        extent->child_offset = qcow2_entry_host(entry) + qcow2_in_cluster(s, offset);
    }
    /* One of the entries may have been looked at while it changed. */
    if (atomic_load_explicit(&slice->changes, memory_order_acquire) != changes)
        set_extent(extent, BLK_SLOW, 0, length);
}

static void describe(const struct qcow2 *s, struct qcow2_slice *slice, enum blk_op op, bool fua, uint64_t offset,
                     uint64_t length, struct blk_extent *extent)
{
    struct qcow2_entry entry = qcow2_slice_entry(s, slice, qcow2_slice_index(s, offset));
    uint64_t in_cluster = qcow2_in_cluster(s, offset);
    enum qcow2_kind kind = qcow2_entry_kind(entry);

    if (op == BLK_OP_WRITE && (kind != QCOW2_NORMAL || !qcow2_entry_copied(entry))) {
        set_extent(extent, BLK_SLOW, 0, length);
        return;
    }
    if (kind == QCOW2_IS_COMPRESSED) {
        set_extent(extent, BLK_SLOW, BLK_EXTENT_COMPRESSED, MIN(length, s->cluster_size - in_cluster));
        return;
    }
    uint64_t run = run_length(s, slice, entry, offset, length, fua);
    switch (kind) {
    case QCOW2_NORMAL: set_extent(extent, BLK_DATA, 0, run); break;
    case QCOW2_ZERO_PLAIN: set_extent(extent, BLK_ZERO, BLK_EXTENT_ALLOCATED, run); return;
    case QCOW2_ZERO_ALLOCATED: set_extent(extent, BLK_ZERO, BLK_EXTENT_ALLOCATED | BLK_EXTENT_OFFSET_VALID, run); break;
    default: set_extent(extent, BLK_ABSENT, 0, run); return;
    }
    extent->child = qcow2_data_file(s);
    extent->child_offset = qcow2_entry_host(entry) + in_cluster;
}

/* There is no L2 table, or its slice is not in memory. */
static __attribute__((noinline)) void set_without_slice(const struct qcow2 *s, enum blk_op op, uint64_t offset,
                                                        uint64_t length, struct blk_extent *extent)
{
    uint64_t l1_index = offset >> s->l1_shift, slice_size = UINT64_C(1) << s->slice_shift;

    if (l1_index < s->l1_size && (qcow2_l1_entry(s, l1_index) & QCOW2_OFFSET_MASK))
        set_extent(extent, BLK_SLOW, BLK_EXTENT_COLD, MIN(length, slice_size - (offset & (slice_size - 1))));
    else if (op == BLK_OP_READ)
        set_extent(extent, BLK_ABSENT, 0, absent_length(s, offset, length));
    else
        set_extent(extent, BLK_SLOW, 0, length);
}

static void map_range(struct qcow2 *s, enum blk_op op, bool fua, uint64_t offset, uint64_t length,
                      struct blk_extent *extent)
{
    if (op == BLK_OP_WRITE && atomic_load_explicit(&s->corrupt, memory_order_relaxed)) {
        set_extent(extent, BLK_SLOW, 0, length);
        return;
    }
    /* There is no slice where there is no table: a hit needs no look at the L1 entry. */
    struct qcow2_slice *slice = offset >> s->l1_shift < s->l1_size ? qcow2_slice_find(s, offset) : NULL;
    if (unlikely(!slice)) {
        set_without_slice(s, op, offset, length, extent);
        return;
    }
    /* Only when it is clear: loops that share the slice would pass its cache line around. */
    if (!atomic_load_explicit(&slice->referenced, memory_order_relaxed))
        atomic_store_explicit(&slice->referenced, true, memory_order_relaxed);
    if (unlikely(slice->suspect)) {
        /* One entry at a time, and no write: co_write() looks closer. */
        length = MIN(length, s->cluster_size - qcow2_in_cluster(s, offset));
        uint32_t index = qcow2_slice_index(s, offset);
        if (op == BLK_OP_WRITE ||
            !qcow2_entry_readable(s, qcow2_slice_guest(s, slice, index), qcow2_slice_entry(s, slice, index))) {
            set_extent(extent, BLK_SLOW, 0, length);
            return;
        }
    }
    if (s->extended)
        describe_extended(s, slice, op, offset, length, extent);
    else
        describe(s, slice, op, fua, offset, length, extent);
    /* W9: after the entries. One that is not durable yet was stored after `unstable` was set. */
    if (fua && (atomic_load_explicit(&slice->unstable, memory_order_acquire) ||
                atomic_load_explicit(&s->header_unsure, memory_order_acquire)))
        set_extent(extent, BLK_SLOW, 0, length);
}

void qcow2_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
               struct blk_extent *extent)
{
    struct qcow2 *s = node->state;

    switch (op) {
    case BLK_OP_READ:
    case BLK_OP_WRITE: map_range(s, op, op == BLK_OP_WRITE && (flags & BLK_REQ_FUA), offset, length, extent); return;
    case BLK_OP_FLUSH:
        if (atomic_load_explicit(&s->need_commit, memory_order_acquire)) {
            set_extent(extent, BLK_SLOW, 0, 0);
        } else {
            set_extent(extent, BLK_DATA, 0, 0);
            extent->child = qcow2_data_file(s); /* metadata that need no commit are on disk */
        }
        return;
    default: set_extent(extent, BLK_SLOW, 0, length); return;
    }
}

coroutine_fn int qcow2_co_load(struct blk_node *node, enum blk_op op, uint64_t offset, uint64_t length)
{
    struct qcow2 *s = node->state;
    struct qcow2_slice *slice;

    co_mutex_lock(&s->lock);
    int ret = qcow2_co_slice(s, offset, &slice);
    co_mutex_unlock(&s->lock);
    return ret;
}
