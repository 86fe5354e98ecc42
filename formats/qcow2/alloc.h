/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* alloc.c, reftable.c: host clusters, and the blocks that count them. */
#pragma once

#include "state.h"

/* A host device does not grow: shortens *count to what it has room for at `cluster`, or -ENOSPC. */
int qcow2_check_room(const struct qcow2 *s, uint64_t cluster, uint64_t *count);
/* 1 … count contiguous clusters, refcount one each. *got says how many; *fresh (may be NULL) whether they are certain
 * to read as zeroes. Lock held, given up only if it fails with a corruption, which is then written to the header. */
coroutine_fn int qcow2_co_alloc(struct qcow2 *s, uint64_t count, uint64_t *offset, uint64_t *got, bool *fresh);
/* The same for the data of guest clusters from `guest` (bytes) on: an external data file has a place for each, and
 * counts none. What is given back nothing refers to. */
coroutine_fn int qcow2_co_alloc_data(struct qcow2 *s, uint64_t guest, uint64_t count, uint64_t *offset, uint64_t *got,
                                     bool *fresh);
coroutine_fn void qcow2_co_unalloc_data(struct qcow2 *s, uint64_t offset, uint64_t count);
/* Bytes for a compressed cluster, at most a host cluster: behind those of others if there is room, so at any offset. A
 * host cluster has one reference for each that touches it. Lock held, and may be given up. */
coroutine_fn int qcow2_co_alloc_bytes(struct qcow2 *s, uint64_t length, uint64_t *offset);
/* Gives them back: nothing refers to them. Lock held. */
coroutine_fn void qcow2_co_unalloc_bytes(struct qcow2 *s, uint64_t offset, uint64_t length);
/* Exactly count contiguous ones. */
coroutine_fn int qcow2_co_alloc_exact(struct qcow2 *s, uint64_t count, uint64_t *offset);
/* reftable.c: makes the block that counts cluster `cluster` exist (growing the table if need be). Lock held. */
coroutine_fn int qcow2_co_refblock_create(struct qcow2 *s, uint64_t cluster);

/* Whole clusters, one after the other, for a table of `bytes`; none: at 0. And to be freed again. Take the lock. */
coroutine_fn int qcow2_co_bytes_alloc(struct qcow2 *s, uint64_t bytes, uint64_t *offset);
coroutine_fn void qcow2_co_bytes_free(struct qcow2 *s, uint64_t offset, uint64_t bytes);
