/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The mapped path: from blk_submit() to the protocol node and back.
 *
 * The walk asks `map` at every layer. Where all say BLK_DATA the request becomes one submission with the caller's own
 * buffers, or a few where the extents lie apart; reads of zeroes are filled in here. No coroutine, no lock, no copy; no
 * allocation either (parts come from a free list of this thread, which grows only until it is as long as ever needed).
 *
 * Invariants: everything from the first `map` to the last completion lies between epoch_enter() and epoch_exit(), so
 * what was mapped stays what it was. A write that meets a node with tracked ranges, a front end that is held back,
 * bytes that are not aligned, or more than the node takes at once: none of them is for here, request_co() takes them
 * over.
 */
#include "front_internal.h"
#include "walk.h"

#include <base/checked.h>
#include <base/coroutine.h>
#include <base/log.h>
#include <block/iov.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

/* More pieces or more scattered ones than this go the slow way. */
#define MAX_PARTS 8
#define PART_IOV 16

/* request->parts while blk_submit() still runs the slow path, and when that has ended before blk_submit() did. */
enum { SLOW_STARTING = 0x100, SLOW_RUNNING, SLOW_ENDED };

struct part {
    struct blk_io io;
    struct blk_request *request;
    struct part *next;
    struct iovec iov[PART_IOV];
};

static _Thread_local struct part *free_parts;
static pthread_key_t parts_key; /* only for what it does when a thread ends */

static void free_parts_of_thread(void *unused)
{
    (void)unused;
    while (free_parts) {
        struct part *part = free_parts;
        free_parts = part->next;
        free(part);
    }
}

__attribute__((constructor)) static void make_parts_key(void) { pthread_key_create(&parts_key, free_parts_of_thread); }

static struct part *part_get(void)
{
    struct part *part = free_parts;

    if (unlikely(!part)) {
        pthread_setspecific(parts_key, &free_parts);
        return xcalloc(1, sizeof(*part));
    }
    free_parts = part->next;
    return part;
}

static void part_put(struct part *part)
{
    part->next = free_parts;
    free_parts = part;
}

/* ---- completion ---- */

static void io_task(struct loop_task *task)
{
    struct blk_io *io = container_of(task, struct blk_io, task);

    io->done(io, io->result);
}

static void io_post(struct loop_post *post)
{
    struct blk_io *io = container_of(post, struct blk_io, post);

    io->done(io, io->result);
}

void blk_io_complete(struct blk_io *io, int result)
{
    io->result = result;
    if (loop_current() == io->loop) {
        io->task.fn = io_task;
        loop_defer(io->loop, &io->task);
    } else {
        io->post.fn = io_post;
        loop_post(io->loop, &io->post);
    }
}

static void submit_slow(struct blk_request *request);

/* From the epoch to the slow way, where it is counted before the epoch is left: who waits for all of the front end's
 * requests, to free it, overlooks none in between. */
static void leave_for_slow(struct blk_request *request)
{
    unsigned *epoch = request->epoch;

    submit_slow(request);
    epoch_exit(epoch);
}

/* Accounting comes before whatever lets a drain go on: the front end may be gone after that. */
static void account(struct blk_request *request, int result)
{
    struct front_lane *lane = front_lane(request->front);
    uint64_t now = loop_coarse_ns(request->loop);

    if (likely(result == 0)) {
        lane_add(&lane->operations[request->op], 1);
        lane_add(&lane->bytes[request->op], request->length);
    } else {
        lane_add(&lane->failed[request->op], 1);
    }
    lane_add(&lane->time_ns[request->op], now - request->start_ns);
    atomic_store_explicit(&lane->last_ns, now, memory_order_relaxed);
    TRACE3(request_done, request, request->op, result);
}

static void single_done(struct blk_io *io, int result)
{
    struct blk_request *request = container_of(io, struct blk_request, io);

    /* The host cannot zero or discard: the slow way writes zeroes, or does nothing. */
    if (unlikely(result == -ENOTSUP) && (request->op == BLK_OP_WRITE_ZEROES || request->op == BLK_OP_DISCARD)) {
        leave_for_slow(request);
        return;
    }
    account(request, result);
    epoch_exit(request->epoch);
    request->done(request, result);
}

static void part_done(struct blk_io *io, int result)
{
    struct part *part = container_of(io, struct part, io);
    struct blk_request *request = part->request;

    part_put(part);
    if (result < 0 && request->result == 0)
        request->result = result;
    if (--request->parts == 0) {
        account(request, request->result);
        epoch_exit(request->epoch);
        request->done(request, request->result);
    }
}

static void task_done(struct loop_task *task)
{
    struct blk_request *request = container_of(task, struct blk_request, task);

    request->done(request, request->result);
}

