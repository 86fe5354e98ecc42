/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to block/: the front end as front.c, submit.c and drain.c see it. */
#pragma once

#include <block/front.h>

/* Counters of one thread, on a cache line of their own: the mapped path writes no memory that another loop writes. */
#define FRONT_LANES 32

struct front_lane {
    _Atomic uint64_t operations[BLK_OP_COUNT], bytes[BLK_OP_COUNT], failed[BLK_OP_COUNT];
    _Atomic uint64_t time_ns[BLK_OP_COUNT], invalid[BLK_OP_COUNT];
    _Atomic uint64_t mapped, slow, last_ns;
} __attribute__((aligned(64)));

/* The part of a front end's gate that counts drained sections. */
#define FRONT_HELD 0xffffu

struct blk_front {
    unsigned references; /* main loop: the owner's, and those of who waits for its requests */
    char *name;
    struct blk_child *root;
    struct blk_node *node;      /* root->node */
    struct epoch_domain *epoch; /* of its mapped requests */
    unsigned open_flags;        /* the node's */
    atomic_bool write_cache;
    enum blk_on_error on_read_error, on_write_error;
    const struct blk_front_events *events; /* NULL: nobody wants to hear */
    void *events_arg;
    uint64_t size_reported; /* to events->resized */

    /*
     * One word says whether requests may go the mapped way at all: 0, they may. Its low half counts the drained
     * sections that hold this front end (drain.c); the bits above are for other reasons to go the slow way, one each. A
     * request that goes the mapped way looks at the gate inside its epoch; one that goes the slow way counts itself in
     * `slow_in_flight` first and looks then (both seq_cst), so that blk_co_drain_begin(), which changes the gate first
     * and then waits for the epoch and for the count, misses none.
     */
    atomic_uint gate;
    atomic_uint slow_in_flight;
    pthread_mutex_t drain_lock;
    unsigned queued;         /* slow requests that wait at the gate; under drain_lock */
    struct co_cond released; /* the last section that held it has ended */
    struct co_cond settled;  /* slow_in_flight went to 0 */

    struct front_lane lanes[FRONT_LANES];
};

/* This thread's counters. The number of its lane is given out at first use. */
extern _Thread_local unsigned front_lane_of_thread __attribute__((tls_model("initial-exec")));
void front_choose_lane(void);

static inline struct front_lane *front_lane(struct blk_front *front)
{
    if (unlikely(front_lane_of_thread == FRONT_LANES))
        front_choose_lane();
    return &front->lanes[front_lane_of_thread];
}

static inline void lane_add(_Atomic uint64_t *counter, uint64_t value)
{
    /* One writer a lane (lanes are shared only beyond FRONT_LANES threads, and then counts may be lost): no lock
     * prefix. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + value, memory_order_relaxed);
}

/* Sleeps until the epoch has passed in this one domain (epoch.c). Any loop. */
coroutine_fn void blk_co_domain_wait(struct epoch_domain *domain, uint64_t epoch);

/* References keep the memory, not the link to the node. Main loop. */
void front_ref(struct blk_front *front);
void front_unref(struct blk_front *front);

/* Calls of the owner's callbacks (front.c). Main loop. */
void front_report_drained(struct blk_front *front, bool held);
void front_report_medium(struct blk_front *front);
/* If its size is another one than was reported last. */
void front_report_size(struct blk_front *front);

/* Wait until nothing holds requests back, and count this slow request in; and out again. */
coroutine_fn void front_co_enter_slow(struct blk_front *front);
void front_leave_slow(struct blk_front *front);
/* Waits for what is in flight and for what waits at the gate. */
coroutine_fn void front_co_wait_for_all(struct blk_front *front);
