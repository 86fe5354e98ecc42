/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bench: what its parts share. bench.c reads the command line and reports; bench_lane.c sends the requests. */
#pragma once

#include <block/front.h>

/* One loop's share of the work. Written by that loop alone while it runs; lanes are apart in memory. */
struct bench_lane {
    /* set before bench_lane_start() */
    struct blk_front *front;
    bool write, drain, random;
    uint64_t count; /* requests to send; UINT64_MAX: until stopped */
    unsigned depth;
    uint64_t size;         /* of a request */
    uint64_t offset, step; /* of the next request, in sequence */
    uint64_t image_size;
    uint64_t random_state;
    uint64_t flush_interval; /* requests, 0: none */
    uint8_t pattern;
    bool *stop;                            /* set from another thread, to end early; may be NULL */
    void (*done)(struct bench_lane *lane); /* on the lane's own loop */

    /* results */
    int error; /* of the first request that failed */
    uint64_t completed, flushes;
    uint64_t start_ns, end_ns;

    /* bench_lane.c's */
    struct bench_slot *slots;
    uint8_t *buffer;
    unsigned in_flight;
    uint64_t sent;
    uint64_t until_flush;
    uint64_t places; /* where a random request may begin */
    bool flushing;   /* a flush is in flight, and nothing else may be */
} __attribute__((aligned(128)));

/* Allocates requests and buffers. 0 or -ENOMEM. */
int bench_lane_init(struct bench_lane *lane);
void bench_lane_finish(struct bench_lane *lane);
/* On the loop that is to do the work. lane->done is called when all is done, from the loop. */
void bench_lane_start(struct bench_lane *lane);
