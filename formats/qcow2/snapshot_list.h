/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* snapshot_list.c: another list of snapshots. The node is drained; the lock is not held. */
#pragma once

#include "state.h"

/* The list as it is to be, and its place. Entries that stay are the same as those of s->snapshots, not copies. */
struct qcow2_snapshot_list {
    struct qcow2_snapshot *list;
    uint32_t count;
    uint64_t offset, bytes;
};

/* Takes clusters for it; a commit makes their refcounts durable. */
coroutine_fn int qcow2_co_snapshot_list_place(struct qcow2 *s, struct qcow2_snapshot_list *next);
coroutine_fn int qcow2_co_snapshot_list_write(struct qcow2 *s, const struct qcow2_snapshot_list *next);
/* All that the list refers to is durable. From here on it is the image's list, or nothing has changed. */
coroutine_fn int qcow2_co_snapshot_list_name(struct qcow2 *s, struct qcow2_snapshot_list *next);
/* It did not come to be the image's. */
coroutine_fn void qcow2_co_snapshot_list_drop(struct qcow2 *s, struct qcow2_snapshot_list *next);
