/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* create_options.c: what a new image shall be. */
#pragma once

#include "state.h"

struct qcow2_plan {
    /* Options. */
    const char *backing_name, *backing_format, *data_file, *prealloc, *compat, *compression;
    uint64_t cluster_size, refcount_bits;
    bool lazy, data_file_raw, extended_l2;
    /* create.c lays it out. */
    struct qcow2_header header;
    uint64_t reftable_clusters, refblocks, l1_clusters;
};

/* The values alone, by the table of create's options; texts are those of `opts`, or constants. */
int qcow2_plan_read(struct qcow2_plan *plan, struct opts *opts, struct error **errp);
/* And whether they go together: fills in the header but for what depends on the size. */
int qcow2_plan_check(struct qcow2_plan *plan, struct opts *opts, struct error **errp);
/* 2 or 3; 0: no compatibility level is called like that. */
uint32_t qcow2_version_of(const char *compat);
/* false and *errp: there are none like that. */
bool qcow2_check_cluster_size(uint64_t cluster_size, struct error **errp);
bool qcow2_check_refcount_bits(uint64_t bits, struct error **errp);
/* Whether a disk of this size can be had, and the entries of its L1 table. */
bool qcow2_l1_entries(uint64_t size, unsigned cluster_bits, bool extended, uint64_t *entries);
