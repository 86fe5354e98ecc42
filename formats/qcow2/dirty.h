/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* dirty.c: what has changed in memory, and the news of it. */
#pragma once

#include "state.h"

/* Before the first change: the dirty bit for lazy refcounts. Lock held; given up while the header is written. */
coroutine_fn int qcow2_co_begin_changes(struct qcow2 *s);
/* The dirty bit, whatever the image's refcounts are (version 2 has none): who opens the image next after a crash
 * repairs refcounts and flags. Lock held; given up while the header is written. */
coroutine_fn int qcow2_co_set_dirty_bit(struct qcow2 *s);
/* Everything is written, and refcounts on disk are true again: the dirty bit goes, if this program has set it, and
 * nothing was left half done. Lock not held. */
coroutine_fn int qcow2_co_clear_dirty_bit(struct qcow2 *s);
/* Lock held: kicks a background commit when much is dirty, and arms the timer. */
void qcow2_note_dirty(struct qcow2 *s);
/* References to these clusters are gone from memory; free.c says what follows. Lock held. */
void qcow2_free_clusters(struct qcow2 *s, uint64_t cluster, uint64_t count, enum qcow2_freed_by by);
void qcow2_free_entry(struct qcow2 *s, struct qcow2_entry entry,
                      enum qcow2_freed_by by); /* what an L2 entry referred to */
/* A list of extents, and nothing else: clusters that are on their way already. */
void qcow2_freed_add(struct qcow2_freed *freed, uint64_t cluster, uint64_t count, enum qcow2_freed_by by);
/* Is more dirty than writers may leave behind? Lock held. */
bool qcow2_too_dirty(const struct qcow2 *s);
/* Of the driver's table: a drained node starts no commit by itself. On the home loop. */
void qcow2_drain_begin(struct blk_node *node);
coroutine_fn void qcow2_co_drain_settle(struct blk_node *node);
void qcow2_drain_end(struct blk_node *node);
/* For close, on the home loop: no commit starts by itself any more, and none that did so runs. */
coroutine_fn void qcow2_co_stop_background(struct qcow2 *s);
