/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What changes an image as a whole (block/change.h): its backing file as it records it, its options, its content. */
#include "graph.h"
#include "links.h"

#include <base/error.h>
#include <block/change.h>
#include <block/front.h>
#include <errno.h>
#include <string.h>

coroutine_fn struct blk_node *blk_co_image_begin(struct blk_node *node)
{
    blk_co_changes_lock();
    node = blk_node_below_filters(node);
    if (node)
        blk_co_drain_begin(node);
    return node;
}

coroutine_fn void blk_co_image_end(struct blk_node *image)
{
    if (image)
        blk_drain_end(image);
    blk_changes_unlock();
}

coroutine_fn int blk_co_change_backing(struct blk_node *node, const char *name, const char *format, struct error **errp)
{
    struct blk_node *image = blk_co_image_begin(node);
    int ret;

    if (!image || !image->driver->co_change_backing)
        ret = error_set(errp, -ENOTSUP, "%s", strerror(ENOTSUP));
    else if (!blk_node_writable(image))
        ret = error_set(errp, -EACCES, "Image is read-only");
    else
        ret = image->driver->co_change_backing(image, name, format, errp);
    blk_co_image_end(image);
    return ret;
}

coroutine_fn int blk_co_make_empty(struct blk_node *node, struct error **errp)
{
    struct blk_node *image = blk_co_image_begin(node);
    int ret;

    if (!image || !image->driver->co_make_empty)
        ret = error_set(errp, -ENOTSUP, "%s", strerror(ENOTSUP));
    else if (!blk_node_writable(image))
        ret = error_set(errp, -EACCES, "Image is read-only");
    else
        ret = image->driver->co_make_empty(image, errp);
    blk_co_image_end(image);
    return ret;
}

coroutine_fn int blk_co_amend(struct blk_node *node, struct opts *opts, struct error **errp)
{
    struct blk_node *image = blk_co_image_begin(node);
    int ret;

    if (!image || !image->driver->co_amend) {
        ret = error_set(errp, -ENOTSUP, "Format driver '%s' does not support option amendment", node->driver->name);
    } else if (!blk_node_writable(image)) {
        ret = error_set(errp, -EACCES, "Image is read-only");
    } else {
        ret = image->driver->co_amend(image, opts, errp);
        blk_node_report_size(image);
    }
    blk_co_image_end(image);
    return ret;
}

coroutine_fn int blk_co_compact(struct blk_node *node, struct blk_compact *compact, struct error **errp)
{
    struct blk_node *image = blk_co_image_begin(node);
    int ret;

    if (!image || !image->driver->co_compact)
        ret = error_set(errp, -ENOTSUP, "Format driver '%s' does not support compacting", node->driver->name);
    else if (!blk_node_writable(image))
        ret = error_set(errp, -EACCES, "Image is read-only");
    else
        ret = image->driver->co_compact(image, compact, errp);
    blk_co_image_end(image);
    return ret;
}
