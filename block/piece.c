/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One piece of a request at a protocol node (piece.h).
 *
 * The node says how offsets, lengths and memory must be aligned (O_DIRECT). Memory that is not goes through a bounce
 * buffer; a read that is not reads the blocks around it; a write that is not is a read-modify-write of one block, which
 * is registered as a tracked range first, so that no other write to that block is lost.
 */
#include "piece.h"

#include <base/checked.h>
#include <base/coroutine.h>
#include <base/testpoint.h>
#include <block/iov.h>
#include <block/tracked.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#define BOUNCE_MAX (1024u * 1024)

/* ---- buffers ---- */

int iov_view_init(struct iov_view *view, const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length)
{
    view->allocated = NULL;
    view->iov = view->local;
    view->count = iov_slice(iov, iov_count, skip, length, view->local, ARRAY_SIZE(view->local));
    if (view->count >= 0)
        return 0;
    view->allocated = malloc((size_t)iov_count * sizeof(*view->allocated));
    view->iov = view->allocated;
    view->count = view->allocated ? iov_slice(iov, iov_count, skip, length, view->allocated, iov_count) : 0;
    return view->allocated ? 0 : -ENOMEM;
}

void iov_view_finish(struct iov_view *view) { free(view->allocated); }

/* ---- limits ---- */

static uint64_t whole_blocks(uint64_t length, uint64_t alignment)
{
    return length > alignment ? align_down(length, alignment) : alignment;
}

static void limit_length(struct blk_target *t, uint64_t max)
{
    uint64_t alignment = t->node->limits.request_alignment;

    if (max && t->length > max)
        t->length = whole_blocks(max, alignment);
}

/* Up to the next block where the start is unaligned; else whole blocks; else the unaligned rest. */
static void limit_to_alignment(struct blk_target *t, uint64_t alignment)
{
    uint64_t head = t->offset & (alignment - 1);

    if (head)
        t->length = MIN(t->length, alignment - head);
    else if (t->length > alignment)
        t->length = align_down(t->length, alignment);
}

void piece_limit_write(struct blk_target *t)
{
    limit_length(t, t->node->limits.max_transfer);
    limit_to_alignment(t, t->node->limits.request_alignment);
}

void piece_limit_zeroes(struct blk_target *t)
{
    const struct blk_limits *limits = &t->node->limits;

    limit_length(t, limits->max_zeroes);
    limit_to_alignment(t, MAX((uint64_t)limits->request_alignment, limits->zeroes_alignment));
}

bool piece_limit_discard(struct blk_target *t, uint64_t *length)
{
    const struct blk_limits *limits = &t->node->limits;
    uint64_t alignment = MAX((uint64_t)limits->request_alignment, limits->discard_alignment);
    uint64_t head = align_up(t->offset, alignment) - t->offset;

    limit_length(t, limits->max_discard ? limits->max_discard + head : 0);
    *length = t->length;
    if (t->length < head + alignment)
        return false;
    t->offset += head;
    t->length = align_down(t->length - head, alignment);
    *length = head + t->length;
    return true;
}

bool piece_is_plain(const struct blk_target *t)
{
    return ((t->offset | t->length) & (t->node->limits.request_alignment - 1)) == 0 &&
           atomic_load_explicit(&t->node->tracking, memory_order_relaxed) == 0;
}

/* ---- submission ---- */

struct waiting_io {
    struct blk_io io;
    struct co *co;
    int result;
};

static void wake_submitter(struct blk_io *io, int result)
{
    struct waiting_io *waiting = container_of(io, struct waiting_io, io);

    waiting->result = result;
    co_wake(waiting->co);
}

coroutine_fn int piece_co_submit(const struct blk_target *t, enum blk_op op, unsigned flags, const struct iovec *iov,
                                 int iov_count)
{
    struct waiting_io waiting = {
        .io = { .node = t->node,
                .loop = loop_current(),
                .op = op,
                .flags = flags,
                .offset = t->offset,
                .length = t->length,
                .iov = iov,
                .iov_count = iov_count,
                .done = wake_submitter },
        .co = co_self(),
    };

    t->node->driver->submit(t->node, &waiting.io);
    co_yield();
    return waiting.result;
}

/* Whole blocks at t, through aligned memory. */
static coroutine_fn int co_submit_buffer(const struct blk_target *t, enum blk_op op, unsigned flags, void *buffer)
{
    struct iovec iov = { buffer, t->length };

    return piece_co_submit(t, op, flags, &iov, 1);
}

static bool fits_as_it_is(const struct blk_target *t, const struct iov_view *view)
{
    int max_iov = t->node->limits.max_iov ? (int)MIN(t->node->limits.max_iov, (uint32_t)IOV_MAX) : IOV_MAX;

    return view->count <= max_iov && blk_memory_aligned(&t->node->limits, view->iov, view->count);
}

/* ---- read ---- */

