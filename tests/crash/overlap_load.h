/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Workers on several loops that read, write, zero, discard and flush one disk where they like, their requests
 * overlapping; what they read is looked at (overlap_model.h). A request that fails and a read that finds what it must
 * not end the program, with die().
 */
#pragma once

#include "overlap_model.h"

#include <base/coroutine.h>
#include <base/loop.h>
#include <block/front.h>

#define OVERLAP_MAX_LOOPS 8u

struct overlap_load {
    /* The caller's: a front end that may write, unless nothing but co_overlap_load_read_all() is called. */
    struct blk_front *front;
    uint64_t seed, sectors;
    uint64_t cluster; /* bytes */
    unsigned loop_count, workers_a_loop;
    /* The load's. */
    struct overlap_model model;
    struct loop *loops[OVERLAP_MAX_LOOPS];
    atomic_uint running;
    atomic_bool stop;
    _Atomic uint64_t operations;
};

/* The program's own: says which seed, and the message, and ends with status 1. */
__attribute__((format(printf, 1, 2), noreturn)) void die(const char *fmt, ...);

/* The disk is all zeroes. Starts the loops and their workers. */
void overlap_load_start(struct overlap_load *load);
/* Lets the workers end, and the loops. */
coroutine_fn void co_overlap_load_stop(struct overlap_load *load);
/* Nobody changes the disk any more. Reads it from end to end. */
coroutine_fn void co_overlap_load_read_all(struct overlap_load *load);
void overlap_load_finish(struct overlap_load *load);
