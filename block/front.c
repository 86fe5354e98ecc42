/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Front ends: life, policy, accounting, and the coroutine forms of requests, which all go through blk_submit(). */
#include "drain.h"
#include "front_internal.h"
#include "graph.h"
#include "links.h"
#include "perm.h"

#include <base/coroutine.h>
#include <base/epoch.h>
#include <block/image.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- life ---- */

static void free_front(struct blk_front *front)
{
    co_cond_finish(&front->released);
    co_cond_finish(&front->settled);
    pthread_mutex_destroy(&front->drain_lock);
    epoch_domain_unref(front->epoch);
    free(front->name);
    free(front);
}

void front_ref(struct blk_front *front) { front->references++; }

void front_unref(struct blk_front *front)
{
    if (--front->references == 0)
        free_front(front);
}

struct blk_front *blk_front_new(const char *name, struct blk_node *node, unsigned perm, unsigned shared,
                                struct error **errp)
{
    struct blk_front *front = aligned_alloc(64, sizeof(*front));

    if (!front)
        abort();
    memset(front, 0, sizeof(*front));
    front->references = 1;
    front->epoch = epoch_domain_new();
    front->name = xstrdup(name ? name : "");
    front->node = blk_node_ref(node);
    front->open_flags = node->open_flags;
    atomic_init(&front->write_cache, !(node->open_flags & BLK_O_DSYNC));
    front->on_write_error = BLK_ON_ERROR_ENOSPC;
    pthread_mutex_init(&front->drain_lock, NULL);
    co_cond_init(&front->released);
    co_cond_init(&front->settled);
    front->size_reported = blk_node_size(node);
    front->root = blk_child_attach(NULL, front, "root", node);
    if (blk_perm_set_child(front->root, perm, shared, errp) < 0) {
        blk_drain_forget_front(front);
        blk_child_detach(front->root)->references--; /* the caller still holds its own */
        front_unref(front);
        return NULL;
    }
    return front;
}

coroutine_fn int blk_co_front_free(struct blk_front *front)
{
    if (!front)
        return 0;
    front->events = NULL;
    /* Who frees it inside a drained section of his own would wait for himself: its last requests go first. */
    if (blk_drain_is_ours(front))
        blk_drain_forget_front(front);
    front_co_wait_for_all(front);
    int ret = blk_front_writable(front) ? blk_front_co_flush(front) : 0;
    blk_co_front_settle(front);
    blk_drain_forget_front(front);
    int close_ret = blk_co_node_unref(blk_child_detach(front->root));
    front_unref(front);
    return ret < 0 ? ret : close_ret;
}

int blk_front_set_perm(struct blk_front *front, unsigned perm, unsigned shared, struct error **errp)
{
    return blk_perm_set_child(front->root, perm, shared, errp);
}

/* ---- what it is ---- */

struct blk_node *blk_front_node(struct blk_front *front) { return front->node; }
const char *blk_front_name(const struct blk_front *front) { return front->name; }
uint64_t blk_front_size(struct blk_front *front) { return blk_node_size(front->node); }
bool blk_front_writable(const struct blk_front *front) { return front->open_flags & BLK_O_RDWR; }

void blk_front_set_write_cache(struct blk_front *front, bool on) { atomic_store(&front->write_cache, on); }

bool blk_front_write_cache(const struct blk_front *front) { return atomic_load(&front->write_cache); }

const struct blk_limits *blk_front_limits(const struct blk_front *front)
{
    return &blk_node_protocol(front->node)->limits;
}

/* ---- error policy ---- */

void blk_front_set_on_error(struct blk_front *front, enum blk_on_error on_read, enum blk_on_error on_write)
{
    front->on_read_error = on_read;
    front->on_write_error = on_write;
}

enum blk_on_error blk_front_on_error(const struct blk_front *front, bool is_read, int error)
{
    enum blk_on_error policy = is_read ? front->on_read_error : front->on_write_error;

    if (policy == BLK_ON_ERROR_ENOSPC)
        policy = error == -ENOSPC ? BLK_ON_ERROR_STOP : BLK_ON_ERROR_REPORT;
    if (front->events && front->events->failed)
        front->events->failed(front->events_arg, is_read, error, policy);
    return policy;
}

/* ---- what the owner wants to hear of ---- */

void blk_front_set_events(struct blk_front *front, const struct blk_front_events *events, void *arg)
{
    front->events = events;
    front->events_arg = arg;
}

void front_report_drained(struct blk_front *front, bool held)
{
    if (front->events && front->events->drained)
        front->events->drained(front->events_arg, held);
}

void front_report_medium(struct blk_front *front)
{
    if (front->events && front->events->medium_changed)
        front->events->medium_changed(front->events_arg);
}

void front_report_size(struct blk_front *front)
{
    uint64_t size = blk_node_size(front->node);

    if (size == front->size_reported)
        return;
    front->size_reported = size;
    if (front->events && front->events->resized)
        front->events->resized(front->events_arg, size);
}

