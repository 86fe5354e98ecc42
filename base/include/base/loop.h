/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Event loop: one thread, one io_uring, one io_uring_enter an iteration that both submits what was queued and waits;
 * where much is queued, some of it goes out early. Carries file I/O (struct loop_io), fd readiness, timers, work for
 * later in the same iteration, and posts from other threads. What a user calls an `iothread` is a loop.
 *
 * Where the kernel refuses io_uring the loop runs on poll(2): loop_ring() is NULL, and drivers use the worker pool.
 *
 * Everything here is called on the loop's own thread, except what says "any thread". All callback structs are owned by
 * the caller, embedded in its own, and must stay in place while queued. Callbacks never run inside the call that
 * queued them (no recursion), always from the loop. A callback never calls loop_step().
 *
 * VMM_NO_URING=1 in the environment does without io_uring. fork() without exec is not supported once a loop exists.
 */
#pragma once

#include <base/error.h>
#include <base/list.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct io_uring;
struct io_uring_sqe;
struct loop;

/* ---- life ---- */

/* A loop for the calling thread, which becomes loop_current() there; one loop a thread. NULL and *errp on failure. */
struct loop *loop_new(struct error **errp);
/* On the loop's thread, when fds, events and timers are removed; runs what is still in flight to its end. Takes
 * NULL. */
void loop_free(struct loop *loop);
/* The calling thread's loop, or NULL. Any thread. */
struct loop *loop_current(void);

/* One iteration: submit, wait for something to happen if `wait`, run what is due. Returns whether any callback ran. */
bool loop_step(struct loop *loop, bool wait);
/* Iterates until *stop is true (read after each iteration, relaxed; set it from a callback). */
void loop_run(struct loop *loop, const bool *stop);

/* A loop on a thread of its own (an `iothread`), named for debuggers; returns when it runs. */
struct loop *loop_thread_start(const char *name, struct error **errp);
/* Asks the thread to leave, once its loop has nothing in flight (I/O, pool work, posts, coroutines; fds, events and
 * timers must have been removed before), and joins it. From another thread. */
void loop_thread_stop(struct loop *loop);

/* Poll this long (microseconds) for completions before sleeping. 0, the default, sleeps at once. The loop adapts below
 * this bound: it stops polling where polling finds nothing. Without a ring it never polls. Any thread. */
void loop_set_poll_us(struct loop *loop, unsigned poll_us);

/* ---- posts from other threads ---- */

struct loop_post {
    void (*fn)(struct loop_post *post);
    struct loop_post *next; /* owned by the loop while queued */
};
/* Runs post->fn on the loop's thread. Any thread (also the loop's own); order is kept for one poster. Lock-free; the
 * loop is woken by an eventfd only where it sleeps. Memory written before is visible to fn. */
void loop_post(struct loop *loop, struct loop_post *post);

/* ---- later in this thread ---- */

struct loop_task {
    void (*fn)(struct loop_task *task);
    struct loop_task *next; /* owned by the loop while queued */
};
/* Runs task->fn on this loop after the current callback, before the loop sleeps. FIFO. */
void loop_defer(struct loop *loop, struct loop_task *task);

/* ---- I/O through the ring ---- */

struct loop_io {
    void (*done)(struct loop_io *io, int32_t result); /* result: what the kernel says, >= 0 or -errno */
};
/* The ring for liburing's prep functions and registration, or NULL where the kernel refuses io_uring. */
struct io_uring *loop_ring(struct loop *loop);
/* An SQE whose completion calls io->done. Prepare it with io_uring_prep_*() right away; do not touch user_data. Never
 * NULL where loop_ring() is not NULL: a full queue is submitted first. */
struct io_uring_sqe *loop_sqe(struct loop *loop, struct loop_io *io);
/* Asks the kernel to cancel; done is still called, with -ECANCELED or with the result. */
void loop_io_cancel(struct loop *loop, struct loop_io *io);
/* I/Os handed out by loop_sqe() and not yet done. */
unsigned loop_io_in_flight(const struct loop *loop);

/* Registered ("fixed") files: an fd's slot in this loop's ring, registered at first use, or -1 where that cannot be (no
 * ring, table full): then use the fd itself. Saves the kernel two atomics a request. */
int loop_fixed_file(struct loop *loop, int fd);
/* Drops the fd's slot in every loop; call before close(fd), when no I/O on it is in flight. Any thread; never waits. No
 * loop uses the slot any more, also for a new file with the same number. The calling loop lets go of the file at once,
 * the others are woken to do so, and the kernel may take a moment more: until then the file stays open in spite of
 * close(). So release locks on it (F_OFD_SETLK, F_UNLCK) yourself before you close it. */
void loop_fixed_file_drop(int fd);

/* ---- fd readiness ---- */

struct loop_fd {
    int fd;
    short events; /* POLLIN, POLLOUT; 0 pauses */
    void (*ready)(struct loop_fd *lfd, short revents);
    struct loop *loop; /* these below are the loop's */
    struct loop_io io;
    struct list link;
    unsigned state;
    void (*removed)(struct loop_fd *lfd);
};
/* Level-triggered: `ready` is called again while the fd stays ready. Set fd, events, ready; zero the rest. */
void loop_fd_add(struct loop *loop, struct loop_fd *lfd);
void loop_fd_modify(struct loop_fd *lfd, short events);
/* No call of `ready` follows, but *lfd must stay in place until `removed` is called (which may be NULL only where the
 * memory outlives the loop). */
void loop_fd_remove(struct loop_fd *lfd, void (*removed)(struct loop_fd *lfd));

/* An eventfd that others signal (a doorbell, an ioeventfd): `signalled` gets the counter that was read. One ring
 * operation a wake-up, no read(2), where the eventfd is not O_NONBLOCK. No signal is lost, also across a removal: what
 * was read meanwhile goes back into the eventfd, so close it only in `removed`. */
struct loop_event {
    int fd;
    void (*signalled)(struct loop_event *event, uint64_t count);
    struct loop *loop; /* these below are the loop's */
    struct loop_io io;
    struct loop_fd lfd;
    uint64_t count;
    unsigned state;
    void (*removed)(struct loop_event *event);
};
void loop_event_add(struct loop *loop, struct loop_event *event);
void loop_event_remove(struct loop_event *event, void (*removed)(struct loop_event *event));

/* ---- timers (CLOCK_MONOTONIC) ---- */

struct loop_timer {
    void (*fn)(struct loop_timer *timer);
    uint64_t deadline_ns;
    size_t heap_index; /* the loop's; 0 when not armed (the heap counts from 1) */
    struct loop *loop;
};
uint64_t loop_now_ns(void); /* any thread */
/* The same clock, read once since the loop last waited: for accounting, where what an iteration takes does not
 * matter. */
uint64_t loop_coarse_ns(struct loop *loop);
/* Arms, or re-arms, for an absolute deadline. fn is called once. */
void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns);
void loop_timer_disarm(struct loop_timer *timer); /* harmless when not armed */

/* Counters, read by tests and by --trace; plain numbers of this loop's thread. */
struct loop_stats {
    uint64_t iterations, enters, submitted, completed, wakeups, posts;
};
const struct loop_stats *loop_stats(const struct loop *loop);
