/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * references.c: all that an L1 table refers to, each reference counted once: host clusters of data, compressed clusters
 * (each host cluster that one touches), and L2 tables. Nothing is in flight, everything is committed, so the tables on
 * disk are as they are in memory. Lock not held.
 */
#pragma once

#include "state.h"

struct qcow2_tree {
    uint64_t *l1; /* big-endian, a copy */
    uint32_t l1_size;
};

/* The active one, or the snapshot's; *tree is empty, and may be finished, if it fails. */
int qcow2_tree_active(const struct qcow2 *s, struct qcow2_tree *tree);
coroutine_fn int qcow2_co_tree_of_snapshot(struct qcow2 *s, const struct qcow2_snapshot *snapshot,
                                           struct qcow2_tree *tree, struct error **errp);
void qcow2_tree_finish(struct qcow2_tree *tree);

/* Raises the refcount behind each reference by one, in memory; all commits on the way put some on disk. *done says how
 * many there are, or how far it came. */
coroutine_fn int qcow2_co_tree_raise(struct qcow2 *s, const struct qcow2_tree *tree, uint64_t *done,
                                     struct error **errp);
/* Gives up the first `limit` references (UINT64_MAX: all), as they come. Nothing on disk refers to them any more, or
 * their refcounts were raised before. `by`: why. Settles now and then. */
coroutine_fn int qcow2_co_tree_free(struct qcow2 *s, const struct qcow2_tree *tree, uint64_t limit,
                                    enum qcow2_freed_by by);
/* Makes the COPIED flags in tree->l1, and on disk in its L2 tables, say which clusters have one reference. Does not
 * flush. */
coroutine_fn int qcow2_co_tree_set_flags(struct qcow2 *s, struct qcow2_tree *tree);
/* The same for the active layer, whose tree it is, on disk and in memory; slices are read again. */
coroutine_fn int qcow2_co_set_active_flags(struct qcow2 *s, struct qcow2_tree *tree);
