/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Worker pool: one queue, threads started while work waits and none is idle, ended after a time without work. A
 * finished work comes back by a post to its loop, so that a loop that is busy takes many in one go.
 *
 * Invariant: queued work implies a thread that will take it: a busy one, an idle one that was signalled, or a new one;
 * where not a single thread can be started the work runs in the submitter.
 */
#include "loop_internal.h"
#include "pool_internal.h"
#include "thread_internal.h"

#include <base/coroutine.h>
#include <base/pool.h>
#include <errno.h>
#include <time.h>

enum { POOL_MAX_THREADS = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all of these */
static pthread_cond_t more;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct pool_work *queue, **queue_end = &queue;
static unsigned queued, idle, threads;
static uint64_t idle_timeout_ms = 10000;

static void init_once(void)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&more, &attr);
    pthread_condattr_destroy(&attr);
}

/* ---- workers ---- */

/* With the lock held. NULL: idle for too long. */
static struct pool_work *take_work(void)
{
    uint64_t end = loop_now_ns() + idle_timeout_ms * 1000000;
    struct timespec ts = { .tv_sec = (time_t)(end / 1000000000), .tv_nsec = (long)(end % 1000000000) };
    while (!queue) {
        idle++;
        int ret = pthread_cond_timedwait(&more, &lock, &ts);
        idle--;
        if (ret == ETIMEDOUT && !queue)
            return NULL;
    }
    struct pool_work *work = queue;
    queue = work->next;
    if (!queue)
        queue_end = &queue;
    queued--;
    return work;
}

static void *worker(void *arg)
{
    struct pool_work *work;
    pthread_setname_np(pthread_self(), "worker");
    pthread_mutex_lock(&lock);
    while ((work = take_work())) {
        pthread_mutex_unlock(&lock);
        work->work(work);
        loop_post(work->loop, &work->post);
        pthread_mutex_lock(&lock);
    }
    threads--;
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* With the lock held. */
static void start_worker(void)
{
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    if (thread_create_without_signals(&thread, &attr, worker, NULL) == 0)
        threads++;
    pthread_attr_destroy(&attr);
}

/* ---- submitters ---- */

static void work_done(struct loop_post *post)
{
    struct pool_work *work = container_of(post, struct pool_work, post);
    work->loop->pool_works--;
    work->done(work);
}

void pool_submit(struct pool_work *work)
{
    work->loop = loop_current();
    work->loop->pool_works++;
    work->post.fn = work_done;
    work->next = NULL;
    pthread_once(&once, init_once);
    pthread_mutex_lock(&lock);
    if (queued >= idle && threads < POOL_MAX_THREADS)
        start_worker();
    bool taken = threads > 0;
    if (taken) {
        *queue_end = work;
        queue_end = &work->next;
        queued++;
        pthread_cond_signal(&more);
    }
    pthread_mutex_unlock(&lock);
    if (!taken) {
        work->work(work);
        loop_post(work->loop, &work->post);
    }
}

unsigned pool_thread_count(void)
{
    pthread_mutex_lock(&lock);
    unsigned count = threads;
    pthread_mutex_unlock(&lock);
    return count;
}

void pool_set_idle_timeout_ms(uint64_t ms)
{
    pthread_mutex_lock(&lock);
    idle_timeout_ms = ms;
    pthread_mutex_unlock(&lock);
}

/* ---- for coroutines ---- */

struct co_work {
    struct pool_work work;
    int (*fn)(void *arg);
    void *arg;
    int result;
    struct co *co;
};

static void co_work_run(struct pool_work *work)
{
    struct co_work *w = container_of(work, struct co_work, work);
    w->result = w->fn(w->arg);
}

static void co_work_done(struct pool_work *work) { co_wake(container_of(work, struct co_work, work)->co); }

coroutine_fn int pool_co_run(int (*fn)(void *arg), void *arg)
{
    struct co_work w = { .work.work = co_work_run, .work.done = co_work_done, .fn = fn, .arg = arg, .co = co_self() };
    pool_submit(&w.work);
    co_yield();
    return w.result;
}
