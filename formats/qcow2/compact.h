/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Private to the files of compact. compact.c is the whole; compact_tables.c says what becomes of what
 * tables name; compact_zeroes.c which clusters hold nothing but zeroes.
 */
#pragma once

#include "batch.h"
#include "check.h"
#include "place_map.h"
#include "state.h"

#include <block/change.h>

struct qcow2_compactor {
    struct qcow2 *s;
    struct blk_compact *compact;
    struct qcow2_checker checker; /* the references when the pass began */
    uint64_t boundary;            /* a cluster: what lies from there on is to be moved down */
    bool moved;                   /* the pass has moved something */
    bool full, bytes_full;        /* there is no free cluster further down */
    bool find_zeroes;             /* the pass reads all data */
    uint64_t total;               /* bytes to be moved, for the progress */
    /* What more than one table names, by its old place: clusters, whose references there go when the pass is at its
     * end; and compressed ones. */
    struct qcow2_place_map clusters, bytes;
    struct qcow2_batch batch;
};

/* ---- compact_zeroes.c ---- */

/* For each entry of an L2 table as it lies on disk: are all data of its cluster zero bytes? Reads them all. The caller
 * frees *zeroes. */
coroutine_fn int qcow2_co_find_zeroes(struct qcow2 *s, const uint64_t *table, bool **zeroes);

/* ---- compact_tables.c ---- */

/* Gives up clusters that only stand for zeroes, and moves data, compressed clusters and L2 tables from the boundary on
 * to free places below it, as long as there are any. */
coroutine_fn int qcow2_co_compact_tables(struct qcow2_compactor *k, struct error **errp);
