/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The event loop: order of posts and tasks, timers, fd readiness, eventfds, file I/O, registered files, threads. Each
 * test runs on io_uring, on poll(2) (but those that need a ring), and on io_uring with the flags that older kernels
 * know.
 */
#include "unit.h"

#include "../../base/loop_internal.h"

#include <base/pool.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void steps_until(struct loop *loop, const bool *done)
{
    uint64_t end = loop_now_ns() + 20000000000;
    while (!*done) {
        loop_step(loop, true);
        assert_true(loop_now_ns() < end);
    }
}

/* ---- posts and tasks ---- */

struct counted_post {
    struct loop_post post;
    unsigned poster, number;
};

enum { POSTERS = 4, POSTS_EACH = 20000 };

static unsigned next_number[POSTERS], posts_seen;
static bool all_posts;

static void count_post(struct loop_post *post)
{
    struct counted_post *p = container_of(post, struct counted_post, post);
    assert_int_equal(p->number, next_number[p->poster]);
    next_number[p->poster]++;
    if (++posts_seen == POSTERS * POSTS_EACH)
        all_posts = true;
}

struct poster {
    pthread_t thread;
    struct loop *loop;
    unsigned number;
    struct counted_post *posts;
};

static void *post_many(void *arg)
{
    struct poster *poster = arg;
    for (unsigned i = 0; i < POSTS_EACH; i++) {
        poster->posts[i] = (struct counted_post){ .post.fn = count_post, .poster = poster->number, .number = i };
        loop_post(poster->loop, &poster->posts[i].post);
        if (i % 1000 == 0)
            usleep(100); /* lets the loop fall asleep now and then */
    }
    return NULL;
}

static void test_posts_keep_order(void **state)
{
    struct loop *loop = test_loop(state);
    struct poster posters[POSTERS];
    memset(next_number, 0, sizeof(next_number));
    posts_seen = 0;
    all_posts = false;
    for (unsigned i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){ .loop = loop, .number = i };
        posters[i].posts = calloc(POSTS_EACH, sizeof(struct counted_post));
        pthread_create(&posters[i].thread, NULL, post_many, &posters[i]);
    }
    steps_until(loop, &all_posts);
    for (unsigned i = 0; i < POSTERS; i++) {
        pthread_join(posters[i].thread, NULL);
        free(posters[i].posts);
    }
    assert_int_equal(loop_stats(loop)->posts, POSTERS * POSTS_EACH);
    /* Woken only where it slept: far less often than once a post. */
    assert_true(loop_stats(loop)->wakeups < POSTERS * POSTS_EACH / 4);
}

struct chain {
    struct loop_task task;
    struct loop *loop;
    int *log, number;
    int *count;
    struct chain *queue_next;
};

static void log_task(struct loop_task *task)
{
    struct chain *c = container_of(task, struct chain, task);
    c->log[(*c->count)++] = c->number;
    if (c->queue_next)
        loop_defer(c->loop, &c->queue_next->task);
}

static void test_tasks_are_fifo_and_do_not_sleep(void **state)
{
    struct loop *loop = test_loop(state);
    int log[3], count = 0;
    struct chain c = { .task.fn = log_task, .loop = loop, .log = log, .number = 3, .count = &count };
    struct chain a = { .task.fn = log_task, .loop = loop, .log = log, .number = 1, .count = &count, .queue_next = &c };
    struct chain b = { .task.fn = log_task, .loop = loop, .log = log, .number = 2, .count = &count };
    loop_defer(loop, &a.task);
    loop_defer(loop, &b.task);
    assert_int_equal(count, 0); /* never inside the call */
    assert_true(loop_step(loop, true));
    assert_int_equal(count, 2);
    assert_true(loop_step(loop, true)); /* c was queued by a: nothing else would end this wait */
    assert_int_equal(count, 3);
    assert_int_equal(log[0], 1);
    assert_int_equal(log[1], 2);
    assert_int_equal(log[2], 3);
    assert_false(loop_step(loop, false));
}

/* ---- timers ---- */

struct test_timer {
    struct loop_timer timer;
    unsigned *fired;
    uint64_t *last;
    bool again;
};

