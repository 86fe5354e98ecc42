/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * batch.c: changes of tables where they lie, behind the caches, and of what they name. Nothing is in flight, and no
 * slice of these tables is in memory. Lock not held.
 */
#pragma once

#include "state.h"

/* Bytes of the file that have another place too. */
struct qcow2_copy {
    uint64_t from, to, length;
};

/* A table, or a part of one, that is to be written where it lies: what it names now is durable by then. */
struct qcow2_rewrite {
    uint64_t offset, length; /* whole sectors */
    void *data;
};

/* References that go once nothing has them: so many to each of the clusters. */
struct qcow2_release {
    uint64_t cluster, count, times;
};

/* Changes that become durable together. */
struct qcow2_batch {
    struct qcow2_copy *copies;
    size_t copy_count, copy_capacity;
    struct qcow2_rewrite *rewrites;
    size_t rewrite_count, rewrite_capacity;
    struct qcow2_release *releases;
    size_t release_count, release_capacity;
    uint64_t copied, rewritten; /* bytes */
};

int qcow2_batch_copy(struct qcow2_batch *batch, uint64_t from, uint64_t to, uint64_t length);
/* Takes over `data`, also if it fails. */
int qcow2_batch_rewrite(struct qcow2_batch *batch, uint64_t offset, void *data, uint64_t length);
/* `times` references to each of the clusters. */
int qcow2_batch_free(struct qcow2_batch *batch, uint64_t cluster, uint64_t count, uint64_t times);
/* Copies, makes the copies and their refcounts durable, then rewrites tables, makes these durable, then frees. The
 * batch is empty afterwards, also if it fails. */
coroutine_fn int qcow2_co_batch_run(struct qcow2 *s, struct qcow2_batch *batch);
/* Is there so much in it that it should be run? */
bool qcow2_batch_is_large(const struct qcow2_batch *batch);
void qcow2_batch_finish(struct qcow2_batch *batch);
