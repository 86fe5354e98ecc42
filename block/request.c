/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests on nodes in straight-line code: what the mapped path (submit.c) hands over, and what formats and jobs do.
 *
 * Each turn of a loop takes the next piece: walks `map` inside an epoch; plain data goes to the protocol node in the
 * same epoch; where a driver has to act, the epoch is left first, because drivers wait. Metadata that is not in memory
 * is loaded and the walk repeated.
 */
#include "graph.h"
#include "piece.h"
#include "walk.h"

#include <base/checked.h>
#include <base/coroutine.h>
#include <base/crew.h>
#include <base/testpoint.h>
#include <block/iov.h>
#include <errno.h>
#include <stdlib.h>

/* Zero buffers for write-zeroes that nobody can do better. */
#define ZERO_CHUNK (256u * 1024)

/* ---- where a driver has to act ---- */

/* Loads what is cold. 0: walk again. */
static coroutine_fn int co_load_cold(const struct blk_target *t, enum blk_op op)
{
    return t->node->driver->co_load(t->node, op, t->offset, t->length);
}

static bool is_cold(const struct blk_target *t) { return t->kind == BLK_SLOW && (t->flags & BLK_EXTENT_COLD); }

/* Drivers wait, so they are called outside the epoch, where what a format has mapped holds no longer. So if the one
 * that has to act is below such a format (a filter, or another format), the format is to act in its place: *t becomes
 * that. Inside the epoch. False: what is mapped has changed since the walk, which has to be repeated. */
static bool find_actor(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                       struct blk_target *t)
{
    while (node != t->node) {
        struct blk_extent extent = { .length = length };
        if (!node->driver->map && (node->driver->flags & BLK_DRIVER_FILTER)) {
            node = node->file;
            continue;
        }
        if (!node->driver->map)
            return false;
        node->driver->map(node, op, flags, offset, length, &extent);
        if (extent.kind == BLK_DATA && extent.child && (node->driver->flags & BLK_DRIVER_REMAPS)) {
            *t = (struct blk_target){
                .kind = BLK_SLOW, .node = node, .offset = offset, .length = extent.length, .asked_length = length
            };
            return true;
        }
        if (extent.kind == BLK_DATA && extent.child) {
            node = extent.child;
            offset = extent.child_offset;
        } else if (extent.kind == BLK_ABSENT && node->backing) {
            node = node->backing;
        } else {
            return false;
        }
        length = extent.length;
    }
    return true;
}

/* The same for a walk from `node` that has ended in *t. */
static bool settle_actor(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                         struct blk_target *t)
{
    return t->kind != BLK_SLOW || t->node == node || is_cold(t) || find_actor(node, op, flags, offset, length, t);
}

static coroutine_fn int co_read_slow(const struct blk_target *t, const struct iovec *iov, int iov_count, uint64_t done)
{
    if (is_cold(t))
        return co_load_cold(t, BLK_OP_READ);
    if (!t->node->driver->co_read)
        return -ENOTSUP;
    struct iov_view view;
    int ret = iov_view_init(&view, iov, iov_count, done, t->length);
    if (ret == 0)
        ret = t->node->driver->co_read(t->node, t->offset, t->length, view.iov, view.count);
    iov_view_finish(&view);
    return ret;
}

/* ---- read ---- */

coroutine_fn int blk_co_readv(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                              int iov_count)
{
    uint64_t size = blk_node_size(node), done = 0;
    uint64_t inside = offset >= size ? 0 : MIN(length, size - offset);
    struct blk_target t;
    int ret = 0;

    iov_zero(iov, iov_count, inside, length - inside);
    while (done < inside && ret == 0) {
        struct loop *loop = loop_current();
        unsigned *token = epoch_enter(node->epoch, loop);
        blk_walk(node, BLK_OP_READ, 0, offset + done, inside - done, &t);
        testpoint_co("block-read-mapped");
        if (t.kind == BLK_DATA)
            ret = piece_co_read(&t, iov, iov_count, done);
        else if (t.kind == BLK_ZERO)
            iov_zero(iov, iov_count, done, t.length);
        bool settled = settle_actor(node, BLK_OP_READ, 0, offset + done, inside - done, &t);
        epoch_exit(token);
        if (!settled)
            continue;
        if (t.kind == BLK_SLOW) {
            ret = co_read_slow(&t, iov, iov_count, done);
            if (is_cold(&t))
                continue;
        }
        done += t.length;
    }
    return ret;
}

coroutine_fn int blk_co_read(struct blk_node *node, uint64_t offset, void *buffer, uint64_t length)
{
    struct iovec iov = { buffer, length };

    return blk_co_readv(node, offset, length, &iov, 1);
}

/* ---- write ---- */

static int check_change(struct blk_node *node, uint64_t offset, uint64_t length)
{
    if (!blk_node_writable(node))
        return -EPERM;
    if (offset > INT64_MAX || length > INT64_MAX - offset)
        return -EFBIG;
    if (!range_inside(offset, length, blk_node_size(node)) && !blk_node_grows(node))
        return -EIO;
    return 0;
}

