/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A count for each cluster of a file, in little memory: see counts.c. Not thread-safe: who adds from several threads
 * has a lock for it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define QCOW2_COUNTS_CHUNK_BITS 14u /* log2 of the clusters of a chunk */
#define QCOW2_COUNTS_MAX ((uint64_t)UINT32_MAX)

struct qcow2_counts_chunk {
    uint64_t *words; /* the counts, 1 << order bits each, the first in the lowest bits; NULL: all are 0 */
    uint8_t order;
    bool doubted;
};

struct qcow2_counts {
    struct qcow2_counts_chunk *chunks;
    uint64_t chunk_count;
    bool failed; /* there was no memory for a count: some are too low */
};

/* All zero. 0 or -ENOMEM. */
int qcow2_counts_init(struct qcow2_counts *counts, uint64_t clusters);
void qcow2_counts_finish(struct qcow2_counts *counts); /* then it is as one that was zeroed */

/* One more for each of `count` clusters that the file has. They stop at QCOW2_COUNTS_MAX. */
void qcow2_counts_add(struct qcow2_counts *counts, uint64_t first, uint64_t count);
/* Never fails when the value is lower than the one before. */
void qcow2_counts_set(struct qcow2_counts *counts, uint64_t cluster, uint64_t value);

static inline uint64_t qcow2_counts_get(const struct qcow2_counts *counts, uint64_t cluster)
{
    const struct qcow2_counts_chunk *chunk = &counts->chunks[cluster >> QCOW2_COUNTS_CHUNK_BITS];
    uint64_t index = cluster & ((UINT64_C(1) << QCOW2_COUNTS_CHUNK_BITS) - 1), place = index << chunk->order;

    if (!chunk->words)
        return 0;
    return chunk->words[place / 64] >> place % 64 & ((UINT64_C(1) << (1u << chunk->order)) - 1);
}

/* The first, or behind the last, cluster of [first, end) that does not count 0; `end` and `first` if there is none. */
uint64_t qcow2_counts_first(const struct qcow2_counts *counts, uint64_t first, uint64_t end);
uint64_t qcow2_counts_end(const struct qcow2_counts *counts, uint64_t first, uint64_t end);

/* A mark for the cluster and, as there is one a chunk, for its neighbours. */
static inline void qcow2_counts_doubt(struct qcow2_counts *counts, uint64_t cluster)
{
    counts->chunks[cluster >> QCOW2_COUNTS_CHUNK_BITS].doubted = true;
}
static inline bool qcow2_counts_doubted(const struct qcow2_counts *counts, uint64_t cluster)
{
    return counts->chunks[cluster >> QCOW2_COUNTS_CHUNK_BITS].doubted;
}
