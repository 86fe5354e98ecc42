/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* l1table.c: another table in place of the active L1 table, in the file and in memory. Nothing is in flight. */
#pragma once

#include "state.h"

struct qcow2_l1_table {
    _Atomic uint64_t *l1; /* big-endian; memory is whole write_units, as for all three */
    uint8_t *dirty;
    _Atomic(struct qcow2_dir *) *dir;
    uint64_t entries, offset;
};

/* Memory for a table, zeroed, with no place in the file. 0 or -ENOMEM. */
int qcow2_l1_memory_new(const struct qcow2 *s, uint64_t entries, struct qcow2_l1_table *table);
void qcow2_l1_memory_free(struct qcow2_l1_table *table); /* its clusters are others' */
/* Allocates a table, zeroed: its place in the file, not written yet, and its memory. The refcounts of its clusters must
 * be durable before the header names it: a commit comes next. Lock not held. 0 or -errno. */
coroutine_fn int qcow2_co_l1_prepare(struct qcow2 *s, uint64_t entries, struct qcow2_l1_table *table);
/* Writes it, flushes, and names it in the header, which says at the same time how large the disk is. Everything is
 * committed. Lock held, given up meanwhile. If it fails the header is, or will be, as it was. */
coroutine_fn int qcow2_co_l1_name(struct qcow2 *s, const struct qcow2_l1_table *table, uint64_t disk_size);
/* After that: memory follows. The old table's memory is freed, its clusters are the caller's. */
void qcow2_l1_install(struct qcow2 *s, struct qcow2_l1_table *table);
/* In place of that: gives all of it back, once a commit has made sure that no header on disk names it. Lock held. */
void qcow2_l1_drop(struct qcow2 *s, struct qcow2_l1_table *table);
/* The active table at this place, which its clusters have been allocated for, and at least as long as it is. Its old
 * clusters are freed, or, if it fails, the new ones. Lock not held. */
coroutine_fn int qcow2_co_l1_replace(struct qcow2 *s, struct qcow2_l1_table *table);
