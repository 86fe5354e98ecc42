/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to block/: the front end as front.c, submit.c and drain.c see it. */
#pragma once

#include <block/front.h>

/* Counters of one thread, on a cache line of their own: the mapped path writes no memory that another loop writes. */
#define FRONT_LANES 32

struct front_lane {
    _Atomic uint64_t operations[BLK_OP_COUNT], bytes[BLK_OP_COUNT], failed[BLK_OP_COUNT];
    _Atomic uint64_t mapped, slow;
} __attribute__((aligned(64)));

struct blk_front {
    char *name;
    struct blk_child *root;
    struct blk_node *node; /* root->node */
    unsigned open_flags;   /* the node's */
    atomic_bool write_cache;
    enum blk_on_error on_read_error, on_write_error;

    /*
     * Draining (drain.c). A request that goes the mapped way looks at `held` inside its epoch; one that goes the slow way counts
     * itself in `slow_in_flight` first and looks then (both seq_cst), so that blk_co_drain_begin(), which sets `held` first
     * and then waits for the epoch and for the count, misses none.
     */
    atomic_uint held;
    atomic_uint slow_in_flight;
    pthread_mutex_t drain_lock;
    struct co_cond released; /* held went to 0 */
    struct co_cond settled;  /* slow_in_flight went to 0 */

    struct front_lane lanes[FRONT_LANES];
};

/* This thread's counters. */
struct front_lane *front_lane(struct blk_front *front);

static inline void lane_add(_Atomic uint64_t *counter, uint64_t value)
{
    /* One writer a lane (lanes are shared only beyond FRONT_LANES threads, and then counts may be lost): no lock prefix. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + value, memory_order_relaxed);
}

/* Wait until nothing holds requests back, and count this slow request in; and out again. */
coroutine_fn void front_co_enter_slow(struct blk_front *front);
void front_leave_slow(struct blk_front *front);
