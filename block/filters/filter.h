/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What filters share: their node is as large as the child's, also after a write has made that grow. */
#pragma once

#include <block/node.h>

static inline void filter_grow(struct blk_node *node)
{
    uint64_t size = blk_node_size(node), now = blk_node_size(node->file);

    while (now > size &&
           !atomic_compare_exchange_weak_explicit(&node->size, &size, now, memory_order_relaxed, memory_order_relaxed))
        ;
}

/* A filter's child_changed. */
static inline void filter_follow_size(struct blk_node *node) { atomic_store(&node->size, blk_node_size(node->file)); }

/* Would the request make the node larger? Then the filter has to do it itself, to follow the child. */
static inline bool filter_grows(struct blk_node *node, enum blk_op op, uint64_t offset, uint64_t length)
{
    return op != BLK_OP_READ && op != BLK_OP_FLUSH && offset + length > blk_node_size(node);
}

/* co_write and co_write_zeroes of a filter that does nothing else with them than that. */
coroutine_fn int filter_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                 int iov_count, unsigned flags);
coroutine_fn int filter_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags);
