/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A loop on a thread of its own. The thread makes its loop itself, for a ring belongs to the task that set it up, and
 * frees it itself, once asked to leave and nothing is in flight: no I/O, no pool work, no post, no coroutine.
 */
#include "loop_internal.h"
#include "thread_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct loop_thread {
    pthread_t thread;
    char name[16];
    pthread_mutex_t lock;
    pthread_cond_t started_cond;
    bool started;
    struct loop *loop; /* NULL after the start: it failed */
    struct error *error;
    bool stop; /* the loop's thread */
    struct loop_post stop_post;
};

static void *thread_main(void *arg)
{
    struct loop_thread *thread = arg;
    pthread_setname_np(pthread_self(), thread->name);
    struct loop *loop = loop_new(&thread->error);
    if (loop)
        loop->thread = thread;
    pthread_mutex_lock(&thread->lock);
    thread->loop = loop;
    thread->started = true;
    pthread_cond_signal(&thread->started_cond);
    pthread_mutex_unlock(&thread->lock);
    if (!loop)
        return NULL;
    loop_run(loop, &thread->stop);
    while (!loop_idle(loop))
        loop_step(loop, true);
    loop_free(loop);
    return NULL;
}

static void thread_free(struct loop_thread *thread)
{
    pthread_mutex_destroy(&thread->lock);
    pthread_cond_destroy(&thread->started_cond);
    free(thread);
}

struct loop *loop_thread_start(const char *name, struct error **errp)
{
    struct loop_thread *thread = xcalloc(1, sizeof(*thread));
    snprintf(thread->name, sizeof(thread->name), "%s", name);
    pthread_mutex_init(&thread->lock, NULL);
    pthread_cond_init(&thread->started_cond, NULL);
    int ret = thread_create_without_signals(&thread->thread, NULL, thread_main, thread);
    if (ret) {
        error_set_errno(errp, -ret, "Failed to start thread '%s'", name);
        thread_free(thread);
        return NULL;
    }
    pthread_mutex_lock(&thread->lock);
    while (!thread->started)
        pthread_cond_wait(&thread->started_cond, &thread->lock);
    struct loop *loop = thread->loop;
    pthread_mutex_unlock(&thread->lock);
    if (!loop) {
        pthread_join(thread->thread, NULL);
        error_propagate(errp, thread->error);
        thread_free(thread);
    }
    return loop;
}

static void stop_posted(struct loop_post *post) { container_of(post, struct loop_thread, stop_post)->stop = true; }

void loop_thread_stop(struct loop *loop)
{
    struct loop_thread *thread = loop->thread;
    assert(thread && loop != loop_current());
    thread->stop_post.fn = stop_posted;
    loop_post(loop, &thread->stop_post);
    pthread_join(thread->thread, NULL);
    thread_free(thread);
}
