/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The way of a cluster from "in use" to "free".
 *
 * 1. Its entry goes from memory: it is in s->freed (dirty.c), its refcount unchanged, so nobody can get it.
 * 2. A commit has made the entry's removal durable: it is in limbo, with an epoch (W5).
 * 3. Every request that could have mapped it has ended: its refcount goes down (W6). If the host gets it back, that
 *    comes first, in the background, many at once; nobody waits for it but who needs the room, close, and a flush that
 *    finds too many waiting (a whole disk that is discarded).
 * Only then can it be allocated. A refcount on disk that is still too high after a power cut is a leak, never harm.
 */
#include "free.h"

#include "dirty.h"
#include "overlap.h"
#include "refcount.h"

#include <base/crew.h>
#include <base/testpoint.h>

/* Discards that the host gets at a time. A file system does one after the other, and makes writes that need the same
 * lock wait for all of those that came before: 16 at a time cost an allocating write 100 ms, 4 cost it 5. */
#define PUNCHERS 4u

/* ---- back to the host ---- */

static int by_cluster(const void *a, const void *b)
{
    const struct qcow2_extent *x = a, *y = b;

    return x->cluster < y->cluster ? -1 : x->cluster > y->cluster;
}

/* Sorted, neighbours in one. No cluster is there twice. */
static void merge(struct qcow2_freed *freed)
{
    struct qcow2_freed merged = { 0 };

    qsort(freed->extents, freed->count, sizeof(*freed->extents), by_cluster);
    for (size_t i = 0; i < freed->count; i++)
        qcow2_freed_add(&merged, freed->extents[i].cluster, freed->extents[i].count, freed->extents[i].by);
    free(freed->extents);
    *freed = merged;
}

struct batch {
    struct qcow2 *s;
    struct qcow2_freed freed;
};

static coroutine_fn int co_punch_one(void *arg, size_t index)
{
    const struct batch *batch = arg;
    const struct qcow2_extent *e = &batch->freed.extents[index];

    blk_co_discard(qcow2_data_file(batch->s), e->cluster << batch->s->cluster_bits,
                   (uint64_t)e->count << batch->s->cluster_bits);
    return 0; /* a courtesy: failing does no harm */
}

/* A refcount that could not be lowered is tried again with what is freed from now on: not a leak yet. */
static void keep(struct qcow2 *s, uint64_t cluster, enum qcow2_freed_by by, int error)
{
    qcow2_freed_add(&s->freed, cluster, 1, by);
    s->freeing++;
    s->reap_error = error;
}

/* Takes away the last references of a batch that the host has back. */
static coroutine_fn void co_forget_batch(struct qcow2 *s, const struct qcow2_freed *freed)
{
    for (size_t i = 0; i < freed->count; i++) {
        for (uint64_t j = 0; j < freed->extents[i].count; j++) {
            uint64_t cluster = freed->extents[i].cluster + j;
            int ret = qcow2_co_refcount_change(s, cluster, 0);
            qcow2_set_remove(&s->punch_set, cluster);
            if (ret < 0)
                keep(s, cluster, freed->extents[i].by, ret);
        }
    }
}

/* s->punching is set, by the caller. Lock held, given up. */
static coroutine_fn void co_punch(struct qcow2 *s)
{
    while (s->to_punch.count) {
        struct batch batch = { s, s->to_punch };
        s->to_punch = (struct qcow2_freed){ 0 };
        co_mutex_unlock(&s->lock);
        merge(&batch.freed);
        testpoint_co("qcow2-reap-punch");
        co_crew(batch.freed.count, PUNCHERS, co_punch_one, &batch);
        co_mutex_lock(&s->lock);
        co_forget_batch(s, &batch.freed);
        free(batch.freed.extents);
    }
    s->punching = false;
    co_cond_broadcast(&s->commit_done);
}

static coroutine_fn void co_punch_in_background(void *arg)
{
    struct qcow2 *s = arg;

    co_mutex_lock(&s->lock);
    co_punch(s);
    co_mutex_unlock(&s->lock);
}

/* In the background, unless `wait`. */
static coroutine_fn void co_punch_all(struct qcow2 *s, bool wait)
{
    while (wait && s->punching)
        co_cond_wait(&s->commit_done, &s->lock);
    if (s->to_punch.count == 0 || s->punching)
        return;
    if (wait) {
        s->punching = true;
        co_punch(s);
    } else if (!s->closing && !atomic_load(&s->drained)) {
        s->punching = true;
        co_start_on(s->node->loop, co_punch_in_background, s);
    }
}

/* ---- the last reference ---- */

/* Lowers one refcount. A cluster that the host gets back first keeps its last reference. */
static coroutine_fn int co_release_one(struct qcow2 *s, uint64_t cluster, enum qcow2_freed_by by)
{
    uint64_t count = 0;
    int ret = qcow2_co_refcount(s, cluster, &count);

    if (ret < 0 || count == 0)
        return ret;
    if (count > 1) /* a table that a snapshot shares among others */
        return qcow2_co_refcount_change(s, cluster, count - 1);
    /* Entries of a damaged image may name one cluster twice, or metadata. The first is on its way already; the second
     * stays as it is: a leak at the worst. */
    if (qcow2_set_has(&s->punch_set, cluster) || qcow2_overlap(s, cluster << s->cluster_bits, s->cluster_size, 0))
        return 0;
    if (!s->pass_discard[by] || qcow2_set_add(&s->punch_set, cluster) < 0)
        return qcow2_co_refcount_change(s, cluster, 0);
    qcow2_freed_add(&s->to_punch, cluster, 1, by);
    qcow2_bytes_forget(s, cluster);
    return 0;
}

static coroutine_fn void co_release(struct qcow2 *s, const struct qcow2_freed *freed)
{
    if (freed->count)
        blk_co_event(s->node->file, BLK_EVENT_CLUSTER_FREE);
    for (size_t i = 0; i < freed->count; i++) {
        const struct qcow2_extent *e = &freed->extents[i];
        for (uint64_t j = 0; j < e->count; j++) {
            int ret = co_release_one(s, e->cluster + j, e->by);
            if (ret < 0)
                keep(s, e->cluster + j, e->by, ret);
            if (s->punch_set.count >= s->max_punch)
                co_punch_all(s, true);
        }
        s->freeing -= e->count;
    }
}

/* ---- out of limbo ---- */

static coroutine_fn void co_empty_limbo(struct qcow2 *s, bool wait)
{
    while (!list_empty(&s->limbo)) {
        struct qcow2_limbo *limbo = list_first(&s->limbo, struct qcow2_limbo, link);
        if (!blk_epoch_passed(s->node, limbo->epoch)) { /* W6 */
            if (!wait)
                break;
            co_mutex_unlock(&s->lock);
            blk_co_epoch_wait(s->node, limbo->epoch);
            co_mutex_lock(&s->lock);
        }
        list_remove(&limbo->link);
        co_release(s, &limbo->freed);
        free(limbo->freed.extents);
        free(limbo);
    }
}

coroutine_fn void qcow2_co_reap(struct qcow2 *s, bool wait)
{
    while (wait && s->reaping)
        co_cond_wait(&s->commit_done, &s->lock);
    if (!list_empty(&s->limbo) && !s->reaping) {
        s->reaping = true;
        co_empty_limbo(s, wait);
        s->reaping = false;
        co_cond_broadcast(&s->commit_done);
    }
    co_punch_all(s, wait);
}
