/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* l2cache.c, l2table.c: L2 slices in memory, and making the tables that they are parts of. */
#pragma once

#include "state.h"

/* ---- l2cache.c ---- */

/* The slice if it is in memory. Any thread, inside an epoch or with the lock held. */
struct qcow2_slice *qcow2_slice_find(const struct qcow2 *s, uint64_t offset);
/* Lock held; may give it up and take it again. *out is NULL if there is no L2 table. */
coroutine_fn int qcow2_co_slice(struct qcow2 *s, uint64_t offset, struct qcow2_slice **out);
/* Lock held, slice from qcow2_co_slice_for_write() with no yield since. */
void qcow2_slice_set(struct qcow2 *s, struct qcow2_slice *slice, uint32_t index, struct qcow2_entry entry);
void qcow2_l1_set(struct qcow2 *s, uint32_t index, uint64_t entry);
/* An L1 entry's table has another place now. Lock held. */
void qcow2_slices_move(struct qcow2 *s, uint64_t l1_index, uint64_t table);
/* Before clusters become metadata, or are cut off (`what`): does no slice in memory name them, not even one that was
 * evicted while requests still use it? Refcounts that call a cluster free that is in use are a corruption: marks the
 * image and returns -EIO. What is loaded later is checked against the metadata that there is then. Lock held. */
coroutine_fn int qcow2_co_check_unnamed(struct qcow2 *s, uint64_t cluster, uint64_t count, const char *what);
/* Can a read follow the entry, of the guest cluster at `guest`: aligned, allowed in this version, and in an external
 * data file at its own place? Any thread. */
bool qcow2_entry_readable(const struct qcow2 *s, uint64_t guest, struct qcow2_entry entry);
/* May writes follow it too? Lock held. */
bool qcow2_entry_plausible(const struct qcow2 *s, uint64_t guest, struct qcow2_entry entry);
/* Is the entry one that may be followed at all? Marks the image corrupt and returns -EIO if not. Lock held. */
coroutine_fn int qcow2_co_check_entry(struct qcow2 *s, const struct qcow2_slice *slice, uint32_t index,
                                      struct qcow2_entry entry, bool to_write);
/* The same for the place of an L2 table. */
coroutine_fn int qcow2_co_check_l2_offset(struct qcow2 *s, uint64_t table, uint64_t l1_index);
void qcow2_slices_clean(struct qcow2 *s);                   /* drops what was not used since the last call. Lock held */
void qcow2_slices_reset(struct qcow2 *s);                   /* all, whatever they hold; nothing is in flight */
void qcow2_slices_free(struct qcow2 *s);                    /* and what they hang in: at close */
void qcow2_slices_forget(struct qcow2 *s);                  /* all that are clean; nothing is in flight */
void qcow2_slices_drop(struct qcow2 *s, uint64_t l1_index); /* one table's, clean, drained */

/* ---- l2table.c ---- */

/* As qcow2_co_slice(), for changing entries: the table is made, or copied if a snapshot shares it. Never NULL on
 * success. */
coroutine_fn int qcow2_co_slice_for_write(struct qcow2 *s, uint64_t offset, struct qcow2_slice **out);
