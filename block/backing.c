/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an image records of its backing file (block/change.h): a turn, and a drained section around what the driver
 * does. */
#include "links.h"

#include <base/error.h>
#include <block/change.h>
#include <block/front.h>
#include <errno.h>
#include <string.h>

coroutine_fn int blk_co_change_backing(struct blk_node *node, const char *name, const char *format, struct error **errp)
{
    int ret = 0;

    blk_co_changes_lock();
    node = blk_node_below_filters(node);
    if (!node || !node->driver->co_change_backing)
        ret = error_set(errp, -ENOTSUP, "%s", strerror(ENOTSUP));
    else if (!blk_node_writable(node))
        ret = error_set(errp, -EACCES, "Image is read-only");
    if (ret == 0) {
        blk_co_drain_begin(node);
        ret = node->driver->co_change_backing(node, name, format, errp);
        blk_drain_end(node);
    }
    blk_changes_unlock();
    return ret;
}
