/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Private to block/: the walk, from a node down `map` to where the bytes are. The one primitive under the mapped path,
 * the coroutine path and block status. From memory only; the caller is between epoch_enter() and epoch_exit() for as
 * long as it uses the result.
 */
#pragma once

#include <base/epoch.h>
#include <block/bitmap.h>

static inline bool blk_is_change(enum blk_op op) { return op != BLK_OP_READ && op != BLK_OP_FLUSH; }

struct blk_target {
    enum blk_kind kind; /* DATA: at node:offset, a protocol node; ZERO (reads); SLOW: node's driver has to act */
    unsigned flags;     /* BLK_EXTENT_* of the last step */
    uint64_t length;    /* of this piece, from the offset that was asked for */
    struct blk_node *node;
    uint64_t offset;       /* in node */
    uint64_t asked_length; /* SLOW: how much was asked of node; at least `length` */
};

static inline __attribute__((always_inline)) void blk_walk_steps(struct blk_node *node, enum blk_op op, unsigned flags,
                                                                 uint64_t offset, uint64_t length,
                                                                 struct blk_target *target, bool recording)
{
    struct blk_extent extent;

    target->flags = 0;
    for (;;) {
        if (recording && atomic_load_explicit(&node->recording, memory_order_relaxed))
            blk_bitmaps_record(node, offset, length);
        if (!node->driver->map) {
            if (node->driver->flags & BLK_DRIVER_FILTER) {
                node = node->file;
                continue;
            }
            target->kind = node->driver->flags & BLK_DRIVER_PROTOCOL ? BLK_DATA : BLK_SLOW;
            target->asked_length = length;
            break;
        }
        extent.flags = 0;
        extent.child = NULL;
        extent.length = length;
        node->driver->map(node, op, flags, offset, length, &extent);
        target->flags = extent.flags;
        target->asked_length = length;
        length = extent.length;
        if (extent.kind == BLK_DATA) {
            if (!extent.child) {
                target->kind = BLK_DATA;
                break;
            }
            node = extent.child;
            offset = extent.child_offset;
            continue;
        }
        /* Only reads look below, and only reads may be answered with "zeroes": a change there is this driver's
         * business. */
        if (op != BLK_OP_READ) {
            extent.kind = BLK_SLOW;
        } else if (extent.kind == BLK_ABSENT) {
            struct blk_node *backing = node->backing;
            uint64_t backing_size = backing ? blk_node_size(backing) : 0;
            if (offset < backing_size) {
                node = backing;
                length = MIN(length, backing_size - offset);
                continue;
            }
            extent.kind = BLK_ZERO;
        }
        target->kind = extent.kind;
        break;
    }
    target->node = node;
    target->offset = offset;
    target->length = length;
}

/* The same for changes, where some node has bitmaps that record them (walk.c). Apart, as code for that within the walk
 * would cost every request registers. */
void blk_walk_recording(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                        struct blk_target *target);

static inline __attribute__((always_inline)) void blk_walk(struct blk_node *node, enum blk_op op, unsigned flags,
                                                           uint64_t offset, uint64_t length, struct blk_target *target)
{
    if (unlikely(atomic_load_explicit(&blk_recording_nodes, memory_order_relaxed)) && blk_is_change(op) &&
        !(flags & BLK_REQ_ABSENT_ONLY))
        blk_walk_recording(node, op, flags, offset, length, target);
    else
        blk_walk_steps(node, op, flags, offset, length, target, false);
}

/* May this range go to the protocol node as it is? A flush has none. */
static inline bool blk_range_fits(const struct blk_limits *limits, enum blk_op op, uint64_t offset, uint64_t length)
{
    uint64_t alignment = limits->request_alignment, max = limits->max_transfer;

    if (unlikely(op == BLK_OP_DISCARD)) {
        alignment = MAX(alignment, limits->discard_alignment);
        max = limits->max_discard;
    } else if (unlikely(op == BLK_OP_WRITE_ZEROES)) {
        alignment = MAX(alignment, limits->zeroes_alignment);
        max = limits->max_zeroes;
    }
    return ((offset | length) & (alignment - 1)) == 0 && (!max || length <= max);
}

static inline bool blk_memory_aligned(const struct blk_limits *limits, const struct iovec *iov, int iov_count)
{
    uintptr_t mask = limits->memory_alignment - 1, bits = 0;

    if (mask == 0)
        return true;
    for (int i = 0; i < iov_count; i++)
        bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    return (bits & mask) == 0;
}

/* And these pieces of memory? */
static inline bool blk_iov_fits(const struct blk_limits *limits, const struct iovec *iov, int iov_count)
{
    return (!limits->max_iov || (uint32_t)iov_count <= limits->max_iov) && blk_memory_aligned(limits, iov, iov_count);
}
