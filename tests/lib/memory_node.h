/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A protocol node in memory for tests: driver "memory". Completes later (on the loop's next turn, or after latency-ns), as a
 * file would; counts what it was asked; checks that what it gets is aligned as it demanded.
 * Options: size, align (offset and length), mem-align, latency-ns, file=… none. Grows.
 */
#pragma once

#include <block/node.h>
#include <stdatomic.h>

struct memory_node {
    pthread_mutex_t lock; /* content and capacity */
    uint8_t *data;
    uint64_t capacity;
    uint64_t latency_ns;
    _Atomic uint64_t reads, writes, flushes, discards, zeroes, fua;
    _Atomic int fail_next; /* a negative errno for the next request, 0: none */
};

struct memory_node *memory_node(struct blk_node *node); /* asserts that it is one */
/* The node's content and size become these; nothing is in flight. */
void memory_node_fill(struct blk_node *node, const void *content, uint64_t length);
