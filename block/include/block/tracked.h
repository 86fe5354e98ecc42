/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ranges of a node where one write must not meet another.
 *
 * A read-modify-write of an aligned block rewrites bytes that its request does not cover; a write to those bytes that
 * is acknowledged meanwhile would be lost. So the rewriter registers its blocks as a tracked range: later writes that
 * overlap wait for it, and it waits for those that came before. Writes of the mapped path are not in the list; they see
 * node->tracking and go the slow way, and those that had not seen it yet are waited for by their epoch. A driver that
 * rewrites a range of its own node (block/filters/quorum.c) maps no write, and enters each that it carries out.
 */
#pragma once

#include <block/node.h>

struct blk_tracked {
    struct list link; /* node->tracked, in order of arrival */
    uint64_t offset, length;
};

/* A rewriter's: afterwards no other write to the range is in flight or starts before blk_tracked_end(). Not from inside
 * an epoch. */
coroutine_fn void blk_co_tracked_rewrite(struct blk_node *node, struct blk_tracked *tracked, uint64_t offset,
                                         uint64_t length);
/* A plain write's, where node->tracking is not 0: waits for rewriters of the range that came before. */
coroutine_fn void blk_co_tracked_write(struct blk_node *node, struct blk_tracked *tracked, uint64_t offset,
                                       uint64_t length);
void blk_tracked_end(struct blk_node *node, struct blk_tracked *tracked);