/* For what is known at once: done is never called from inside blk_submit(). */
static void complete_later(struct blk_request *request, int result)
{
    request->result = result;
    request->task.fn = task_done;
    loop_defer(request->loop, &request->task);
}

/* ---- at the door ---- */

enum admission { ADMITTED, NOTHING_TO_DO, OUTSIDE, READ_ONLY };

/* The front end is not held, and cannot be while this is asked: the request is in an epoch, or counted. */
static inline enum admission admit(const struct blk_front *front, const struct blk_request *request)
{
    if (unlikely(!range_inside(request->offset, request->length, blk_node_size(front->node))))
        return OUTSIDE;
    if (unlikely(blk_is_change(request->op) && !(front->open_flags & BLK_O_RDWR)))
        return READ_ONLY;
    if (unlikely(request->length == 0 && request->op != BLK_OP_FLUSH))
        return NOTHING_TO_DO;
    if (request->op == BLK_OP_DISCARD && !(front->open_flags & BLK_O_UNMAP))
        return NOTHING_TO_DO;
    return ADMITTED;
}

/* The result of a request that was not admitted, which counts as done or as invalid. */
static int settle_at_the_door(struct blk_request *request, enum admission admission)
{
    if (admission == NOTHING_TO_DO) {
        account(request, 0);
        return 0;
    }
    lane_add(&front_lane(request->front)->invalid[request->op], 1);
    return admission == OUTSIDE ? -EIO : -EPERM;
}

/* ---- the slow way ---- */

/* What a write asks that no mapping can answer. */
#define NOT_FOR_MAP (BLK_REQ_ABSENT_ONLY | BLK_REQ_COMPRESSED)

static bool wants_zero_detection(const struct blk_request *request)
{
    return (request->front->open_flags & BLK_O_DETECT_MASK) && !(request->flags & NOT_FOR_MAP);
}

static bool is_special_write(const struct blk_request *request)
{
    return request->op == BLK_OP_WRITE && (wants_zero_detection(request) || (request->flags & NOT_FOR_MAP));
}

static bool iov_is_zero(const struct iovec *iov, int iov_count)
{
    for (int i = 0; i < iov_count; i++) {
        if (!buffer_is_zero(iov[i].iov_base, iov[i].iov_len))
            return false;
    }
    return true;
}

static coroutine_fn int co_perform(struct blk_request *r)
{
    struct blk_node *node = r->front->node;

    switch (r->op) {
    case BLK_OP_READ: return blk_co_readv(node, r->offset, r->length, r->iov, r->iov_count);
    case BLK_OP_WRITE:
        if (wants_zero_detection(r) && iov_is_zero(r->iov, r->iov_count)) {
            bool unmap = (r->front->open_flags & BLK_O_DETECT_MASK) == BLK_O_DETECT_UNMAP;
            return blk_co_write_zeroes(node, r->offset, r->length, r->flags | (unmap ? BLK_REQ_MAY_UNMAP : 0u));
        }
        return blk_co_writev(node, r->offset, r->length, r->iov, r->iov_count, r->flags);
    case BLK_OP_WRITE_ZEROES: return blk_co_write_zeroes(node, r->offset, r->length, r->flags);
    case BLK_OP_DISCARD: return blk_co_discard(node, r->offset, r->length);
    case BLK_OP_FLUSH: return blk_co_flush(node);
    default: return -EINVAL;
    }
}

/* The disk may have become smaller, or read-only, while the request waited. */
static coroutine_fn int co_admitted(struct blk_request *request)
{
    enum admission admission = admit(request->front, request);

    if (admission != ADMITTED)
        return settle_at_the_door(request, admission);
    int result = co_perform(request);
    account(request, result);
    return result;
}

static coroutine_fn void request_co(void *arg)
{
    struct blk_request *request = arg;
    struct blk_front *front = request->front;

    front_co_enter_slow(front);
    int result = co_admitted(request);
    front_leave_slow(front);
    if (request->parts == SLOW_STARTING) {
        request->parts = SLOW_ENDED;
        request->result = result;
    } else {
        request->done(request, result);
    }
}

static void submit_slow(struct blk_request *request)
{
    lane_add(&front_lane(request->front)->slow, 1);
    request->parts = SLOW_STARTING;
    co_start(request_co, request);
    if (request->parts == SLOW_ENDED)
        complete_later(request, request->result);
    else
        request->parts = SLOW_RUNNING;
}

/* ---- the mapped way ---- */