static void timer_fired(struct loop_timer *timer)
{
    struct test_timer *t = container_of(timer, struct test_timer, timer);
    assert_true(loop_now_ns() >= timer->deadline_ns);
    assert_true(timer->deadline_ns >= *t->last);
    *t->last = timer->deadline_ns;
    ++*t->fired;
    assert_int_equal(timer->heap_index, 0);
    if (t->again) {
        t->again = false;
        loop_timer_arm(timer->loop, timer, timer->deadline_ns);
    }
}

static void test_timers_fire_in_order(void **state)
{
    enum { COUNT = 500 };
    struct loop *loop = test_loop(state);
    struct test_timer *timers = calloc(COUNT, sizeof(*timers));
    unsigned fired = 0, expected = COUNT;
    uint64_t last = 0, now = loop_now_ns();
    srandom(4711);
    for (int i = 0; i < COUNT; i++) {
        timers[i] = (struct test_timer){ .timer.fn = timer_fired, .fired = &fired, .last = &last };
        loop_timer_arm(loop, &timers[i].timer, now + 1000000000 + (uint64_t)i);
    }
    /* Re-arms and disarms at random places of the heap. */
    for (int i = 0; i < COUNT; i++)
        loop_timer_arm(loop, &timers[i].timer, now + (uint64_t)(random() % 30000000));
    for (int i = 0; i < COUNT; i += 3) {
        loop_timer_disarm(&timers[i].timer);
        loop_timer_disarm(&timers[i].timer); /* harmless */
        expected--;
    }
    while (fired < expected)
        loop_step(loop, true);
    assert_true(loop_now_ns() - now < 5000000000);
    assert_false(loop_step(loop, false));
    assert_int_equal(fired, expected);

    /* A deadline in the past is run, a timer may arm itself again, and neither keeps the loop from returning. */
    last = 0;
    fired = 0;
    timers[0].again = true;
    loop_timer_arm(loop, &timers[0].timer, 0);
    assert_true(loop_step(loop, true));
    assert_int_equal(fired, 1);
    assert_true(loop_step(loop, true));
    assert_int_equal(fired, 2);
    free(timers);
}

static void test_sleep_takes_one_enter(void **state)
{
    struct loop *loop = test_loop(state);
    unsigned fired = 0;
    uint64_t last = 0, enters = loop_stats(loop)->enters;
    struct test_timer t = { .timer.fn = timer_fired, .fired = &fired, .last = &last };
    loop_timer_arm(loop, &t.timer, loop_now_ns() + 20000000);
    while (!fired)
        loop_step(loop, true);
    /* No spinning: a timer may end a hair early and need a second one. */
    assert_in_range(loop_stats(loop)->enters - enters, 1, 3);
}

/* ---- fd readiness ---- */

struct test_fd {
    struct loop_fd lfd;
    unsigned calls;
    short last;
    bool drain, pause, remove, removed;
    struct test_fd *victim; /* removed by the callback too */
};

static void fd_removed(struct loop_fd *lfd) { container_of(lfd, struct test_fd, lfd)->removed = true; }

static void fd_ready(struct loop_fd *lfd, short revents)
{
    struct test_fd *t = container_of(lfd, struct test_fd, lfd);
    char c;
    assert_false(t->removed);
    t->calls++;
    t->last = revents;
    if (t->drain)
        assert_int_equal(read(lfd->fd, &c, 1), 1);
    if (t->pause)
        loop_fd_modify(lfd, 0);
    if (t->remove) {
        loop_fd_remove(lfd, fd_removed);
        assert_false(t->removed); /* never inside the call */
    }
    if (t->victim)
        loop_fd_remove(&t->victim->lfd, fd_removed);
}

static void some_steps(struct loop *loop)
{
    for (int i = 0; i < 6; i++)
        loop_step(loop, false);
}

