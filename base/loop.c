/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The loop's life and its iteration: submit and wait (loop_ring.c or loop_poll.c), completions, posts, timers, tasks.
 *
 * Invariant: the loop sleeps only where nothing that it could run is queued. Posts keep it by one word: `posts` is
 * NULL, a stack of posts, or POSTS_ASLEEP. The loop goes to sleep by compare-and-swap NULL -> POSTS_ASLEEP, which fails
 * where there is a post; whoever replaces POSTS_ASLEEP by a post owes the loop one write to its eventfd. The loop
 * counts what is owed and what came, and is not freed before both are equal: a poster never writes to a closed fd.
 *
 * fork() without exec is not supported once a loop exists: rings and threads are not inherited in a usable state.
 */
#include "loop_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* An address that no post has. */
static struct loop_post posts_asleep;
#define POSTS_ASLEEP (&posts_asleep)

struct loop_registry loop_registry = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .loops = { &loop_registry.loops, &loop_registry.loops },
};

/* Coroutines never change threads, so a TLS address that the compiler keeps across a yield stays right. */
static _Thread_local struct loop *current_loop;

struct loop *loop_current(void) { return current_loop; }

void loop_set_current(struct loop *loop) { current_loop = loop; }

const struct loop_stats *loop_stats(const struct loop *loop) { return &loop->stats; }

void loop_set_poll_us(struct loop *loop, unsigned poll_us)
{
    atomic_store_explicit(&loop->poll_max_ns, (uint64_t)poll_us * 1000, memory_order_relaxed);
}

/* ---- posts ---- */

void loop_post(struct loop *loop, struct loop_post *post)
{
    /* Nothing of the loop may be touched after the exchange unless we owe it a wake-up, so read the fd first. */
    int wake_fd = loop->wake_fd;
    struct loop_post *first = atomic_load_explicit(&loop->posts, memory_order_relaxed);
    do {
        post->next = first == POSTS_ASLEEP ? NULL : first;
    } while (
        !atomic_compare_exchange_weak_explicit(&loop->posts, &first, post, memory_order_acq_rel, memory_order_relaxed));
    if (first != POSTS_ASLEEP)
        return;
    while (eventfd_write(wake_fd, 1) < 0) {
        if (errno != EINTR)
            abort(); /* the counter cannot overflow: one write a sleep */
    }
}

bool loop_posts_waiting(struct loop *loop) { return atomic_load_explicit(&loop->posts, memory_order_relaxed) != NULL; }

