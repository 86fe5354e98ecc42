/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What has changed in memory and not on disk: the dirty bit before the first change, host clusters whose references are
 * gone, and when a commit starts by itself: a while after the first change, or when much is dirty. The timer and the
 * commits that start here run on the node's home loop, where the image is closed too.
 */
#include "dirty.h"

#include "header.h"

/* Dirty metadata is written after this long at the latest. */
#define COMMIT_AFTER_NS UINT64_C(5000000000)
/* Freed runs that make a commit worth while, and those that make a writer wait for it. */
#define FREED_KICK 4096u
#define FREED_MAX 65536u

coroutine_fn int qcow2_co_set_dirty_bit(struct qcow2 *s)
{
    /* One writes; those that come meanwhile wait for what came of it, and try for themselves if it failed. */
    while (!s->dirty_bit && s->header_writing)
        co_cond_wait(&s->header_written, &s->lock);
    if (s->dirty_bit || s->header.version < 3)
        return 0;
    s->header.incompatible |= QCOW2_INCOMPAT_DIRTY;
    qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
    int ret = qcow2_co_header_write(s);
    if (ret < 0) {
        s->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
        qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
        return ret;
    }
    s->dirty_bit = true;
    return 0;
}

coroutine_fn int qcow2_co_begin_changes(struct qcow2 *s) { return s->lazy_refcounts ? qcow2_co_set_dirty_bit(s) : 0; }

coroutine_fn int qcow2_co_clear_dirty_bit(struct qcow2 *s)
{
    if (!s->dirty_bit || s->dirty_stays)
        return 0;
    co_mutex_lock(&s->lock);
    s->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
    qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
    int ret = qcow2_co_header_write(s);
    s->dirty_bit = false; /* whatever became of it, whoever changes something sets it again */
    co_mutex_unlock(&s->lock);
    return ret;
}

/* ---- freed clusters ---- */

void qcow2_freed_add(struct qcow2_freed *freed, uint64_t cluster, uint64_t count, enum qcow2_freed_by by)
{
    struct qcow2_extent *last = freed->count ? &freed->extents[freed->count - 1] : NULL;

    if (last && last->by == by && last->cluster + last->count == cluster && last->count + count <= UINT32_MAX) {
        last->count += (uint32_t)count;
        return;
    }
    if (freed->count == freed->capacity) {
        freed->capacity = freed->capacity ? freed->capacity * 2 : 16;
        freed->extents = xrealloc(freed->extents, freed->capacity * sizeof(*freed->extents));
    }
    freed->extents[freed->count++] = (struct qcow2_extent){ cluster, (uint32_t)count, by };
}

void qcow2_free_clusters(struct qcow2 *s, uint64_t cluster, uint64_t count, enum qcow2_freed_by by)
{
    qcow2_freed_add(&s->freed, cluster, count, by);
    s->freeing += count;
    qcow2_note_dirty(s);
}

void qcow2_free_entry(struct qcow2 *s, struct qcow2_entry entry, enum qcow2_freed_by by)
{
    uint64_t offset = qcow2_entry_host(entry), length = s->cluster_size;

    if (s->external) /* nobody else gets the place */
        return;
    switch (qcow2_entry_kind(entry)) {
    case QCOW2_UNALLOCATED:
    case QCOW2_ZERO_PLAIN: return;
    case QCOW2_IS_COMPRESSED: qcow2_entry_compressed_place(entry, s->cluster_bits, &offset, &length); break;
    default: break;
    }
    uint64_t first = offset >> s->cluster_bits, last = (offset + length - 1) >> s->cluster_bits;
    qcow2_free_clusters(s, first, last - first + 1, by);
}

/* ---- in the background ---- */

/* A commit by itself: not when the image is being closed, and not while the node is drained. */
static bool may_start(const struct qcow2 *s) { return !s->closing && !atomic_load(&s->drained); }

static coroutine_fn void co_timer_commit(void *arg)
{
    struct qcow2 *s = arg;

    co_mutex_lock(&s->lock);
    s->timer_state = QCOW2_TIMER_IDLE;
    bool start = !s->background && may_start(s);
    if (start)
        s->background = true;
    co_cond_broadcast(&s->commit_done);
    co_mutex_unlock(&s->lock);
    if (start)
        s->co_background_commit(s);
}

static void timer_fired(struct loop_timer *timer)
{
    co_start(co_timer_commit, container_of(timer, struct qcow2, timer));
}

static coroutine_fn void co_arm_timer(void *arg)
{
    struct qcow2 *s = arg;

    co_mutex_lock(&s->lock);
    if (!may_start(s)) {
        s->timer_state = QCOW2_TIMER_IDLE;
    } else {
        s->timer_state = QCOW2_TIMER_ARMED;
        s->timer.fn = timer_fired;
        loop_timer_arm(s->node->loop, &s->timer, loop_now_ns() + COMMIT_AFTER_NS);
    }
    co_cond_broadcast(&s->commit_done);
    co_mutex_unlock(&s->lock);
}

void qcow2_note_dirty(struct qcow2 *s)
{
    if (!may_start(s))
        return;
    if (s->timer_state == QCOW2_TIMER_IDLE) {
        s->timer_state = QCOW2_TIMER_ARMING;
        co_start_on(s->node->loop, co_arm_timer, s);
    }
    if (!s->background && (s->dirty_count > s->max_slices / 4 || s->freed.count > FREED_KICK)) {
        s->background = true;
        co_start_on(s->node->loop, s->co_background_commit, s);
    }
}

bool qcow2_too_dirty(const struct qcow2 *s) { return s->dirty_count > s->max_slices / 2 || s->freed.count > FREED_MAX; }

/* Lock held. */
static coroutine_fn void co_stop(struct qcow2 *s)
{
    if (s->timer_state == QCOW2_TIMER_ARMED && s->timer.heap_index) {
        loop_timer_disarm(&s->timer);
        s->timer_state = QCOW2_TIMER_IDLE;
    }
    while (s->timer_state != QCOW2_TIMER_IDLE || s->background || s->punching || s->resuming)
        co_cond_wait(&s->commit_done, &s->lock);
}

coroutine_fn void qcow2_co_stop_background(struct qcow2 *s)
{
    co_mutex_lock(&s->lock);
    s->closing = true;
    co_stop(s);
    co_mutex_unlock(&s->lock);
}

/* ---- drained sections ---- */

void qcow2_drain_begin(struct blk_node *node)
{
    struct qcow2 *s = node->state;

    atomic_store(&s->drained, true);
}

coroutine_fn void qcow2_co_drain_settle(struct blk_node *node)
{
    struct qcow2 *s = node->state;

    co_mutex_lock(&s->lock);
    co_stop(s);
    co_mutex_unlock(&s->lock);
}

/* What has become dirty meanwhile wants its timer. */
static coroutine_fn void co_resume(void *arg)
{
    struct qcow2 *s = arg;

    co_mutex_lock(&s->lock);
    s->resuming--;
    qcow2_note_dirty(s);
    co_cond_broadcast(&s->commit_done);
    co_mutex_unlock(&s->lock);
}

void qcow2_drain_end(struct blk_node *node)
{
    struct qcow2 *s = node->state;

    atomic_store(&s->drained, false);
    s->resuming++;
    co_start(co_resume, s);
}
