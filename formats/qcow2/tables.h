/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* tables.c: all L2 tables of an image, snapshots' included, each once. Nothing is in flight. Lock not held. */
#pragma once

#include "check.h"
#include "references.h"

typedef coroutine_fn int qcow2_co_tree_fn(void *arg, struct qcow2_tree *tree, const struct qcow2_snapshot *sn);
typedef coroutine_fn int qcow2_co_table_fn(void *arg, uint64_t offset, uint64_t weight);

/* The active tree (`sn` is NULL), then that of each snapshot. Ends at the first error. */
coroutine_fn int qcow2_co_each_tree(struct qcow2 *s, qcow2_co_tree_fn *co_tree, void *arg, struct error **errp);
/* Each L2 table of these trees, of which `checker` has just counted the references, and found them right; `weight` L1
 * entries name it, and so an entry in it stands for as many references. */
coroutine_fn int qcow2_co_each_table(struct qcow2 *s, const struct qcow2_checker *checker, qcow2_co_table_fn *co_table,
                                     void *arg, struct error **errp);