static void test_fd_is_level_triggered(void **state)
{
    struct loop *loop = test_loop(state);
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    struct test_fd t = { .lfd = { .fd = fds[0], .events = POLLIN, .ready = fd_ready } };
    loop_fd_add(loop, &t.lfd);
    some_steps(loop);
    assert_int_equal(t.calls, 0);
    assert_int_equal(write(fds[1], "ab", 2), 2);
    while (t.calls < 3) /* nobody reads: called again and again */
        loop_step(loop, true);
    assert_int_equal(t.last, POLLIN);
    t.drain = true;
    while (t.calls < 5)
        loop_step(loop, true);
    some_steps(loop);
    assert_int_equal(t.calls, 5);

    /* Paused, resumed, paused in the callback. */
    t.drain = false;
    loop_fd_modify(&t.lfd, 0);
    assert_int_equal(write(fds[1], "c", 1), 1);
    some_steps(loop);
    assert_int_equal(t.calls, 5);
    t.pause = true;
    loop_fd_modify(&t.lfd, POLLIN);
    while (t.calls < 6)
        loop_step(loop, true);
    some_steps(loop);
    assert_int_equal(t.calls, 6);

    /* Removed in the callback. */
    t.pause = false;
    t.remove = true;
    loop_fd_modify(&t.lfd, POLLIN);
    steps_until(loop, &t.removed);
    assert_int_equal(t.calls, 7);
    close(fds[0]);
    close(fds[1]);
}

static void test_fd_modify_changes_what_is_waited_for(void **state)
{
    struct loop *loop = test_loop(state);
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    /* The writing end is writable at once, and has an error once the reader is gone. */
    struct test_fd t = { .lfd = {
                             .fd = fds[1],
                             .events = POLLOUT,
                             .ready = fd_ready,
                         } };
    loop_fd_add(loop, &t.lfd);
    while (t.calls < 2)
        loop_step(loop, true);
    assert_int_equal(t.last, POLLOUT);
    loop_fd_modify(&t.lfd, POLLIN);
    loop_fd_modify(&t.lfd, POLLOUT);
    loop_fd_modify(&t.lfd, POLLIN);
    some_steps(loop);
    unsigned calls = t.calls;
    some_steps(loop);
    assert_int_equal(t.calls, calls);
    close(fds[0]);
    while (t.calls == calls)
        loop_step(loop, true);
    assert_true(t.last & POLLERR);
    loop_fd_remove(&t.lfd, fd_removed);
    steps_until(loop, &t.removed);
    close(fds[1]);
}

static void test_fd_removed_while_waiting_and_while_ready(void **state)
{
    struct loop *loop = test_loop(state);
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    struct test_fd t = { .lfd = { .fd = fds[0], .events = POLLIN, .ready = fd_ready } };
    for (int i = 0; i < 4; i++) {
        t.removed = false;
        loop_fd_add(loop, &t.lfd);
        for (int step = 0; step < i; step++)
            loop_step(loop, false);
        if (i == 3)
            assert_int_equal(write(fds[1], "x", 1), 1); /* completes by the side of the cancel */
        loop_fd_remove(&t.lfd, fd_removed);
        assert_false(t.removed);
        steps_until(loop, &t.removed);
    }
    assert_int_equal(t.calls, 0);
    close(fds[0]);
    close(fds[1]);
}

/* Both are ready in the same iteration, and the first to be told removes the other. */
static void test_fd_removed_by_another_is_not_told(void **state)
{
    struct loop *loop = test_loop(state);
    struct test_fd t[2];
    int fds[2][2];

    for (int i = 0; i < 2; i++) {
        assert_int_equal(pipe(fds[i]), 0);
        assert_int_equal(write(fds[i][1], "x", 1), 1);
        t[i] = (struct test_fd){ .lfd = { .fd = fds[i][0], .events = POLLIN, .ready = fd_ready } };
        t[i].remove = true;
        t[i].victim = &t[!i];
        loop_fd_add(loop, &t[i].lfd);
    }
    while (!t[0].removed || !t[1].removed)
        loop_step(loop, true);
    assert_int_equal(t[0].calls + t[1].calls, 1);
    for (int i = 0; i < 2; i++) {
        close(fds[i][0]);
        close(fds[i][1]);
    }
}

/* What it waited for before never comes. */
static void test_fd_modify_counts_at_once(void **state)
{
    struct loop *loop = test_loop(state);
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    struct test_fd t = { .lfd = { .fd = fds[0], .events = POLLIN, .ready = fd_ready } };
    loop_fd_add(loop, &t.lfd);
    some_steps(loop);
    assert_int_equal(t.calls, 0);
    loop_fd_modify(&t.lfd, POLLOUT);
    uint64_t end = loop_now_ns() + UINT64_C(5000000000);
    while (!t.calls && loop_now_ns() < end)
        loop_step(loop, false);
    assert_int_equal(t.last, POLLOUT);
    loop_fd_remove(&t.lfd, fd_removed);
    steps_until(loop, &t.removed);
    close(fds[0]);
    close(fds[1]);
}

