/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The hot path: from a guest range to an extent, from memory only.
 *
 * Takes no lock: the L1 table, the directory of slices and each entry are read by atomic loads, all inside the caller's
 * epoch. Runs of entries of one kind at consecutive places become one extent. A write maps only to clusters that the
 * active layer owns alone (the COPIED flag); a durable one only where the slice holds nothing that is not on disk yet.
 */
#include "qcow2.h"

#include <block/node.h>

/* Longest run that one call looks at: bounds the time spent here. */
#define MAX_RUN_ENTRIES 1024u

static void say(struct blk_extent *extent, enum blk_kind kind, unsigned flags, uint64_t length)
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

struct qcow2_slice *qcow2_slice_find(const struct qcow2 *s, uint64_t offset)
{
    uint64_t l1_index = offset >> s->l1_shift;
    uint64_t mask = (UINT64_C(1) << (s->l2_bits - s->slice_bits)) - 1;
    struct qcow2_dir *dir = atomic_load_explicit(&s->dir[l1_index], memory_order_acquire);

    return dir ? atomic_load_explicit(&dir->slices[(offset >> s->slice_shift) & mask], memory_order_acquire) : NULL;
}

/* Does the entry go on with the run: the same kind, at the next place where it has one? */
static inline bool continues(uint64_t entry, uint64_t first, uint64_t expected)
{
    enum qcow2_kind kind = qcow2_kind(entry);

    if (kind != qcow2_kind(first) || ((entry ^ first) & QCOW2_COPIED))
        return false;
    return kind == QCOW2_UNALLOCATED || kind == QCOW2_ZERO_PLAIN || (entry & QCOW2_OFFSET_MASK) == expected;
}

/* Bytes from offset on that form one run with `first`; goes on into the next slices where they are in memory. */
static uint64_t run_length(const struct qcow2 *s, struct qcow2_slice *slice, uint64_t first, uint64_t offset,
                           uint64_t length, bool one_slice)
{
    uint64_t start = qcow2_cluster_start(s, offset), end = offset + length;
    uint64_t expected = first & QCOW2_OFFSET_MASK, at = start;
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
        if (!continues(qcow2_slice_entry(slice, index), first, expected))
            break;
    }
    return at - offset;
}

static void describe(const struct qcow2 *s, struct qcow2_slice *slice, enum blk_op op, bool fua, uint64_t offset,
                     uint64_t length, struct blk_extent *extent)
{
    uint64_t entry = qcow2_slice_entry(slice, qcow2_slice_index(s, offset));
    uint64_t in_cluster = qcow2_in_cluster(s, offset);
    enum qcow2_kind kind = qcow2_kind(entry);

    if (op == BLK_OP_WRITE && (kind != QCOW2_NORMAL || !(entry & QCOW2_COPIED))) {
        say(extent, BLK_SLOW, 0, length);
        return;
    }
    if (kind == QCOW2_IS_COMPRESSED) {
        say(extent, BLK_SLOW, BLK_EXTENT_COMPRESSED, MIN(length, s->cluster_size - in_cluster));
        return;
    }
    uint64_t run = run_length(s, slice, entry, offset, length, fua);
    switch (kind) {
    case QCOW2_NORMAL: say(extent, BLK_DATA, 0, run); break;
    case QCOW2_ZERO_PLAIN: say(extent, BLK_ZERO, BLK_EXTENT_ALLOCATED, run); return;
    case QCOW2_ZERO_ALLOCATED: say(extent, BLK_ZERO, BLK_EXTENT_ALLOCATED | BLK_EXTENT_OFFSET_VALID, run); break;
    default: say(extent, BLK_ABSENT, 0, run); return;
    }
    extent->child = s->node->file;
    extent->child_offset = (entry & QCOW2_OFFSET_MASK) + in_cluster;
}

static void map_range(struct qcow2 *s, enum blk_op op, bool fua, uint64_t offset, uint64_t length,
                      struct blk_extent *extent)
{
    uint64_t l1_index = offset >> s->l1_shift;

    if (op == BLK_OP_WRITE && atomic_load_explicit(&s->corrupt, memory_order_relaxed)) {
        say(extent, BLK_SLOW, 0, length);
        return;
    }
    if (l1_index >= s->l1_size || !(qcow2_l1_entry(s, l1_index) & QCOW2_OFFSET_MASK)) {
        uint64_t absent = absent_length(s, offset, length);
        say(extent, op == BLK_OP_READ ? BLK_ABSENT : BLK_SLOW, 0, op == BLK_OP_READ ? absent : length);
        return;
    }
    struct qcow2_slice *slice = qcow2_slice_find(s, offset);
    uint64_t in_slice = (UINT64_C(1) << s->slice_shift) - (offset & ((UINT64_C(1) << s->slice_shift) - 1));
    if (!slice) {
        say(extent, BLK_SLOW, BLK_EXTENT_COLD, MIN(length, in_slice));
        return;
    }
    /* Only when it is clear: loops that share the slice would pass its cache line around. */
    if (!atomic_load_explicit(&slice->referenced, memory_order_relaxed))
        atomic_store_explicit(&slice->referenced, true, memory_order_relaxed);
    if (unlikely(slice->suspect)) {
        /* One entry at a time, and no write: co_write() looks closer. */
        length = MIN(length, s->cluster_size - qcow2_in_cluster(s, offset));
        if (op == BLK_OP_WRITE || !qcow2_entry_readable(s, qcow2_slice_entry(slice, qcow2_slice_index(s, offset)))) {
            say(extent, BLK_SLOW, 0, length);
            return;
        }
    }
    describe(s, slice, op, fua, offset, length, extent);
    /* After the entries: one that is not durable yet was stored after `unstable` was set. */
    if (fua && (atomic_load_explicit(&slice->unstable, memory_order_acquire) ||
                atomic_load_explicit(&s->header_unsure, memory_order_acquire)))
        say(extent, BLK_SLOW, 0, length);
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
            say(extent, BLK_SLOW, 0, 0);
        } else {
            say(extent, BLK_DATA, 0, 0);
            extent->child = node->file;
        }
        return;
    default: say(extent, BLK_SLOW, 0, length); return;
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
