/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a read may find on a disk that several workers change at once, their requests overlapping as they like.
 *
 * Each change of a sector has a clock when it was submitted and one when it was acknowledged. A read may find what a
 * change put there, unless another was submitted after that one's acknowledgement and acknowledged before the read was
 * submitted. What is acknowledged and overwritten for every read to come is forgotten. Any thread.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define OVERLAP_WORKERS 64u
#define OVERLAP_CHANGES 8u /* of one sector that are remembered; a request that would need more is not made */

struct overlap_change {
    uint32_t value; /* 0: zeroes */
    uint64_t start, end;
};

struct overlap_sector {
    unsigned count;
    struct overlap_change changes[OVERLAP_CHANGES];
};

struct overlap_model {
    pthread_mutex_t lock;
    uint64_t clock, sector_count;
    uint32_t next_value;
    uint64_t started[OVERLAP_WORKERS]; /* each worker's request under way; 0: none */
    struct overlap_sector *sectors;
    uint64_t overlapping; /* requests that met another one under way */
};

struct overlap_request {
    unsigned worker;
    uint64_t first, count; /* sectors */
    uint64_t start;
    uint32_t value;
    bool change;
};

/* All sectors are zeroes. */
void overlap_init(struct overlap_model *m, uint64_t sectors);
void overlap_finish(struct overlap_model *m);
/* Before the request is submitted: fills in start, and the value of a change that is not `zero`. False: not now. */
bool overlap_begin(struct overlap_model *m, struct overlap_request *r, bool zero);
/* A change was acknowledged. */
void overlap_end_change(struct overlap_model *m, const struct overlap_request *r);
/* A read was: is its content allowed? *bad is the first sector that is not. */
bool overlap_end_read(struct overlap_model *m, const struct overlap_request *r, const uint8_t *content, uint64_t *bad);
void overlap_explain(struct overlap_model *m, uint64_t sector, const uint8_t *content, FILE *out);