/* One piece of a write, *length bytes at the most; says in *length how many it did, 0 where the walk has to be
 * repeated. */
static coroutine_fn int co_write_piece(struct blk_node *node, uint64_t offset, uint64_t *length,
                                       const struct iovec *iov, int iov_count, uint64_t done, unsigned flags)
{
    struct loop *loop = loop_current();
    unsigned *token = epoch_enter(node->epoch, loop);
    struct blk_target t;
    int ret = 0;

    blk_walk(node, BLK_OP_WRITE, flags, offset, *length, &t);
    testpoint_co("block-write-mapped");
    if (t.kind == BLK_DATA && (flags & BLK_REQ_ABSENT_ONLY)) {
        *length = t.length; /* there already */
        epoch_exit(token);
        return 0;
    }
    if (t.kind == BLK_DATA) {
        piece_limit_write(&t);
        *length = t.length;
        if (piece_is_plain(&t)) {
            ret = piece_co_write(&t, iov, iov_count, done, flags);
            epoch_exit(token);
            return ret;
        }
        epoch_exit(token);
        struct piece_again again = { .top = node, .op = BLK_OP_WRITE, .flags = flags, .offset = offset };
        return piece_co_write_tracked(&again, &t, length, iov, iov_count, done);
    }
    bool settled = settle_actor(node, BLK_OP_WRITE, flags, offset, *length, &t);
    epoch_exit(token);
    if (!settled || is_cold(&t)) {
        *length = 0;
        return settled ? co_load_cold(&t, BLK_OP_WRITE) : 0;
    }
    if (!t.node->driver->co_write)
        return -ENOTSUP;
    *length = t.asked_length;
    struct iov_view view;
    ret = iov_view_init(&view, iov, iov_count, done, t.asked_length);
    if (ret == 0)
        ret = t.node->driver->co_write(t.node, t.offset, t.asked_length, view.iov, view.count, flags);
    iov_view_finish(&view);
    return ret;
}

/* Not a matter of what is mapped where: the format has to do it. */
static coroutine_fn int co_write_compressed(struct blk_node *node, uint64_t offset, uint64_t length,
                                            const struct iovec *iov, int iov_count, unsigned flags)
{
    while ((node->driver->flags & BLK_DRIVER_FILTER) && !node->driver->map && !node->driver->co_write)
        node = node->file;
    if (atomic_load(&node->recording))
        blk_bitmaps_record(node, offset, length);
    return node->driver->co_write_compressed
               ? node->driver->co_write_compressed(node, offset, length, iov, iov_count, flags)
               : -ENOTSUP;
}

coroutine_fn int blk_co_writev(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                               int iov_count, unsigned flags)
{
    uint64_t done = 0;
    int ret = check_change(node, offset, length);

    if (ret == 0 && (flags & BLK_REQ_COMPRESSED))
        return co_write_compressed(node, offset, length, iov, iov_count, flags);
    while (done < length && ret == 0) {
        uint64_t piece = length - done;
        ret = co_write_piece(node, offset + done, &piece, iov, iov_count, done, flags);
        done += piece;
    }
    return ret;
}

coroutine_fn int blk_co_write(struct blk_node *node, uint64_t offset, const void *buffer, uint64_t length,
                              unsigned flags)
{
    struct iovec iov = { (void *)(uintptr_t)buffer, length };

    return blk_co_writev(node, offset, length, &iov, 1, flags);
}

/* ---- write zeroes ---- */

static coroutine_fn int co_write_zero_buffers(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    uint64_t chunk = MIN(length, (uint64_t)ZERO_CHUNK);
    AUTO_FREE void *zeroes = blk_buffer_alloc(node, chunk);
    int ret = zeroes ? 0 : -ENOMEM;

    if (zeroes)
        memset(zeroes, 0, chunk);
    for (uint64_t done = 0; done < length && ret == 0; done += chunk) {
        chunk = MIN(chunk, length - done);
        ret = blk_co_write(node, offset + done, zeroes, chunk, flags & BLK_REQ_FUA);
    }
    return ret;
}

static coroutine_fn int co_zeroes_piece(struct blk_node *node, uint64_t offset, uint64_t *length, unsigned flags)
{
    struct loop *loop = loop_current();
    unsigned *token = epoch_enter(node->epoch, loop);
    struct blk_target t;
    int ret;

    blk_walk(node, BLK_OP_WRITE_ZEROES, flags, offset, *length, &t);
    if (t.kind == BLK_DATA && (flags & BLK_REQ_ABSENT_ONLY)) {
        *length = t.length; /* there already */
        epoch_exit(token);
        return 0;
    }
    if (t.kind == BLK_DATA) {
        piece_limit_zeroes(&t);
        *length = t.length;
        bool fits = blk_range_fits(&t.node->limits, BLK_OP_WRITE_ZEROES, t.offset, t.length);
        bool plain = piece_is_plain(&t);
        ret = fits && plain ? piece_co_submit(&t, BLK_OP_WRITE_ZEROES, flags, NULL, 0) : -ENOTSUP;
        epoch_exit(token);
        if (fits && !plain) {
            struct piece_again again = { .top = node, .op = BLK_OP_WRITE_ZEROES, .flags = flags, .offset = offset };
            ret = piece_co_write_tracked(&again, &t, length, NULL, 0, 0);
        }
    } else {
        epoch_exit(token);
        if (is_cold(&t)) {
            *length = 0;
            return co_load_cold(&t, BLK_OP_WRITE_ZEROES);
        }
        *length = t.asked_length;
        ret = t.node->driver->co_write_zeroes ? t.node->driver->co_write_zeroes(t.node, t.offset, t.asked_length, flags)
                                              : -ENOTSUP;
    }
    if ((ret == -ENOTSUP || ret == -EOPNOTSUPP) && !(flags & (BLK_REQ_NO_FALLBACK | BLK_REQ_ABSENT_ONLY)))
        ret = co_write_zero_buffers(node, offset, *length, flags);
    return ret;
}

