/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cache-clean-interval: from time to time, L2 slices and refcount blocks that nobody has used since the last time leave
 * memory. All of it runs on the node's home loop, where the image is opened and closed.
 *
 * What is not durable stays; a slice waits for the requests that may see it, as one that was evicted (l2cache.c).
 */
#include "cacheclean.h"

#include "l2.h"
#include "refcount.h"

#define NS_PER_S UINT64_C(1000000000)

static coroutine_fn void co_clean(void *arg)
{
    struct qcow2 *s = arg;

    co_mutex_lock(&s->lock);
    if (!s->closing) {
        qcow2_slices_clean(s);
        qcow2_refblocks_clean(s);
        loop_timer_arm(s->node->loop, &s->clean_timer, loop_now_ns() + s->clean_interval * NS_PER_S);
    }
    s->cleaning = false;
    co_cond_broadcast(&s->commit_done);
    co_mutex_unlock(&s->lock);
}

static void timer_fired(struct loop_timer *timer)
{
    struct qcow2 *s = container_of(timer, struct qcow2, clean_timer);

    s->cleaning = true;
    co_start(co_clean, s);
}

void qcow2_clean_start(struct qcow2 *s)
{
    s->clean_timer.fn = timer_fired;
    if (s->clean_interval)
        loop_timer_arm(s->node->loop, &s->clean_timer, loop_now_ns() + s->clean_interval * NS_PER_S);
}

coroutine_fn void qcow2_co_clean_stop(struct qcow2 *s)
{
    co_mutex_lock(&s->lock);
    loop_timer_disarm(&s->clean_timer);
    while (s->cleaning)
        co_cond_wait(&s->commit_done, &s->lock);
    co_mutex_unlock(&s->lock);
}
