/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Block status: `map`, with cold metadata loaded, through the layers of a chain. There is no second notion of it:
 * `img-tool map`, sparse copies and dirty ranges all ask here.
 */
#include "walk.h"

#include <base/compiler.h>
#include <string.h>

coroutine_fn int blk_co_map(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent)
{
    uint64_t size = blk_node_size(node);

    if (offset >= size) {
        *extent = (struct blk_extent){ .kind = BLK_ZERO, .length = length, .flags = BLK_EXTENT_EOF };
        return 0;
    }
    length = MIN(length, size - offset);
    *extent = (struct blk_extent){ .kind = BLK_DATA, .length = length, .child_offset = offset };
    if (node->driver->co_extent)
        return node->driver->co_extent(node, offset, length, extent);
    if (!node->driver->map && (node->driver->flags & BLK_DRIVER_FILTER))
        blk_extent_pass(extent, node->file, offset, length);
    if (!node->driver->map)
        return 0;
    for (;;) {
        struct loop *loop = loop_current();
        unsigned *token = epoch_enter(node->epoch, loop);
        node->driver->map(node, BLK_OP_READ, 0, offset, length, extent);
        epoch_exit(token);
        if (extent->kind != BLK_SLOW || !(extent->flags & BLK_EXTENT_COLD))
            return 0;
        int ret = node->driver->co_load(node, BLK_OP_READ, offset, length);
        if (ret < 0)
            return ret;
        *extent = (struct blk_extent){ .kind = BLK_DATA, .length = length };
    }
}

/* Follows an extent that is data here to the protocol node: what does the host know about it? */
static coroutine_fn int co_follow(struct blk_node *node, struct blk_extent *extent, struct blk_status *status)
{
    bool recurse = true;

    while (extent->kind == BLK_DATA && extent->child) {
        bool raw = extent->flags & BLK_EXTENT_RAW;
        recurse = recurse && (raw || (extent->flags & BLK_EXTENT_RECURSE));
        uint64_t length = extent->length;
        node = extent->child;
        uint64_t offset = extent->child_offset;
        status->offset_valid = true;
        status->offset = offset;
        status->file = node;
        if (!recurse && !node->driver->map)
            return 0;
        int ret = blk_co_map(node, offset, length, extent);
        if (ret < 0)
            return ret;
        if (extent->kind == BLK_ZERO && (extent->flags & BLK_EXTENT_EOF)) {
            extent->length = length;
        } else {
            extent->length = MIN(extent->length, length);
        }
        if (!raw && extent->kind == BLK_ZERO) {
            status->zero = true;
        } else if (raw) {
            status->data = extent->kind != BLK_ZERO;
            status->zero = extent->kind == BLK_ZERO;
        }
        status->length = extent->length;
    }
    return 0;
}

coroutine_fn int blk_co_status(struct blk_node *top, struct blk_node *base, uint64_t offset, uint64_t length,
                               struct blk_status *status)
{
    struct blk_extent extent;

    memset(status, 0, sizeof(*status));
    status->length = length;
    for (struct blk_node *layer = top; layer && layer != base; layer = layer->backing, status->depth++) {
        status->layer = layer;
        if (offset >= blk_node_size(layer)) {
            /* Past the end of a backing file: nothing below shows through, and the layer above decides. */
            status->zero = status->past_end = true;
            if (status->depth > 0)
                status->depth--;
            return 0;
        }
        int ret = blk_co_map(layer, offset, status->length, &extent);
        if (ret < 0)
            return ret;
        status->length = MIN(status->length, extent.length);
        /* A layer may have a place for what is not there: that counts if nothing follows. */
        status->offset_valid = extent.kind == BLK_ABSENT && (extent.flags & BLK_EXTENT_OFFSET_VALID);
        status->offset = status->offset_valid ? extent.child_offset : 0;
        status->file = status->offset_valid ? extent.child : NULL;
        if (extent.kind == BLK_ABSENT)
            continue;
        status->present = true;
        status->zero = extent.kind == BLK_ZERO;
        status->data = extent.kind != BLK_ZERO;
        status->compressed = extent.flags & BLK_EXTENT_COMPRESSED;
        /* The bytes of a protocol node are where they are read. */
        bool own = layer->driver->flags & BLK_DRIVER_PROTOCOL;
        if (own || (extent.kind == BLK_ZERO && (extent.flags & BLK_EXTENT_OFFSET_VALID))) {
            status->offset_valid = true;
            status->offset = own ? offset : extent.child_offset;
            status->file = own ? layer : extent.child;
        }
        return extent.kind == BLK_DATA ? co_follow(layer, &extent, status) : 0;
    }
    status->zero = base == NULL;
    if (status->depth > 0 && !base)
        status->depth--;
    return 0;
}
