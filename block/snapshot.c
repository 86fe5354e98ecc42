/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Internal snapshots (block/snapshot.h): whose they are, a turn, and a drained section around what the driver does. */
#include "graph.h"
#include "links.h"

#include <block/front.h>
#include <block/snapshot.h>
#include <errno.h>
#include <string.h>

/* The node to do it on, drained, in its turn; or NULL and -errno. */
static coroutine_fn struct blk_node *co_begin(struct blk_node *node, bool to_write, int *ret, struct error **errp)
{
    node = blk_co_image_begin(node);
    if (!node || !node->driver->co_snapshot_create)
        *ret = error_set(errp, -ENOTSUP, "Block driver does not support snapshots");
    else if (to_write && !blk_node_writable(node))
        *ret = error_set(errp, -EACCES, "Image is read-only");
    else if (!to_write && blk_node_writable(node))
        *ret = error_set(errp, -EBUSY, "Only an image that is open read-only can show a snapshot");
    else
        *ret = 0;
    if (*ret < 0) {
        blk_co_image_end(node);
        return NULL;
    }
    return node;
}

static coroutine_fn void co_end(struct blk_node *node)
{
    blk_node_report_size(node);
    blk_co_image_end(node);
}

coroutine_fn int blk_co_snapshot_create(struct blk_node *node, const struct blk_snapshot *what, struct error **errp)
{
    int ret = 0;

    if (strlen(what->name) > BLK_SNAPSHOT_NAME_MAX)
        return error_set(errp, -ENAMETOOLONG, "The name of a snapshot has at most %u bytes", BLK_SNAPSHOT_NAME_MAX);
    node = co_begin(node, true, &ret, errp);
    if (!node)
        return ret;
    ret = node->driver->co_snapshot_create(node, what, errp);
    co_end(node);
    return ret;
}

coroutine_fn int blk_co_snapshot_apply(struct blk_node *node, const char *id_or_name, struct error **errp)
{
    int ret = 0;

    node = co_begin(node, true, &ret, errp);
    if (!node)
        return ret;
    ret = node->driver->co_snapshot_apply(node, id_or_name, errp);
    co_end(node);
    return ret;
}

coroutine_fn int blk_co_snapshot_delete(struct blk_node *node, const char *name, struct error **errp)
{
    int ret = 0;

    node = co_begin(node, true, &ret, errp);
    if (!node)
        return ret;
    ret = node->driver->co_snapshot_delete(node, name, errp);
    co_end(node);
    return ret;
}

coroutine_fn int blk_co_snapshot_show(struct blk_node *node, const char *id, const char *name, struct error **errp)
{
    int ret = 0;

    node = co_begin(node, false, &ret, errp);
    if (!node)
        return ret;
    ret = node->driver->co_snapshot_show(node, id, name, errp);
    co_end(node);
    return ret;
}

/* ---- VM state ---- */

coroutine_fn int blk_co_vm_state_read(struct blk_node *node, uint64_t offset, void *buffer, uint64_t length)
{
    struct iovec iov = { buffer, length };

    blk_co_changes_lock();
    node = blk_node_below_filters(node);
    int ret = node && node->driver->co_vm_state_read ? node->driver->co_vm_state_read(node, offset, length, &iov, 1)
                                                     : -ENOTSUP;
    blk_changes_unlock();
    return ret;
}

coroutine_fn int blk_co_vm_state_write(struct blk_node *node, uint64_t offset, const void *buffer, uint64_t length,
                                       struct error **errp)
{
    struct iovec iov = { (void *)(uintptr_t)buffer, length };
    int ret = 0;

    node = co_begin(node, true, &ret, errp);
    if (!node)
        return ret;
    ret = node->driver->co_vm_state_write(node, offset, length, &iov, 1, errp);
    co_end(node);
    return ret;
}