/* ---- accounting ---- */

_Thread_local unsigned front_lane_of_thread = FRONT_LANES;

void front_choose_lane(void)
{
    static atomic_uint threads;

    front_lane_of_thread = MIN(atomic_fetch_add(&threads, 1u), FRONT_LANES - 1u);
}

static uint64_t get(const _Atomic uint64_t *counter) { return atomic_load_explicit(counter, memory_order_relaxed); }

void blk_front_stats(const struct blk_front *front, struct blk_stats *stats)
{
    memset(stats, 0, sizeof(*stats));
    for (size_t i = 0; i < FRONT_LANES; i++) {
        const struct front_lane *lane = &front->lanes[i];
        for (size_t op = 0; op < BLK_OP_COUNT; op++) {
            stats->operations[op] += get(&lane->operations[op]);
            stats->bytes[op] += get(&lane->bytes[op]);
            stats->failed[op] += get(&lane->failed[op]);
            stats->invalid[op] += get(&lane->invalid[op]);
            stats->time_ns[op] += get(&lane->time_ns[op]);
        }
        stats->mapped += get(&lane->mapped);
        stats->slow += get(&lane->slow);
        stats->last_ns = MAX(stats->last_ns, get(&lane->last_ns));
    }
}

/* ---- coroutine forms ---- */

struct waiting_request {
    struct blk_request request;
    struct co *co;
    int result;
};

static void wake_caller(struct blk_request *request, int result)
{
    struct waiting_request *waiting = container_of(request, struct waiting_request, request);

    waiting->result = result;
    co_wake(waiting->co);
}

static coroutine_fn int co_submit_and_wait(struct blk_front *front, enum blk_op op, uint64_t offset, uint64_t length,
                                           const struct iovec *iov, int iov_count, unsigned flags)
{
    struct waiting_request waiting = {
        .request = { .op = op,
                     .flags = flags,
                     .offset = offset,
                     .length = length,
                     .iov = iov,
                     .iov_count = iov_count,
                     .done = wake_caller },
        .co = co_self(),
    };

    blk_submit(front, &waiting.request);
    co_yield();
    return waiting.result;
}

coroutine_fn int blk_front_co_readv(struct blk_front *front, uint64_t offset, uint64_t length, const struct iovec *iov,
                                    int iov_count)
{
    return co_submit_and_wait(front, BLK_OP_READ, offset, length, iov, iov_count, 0);
}

coroutine_fn int blk_front_co_writev(struct blk_front *front, uint64_t offset, uint64_t length, const struct iovec *iov,
                                     int iov_count, unsigned flags)
{
    return co_submit_and_wait(front, BLK_OP_WRITE, offset, length, iov, iov_count, flags);
}

coroutine_fn int blk_front_co_read(struct blk_front *front, uint64_t offset, void *buffer, uint64_t length)
{
    struct iovec iov = { buffer, length };

    return blk_front_co_readv(front, offset, length, &iov, 1);
}

coroutine_fn int blk_front_co_write(struct blk_front *front, uint64_t offset, const void *buffer, uint64_t length,
                                    unsigned flags)
{
    struct iovec iov = { (void *)(uintptr_t)buffer, length };

    return blk_front_co_writev(front, offset, length, &iov, 1, flags);
}

coroutine_fn int blk_front_co_write_zeroes(struct blk_front *front, uint64_t offset, uint64_t length, unsigned flags)
{
    return co_submit_and_wait(front, BLK_OP_WRITE_ZEROES, offset, length, NULL, 0, flags);
}

coroutine_fn int blk_front_co_discard(struct blk_front *front, uint64_t offset, uint64_t length)
{
    return co_submit_and_wait(front, BLK_OP_DISCARD, offset, length, NULL, 0, 0);
}

coroutine_fn int blk_front_co_flush(struct blk_front *front)
{
    return co_submit_and_wait(front, BLK_OP_FLUSH, 0, 0, NULL, 0, 0);
}

coroutine_fn int blk_front_co_truncate(struct blk_front *front, uint64_t size, bool exact, const char *prealloc,
                                       struct error **errp)
{
    blk_co_changes_lock();
    struct blk_node *node = blk_node_ref(front->node);
    bool may_resize = front->root->perm & BLK_PERM_RESIZE;
    int ret = blk_front_writable(front) ? 0 : error_set(errp, -EACCES, "Image is read-only");
    if (ret == 0 && !may_resize)
        ret = blk_front_set_perm(front, front->root->perm | BLK_PERM_RESIZE, front->root->shared, errp);
    if (ret == 0) {
        blk_co_drain_begin(node);
        ret = blk_co_truncate(node, size, exact, prealloc, errp);
        blk_drain_end(node);
        if (!may_resize) /* less than before: cannot fail */
            blk_front_set_perm(front, front->root->perm & ~(unsigned)BLK_PERM_RESIZE, front->root->shared, NULL);
    }
    blk_co_node_unref(node);
    blk_changes_unlock();
    return ret;
}
