/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Draining: nothing in flight through a node, and nothing new until the end.
 *
 * Requests enter the graph at front ends, so a node is quiet when every front end that reaches it is. Each is held first (new
 * requests wait in front_co_enter_slow()), then waited for: the mapped requests by their epoch, the slow ones by their count.
 */
#include "front_internal.h"

#include <base/coroutine.h>
#include <base/epoch.h>

/* ---- the slow request's side ---- */

coroutine_fn void front_co_enter_slow(struct blk_front *front)
{
    for (;;) {
        atomic_fetch_add(&front->slow_in_flight, 1u);
        if (likely(atomic_load(&front->held) == 0))
            return;
        front_leave_slow(front);
        pthread_mutex_lock(&front->drain_lock);
        while (atomic_load(&front->held) != 0)
            co_cond_wait_pthread(&front->released, &front->drain_lock);
        pthread_mutex_unlock(&front->drain_lock);
    }
}

void front_leave_slow(struct blk_front *front)
{
    /* Under the lock, so that who waits for the last one does not free the front end between the count and the signal. */
    pthread_mutex_lock(&front->drain_lock);
    if (atomic_fetch_sub(&front->slow_in_flight, 1u) == 1)
        co_cond_broadcast(&front->settled);
    pthread_mutex_unlock(&front->drain_lock);
}

coroutine_fn void blk_co_front_settle(struct blk_front *front)
{
    epoch_co_wait(epoch_retire());
    pthread_mutex_lock(&front->drain_lock);
    while (atomic_load(&front->slow_in_flight) != 0)
        co_cond_wait_pthread(&front->settled, &front->drain_lock);
    pthread_mutex_unlock(&front->drain_lock);
}

/* ---- the drainer's side ---- */

static void hold(struct blk_front *front) { atomic_fetch_add(&front->held, 1u); }

static void release(struct blk_front *front)
{
    pthread_mutex_lock(&front->drain_lock);
    if (atomic_fetch_sub(&front->held, 1u) == 1)
        co_cond_broadcast(&front->released);
    pthread_mutex_unlock(&front->drain_lock);
}

/* Every front end above `node`; one that is reached by two ways is called twice, both times. */
static void each_front(struct blk_node *node, void (*fn)(struct blk_front *front))
{
    struct blk_child *child;

    list_for_each(child, &node->parents, in_node) {
        if (child->front)
            fn(child->front);
        else
            each_front(child->parent, fn);
    }
}

static coroutine_fn void co_settle_above(struct blk_node *node)
{
    struct blk_child *child;

    list_for_each(child, &node->parents, in_node) {
        if (child->front)
            blk_co_front_settle(child->front);
        else
            co_settle_above(child->parent);
    }
}

coroutine_fn void blk_co_drain_begin(struct blk_node *node)
{
    each_front(node, hold);
    co_settle_above(node);
}

void blk_drain_end(struct blk_node *node) { each_front(node, release); }
