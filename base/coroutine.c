/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Coroutines: starting, yielding, waking. A coroutine runs on top of whoever resumed it (the loop, or a coroutine that
 * starts another) and switches back there when it yields or ends.
 *
 * Invariant: `wakes` counts the calls of co_wake() that no yield has consumed. The one that lifts it from 0 queues the
 * coroutine on its home loop, by a task from the home thread and by a post from another; so it is queued at most once,
 * and a wake that comes before its yield is kept by the count. The queue runs only when the coroutine sleeps, since
 * while a coroutine runs its loop is inside the callback that resumed it.
 */
#include "loop_internal.h"

#include <assert.h>
#include <stdlib.h>

/* Coroutines never change threads, so a TLS address that the compiler keeps across a switch stays right. */
static _Thread_local struct co *current_co;
static _Atomic uint64_t count_started, count_ended;

struct co *co_self(void) { return current_co; }

struct loop *co_home(const struct co *co) { return co->home; }

uint64_t co_count_started(void) { return atomic_load_explicit(&count_started, memory_order_relaxed); }

uint64_t co_count_alive(void)
{
    uint64_t ended = atomic_load_explicit(&count_ended, memory_order_acquire);
    return co_count_started() - ended;
}

static void finish(struct co *co)
{
    assert(!atomic_load_explicit(&co->wakes, memory_order_relaxed)); /* more wakes than yields */
    list_remove(&co->link);
    co_switch_forget(co);
    atomic_fetch_add_explicit(&count_ended, 1, memory_order_release);
    co_stack_put(&co->home->co_pool, co);
}

static void resume(struct co *co)
{
    assert(co->asleep);
    co->asleep = false;
    co->caller = current_co;
    current_co = co;
    co_switch_in(co);
    current_co = co->caller;
    if (co->ended)
        finish(co);
}

static void entry(struct co *co)
{
    co_switch_entered(co);
    co->fn(co->arg);
    co->ended = true;
    co_switch_out_last(co);
}

/* ---- waking ---- */

static void run_woken(struct co *co)
{
    /* Wakes for later yields came too: go to the end of the queue once more, now that we are off it. */
    if (atomic_fetch_sub_explicit(&co->wakes, 1, memory_order_acq_rel) > 1)
        loop_defer(co->home, &co->task);
    resume(co);
}

static void task_run(struct loop_task *task) { run_woken(container_of(task, struct co, task)); }

static void post_run(struct loop_post *post) { run_woken(container_of(post, struct co, post)); }

void co_wake(struct co *co)
{
    struct loop *home = co->home;
    if (atomic_fetch_add_explicit(&co->wakes, 1, memory_order_acq_rel) > 0)
        return; /* queued already; it may run, end and be gone from here on */
    if (home == loop_current())
        loop_defer(home, &co->task);
    else
        loop_post(home, &co->post);
}

coroutine_fn void co_yield(void)
{
    struct co *self = current_co;
    assert(self);
    self->asleep = true;
    co_switch_out(self);
}

coroutine_fn void co_relax(void)
{
    co_wake(current_co);
    co_yield();
}

struct sleep {
    struct loop_timer timer;
    struct co *co;
};

static void sleep_over(struct loop_timer *timer) { co_wake(container_of(timer, struct sleep, timer)->co); }

coroutine_fn void co_sleep_ns(uint64_t ns)
{
    struct sleep sleep = { .timer.fn = sleep_over, .co = current_co };
    loop_timer_arm(current_co->home, &sleep.timer, loop_now_ns() + ns);
    co_yield();
}

/* ---- starting ---- */

void co_start(void (*fn)(void *arg), void *arg)
{
    struct loop *loop = loop_current();
    assert(loop);
    struct co *co = co_stack_get(&loop->co_pool);
    co->home = loop;
    co->fn = fn;
    co->arg = arg;
    co->asleep = true;
    co->ended = false;
    atomic_init(&co->wakes, 0);
    co->task.fn = task_run;
    co->post.fn = post_run;
    list_append(&loop->coroutines, &co->link);
    co_switch_prepare(co, entry);
    atomic_fetch_add_explicit(&count_started, 1, memory_order_relaxed);
    resume(co);
}

struct remote_start {
    struct loop_post post;
    void (*fn)(void *arg);
    void *arg;
};

static void remote_started(struct loop_post *post)
{
    struct remote_start start = *container_of(post, struct remote_start, post);
    free(container_of(post, struct remote_start, post));
    co_start(start.fn, start.arg);
}

void co_start_on(struct loop *loop, void (*fn)(void *arg), void *arg)
{
    struct remote_start *start = xmalloc(sizeof(*start));
    *start = (struct remote_start){ .post.fn = remote_started, .fn = fn, .arg = arg };
    loop_post(loop, &start->post);
}

struct run {
    int (*fn)(void *arg);
    void *arg;
    int result;
    bool done;
};

static void run_main(void *arg)
{
    struct run *run = arg;
    run->result = run->fn(run->arg);
    run->done = true;
}

int co_run(struct loop *loop, int (*fn)(void *arg), void *arg)
{
    assert(!current_co && loop == loop_current());
    struct run run = { .fn = fn, .arg = arg };
    co_start(run_main, &run);
    loop_run(loop, &run.done);
    return run.result;
}
