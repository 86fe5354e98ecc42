/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Timers: a binary heap of deadlines, smallest first, counted from 1 so that index 0 says "not armed". The loop sleeps
 * no longer than until the first deadline; no timer costs an operation of the ring.
 *
 * Invariant: timers[i]->heap_index == i for every armed timer, and no parent's deadline is later than its child's.
 */
#include "loop_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <time.h>

uint64_t loop_coarse_ns(struct loop *loop)
{
    if (!loop->coarse_ns)
        loop->coarse_ns = loop_now_ns();
    return loop->coarse_ns;
}

uint64_t loop_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void place(struct loop *loop, size_t index, struct loop_timer *timer)
{
    loop->timers[index] = timer;
    timer->heap_index = index;
}

static void sift_up(struct loop *loop, size_t index, struct loop_timer *timer)
{
    for (; index > 1 && loop->timers[index / 2]->deadline_ns > timer->deadline_ns; index /= 2)
        place(loop, index, loop->timers[index / 2]);
    place(loop, index, timer);
}

static void sift_down(struct loop *loop, size_t index, struct loop_timer *timer)
{
    size_t child;
    while ((child = index * 2) <= loop->timer_count) {
        if (child < loop->timer_count && loop->timers[child + 1]->deadline_ns < loop->timers[child]->deadline_ns)
            child++;
        if (loop->timers[child]->deadline_ns >= timer->deadline_ns)
            break;
        place(loop, index, loop->timers[child]);
        index = child;
    }
    place(loop, index, timer);
}

void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns)
{
    loop_timer_disarm(timer);
    if (loop->timer_count + 1 >= loop->timer_room) {
        loop->timer_room = MAX(loop->timer_room * 2, (size_t)16);
        loop->timers = xrealloc(loop->timers, loop->timer_room * sizeof(struct loop_timer *));
    }
    timer->loop = loop;
    timer->deadline_ns = deadline_ns;
    sift_up(loop, ++loop->timer_count, timer);
}

void loop_timer_disarm(struct loop_timer *timer)
{
    size_t index = timer->heap_index;
    if (!index)
        return;
    struct loop *loop = timer->loop;
    assert(loop->timers[index] == timer);
    timer->heap_index = 0;
    struct loop_timer *last = loop->timers[loop->timer_count--];
    if (last == timer)
        return;
    if (index > 1 && loop->timers[index / 2]->deadline_ns > last->deadline_ns)
        sift_up(loop, index, last);
    else
        sift_down(loop, index, last);
}

/* 0 means "do not wait" to the caller, so a deadline of 0 becomes 1, just as long past. */
uint64_t loop_timer_next(const struct loop *loop)
{
    return loop->timer_count ? MAX(loop->timers[1]->deadline_ns, UINT64_C(1)) : LOOP_FOREVER;
}

bool loop_timer_run_due(struct loop *loop)
{
    uint64_t now = loop_now_ns();
    bool ran = false;
    /* At most as many as there are now: a timer that arms itself for the past cannot hold the loop. */
    for (size_t left = loop->timer_count; left && loop->timer_count; left--) {
        struct loop_timer *timer = loop->timers[1];
        if (timer->deadline_ns > now)
            break;
        loop_timer_disarm(timer);
        timer->fn(timer);
        ran = true;
    }
    return ran;
}

void loop_timer_finish(struct loop *loop)
{
    assert(!loop->timer_count);
    free(loop->timers);
}
