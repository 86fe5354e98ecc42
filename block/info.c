/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Describing and checking an image: what every node can say, and what its driver adds. */
#include <base/compiler.h>
#include <block/image.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

coroutine_fn int blk_co_info(struct blk_node *node, struct blk_info *info, struct error **errp)
{
    struct blk_node *protocol = blk_node_protocol(node);

    memset(info, 0, sizeof(*info));
    info->virtual_size = blk_node_size(node);
    info->allocated_size = -1;
    if (protocol && protocol->driver->co_allocated_size)
        info->allocated_size = protocol->driver->co_allocated_size(protocol);
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
