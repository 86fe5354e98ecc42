/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * commit.c: changed metadata reaches the file, in the one order allowed. Its rules; those who keep them cite them:
 *
 * W1   A new refcount block, and a moved refcount table with all that counts it, are durable before the table or the
 *      header names them.
 * W2   Refcounts that went up are durable before an entry that needs them is written.
 * W3   Guest data are written before their entry is set in memory, so the flush before an entry's write makes them
 *      durable: what an entry on disk refers to is on disk.
 * W4   Sectors of the refcount table land in order: a new block is counted by itself, or by another new one that is
 *      named before it in the table.
 * W5   The removal of an entry is durable before what it referred to goes on towards being free.
 * W6   A refcount goes down only when every request that could have mapped the cluster has ended. Only a cluster whose
 *      refcount is zero is allocated. Likewise a zero cluster that has kept its place is written to only when every
 *      request that could have mapped it as data has ended.
 * W7   A flush is acknowledged by a commit that started after it came, and succeeded. What a failed commit could not
 *      write is dirty again.
 * W8   After a write of the header that failed, the header is written first: nothing is acknowledged under one header
 *      while the disk may have another.
 * W9   A slice is marked unstable before its entry is set, and a durable write looks at the mark after the entry: it
 *      never maps through an entry that is not on disk.
 * W10  An unstable slice is never evicted: memory has the only true copy.
 */
#pragma once

#include "state.h"

/* Once, before anything is dirty. */
void qcow2_commit_init(struct qcow2 *s);
/* Makes durable all that completed before the call. Lock not held. */
coroutine_fn int qcow2_co_commit(struct qcow2 *s);
/* Lock held, given up while waiting if far too much is dirty. */
coroutine_fn void qcow2_co_throttle(struct qcow2 *s);
/* There was no room (-ENOSPC), for an allocation or on the host. Clusters that are on their way to be free become so:
 * 0: try again, from the start. If there are none, or the commit fails, returns what to fail with. Lock held, given up;
 * the caller has nothing registered in flight. */
coroutine_fn int qcow2_co_make_room(struct qcow2 *s);
/* Nothing is in flight: commits until nothing is dirty and nothing waits to be freed. Lock not held. */
coroutine_fn int qcow2_co_settle(struct qcow2 *s);
/* The same, refcounts that may be late (lazy refcounts) included. */
coroutine_fn int qcow2_co_settle_all(struct qcow2 *s);
/* Around a change in the middle of which refcounts and COPIED flags on disk do not agree: all is settled, and the dirty
 * bit is on disk (version 2 has none), so that who opens the image after a power cut counts again. Drained. */
coroutine_fn int qcow2_co_marked_begin(struct qcow2 *s, struct error **errp);
/* Settles all. If this fails, or s->dirty_stays, the dirty bit stays: who opens the image next repairs it. */
coroutine_fn int qcow2_co_marked_end(struct qcow2 *s);