/* ---- eventfds ---- */

struct test_event {
    struct loop_event event;
    uint64_t sum;
    unsigned calls;
    bool remove, removed;
};

static void event_removed(struct loop_event *event) { container_of(event, struct test_event, event)->removed = true; }

static void event_signalled(struct loop_event *event, uint64_t count)
{
    struct test_event *t = container_of(event, struct test_event, event);
    t->calls++;
    t->sum += count;
    if (t->remove)
        loop_event_remove(event, event_removed);
}

static void *signal_many(void *arg)
{
    int fd = *(int *)arg;
    for (int i = 0; i < 20000; i++) {
        eventfd_write(fd, 1);
        if (i % 500 == 0)
            usleep(50);
    }
    return NULL;
}

/* Signals come all the time while the event is taken away and put back: their sum is exact in the end. */
static void events_are_exact(struct loop *loop, int flags)
{
    int fd = eventfd(0, EFD_CLOEXEC | flags);
    pthread_t thread;
    struct test_event t = { .event = { .fd = fd, .signalled = event_signalled } };
    loop_event_add(loop, &t.event);
    some_steps(loop);
    /* A read that has the count when the event is removed gives it back. */
    eventfd_write(fd, 1);
    loop_event_remove(&t.event, event_removed);
    steps_until(loop, &t.removed);
    assert_int_equal(t.sum, 0);
    loop_event_add(loop, &t.event);
    some_steps(loop);
    assert_int_equal(t.sum, 1);
    t.sum = 0;
    pthread_create(&thread, NULL, signal_many, &fd);
    while (t.sum < 20000) {
        loop_step(loop, true);
        if (t.calls % 7 == 3) {
            t.removed = false;
            loop_event_remove(&t.event, event_removed);
            steps_until(loop, &t.removed);
            loop_event_add(loop, &t.event);
        }
    }
    pthread_join(thread, NULL);
    some_steps(loop);
    assert_int_equal(t.sum, 20000);
    /* Removed by its own callback. */
    t.remove = true;
    t.removed = false;
    eventfd_write(fd, 3);
    steps_until(loop, &t.removed);
    assert_int_equal(t.sum, 20003);
    close(fd);
}

static void test_events_lose_nothing(void **state) { events_are_exact(test_loop(state), 0); }

static void test_events_nonblocking(void **state) { events_are_exact(test_loop(state), EFD_NONBLOCK); }

/* ---- the ring ---- */

struct test_io {
    struct loop_io io;
    int32_t result;
    unsigned *left;
};

static void io_done(struct loop_io *io, int32_t result)
{
    struct test_io *t = container_of(io, struct test_io, io);
    t->result = result;
    --*t->left;
}

static int temporary_file(size_t size)
{
    char name[PATH_MAX];
    test_template(name, false);
    int fd = mkostemp(name, O_CLOEXEC);
    assert_true(fd >= 0);
    unlink(name);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    return fd;
}

static void test_many_operations(void **state)
{
    enum { COUNT = 10000 }; /* more than the queues hold */
    struct loop *loop = test_loop(state);
    SKIP_WITHOUT_RING(loop);
    struct test_io *ios = calloc(COUNT, sizeof(*ios));
    unsigned left = COUNT;
    uint64_t enters = loop_stats(loop)->enters, submitted = loop_stats(loop)->submitted;
    for (int i = 0; i < COUNT; i++) {
        ios[i] = (struct test_io){ .io.done = io_done, .result = -1, .left = &left };
        io_uring_prep_nop(loop_sqe(loop, &ios[i].io));
        if (i == COUNT / 2)
            loop_ring_stash(loop); /* what is there now waits in memory */
        assert_int_equal(loop_io_in_flight(loop), i + 1);
    }
    assert_int_equal(left, COUNT); /* no callback inside loop_sqe() */
    while (left)
        loop_step(loop, true);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(ios[i].result, 0);
    assert_int_equal(loop_io_in_flight(loop), 0);
    assert_true(loop_stats(loop)->submitted - submitted >= COUNT);
    assert_true(loop_stats(loop)->enters - enters <= COUNT / LOOP_SQ_ENTRIES + 10); /* full batches */
    free(ios);
}

