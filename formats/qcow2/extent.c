/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Block status: the hot path's answer, with cold slices loaded, and a word on whether it pays to ask the host for
 * holes.
 *
 * Clusters of an image whose metadata was preallocated are data by their entries though the host stores nothing for
 * them. Asking the host for each extent is slow, so, like QEMU (found by trial): only where the refcounts count at
 * least 10/9 of what the host has allocated for the file, and at least two clusters more. Found out once, at the first
 * question.
 */
#include "driver.h"
#include "l2.h"
#include "refcount.h"

enum { UNKNOWN, DENSE, SPARSE };

static coroutine_fn int co_counts_more(struct qcow2 *s, uint64_t threshold)
{
    uint64_t clusters = div_round_up(blk_node_size(s->node->file), s->cluster_size), used = 0;

    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t refcount;
        int ret = qcow2_co_refcount(s, i, &refcount);
        if (ret < 0)
            return DENSE;
        used += refcount != 0;
        if (used >= threshold)
            return SPARSE;
    }
    return DENSE;
}

static coroutine_fn void co_find_out(struct qcow2 *s)
{
    struct blk_node *protocol = blk_node_protocol(s->node->file);
    int64_t allocated = protocol && protocol->driver->co_allocated_size ? protocol->driver->co_allocated_size(protocol)
                                                                        : -1;
    uint64_t real = allocated < 0 ? 0 : (uint64_t)allocated >> s->cluster_bits;

    co_mutex_lock(&s->lock);
    s->density = allocated < 0 ? DENSE : co_counts_more(s, MAX(real * 10 / 9, real + 2));
    co_mutex_unlock(&s->lock);
}

/* The hot path does not follow this entry: say why. */
static coroutine_fn int co_check_place(struct qcow2 *s, uint64_t offset)
{
    struct qcow2_slice *slice;

    co_mutex_lock(&s->lock);
    int ret = qcow2_co_slice(s, offset, &slice);
    if (ret == 0 && slice) {
        uint32_t index = qcow2_slice_index(s, offset);
        ret = qcow2_co_check_entry(s, slice, index, qcow2_slice_entry(s, slice, index), false);
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

coroutine_fn int qcow2_co_extent(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent)
{
    struct qcow2 *s = node->state;
    struct loop *loop = loop_current();

    for (;;) {
        unsigned *token = epoch_enter(node->epoch, loop);
        qcow2_map(node, BLK_OP_READ, 0, offset, length, extent);
        epoch_exit(token);
        if (extent->kind != BLK_SLOW || !(extent->flags & BLK_EXTENT_COLD))
            break;
        int ret = qcow2_co_load(node, BLK_OP_READ, offset, length);
        if (ret < 0)
            return ret;
    }
    if (extent->kind == BLK_SLOW && !(extent->flags & BLK_EXTENT_COMPRESSED))
        return co_check_place(s, offset);
    if (extent->kind != BLK_DATA)
        return 0;
    if (s->density == UNKNOWN)
        co_find_out(s);
    if (s->density == SPARSE)
        extent->flags |= BLK_EXTENT_RECURSE;
    return 0;
}
