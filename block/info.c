/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Describing and checking an image: what every node can say, and what its driver adds. */
#include <base/checked.h>
#include <base/compiler.h>
#include <block/image.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Of the protocol node; of a node that has several images as children, of all of them. -1: it is not known. */
static coroutine_fn int64_t co_allocated_size(struct blk_node *node)
{
    struct blk_node *protocol = blk_node_protocol(node);
    const struct blk_child *child;
    int64_t sum = -1;

    if (protocol && protocol->driver->co_allocated_size)
        return protocol->driver->co_allocated_size(protocol);
    list_for_each(child, &(protocol ? protocol : node)->children, in_parent) {
        int64_t size = co_allocated_size(child->node);
        if (size < 0)
            return -1;
        sum = MAX(sum, INT64_C(0)) + size;
    }
    return sum;
}

coroutine_fn int blk_co_info(struct blk_node *node, struct blk_info *info, struct error **errp)
{
    const struct blk_node *protocol = blk_node_protocol(node);

    memset(info, 0, sizeof(*info));
    info->virtual_size = blk_node_size(node);
    info->allocated_size = co_allocated_size(node);
    info->dirty_known = protocol && !protocol->driver->name_prefix;
    return node->driver->co_info ? node->driver->co_info(node, info, errp) : 0;
}

void blk_info_finish(struct blk_info *info)
{
    free(info->backing_file);
    free(info->backing_format);
    free(info->full_backing_file);
    json_decref(info->format_specific);
    json_decref(info->snapshots);
    memset(info, 0, sizeof(*info));
}

coroutine_fn int blk_co_check(struct blk_node *node, struct blk_check *check, unsigned fix, struct error **errp)
{
    if (!node->driver->co_check)
        return error_set(errp, -ENOTSUP, "This image format does not support checks");
    return node->driver->co_check(node, check, fix, errp);
}
