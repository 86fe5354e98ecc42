/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* read.c, write.c, zero.c: what they do for each other and for the image as a whole. */
#pragma once

#include "state.h"

/* The old content of a guest range within one cluster, by its entry: for copy on write and slow reads. Lock not held;
 * the caller has the cluster registered in flight. */
coroutine_fn int qcow2_co_read_entry(struct qcow2 *s, struct qcow2_entry entry, uint64_t offset, uint64_t length,
                                     const struct iovec *iov, int iov_count);

/* Zeroes or (full) drops whole clusters, or zeroes those that are unallocated still; offset and length are whole
 * clusters, the last may reach past the disk's end. */
enum qcow2_clear {
    QCOW2_CLEAR_ZERO,
    QCOW2_CLEAR_ZERO_UNMAP,
    QCOW2_CLEAR_ABSENT,
    QCOW2_CLEAR_DISCARD,
    QCOW2_CLEAR_DROP
};
coroutine_fn int qcow2_co_clear(struct qcow2 *s, uint64_t offset, uint64_t length, enum qcow2_clear how);
/* Turns zero clusters into data, or into nothing where that reads as zeroes too: version 2 has none. Nothing is in
 * flight. */
coroutine_fn int qcow2_co_expand_zeroes(struct qcow2 *s);
/* Drops entries past the end of a disk of this size: of a shrink that was cut off, or VM state of a snapshot that was
 * applied. Nothing is in flight. */
coroutine_fn int qcow2_co_drop_past_end(struct qcow2 *s, uint64_t size);