static void test_one_enter_an_iteration(void **state)
{
    struct loop *loop = test_loop(state);
    SKIP_WITHOUT_RING(loop);
    unsigned left = 64;
    struct test_io ios[64];
    loop_step(loop, false);
    uint64_t enters = loop_stats(loop)->enters;
    for (unsigned i = 0; i < 64; i++) {
        ios[i] = (struct test_io){ .io.done = io_done, .left = &left };
        io_uring_prep_nop(loop_sqe(loop, &ios[i].io));
    }
    assert_true(loop_step(loop, true));
    assert_int_equal(left, 0);
    assert_int_equal(loop_stats(loop)->enters - enters, 1);
    /* Nothing to submit, nothing to come: no system call. */
    loop_step(loop, false);
    assert_int_equal(loop_stats(loop)->enters - enters, 1);
}

/* Queues `count` reads, the n-th at n * step; returns how many have gone out before the iteration's end. */
static uint64_t sent_early(struct loop *loop, int fd, unsigned count, uint64_t step, unsigned length)
{
    struct test_io *ios = calloc(count, sizeof(*ios));
    char *buffer = malloc(length);
    unsigned left = count;
    loop_step(loop, false);
    uint64_t before = loop_stats(loop)->submitted;
    for (unsigned i = 0; i < count; i++) {
        ios[i] = (struct test_io){ .io.done = io_done, .left = &left };
        io_uring_prep_read(loop_sqe(loop, &ios[i].io), fd, buffer, length, i * step);
    }
    uint64_t sent = loop_stats(loop)->submitted - before;
    while (left)
        loop_step(loop, true);
    free(buffer);
    free(ios);
    return sent;
}

static void test_some_go_out_early(void **state)
{
    struct loop *loop = test_loop(state);
    SKIP_WITHOUT_RING(loop);
    int fd = temporary_file(4096);
    assert_int_equal(sent_early(loop, fd, 3, 8 << 20, 4096), 0);
    assert_int_equal(sent_early(loop, fd, 64, 8 << 20, 4096), 60); /* scattered: each four */
    assert_int_equal(sent_early(loop, fd, 16, 8 << 20, 65536), 14);
    /* In a row: what is merged is large enough at 128 KiB. */
    assert_int_equal(sent_early(loop, fd, 31, 4096, 4096), 0);
    assert_int_equal(sent_early(loop, fd, 64, 4096, 4096), 32);
    assert_int_equal(sent_early(loop, fd, 64, 16384, 16384), 56);
    assert_int_equal(sent_early(loop, fd, 16, 65536, 65536), 14);
    assert_int_equal(sent_early(loop, fd, 16, 1 << 20, 1 << 20), 14);
    close(fd);
}

static void test_cancel(void **state)
{
    struct loop *loop = test_loop(state);
    SKIP_WITHOUT_RING(loop);
    int fds[2];
    char c;
    assert_int_equal(pipe(fds), 0);
    unsigned left = 1;
    struct test_io t = { .io.done = io_done, .left = &left };
    io_uring_prep_read(loop_sqe(loop, &t.io), fds[0], &c, 1, 0);
    some_steps(loop);
    assert_int_equal(left, 1);
    loop_io_cancel(loop, &t.io);
    while (left)
        loop_step(loop, true);
    assert_int_equal(t.result, -ECANCELED);
    assert_int_equal(loop_io_in_flight(loop), 0);
    close(fds[0]);
    close(fds[1]);
}

static int32_t read_fixed_file(struct loop *loop, int fd, char *c)
{
    unsigned left = 1;
    struct test_io t = { .io.done = io_done, .left = &left };
    int slot = loop_fixed_file(loop, fd);
    struct io_uring_sqe *sqe = loop_sqe(loop, &t.io);
    io_uring_prep_read(sqe, slot >= 0 ? slot : fd, c, 1, 0);
    if (slot >= 0)
        sqe->flags |= IOSQE_FIXED_FILE;
    while (left)
        loop_step(loop, true);
    return t.result;
}

