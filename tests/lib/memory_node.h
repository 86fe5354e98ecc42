/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A protocol node in memory for tests: driver "memory". Completes later (on the loop's next turn, or after latency-ns),
 * as a file would; counts what it was asked; checks that what it gets is aligned as it demanded; fails where it is told
 * to. Stops answering when it is told to, and goes on.
 * Options: size, max-size, align (offset and length), mem-align, latency-ns, and the limits max-iov, max-transfer,
 * max-discard, discard-align, max-zeroes, zeroes-align. Grows, up to max-size.
 */
#pragma once

#include <block/node.h>
#include <stdatomic.h>

/* Which requests fail: reads, writes, flushes, new sizes, all are counted alike. */
struct memory_faults {
    uint64_t fail_at; /* the how manieth from now on, from 1; 0: none */
    bool for_good;    /* and all that follow */
    int with;         /* a negative errno */
    /* What came of it. */
    uint64_t requests;
    bool failed;
};

/* Requests that get no answer for now: those of these kinds in this range. */
struct memory_hold {
    unsigned ops; /* 1u << BLK_OP_…; 0: none */
    uint64_t offset, length;
    struct list kept;
    unsigned count;
};

struct memory_node {
    pthread_mutex_t lock; /* content, capacity, faults */
    uint8_t *data;
    uint64_t capacity, max_size;
    uint64_t latency_ns;
    _Atomic uint64_t reads, writes, flushes, discards, zeroes, fua;
    struct memory_faults faults;
    struct memory_hold hold;
};

struct memory_node *memory_node(struct blk_node *node); /* asserts that it is one */
/* The node's content and size become these; nothing is in flight. */
void memory_node_fill(struct blk_node *node, const void *content, uint64_t length);
/* From now on requests of these kinds (bits 1u << BLK_OP_…) that touch the range get no answer, and do nothing: they
 * are held between having been mapped and being carried out. Any thread. */
void memory_node_hold(struct blk_node *node, unsigned ops, uint64_t offset, uint64_t length);
unsigned memory_node_held(struct blk_node *node);                                  /* how many there are */
coroutine_fn void memory_node_co_wait_held(struct blk_node *node, unsigned count); /* until there are so many */
void memory_node_release(struct blk_node *node); /* they are carried out, and no more are held */
/* From now on. */
void memory_node_fail(struct blk_node *node, struct memory_faults faults);
