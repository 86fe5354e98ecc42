/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the parts of the loop share: the struct itself and the calls between loop*.c, coroutine*.c, pool.c, epoch.c.
 *
 * Everything in struct loop belongs to the loop's thread, except `posts` and `poll_max_ns` (atomic) and what says that
 * the registry's lock guards it. The first cache lines are what the hot path touches; `posts`, which other threads
 * write, has a line of its own.
 */
#pragma once

#include "coroutine_internal.h"
#include "epoch_internal.h"

#include <base/compiler.h>
#include <base/loop.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

/* A struct loop_io's address in user_data has this bit where the operation is the loop's own (polls, eventfd reads,
 * cancels): those are not counted as I/O in flight, for they wait for as long as the loop lives. */
#define LOOP_IO_INTERNAL 1u

enum {
    LOOP_SQ_ENTRIES = 256,
    LOOP_CQ_ENTRIES = 4096,
    LOOP_FIXED_SLOTS = 64,
};

/* Deadlines: wait for as long as it takes; do not wait at all. */
#define LOOP_FOREVER UINT64_MAX
#define LOOP_NO_WAIT 0

struct loop_fixed {
    bool tried, usable;  /* is the table registered with the kernel? */
    uint64_t drops_seen; /* of loop_registry.drops */
    uint8_t *map;        /* by fd: slot + 1, 0 unknown, LOOP_FIXED_REFUSED */
    size_t map_size;
    int fds[LOOP_FIXED_SLOTS]; /* by slot, -1 free; written under the registry's lock, which droppers read it under */
    bool stale[LOOP_FIXED_SLOTS]; /* registry's lock: the slot's fd was dropped */
    bool posted;                  /* registry's lock: `post` is queued */
    struct loop_post post;
};

struct loop_thread;

struct loop {
    struct io_uring ring;
    unsigned in_flight;   /* loop_sqe() handed out and not done */
    unsigned enter_flags; /* IORING_ENTER_REGISTERED_RING or 0 */
    bool has_ring;
    bool stepping;
    struct loop_task *tasks, **tasks_end;
    struct epoch_loop epoch;
    struct loop_stats stats;
    uint64_t coarse_ns; /* loop_coarse_ns(); 0: not read since the loop last waited */

    struct loop_timer **timers; /* heap, from index 1 */
    size_t timer_count, timer_room;

    uint64_t poll_ns; /* how long it polls now, at most poll_max_ns */
    _Atomic uint64_t poll_max_ns;

    struct io_uring_cqe *stash; /* completions taken out of a full ring in the middle of a callback */
    size_t stash_count, stash_room;

    struct loop_fixed fixed;

    int wake_fd; /* eventfd that posters signal while the loop sleeps */
    struct loop_event wake;
    uint64_t wakes_owed, wakes_received; /* equal where no poster is on its way to write to wake_fd */

    struct list fds;         /* without ring: struct loop_fd that are being polled */
    struct list fds_removed; /* whose `removed` is to be called */
    struct pollfd *pollfds;  /* without ring: scratch of one iteration */
    struct loop_fd **polled;
    size_t poll_room;

    struct list coroutines; /* struct co whose home this is, for the debugger and for loop_thread_stop() */
    struct co_pool co_pool;
    unsigned pool_works; /* submitted to the worker pool and not done */

    struct loop_thread *thread; /* NULL where the loop is not a thread's of loop_thread_start() */
    struct list link;           /* in loop_registry.loops */

    _Alignas(64) _Atomic(struct loop_post *) posts;
};

/* All loops of the process; tests/gdb/vmm-gdb.py begins here. Lock order: the registry's lock is a leaf. */
struct loop_registry {
    pthread_mutex_t lock;
    struct list loops;
    _Atomic uint64_t drops; /* of loop_fixed_file_drop(), ever */
};
extern struct loop_registry loop_registry;

/* loop.c */
void loop_set_current(struct loop *loop);
bool loop_posts_sleep(struct loop *loop); /* false: there are posts, do not sleep */
void loop_posts_awake(struct loop *loop, struct loop_post **taken);
bool loop_posts_waiting(struct loop *loop);
bool loop_idle(const struct loop *loop); /* nothing in flight, queued or asleep in a coroutine */

/* loop_ring.c */
extern unsigned loop_ring_age; /* of the kernel to play in tests: 0 the present one, 1 before 6.1, 2 before 5.19 */
bool loop_ring_init(struct loop *loop); /* false: the kernel refuses; use poll(2) */
void loop_ring_finish(struct loop *loop);
/* Submits, waits until `deadline` (CLOCK_MONOTONIC) or something happens, runs completions. `taken` gets the posts that
 * ended a sleep. Returns whether a callback ran. */
bool loop_ring_iterate(struct loop *loop, uint64_t deadline, struct loop_post **taken);
struct io_uring_sqe *loop_ring_sqe_internal(struct loop *loop, struct loop_io *io);
void loop_ring_cancel_internal(struct loop *loop, struct loop_io *io);
void loop_ring_stash(struct loop *loop);

/* loop_poll.c */
bool loop_poll_iterate(struct loop *loop, uint64_t deadline, struct loop_post **taken);
void loop_poll_finish(struct loop *loop);

/* loop_fd.c */
bool loop_fd_run_removed(struct loop *loop);
void loop_fd_report(struct loop_fd *lfd, short revents);
bool loop_fd_polled(const struct loop_fd *lfd); /* without ring: does it want to be polled? */

/* loop_timer.c */
uint64_t loop_timer_next(const struct loop *loop); /* LOOP_FOREVER where none */
bool loop_timer_run_due(struct loop *loop);
void loop_timer_finish(struct loop *loop);

/* loop_fixed.c */
void loop_fixed_init(struct loop *loop);
void loop_fixed_finish(struct loop *loop);
