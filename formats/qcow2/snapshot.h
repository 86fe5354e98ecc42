/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* snapshot.c: the table of internal snapshots. */
#pragma once

#include "state.h"

#include <block/snapshot.h>

coroutine_fn int qcow2_co_snapshots_read(struct qcow2 *s, struct error **errp);
void qcow2_snapshots_free(struct qcow2 *s);
void qcow2_snapshot_finish(struct qcow2_snapshot *snapshot);
/* An entry of the table, also as it will lie on disk, from a zeroed *sn. 0 or -ENOMEM; qcow2_snapshot_finish() either
 * way. */
int qcow2_snapshot_make(struct qcow2_snapshot *sn, const struct blk_snapshot *what, const char *id, uint64_t disk_size,
                        uint64_t l1_offset, uint32_t l1_size);
/* Its L1 table lies elsewhere now; also as the entry will lie on disk. */
void qcow2_snapshot_move(struct qcow2_snapshot *sn, uint64_t l1_offset);
/* A whole table on disk: its length, and its content. */
uint64_t qcow2_snapshots_bytes(const struct qcow2_snapshot *list, uint32_t count);
void qcow2_snapshots_store(const struct qcow2_snapshot *list, uint32_t count, uint8_t *out);
json_t *qcow2_snapshots_json(const struct qcow2 *s); /* for info; NULL where there are none */
/* Can its L1 table be one: aligned, not too large? */
bool qcow2_snapshot_l1_valid(const struct qcow2 *s, const struct qcow2_snapshot *snapshot);
