/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * New refcount blocks, contiguous runs past the counted part of the file, and a larger refcount table when it is full.
 *
 * A new block takes the first cluster of need in the range that it counts, and counts itself. A run that must be
 * contiguous is laid out behind all that is counted so far, its new blocks in front of it, so that no block cuts it.
 * So a new block is counted by itself or by a new one with a lower index, on which the order of writing rests. A larger
 * table is made in memory with its place allocated; commit.c writes blocks before the table, the table before
 * the header names it.
 */
#include "alloc.h"

#include "dirty.h"
#include "l2.h"
#include "overlap.h"
#include "refcount.h"

#include <string.h>

static size_t dirty_sectors(uint64_t entries) { return (size_t)div_round_up(entries * 8, BLK_SECTOR_SIZE); }

/* The first range that no block counts, and none after it. */
static uint64_t first_uncounted(const struct qcow2 *s)
{
    uint64_t index = s->reftable_entries;

    while (index > 0 && s->reftable[index - 1] == 0)
        index--;
    return index;
}

/* A block for range `index` at `cluster`, which nobody counts yet: it counts itself, or a new one before it does. */
static coroutine_fn int co_make_block(struct qcow2 *s, uint64_t index, uint64_t cluster)
{
    uint64_t offset = cluster << s->cluster_bits;
    struct qcow2_refblock *block;

    if (!qcow2_host_grows(s) && offset + s->cluster_size > blk_node_size(s->node->file))
        return -ENOSPC;
    blk_co_event(s->node->file, BLK_EVENT_REFBLOCK_ALLOC);
    int ret = qcow2_co_check_reftable(s);
    if (ret == 0)
        ret = qcow2_co_check_overlap(s, offset, s->cluster_size, 0);
    if (ret == 0 && cluster < s->fresh_from)
        ret = qcow2_co_check_unnamed(s, cluster, 1, "allocation of metadata");
    if (ret == 0)
        ret = qcow2_set_add(&s->refblock_set, cluster);
    if (ret < 0)
        return ret;
    qcow2_refblocks_trim(s);
    block = qcow2_refblock_insert(s, index, offset);
    if (!block) {
        qcow2_set_remove(&s->refblock_set, cluster);
        return -ENOMEM;
    }
    block->fresh = true;
    qcow2_refblock_dirty(s, block, 0, (uint32_t)s->cluster_size);
    qcow2_reftable_set(s, index, offset);
    s->fresh_from = MAX(s->fresh_from, cluster + 1);
    return qcow2_co_refcount_change(s, cluster, 1);
}

/* A larger table needs a run of its own, and a run may need a larger table: see below. */
static coroutine_fn int co_grow_reftable(struct qcow2 *s, uint64_t entries);

/* ---- runs behind everything ---- */

static uint64_t blocks_for_run(const struct qcow2 *s, uint64_t count)
{
    uint64_t per_block = UINT64_C(1) << s->refblock_bits, blocks = 1;

    while (blocks * per_block < count + blocks)
        blocks++;
    return blocks;
}

/* Exactly `count` contiguous clusters behind all that is counted, with the blocks that count them. */
static coroutine_fn int co_append_run(struct qcow2 *s, uint64_t count, uint64_t *offset)
{
    uint64_t blocks = blocks_for_run(s, count), index = first_uncounted(s);
    int ret = 0;

    if (index + blocks > s->reftable_entries) {
        ret = co_grow_reftable(s, index + blocks);
        if (ret < 0)
            return ret;
        index = first_uncounted(s);
        if (index + blocks > s->reftable_entries)
            return -EFBIG;
    }
    uint64_t first = index << s->refblock_bits, last = first + blocks + count - 1;
    if (!qcow2_host_grows(s) && last >= blk_node_size(s->node->file) >> s->cluster_bits)
        return -ENOSPC;
    ret = qcow2_co_check_overlap(s, first << s->cluster_bits, (last - first + 1) << s->cluster_bits, 0);
    if (ret == 0 && first < s->fresh_from)
        ret = qcow2_co_check_unnamed(s, first, last - first + 1, "allocation of metadata");
    /* If it fails half way the blocks made so far stay: empty, but for themselves, and usable. */
    for (uint64_t i = 0; i < blocks && ret == 0; i++)
        ret = co_make_block(s, index + i, first + i);
    for (uint64_t i = first + blocks; i <= last && ret == 0; i++)
        ret = qcow2_co_refcount_change(s, i, 1);
    s->fresh_from = MAX(s->fresh_from, last + 1);
    *offset = (first + blocks) << s->cluster_bits;
    return ret;
}

/* ---- runs anywhere ---- */

int qcow2_check_room(const struct qcow2 *s, uint64_t cluster, uint64_t *count)
{
    uint64_t room = blk_node_size(s->node->file) >> s->cluster_bits;

    if (qcow2_host_grows(s))
        return 0;
    if (cluster >= room)
        return -ENOSPC;
    *count = MIN(*count, room - cluster);
    return 0;
}

