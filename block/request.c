/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests on nodes in straight-line code: what the mapped path (submit.c) hands over, and what formats and jobs do.
 *
 * Each turn of a loop takes the next piece: walks `map` inside an epoch; plain data goes to the protocol node in the same
 * epoch; where a driver has to act, the epoch is left first, because drivers wait. Metadata that is not in memory is loaded and
 * the walk repeated.
 */
#include "piece.h"
#include "walk.h"

#include <base/checked.h>
#include <base/coroutine.h>
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
        unsigned token = epoch_enter(loop);
        blk_walk(node, BLK_OP_READ, 0, offset + done, inside - done, &t);
        if (t.kind == BLK_DATA)
            ret = piece_co_read(&t, iov, iov_count, done);
        else if (t.kind == BLK_ZERO)
            iov_zero(iov, iov_count, done, t.length);
        epoch_exit(loop, token);
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
    if (!(node->driver->flags & BLK_DRIVER_GROWS) && !range_inside(offset, length, blk_node_size(node)))
        return -EIO;
    return 0;
}

/* One piece of a write, *length bytes at the most; says in *length how many it did, 0 where the walk has to be repeated. */
static coroutine_fn int co_write_piece(struct blk_node *node, uint64_t offset, uint64_t *length,
                                       const struct iovec *iov, int iov_count, uint64_t done, unsigned flags)
{
    struct loop *loop = loop_current();
    unsigned token = epoch_enter(loop);
    struct blk_target t;
    int ret = 0;

    blk_walk(node, BLK_OP_WRITE, flags, offset, *length, &t);
    if (t.kind == BLK_DATA) {
        piece_limit_write(&t);
        *length = t.length;
        if (piece_is_plain(&t)) {
            ret = piece_co_write(&t, iov, iov_count, done, flags);
            epoch_exit(loop, token);
            return ret;
        }
        epoch_exit(loop, token);
        struct piece_again again = { .top = node, .op = BLK_OP_WRITE, .flags = flags, .offset = offset };
        return piece_co_write_tracked(&again, &t, length, iov, iov_count, done);
    }
    epoch_exit(loop, token);
    if (is_cold(&t)) {
        *length = 0;
        return co_load_cold(&t, BLK_OP_WRITE);
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

coroutine_fn int blk_co_writev(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                               int iov_count, unsigned flags)
{
    uint64_t done = 0;
    int ret = check_change(node, offset, length);

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
    unsigned token = epoch_enter(loop);
    struct blk_target t;
    int ret;

    blk_walk(node, BLK_OP_WRITE_ZEROES, flags, offset, *length, &t);
    if (t.kind == BLK_DATA) {
        piece_limit_zeroes(&t);
        *length = t.length;
        ret = piece_is_plain(&t) ? piece_co_submit(&t, BLK_OP_WRITE_ZEROES, flags, NULL, 0) : -ENOTSUP;
        epoch_exit(loop, token);
    } else {
        epoch_exit(loop, token);
        if (is_cold(&t)) {
            *length = 0;
            return co_load_cold(&t, BLK_OP_WRITE_ZEROES);
        }
        *length = t.asked_length;
        ret = t.node->driver->co_write_zeroes ? t.node->driver->co_write_zeroes(t.node, t.offset, t.asked_length, flags)
                                              : -ENOTSUP;
    }
    if ((ret == -ENOTSUP || ret == -EOPNOTSUPP) && !(flags & BLK_REQ_NO_FALLBACK))
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
    unsigned token = epoch_enter(loop);
    struct blk_target t;
    int ret = 0;

    blk_walk(node, BLK_OP_DISCARD, 0, offset, *length, &t);
    if (t.kind == BLK_DATA) {
        *length = t.length;
        if (piece_limit_discard(&t, length))
            ret = piece_co_submit(&t, BLK_OP_DISCARD, 0, NULL, 0);
        epoch_exit(loop, token);
    } else {
        epoch_exit(loop, token);
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

coroutine_fn int blk_co_flush(struct blk_node *node)
{
    struct loop *loop = loop_current();
    unsigned token = epoch_enter(loop);
    struct blk_target t;
    int ret;

    blk_walk(node, BLK_OP_FLUSH, 0, 0, 0, &t);
    if (t.kind == BLK_DATA) {
        ret = piece_co_submit(&t, BLK_OP_FLUSH, 0, NULL, 0);
        epoch_exit(loop, token);
        return ret;
    }
    epoch_exit(loop, token);
    if (t.node->driver->co_flush)
        return t.node->driver->co_flush(t.node);
    return t.node->file ? blk_co_flush(t.node->file) : 0;
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
    if (!node->driver->co_truncate)
        return error_set(errp, -ENOTSUP, "Image format driver does not support resize");
    return node->driver->co_truncate(node, size, exact, prealloc, errp);
}
