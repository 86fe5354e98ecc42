/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* refcount.c: counting, and the cache of refcount blocks. */
#pragma once

#include "state.h"

uint64_t qcow2_refcount_get(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_set(void *block, unsigned order, uint64_t index, uint64_t value);
static inline uint64_t qcow2_refcount_max(unsigned order)
{
    return order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
}
/* How many refcount blocks, and clusters of the table that names them, count `clusters` others and themselves. */
void qcow2_refcounts_for(unsigned cluster_bits, unsigned order, uint64_t clusters, uint64_t *blocks,
                         uint64_t *table_clusters);
/* All that follow: lock held, and given up only if it fails with a corruption, which is then written to the header.
 * Clusters outside the table count 0. */
coroutine_fn int qcow2_co_refcount(struct qcow2 *s, uint64_t cluster, uint64_t *out);
/* The block that counts `cluster` must exist, here and below. */
coroutine_fn int qcow2_co_refcount_change(struct qcow2 *s, uint64_t cluster, uint64_t value);
/* Takes one reference away that nothing on disk has. */
coroutine_fn int qcow2_co_refcount_lower(struct qcow2 *s, uint64_t cluster);
/* No more compressed clusters go into this one: it is on its way to be free. */
void qcow2_bytes_forget(struct qcow2 *s, uint64_t cluster);
/* From zero to one: free clusters that are taken, all counted by one block. */
coroutine_fn int qcow2_co_refcount_take(struct qcow2 *s, uint64_t cluster, uint64_t count);
/* Gives back clusters that nothing on disk refers to. */
coroutine_fn void qcow2_co_unalloc(struct qcow2 *s, uint64_t offset, uint64_t count);
coroutine_fn int qcow2_co_refblock(struct qcow2 *s, uint64_t index, struct qcow2_refblock **out); /* NULL: none */
coroutine_fn int qcow2_co_refblock_for_write(struct qcow2 *s, uint64_t index, struct qcow2_refblock **out);
struct qcow2_refblock *qcow2_refblock_insert(struct qcow2 *s, uint64_t index, uint64_t host_offset);
void qcow2_refblock_dirty(struct qcow2 *s, struct qcow2_refblock *block, uint32_t start, uint32_t end);
void qcow2_refblocks_trim(struct qcow2 *s);
void qcow2_refblocks_clean(struct qcow2 *s); /* drops what was not used since the last call. Lock held */
void qcow2_refblock_drop(struct qcow2 *s, struct qcow2_refblock *block);
void qcow2_refcounts_free(struct qcow2 *s);
void qcow2_reftable_set(struct qcow2 *s, uint64_t index, uint64_t offset);