bool loop_posts_sleep(struct loop *loop)
{
    struct loop_post *expected = NULL;
    return atomic_compare_exchange_strong_explicit(&loop->posts, &expected, POSTS_ASLEEP, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

/* After a sleep that loop_posts_sleep() allowed. */
void loop_posts_awake(struct loop *loop, struct loop_post **taken)
{
    struct loop_post *posts = atomic_exchange_explicit(&loop->posts, NULL, memory_order_acq_rel);
    if (posts == POSTS_ASLEEP)
        return;
    loop->wakes_owed++;
    *taken = posts;
}

static void wake_signalled(struct loop_event *event, uint64_t count)
{
    struct loop *loop = container_of(event, struct loop, wake);
    loop->wakes_received += count;
    loop->stats.wakeups++;
}

static bool run_posts(struct loop *loop, struct loop_post *stack)
{
    if (!stack) {
        if (!loop_posts_waiting(loop))
            return false;
        stack = atomic_exchange_explicit(&loop->posts, NULL, memory_order_acq_rel);
    }
    /* The stack is newest first; callers are promised their own order. */
    struct loop_post *first = NULL;
    while (stack) {
        struct loop_post *next = stack->next;
        stack->next = first;
        first = stack;
        stack = next;
    }
    bool ran = first != NULL;
    while (first) {
        struct loop_post *next = first->next;
        loop->stats.posts++;
        first->fn(first);
        first = next;
    }
    return ran;
}

/* ---- tasks ---- */

void loop_defer(struct loop *loop, struct loop_task *task)
{
    task->next = NULL;
    *loop->tasks_end = task;
    loop->tasks_end = &task->next;
}

/* Runs those queued now. What they queue comes in the next iteration, which will not sleep: a task that always queues
 * another starves nobody. */
static bool run_tasks(struct loop *loop)
{
    struct loop_task *task = loop->tasks;
    if (!task)
        return false;
    loop->tasks = NULL;
    loop->tasks_end = &loop->tasks;
    while (task) {
        struct loop_task *next = task->next;
        task->fn(task);
        task = next;
    }
    return true;
}

/* ---- iteration ---- */

bool loop_step(struct loop *loop, bool wait)
{
    assert(loop == current_loop && !loop->stepping);
    loop->stepping = true;
    loop->stats.iterations++;
    epoch_publish(&loop->epoch);

    bool busy = !wait || loop->tasks || loop->stash_count || !list_empty(&loop->fds_removed);
    uint64_t deadline = busy ? LOOP_NO_WAIT : loop_timer_next(loop);
    struct loop_post *taken = NULL;
    loop->coarse_ns = 0;
    bool ran = loop->has_ring ? loop_ring_iterate(loop, deadline, &taken) : loop_poll_iterate(loop, deadline, &taken);
    ran |= run_posts(loop, taken);
    if (loop->timer_count)
        ran |= loop_timer_run_due(loop);
    ran |= run_tasks(loop);
    if (unlikely(!list_empty(&loop->fds_removed)))
        ran |= loop_fd_run_removed(loop);

    epoch_publish(&loop->epoch);
    loop->stepping = false;
    return ran;
}

void loop_run(struct loop *loop, const bool *stop)
{
    while (!__atomic_load_n(stop, __ATOMIC_RELAXED))
        loop_step(loop, true);
}

bool loop_idle(const struct loop *loop)
{
    return !loop->in_flight && !loop->pool_works && !loop->tasks && list_empty(&loop->coroutines) &&
           list_empty(&loop->fds_removed) && !atomic_load_explicit(&loop->posts, memory_order_relaxed);
}

/* ---- life ---- */

struct loop *loop_new(struct error **errp)
{
    assert(!current_loop);
    int fd = eventfd(0, EFD_CLOEXEC);
    if (fd < 0) {
        error_set_errno(errp, -errno, "Failed to create an event descriptor");
        return NULL;
    }
    struct loop *loop = aligned_alloc(_Alignof(struct loop), sizeof(*loop));
    if (!loop)
        abort();
    memset(loop, 0, sizeof(*loop));
    loop->wake_fd = fd;
    loop->tasks_end = &loop->tasks;
    list_init(&loop->fds);
    list_init(&loop->fds_removed);
    list_init(&loop->coroutines);
    co_pool_init(&loop->co_pool);
    if (!epoch_loop_init(&loop->epoch)) {
        error_set(errp, -EMFILE, "Too many event loops: %u at most", EPOCH_LOOPS);
        close(fd);
        free(loop);
        return NULL;
    }
    loop->has_ring = loop_ring_init(loop);
    current_loop = loop;

    loop_fixed_init(loop);
    pthread_mutex_lock(&loop_registry.lock);
    list_append(&loop_registry.loops, &loop->link);
    pthread_mutex_unlock(&loop_registry.lock);

    loop->wake.fd = fd;
    loop->wake.signalled = wake_signalled;
    loop_event_add(loop, &loop->wake);
    return loop;
}

static void wake_removed(struct loop_event *event)
{
    struct loop *loop = container_of(event, struct loop, wake);
    loop->wake.fd = -1;
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    assert(loop == current_loop && !loop->stepping);
    /* From here on nobody finds the loop to drop a file in it. */
    pthread_mutex_lock(&loop_registry.lock);
    list_remove(&loop->link);
    pthread_mutex_unlock(&loop_registry.lock);

    while (!loop_idle(loop) || loop->wakes_received < loop->wakes_owed)
        loop_step(loop, true);
    /* The kernel must be done with wake.count before the memory goes. */
    loop_event_remove(&loop->wake, wake_removed);
    while (loop->wake.fd >= 0)
        loop_step(loop, true);

    epoch_loop_finish(&loop->epoch);
    loop_fixed_finish(loop);
    if (loop->has_ring)
        loop_ring_finish(loop);
    loop_poll_finish(loop);
    loop_timer_finish(loop);
    co_pool_finish(&loop->co_pool);
#ifdef CO_TSAN
    /* It does not see that our read through the ring came after the posters' writes; an ordinary read it sees. */
    uint64_t count;
    eventfd_write(loop->wake_fd, 1);
    eventfd_read(loop->wake_fd, &count);
#endif
    close(loop->wake_fd);
    current_loop = NULL;
    free(loop);
}