static inline bool target_takes(const struct blk_target *t, enum blk_op op)
{
    if (unlikely(t->kind != BLK_DATA))
        return false;
    if (unlikely(!blk_range_fits(&t->node->limits, op, t->offset, t->length)))
        return false;
    /* A rewrite in progress below: its tracked ranges decide (tracked.c). */
    return likely(!blk_is_change(op) || atomic_load_explicit(&t->node->tracking, memory_order_relaxed) == 0);
}

static inline void prepare_io(struct blk_io *io, struct blk_request *request, const struct blk_target *t)
{
    io->node = t->node;
    io->loop = request->loop;
    io->op = request->op;
    io->flags = request->flags;
    io->offset = t->offset;
    io->length = t->length;
}

static bool submit_parts(struct blk_request *request, struct blk_target *first)
{
    struct blk_target targets[MAX_PARTS];
    struct part *parts[MAX_PARTS];
    uint64_t done = 0;
    unsigned count = 0, data_parts = 0;

    if (request->op != BLK_OP_READ && request->op != BLK_OP_WRITE)
        return false;
    for (; done < request->length; count++) {
        if (count == MAX_PARTS)
            return false;
        struct blk_target *t = &targets[count];
        if (count == 0)
            *t = *first;
        else
            blk_walk(request->front->node, request->op, request->flags, request->offset + done, request->length - done,
                     t);
        if (t->kind != BLK_ZERO && !target_takes(t, request->op))
            return false;
        done += t->length;
    }

    done = 0;
    for (unsigned i = 0; i < count; done += targets[i++].length) {
        struct blk_target *t = &targets[i];
        if (t->kind == BLK_ZERO)
            continue;
        struct part *part = parts[data_parts++] = part_get();
        part->request = request;
        prepare_io(&part->io, request, t);
        part->io.done = part_done;
        part->io.iov = part->iov;
        part->io.iov_count = iov_slice(request->iov, request->iov_count, done, t->length, part->iov, PART_IOV);
        if (part->io.iov_count < 0 || !blk_iov_fits(&t->node->limits, part->iov, part->io.iov_count)) {
            while (data_parts > 0)
                part_put(parts[--data_parts]);
            return false;
        }
    }

    done = 0;
    for (unsigned i = 0; i < count; done += targets[i++].length) {
        if (targets[i].kind == BLK_ZERO)
            iov_zero(request->iov, request->iov_count, done, targets[i].length);
    }
    request->parts = data_parts;
    if (data_parts == 0) {
        account(request, 0);
        epoch_exit(request->epoch);
        complete_later(request, 0);
    }
    for (unsigned i = 0; i < data_parts; i++)
        parts[i]->io.node->driver->submit(parts[i]->io.node, &parts[i]->io);
    return true;
}

/* Inside the request's epoch. False: nothing was done. */
static inline bool submit_mapped(struct blk_request *request)
{
    struct blk_target target;

    blk_walk(request->front->node, request->op, request->flags, request->offset, request->length, &target);
    if (unlikely(target.length < request->length || target.kind == BLK_ZERO))
        return submit_parts(request, &target);
    if (!target_takes(&target, request->op))
        return false;
    if (unlikely(!blk_iov_fits(&target.node->limits, request->iov, request->iov_count)))
        return false;
    prepare_io(&request->io, request, &target);
    request->io.iov = request->iov;
    request->io.iov_count = request->iov_count;
    request->io.done = single_done;
    target.node->driver->submit(target.node, &request->io);
    return true;
}

void blk_submit(struct blk_front *front, struct blk_request *request)
{
    struct loop *loop = loop_current();

    request->front = front;
    request->loop = loop;
    request->result = 0;
    request->start_ns = loop_coarse_ns(loop);
    if (request->op == BLK_OP_READ || request->op == BLK_OP_FLUSH) {
        request->flags = 0;
    } else if (!atomic_load_explicit(&front->write_cache, memory_order_relaxed)) {
        request->flags |= BLK_REQ_FUA;
    }
    if (request->op != BLK_OP_READ && request->op != BLK_OP_WRITE)
        request->iov_count = 0;
    TRACE4(request_start, request, request->op, request->offset, request->length);

    /* Inside the epoch, with the gate open, the graph stays what it is; else the slow way looks once it is let in. */
    request->epoch = epoch_enter(front->epoch, loop);
    if (likely(atomic_load_explicit(&front->gate, memory_order_acquire) == 0)) {
        enum admission admission = admit(front, request);
        if (likely(admission == ADMITTED) && likely(!is_special_write(request)) && submit_mapped(request)) {
            lane_add(&front_lane(front)->mapped, 1);
            return;
        }
        if (unlikely(admission != ADMITTED)) {
            int result = settle_at_the_door(request, admission);
            epoch_exit(request->epoch);
            complete_later(request, result);
            return;
        }
    }
    leave_for_slow(request);
}
