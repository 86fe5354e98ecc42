/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Private to the files of compact. compact.c is the whole; compact_tables.c goes through all tables and says what
 * becomes of what they name; compact_batch.c copies, and makes it durable in the right order.
 */
#pragma once

#include "check.h"
#include "place_map.h"
#include "state.h"

#include <block/change.h>

/* Bytes of the file that have another place too. */
struct qcow2_copy {
    uint64_t from, to, length;
};

/* A table, or a part of one, that is to be written where it lies: what it names now is durable by then. */
struct qcow2_rewrite {
    uint64_t offset, length; /* whole sectors */
    void *data;
};

/* Changes that become durable together. */
struct qcow2_batch {
    struct qcow2_copy *copies;
    size_t copy_count, copy_capacity;
    struct qcow2_rewrite *rewrites;
    size_t rewrite_count, rewrite_capacity;
    struct qcow2_freed freed;   /* what nothing refers to once they are: an extent for each reference */
    uint64_t copied, rewritten; /* bytes */
};

struct qcow2_compactor {
    struct qcow2 *s;
    struct blk_compact *compact;
    struct qcow2_checker checker; /* the references when the pass began */
    uint64_t boundary;            /* a cluster: what lies from there on is to be moved down */
    bool moved;                   /* the pass has moved something */
    bool full, bytes_full;        /* there is no free cluster further down */
    uint64_t total;               /* clusters to be moved, for the progress */
    /* What more than one table names, by its old place: clusters, whose references there go when the pass is at its
     * end; and compressed ones. */
    struct qcow2_place_map clusters, bytes;
    uint64_t *seen; /* a bit a cluster: L2 tables that have been gone through */
    struct qcow2_batch batch;
};

/* ---- compact_batch.c: lock not held ---- */

int qcow2_batch_copy(struct qcow2_batch *batch, uint64_t from, uint64_t to, uint64_t length);
/* Takes over `data`, also if it fails. */
int qcow2_batch_rewrite(struct qcow2_batch *batch, uint64_t offset, void *data, uint64_t length);
/* `times` references to each of the clusters. */
void qcow2_batch_free(struct qcow2_batch *batch, uint64_t cluster, uint64_t count, uint64_t times);
/* Copies, makes the copies and their refcounts durable, then rewrites tables, makes these durable, then frees. */
coroutine_fn int qcow2_co_batch_run(struct qcow2_compactor *k);
/* The same if there is much in it. */
coroutine_fn int qcow2_co_batch_run_large(struct qcow2_compactor *k);
void qcow2_batch_finish(struct qcow2_batch *batch);

/* ---- compact_zeroes.c ---- */

/* For each entry of an L2 table as it lies on disk: are all data of its cluster zero bytes? Reads them all. The caller
 * frees *zeroes. */
coroutine_fn int qcow2_co_find_zeroes(struct qcow2 *s, const uint64_t *table, bool **zeroes);

/* ---- compact_tables.c ---- */

/* Gives up clusters that only stand for zeroes, and moves data, compressed clusters and L2 tables from the boundary on
 * to free places below it, as long as there are any. */
coroutine_fn int qcow2_co_compact_tables(struct qcow2_compactor *k, struct error **errp);