static coroutine_fn int co_read_bounced(struct blk_target *t, const struct iovec *iov, int iov_count, uint64_t done)
{
    uint64_t alignment = t->node->limits.request_alignment;
    uint64_t head = t->offset & (alignment - 1);

    t->length = MIN(t->length, BOUNCE_MAX - head);
    struct blk_target blocks = *t;
    blocks.offset -= head;
    blocks.length = align_up(head + t->length, alignment);
    AUTO_FREE char *buffer = blk_buffer_alloc(t->node, blocks.length);
    if (!buffer)
        return -ENOMEM;
    int ret = co_submit_buffer(&blocks, BLK_OP_READ, 0, buffer);
    if (ret == 0)
        iov_from_buffer(iov, iov_count, done, buffer + head, t->length);
    return ret;
}

coroutine_fn int piece_co_read(struct blk_target *t, const struct iovec *iov, int iov_count, uint64_t done)
{
    struct iov_view view;

    limit_length(t, t->node->limits.max_transfer);
    if (!is_aligned(t->offset | t->length, t->node->limits.request_alignment))
        return co_read_bounced(t, iov, iov_count, done);
    int ret = iov_view_init(&view, iov, iov_count, done, t->length);
    if (ret == 0)
        ret = fits_as_it_is(t, &view) ? piece_co_submit(t, BLK_OP_READ, 0, view.iov, view.count)
                                      : co_read_bounced(t, iov, iov_count, done);
    iov_view_finish(&view);
    return ret;
}

/* ---- write ---- */

static coroutine_fn int co_write_bounced(const struct blk_target *t, const struct iovec *iov, int iov_count,
                                         uint64_t done, unsigned flags)
{
    struct blk_target part = *t;
    uint64_t written = 0;
    AUTO_FREE char *buffer = blk_buffer_alloc(t->node, MIN(t->length, (uint64_t)BOUNCE_MAX));
    int ret = buffer ? 0 : -ENOMEM;

    for (; written < t->length && ret == 0; written += part.length) {
        part.offset = t->offset + written;
        part.length = MIN(t->length - written, (uint64_t)BOUNCE_MAX);
        iov_to_buffer(iov, iov_count, done + written, buffer, part.length);
        ret = co_submit_buffer(&part, BLK_OP_WRITE, flags, buffer);
    }
    return ret;
}

coroutine_fn int piece_co_write(const struct blk_target *t, const struct iovec *iov, int iov_count, uint64_t done,
                                unsigned flags)
{
    struct iov_view view;
    int ret = iov_view_init(&view, iov, iov_count, done, t->length);

    if (ret == 0)
        ret = fits_as_it_is(t, &view) ? piece_co_submit(t, BLK_OP_WRITE, flags, view.iov, view.count)
                                      : co_write_bounced(t, iov, iov_count, done, flags);
    iov_view_finish(&view);
    return ret;
}

/* One block, of which the piece is a part. */
static coroutine_fn int co_rewrite_block(const struct blk_target *t, const struct iovec *iov, int iov_count,
                                         uint64_t done, unsigned flags)
{
    uint64_t alignment = t->node->limits.request_alignment;
    uint64_t head = t->offset & (alignment - 1);
    struct blk_target block = *t;
    AUTO_FREE char *buffer = blk_buffer_alloc(t->node, alignment);

    if (!buffer)
        return -ENOMEM;
    block.offset -= head;
    block.length = alignment;
    int ret = co_submit_buffer(&block, BLK_OP_READ, 0, buffer);
    if (ret < 0)
        return ret;
    testpoint_co("block-rewrite-read");
    iov_to_buffer(iov, iov_count, done, buffer + head, t->length);
    return co_submit_buffer(&block, BLK_OP_WRITE, flags, buffer);
}

coroutine_fn int piece_co_write_tracked(const struct piece_again *again, const struct blk_target *t, uint64_t *length,
                                        const struct iovec *iov, int iov_count, uint64_t done)
{
    uint64_t alignment = t->node->limits.request_alignment;
    bool rewrite = !is_aligned(t->offset | t->length, alignment);
    struct loop *loop = loop_current();
    struct blk_tracked tracked;
    struct blk_target now;
    int ret = 0;

    if (rewrite)
        blk_co_tracked_rewrite(t->node, &tracked, align_down(t->offset, alignment), alignment);
    else
        blk_co_tracked_write(t->node, &tracked, t->offset, t->length);
    unsigned *token = epoch_enter(again->top->epoch, loop);
    blk_walk(again->top, again->op, again->flags, again->offset, t->length, &now);
    if (now.kind != BLK_DATA || now.node != t->node || now.offset != t->offset || now.length != t->length)
        *length = 0;
    else if (again->op == BLK_OP_WRITE_ZEROES)
        ret = piece_co_submit(t, again->op, again->flags, NULL, 0);
    else
        ret = rewrite ? co_rewrite_block(t, iov, iov_count, done, again->flags)
                      : piece_co_write(t, iov, iov_count, done, again->flags);
    epoch_exit(token);
    blk_tracked_end(t->node, &tracked);
    return ret;
}