static int file_with(char c)
{
    int fd = temporary_file(0);
    assert_int_equal(pwrite(fd, &c, 1, 0), 1);
    return fd;
}

static void test_no_fixed_files_without_a_ring(void **state)
{
    struct loop *loop = test_loop(state);

    if (!loop_ring(loop))
        assert_int_equal(loop_fixed_file(loop, 0), -1);
}

static void test_fixed_file_follows_the_number(void **state)
{
    struct loop *loop = test_loop(state);
    SKIP_WITHOUT_RING(loop);
    char c = 0;
    int fd = file_with('a');
    assert_true(loop_fixed_file(loop, fd) >= 0);
    assert_int_equal(loop_fixed_file(loop, fd), loop_fixed_file(loop, fd));
    assert_int_equal(read_fixed_file(loop, fd, &c), 1);
    assert_int_equal(c, 'a');
    loop_fixed_file_drop(fd);
    int other = file_with('b');
    assert_int_equal(dup2(other, fd), fd); /* the same number, another file */
    assert_int_equal(read_fixed_file(loop, fd, &c), 1);
    assert_int_equal(c, 'b');
    loop_fixed_file_drop(fd);
    close(fd);
    assert_int_equal(loop_fixed_file(loop, fd), -1); /* not an open fd: refused, not a crash */
    assert_int_equal(loop_fixed_file(loop, -1), -1);
    loop_fixed_file_drop(fd);
    close(other);

    /* More files than slots: the rest go without, and all is well again once one is dropped. */
    int fds[LOOP_FIXED_SLOTS + 4], refused = 0;
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = file_with((char)('a' + i % 26));
        refused += loop_fixed_file(loop, fds[i]) < 0;
        assert_int_equal(read_fixed_file(loop, fds[i], &c), 1);
        assert_int_equal(c, 'a' + (int)(i % 26));
    }
    assert_int_equal(refused, 4);
    loop_fixed_file_drop(fds[0]);
    assert_true(loop_fixed_file(loop, fds[LOOP_FIXED_SLOTS]) >= 0);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        loop_fixed_file_drop(fds[i]);
        close(fds[i]);
    }
}

struct remote_fixed {
    struct loop_post post;
    int fd, slot;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
};

static void register_remotely(struct loop_post *post)
{
    struct remote_fixed *r = container_of(post, struct remote_fixed, post);
    r->slot = loop_fixed_file(loop_current(), r->fd);
    pthread_mutex_lock(&r->lock);
    r->done = true;
    pthread_cond_signal(&r->cond);
    pthread_mutex_unlock(&r->lock);
}

