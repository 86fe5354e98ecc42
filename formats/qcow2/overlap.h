/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* overlap.c: what must never be overwritten, and which of it is protected. */
#pragma once

#include "state.h"

/* Which of the image's metadata a write of [offset, offset + length) would meet: a QCOW2_REGION_ bit of those not in
 * `ignore`, or 0. Lock held. */
unsigned qcow2_overlap(const struct qcow2 *s, uint64_t offset, uint64_t length, unsigned ignore);
/* The same as a check: marks the image corrupt and returns -EIO. Lock held; may yield. */
coroutine_fn int qcow2_co_check_overlap(struct qcow2 *s, uint64_t offset, uint64_t length, unsigned ignore);
/* The same for the active L1 table and the refcount table, before they are changed where they lie. */
coroutine_fn int qcow2_co_check_l1(struct qcow2 *s);
coroutine_fn int qcow2_co_check_reftable(struct qcow2 *s);

/* What has to be read for the checks: at open, and when the list of snapshots changes. */
coroutine_fn int qcow2_co_overlap_read(struct qcow2 *s, struct error **errp);
/* Fills l2_set and refblock_set from the tables in memory. */
int qcow2_collect_metadata(struct qcow2 *s);