/* A run of `count` free clusters among those that have refcount blocks. *length is 0 where there is none. */
static coroutine_fn int co_find_exact(struct qcow2 *s, uint64_t count, uint64_t *start, uint64_t *length)
{
    uint64_t mask = (UINT64_C(1) << s->refblock_bits) - 1, end = s->reftable_entries << s->refblock_bits;
    struct qcow2_refblock *block = NULL;

    *length = 0;
    for (uint64_t at = s->free_cursor; at < end && *length < count; at++) {
        if ((at & mask) == 0 || !block) {
            int ret = qcow2_co_refblock(s, at >> s->refblock_bits, &block);
            if (ret < 0)
                return ret;
        }
        if (!block) {
            *length = 0;
            at |= mask; /* on to the next block's range */
        } else if (qcow2_refcount_get(block->data, s->header.refcount_order, at & mask) != 0) {
            *length = 0;
        } else if ((*length)++ == 0) {
            *start = at;
        }
    }
    if (*length < count)
        *length = 0;
    return 0;
}

coroutine_fn int qcow2_co_alloc_exact(struct qcow2 *s, uint64_t count, uint64_t *offset)
{
    uint64_t start = 0, run = 0, room = count;
    int ret = co_find_exact(s, count, &start, &run);

    if (ret < 0)
        return ret;
    if (run == 0)
        return co_append_run(s, count, offset);
    ret = qcow2_check_room(s, start, &room);
    if (ret == 0 && room < count)
        ret = -ENOSPC;
    if (ret == 0 && start < s->fresh_from)
        ret = qcow2_co_check_unnamed(s, start, count, "allocation of metadata");
    for (uint64_t i = 0; i < count && ret == 0; i++) {
        ret = qcow2_co_refcount_take(s, start + i, 1);
        if (ret < 0)
            qcow2_co_unalloc(s, start << s->cluster_bits, i);
    }
    *offset = start << s->cluster_bits;
    return ret;
}

/* ---- a larger table ---- */

/* The same table in memory with room for `entries`. */
static int grow_memory(struct qcow2 *s, uint64_t entries)
{
    uint64_t *table = calloc(entries, sizeof(*table));
    struct qcow2_refblock **blocks = calloc(entries, sizeof(struct qcow2_refblock *));
    uint8_t *dirty = calloc(dirty_sectors(entries), 1);

    if (!table || !blocks || !dirty) {
        free(table);
        free(blocks);
        free(dirty);
        return -ENOMEM;
    }
    memcpy(table, s->reftable, s->reftable_entries * sizeof(*table));
    memcpy(blocks, s->refblocks, s->reftable_entries * sizeof(struct qcow2_refblock *));
    memcpy(dirty, s->reftable_dirty, dirty_sectors(s->reftable_entries));
    free(s->reftable);
    free(s->refblocks);
    free(s->reftable_dirty);
    s->reftable = table;
    s->refblocks = blocks;
    s->reftable_dirty = dirty;
    s->reftable_entries = entries;
    return 0;
}

/* No place for the larger table: what was made past the old one's end counts nothing but itself, and goes again. */
static void shrink_memory(struct qcow2 *s, uint64_t entries)
{
    for (uint64_t i = entries; i < s->reftable_entries; i++) {
        if (s->refblocks[i]) {
            qcow2_set_remove(&s->refblock_set, s->refblocks[i]->host_offset >> s->cluster_bits);
            qcow2_refblock_drop(s, s->refblocks[i]);
        }
        s->reftable[i] = 0;
    }
    s->reftable_entries = entries;
}

static coroutine_fn int co_grow_reftable(struct qcow2 *s, uint64_t entries)
{
    uint64_t old_entries = s->reftable_entries, old_offset = s->reftable_offset;
    uint64_t per_cluster = s->cluster_size / 8, old_clusters = old_entries / per_cluster, offset = 0;
    uint64_t max_clusters = QCOW2_MAX_REFTABLE_BYTES / s->cluster_size;
    uint64_t clusters = MAX(div_round_up(entries, per_cluster) + 1, old_clusters + old_clusters / 2);

    /* The table itself may have to go behind everything, with new blocks of its own. */
    while (first_uncounted(s) + blocks_for_run(s, clusters) + 1 > clusters * per_cluster)
        clusters++;
    clusters = MIN(clusters, max_clusters);
    if (entries > clusters * per_cluster || clusters <= old_clusters)
        return -EFBIG;
    blk_co_event(s->node->file, BLK_EVENT_REFTABLE_GROW);
    int ret = grow_memory(s, clusters * per_cluster);
    if (ret == 0)
        ret = qcow2_co_alloc_exact(s, clusters, &offset);
    if (ret < 0) {
        shrink_memory(s, old_entries);
        return ret;
    }
    s->reftable_offset = offset;
    s->reftable_disk_entries = s->reftable_entries;
    s->reftable_moved = true;
    qcow2_free_clusters(s, old_offset >> s->cluster_bits, old_clusters, QCOW2_FREED_BY_OTHER);
    atomic_store_explicit(&s->need_commit, true, memory_order_release);
    qcow2_note_dirty(s);
    return 0;
}

coroutine_fn int qcow2_co_refblock_create(struct qcow2 *s, uint64_t cluster)
{
    uint64_t index = cluster >> s->refblock_bits;
    int ret;

    if (index >= s->reftable_entries) {
        ret = co_grow_reftable(s, index + 1);
        if (ret < 0)
            return ret;
        if (s->reftable[index])
            return 0; /* made on the way */
    }
    return co_make_block(s, index, cluster);
}