static void call_remotely(struct loop *loop, struct remote_fixed *r)
{
    r->done = false;
    loop_post(loop, &r->post);
    pthread_mutex_lock(&r->lock);
    while (!r->done)
        pthread_cond_wait(&r->cond, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

/* A sleeping loop lets go of a dropped file: the pipe's reader sees the end of file. */
static void test_fixed_file_drop_wakes_a_sleeping_loop(void **state)
{
    struct loop *loop = test_loop(state);
    SKIP_WITHOUT_RING(loop);
    struct loop *other = loop_thread_start("other", NULL);
    int fds[2];
    char c;
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    struct remote_fixed r = {
        .post.fn = register_remotely, .fd = fds[1], .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER
    };
    call_remotely(other, &r);
    assert_true(r.slot >= 0);
    loop_fixed_file_drop(fds[1]);
    close(fds[1]);
    struct pollfd pfd = { .fd = fds[0], .events = POLLIN };
    assert_int_equal(poll(&pfd, 1, 20000), 1);
    assert_int_equal(read(fds[0], &c, 1), 0);
    loop_thread_stop(other);
    close(fds[0]);
}

static void test_polling_finds_posts_and_stops(void **state)
{
    struct loop *loop = test_loop(state);
    SKIP_WITHOUT_RING(loop);
    loop_set_poll_us(loop, 200);
    unsigned left, fired = 0;
    uint64_t last = 0;
    struct test_timer t = { .timer.fn = timer_fired, .fired = &fired, .last = &last };
    /* Short waits: it learns to poll. */
    for (int i = 0; i < 100; i++) {
        unsigned before = fired;
        loop_timer_arm(loop, &t.timer, loop_now_ns() + 50000);
        while (fired == before)
            loop_step(loop, true);
    }
    assert_in_range(loop->poll_ns, 1, 200000);
    /* Long waits: it forgets. */
    for (int i = 0; i < 10; i++) {
        unsigned before = fired;
        loop_timer_arm(loop, &t.timer, loop_now_ns() + 3000000);
        while (fired == before)
            loop_step(loop, true);
    }
    assert_int_equal(loop->poll_ns, 0);
    /* And I/O works while it polls. */
    loop->poll_ns = 200000;
    left = 1;
    struct test_io io = { .io.done = io_done, .left = &left };
    io_uring_prep_timeout(loop_sqe(loop, &io.io), &(struct __kernel_timespec){ .tv_nsec = 100000 }, 0, 0);
    while (left)
        loop_step(loop, true);
    assert_int_equal(io.result, -ETIME);
}

/* ---- threads ---- */

struct late_post {
    struct loop_post post;
    struct loop *loop;
    int *ran;
};

static void posted_late(struct loop_post *post)
{
    assert_true(signals_are_blocked());
    ++*container_of(post, struct late_post, post)->ran;
}

static void test_threads_start_and_stop(void **state)
{
    struct loop *loop = test_loop(state);
    assert_ptr_equal(loop_current(), loop);
    for (int i = 0; i < 30; i++) {
        int ran = 0;
        struct loop *other = loop_thread_start("a-name-longer-than-16", NULL);
        assert_non_null(other);
        struct late_post p = { .post.fn = posted_late, .loop = other, .ran = &ran };
        loop_post(other, &p.post);
        loop_thread_stop(other); /* after what was posted before */
        assert_int_equal(ran, 1);
    }
}

static void *write_late(void *arg)
{
    usleep(50000);
    eventfd_write(*(int *)arg, 1);
    return NULL;
}

/* A poster that found the loop asleep may be slow: its eventfd is not closed (and its number not given to another file)
 * before it has written. */
static void test_free_waits_for_a_poster_on_its_way(void **state)
{
    struct loop *loop = test_loop(state);
    pthread_t thread;
    int fd = loop->wake_fd;
    uint64_t start = loop_now_ns();
    loop->wakes_owed++; /* as if the post itself had been taken already */
    pthread_create(&thread, NULL, write_late, &fd);
    loop_free(loop);
    assert_true(loop_now_ns() - start >= 50000000);
    pthread_join(thread, NULL);
    *state = loop_new(NULL);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(test_posts_keep_order),
        LOOP_TEST(test_tasks_are_fifo_and_do_not_sleep),
        LOOP_TEST(test_timers_fire_in_order),
        LOOP_TEST(test_sleep_takes_one_enter),
        LOOP_TEST(test_fd_is_level_triggered),
        LOOP_TEST(test_fd_modify_changes_what_is_waited_for),
        LOOP_TEST(test_fd_removed_while_waiting_and_while_ready),
        LOOP_TEST(test_fd_removed_by_another_is_not_told),
        LOOP_TEST(test_fd_modify_counts_at_once),
        LOOP_TEST(test_events_lose_nothing),
        LOOP_TEST(test_events_nonblocking),
        LOOP_TEST(test_no_fixed_files_without_a_ring),
        LOOP_TEST(test_threads_start_and_stop),
        LOOP_TEST(test_free_waits_for_a_poster_on_its_way),
    };
    static const struct CMUnitTest ring_tests[] = {
        LOOP_TEST(test_many_operations),
        LOOP_TEST(test_one_enter_an_iteration),
        LOOP_TEST(test_some_go_out_early),
        LOOP_TEST(test_cancel),
        LOOP_TEST(test_fixed_file_follows_the_number),
        LOOP_TEST(test_fixed_file_drop_wakes_a_sleeping_loop),
        LOOP_TEST(test_polling_finds_posts_and_stops),
    };
    int failed = run_on_both_backends(tests);
    unsetenv("VMM_NO_URING");
    for (loop_ring_age = 0; loop_ring_age <= 2; loop_ring_age++) {
        if (loop_ring_age)
            failed += cmocka_run_group_tests_name("io_uring of an older kernel", tests, NULL, NULL);
        failed += cmocka_run_group_tests_name("the ring", ring_tests, NULL, NULL);
    }
    return failed;
}
