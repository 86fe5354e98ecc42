/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What each sector of a disk may hold after a power cut, by the operations that were made on it.
 *
 * An operation has a clock when it was submitted and one when it was acknowledged. At time t a sector may hold what an
 * operation put there that was submitted before t, unless a later one (submitted after that one was acknowledged) is
 * guaranteed: acknowledged by t and durable by itself (FUA), or covered by a flush that was submitted after its
 * acknowledgement and is itself acknowledged by t. What the disk held at the start counts as an operation before all
 * others.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum crash_kind { CRASH_WRITE, CRASH_FILL, CRASH_ZERO, CRASH_FLUSH }; /* FILL: with the lowest byte of `value` */

#define CRASH_NEVER UINT64_MAX

struct crash_op {
    enum crash_kind kind;
    bool fua, failed;      /* failed: it may have happened, in part; it is never guaranteed */
    uint64_t first, count; /* sectors */
    uint64_t value;        /* of the stamp */
    uint64_t start, end;   /* clock; end is CRASH_NEVER until acknowledged */
};

struct crash_model {
    uint64_t sectors;
    uint8_t *initial;
    struct crash_op **ops;
    size_t count, capacity;
};

void crash_model_init(struct crash_model *m, uint64_t sectors);
void crash_model_finish(struct crash_model *m);
struct crash_op *crash_model_add(struct crash_model *m, uint64_t first, uint64_t count);
/* What a write of `value` puts into this sector. */
void crash_stamp(uint8_t *sector, uint64_t value, uint64_t number);
/* Is this content allowed at `time`? *bad is the first sector that is not. */
bool crash_model_allows(const struct crash_model *m, const uint8_t *content, uint64_t time, uint64_t *bad);
bool crash_model_allows_sector(const struct crash_model *m, const uint8_t *content, uint64_t sector, uint64_t time);
/* Has this sector ever been given what it holds? If not, it is another's, or nobody's. */
bool crash_model_knows(const struct crash_model *m, const uint8_t *content, uint64_t sector);
void crash_model_explain(const struct crash_model *m, const uint8_t *content, uint64_t time, uint64_t sector,
                         FILE *out);