coroutine_fn int blk_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    uint64_t done = 0;
    int ret = check_change(node, offset, length);

    while (done < length && ret == 0) {
        uint64_t piece = length - done;
        ret = co_zeroes_piece(node, offset + done, &piece, flags);
        done += piece;
    }
    return ret;
}

/* ---- discard ---- */

static coroutine_fn int co_discard_piece(struct blk_node *node, uint64_t offset, uint64_t *length)
{
    struct loop *loop = loop_current();
    unsigned *token = epoch_enter(node->epoch, loop);
    struct blk_target t;
    int ret = 0;

    blk_walk(node, BLK_OP_DISCARD, 0, offset, *length, &t);
    if (t.kind == BLK_DATA) {
        *length = t.length;
        if (piece_limit_discard(&t, length))
            ret = piece_co_submit(&t, BLK_OP_DISCARD, 0, NULL, 0);
        epoch_exit(token);
    } else {
        epoch_exit(token);
        if (is_cold(&t)) {
            *length = 0;
            return co_load_cold(&t, BLK_OP_DISCARD);
        }
        *length = t.asked_length;
        if (t.node->driver->co_discard)
            ret = t.node->driver->co_discard(t.node, t.offset, t.asked_length);
    }
    /* A discard is advice: who cannot do it has done nothing wrong. */
    return ret == -ENOTSUP || ret == -EOPNOTSUPP ? 0 : ret;
}

coroutine_fn int blk_co_discard(struct blk_node *node, uint64_t offset, uint64_t length)
{
    uint64_t done = 0;
    int ret = check_change(node, offset, length);

    if (ret == 0 && !(node->open_flags & BLK_O_UNMAP))
        return 0;
    while (done < length && ret == 0) {
        uint64_t piece = length - done;
        ret = co_discard_piece(node, offset + done, &piece);
        done += piece;
    }
    return ret;
}

/* ---- flush ---- */

struct flushed_child {
    struct blk_node *node;
    int ret;
};

static coroutine_fn int co_flush_child(void *arg, size_t index)
{
    struct flushed_child *child = (struct flushed_child *)arg + index;

    child->ret = blk_co_flush(child->node);
    return 0; /* the others are flushed too */
}

/* All that the node may have written to, at once, also if one of them fails. */
static coroutine_fn int co_flush_children(struct blk_node *node)
{
    const struct blk_child *link;
    size_t count = 0, children = 0;
    int ret = 0;

    list_for_each(link, &node->children, in_parent)
        children++;
    AUTO_FREE struct flushed_child *child = xcalloc(children + 1, sizeof(*child));
    list_for_each(link, &node->children, in_parent) {
        if (blk_node_writable(link->node))
            child[count++].node = link->node;
    }
    co_crew(count, (unsigned)count, co_flush_child, child);
    for (size_t i = 0; i < count && ret == 0; i++)
        ret = child[i].ret;
    return ret;
}

coroutine_fn int blk_co_flush(struct blk_node *node)
{
    struct loop *loop = loop_current();
    unsigned *token = epoch_enter(node->epoch, loop);
    struct blk_target t;
    int ret;

    blk_walk(node, BLK_OP_FLUSH, 0, 0, 0, &t);
    if (t.kind == BLK_DATA) {
        ret = piece_co_submit(&t, BLK_OP_FLUSH, 0, NULL, 0);
        epoch_exit(token);
        return ret;
    }
    epoch_exit(token);
    return t.node->driver->co_flush ? t.node->driver->co_flush(t.node) : co_flush_children(t.node);
}

/* ---- resize ---- */

coroutine_fn int blk_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                 struct error **errp)
{
    if (!blk_node_writable(node))
        return error_set(errp, -EACCES, "Image is read-only");
    if (size > INT64_MAX)
        return error_set(errp, -EFBIG, "Required too big image size, it must be not greater than %lld",
                         (long long)INT64_MAX);
    struct blk_node *actor = node;
    while (!actor->driver->co_truncate && (actor->driver->flags & BLK_DRIVER_FILTER))
        actor = actor->file;
    if (!actor->driver->co_truncate)
        return error_set(errp, -ENOTSUP, "Image format driver does not support resize");
    int ret = actor->driver->co_truncate(actor, size, exact, prealloc, errp);
    blk_node_report_size(actor); /* filters above take it over */
    return ret;
}
