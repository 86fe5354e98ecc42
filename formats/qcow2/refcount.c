/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Refcounts: reading and changing them, of any width from 1 to 64 bits, and the cache of refcount blocks.
 *
 * A block is read with the lock held, changed in memory and written by the next commit, dirty sectors only. A clean
 * block that was not used lately is dropped when there are too many; a dirty one never is.
 */
#include "refcount.h"

#include "corrupt.h"
#include "dirty.h"
#include "overlap.h"

#include <string.h>

/* Widths under a byte are packed from the least significant bit up. */
void qcow2_refcounts_for(unsigned cluster_bits, unsigned order, uint64_t clusters, uint64_t *blocks,
                         uint64_t *table_clusters)
{
    uint64_t cluster_size = UINT64_C(1) << cluster_bits, per_block = cluster_size * 8 >> order, before;

    *blocks = *table_clusters = 1;
    do {
        before = *blocks + *table_clusters;
        *blocks = MAX(div_round_up(clusters + before, per_block), UINT64_C(1));
        *table_clusters = div_round_up(*blocks * 8, cluster_size);
    } while (*blocks + *table_clusters != before);
}

uint64_t qcow2_refcount_get(const void *block, unsigned order, uint64_t index)
{
    const uint8_t *bytes = block;

    switch (order) {
    case 3: return bytes[index];
    case 4: return load_be16(bytes + 2 * index);
    case 5: return load_be32(bytes + 4 * index);
    case 6: return load_be64(bytes + 8 * index);
    default: {
        unsigned per_byte = 3 - order, width = 1u << order;
        unsigned shift = (unsigned)(index & ((1u << per_byte) - 1)) * width;
        return (bytes[index >> per_byte] >> shift) & ((1u << width) - 1);
    }
    }
}

void qcow2_refcount_set(void *block, unsigned order, uint64_t index, uint64_t value)
{
    uint8_t *bytes = block;

    switch (order) {
    case 3: bytes[index] = (uint8_t)value; return;
    case 4: store_be16(bytes + 2 * index, (uint16_t)value); return;
    case 5: store_be32(bytes + 4 * index, (uint32_t)value); return;
    case 6: store_be64(bytes + 8 * index, value); return;
    default: {
        unsigned per_byte = 3 - order, width = 1u << order;
        unsigned shift = (unsigned)(index & ((1u << per_byte) - 1)) * width, mask = ((1u << width) - 1) << shift;
        uint8_t *at = &bytes[index >> per_byte];
        *at = (uint8_t)((*at & ~mask) | ((unsigned)value << shift));
    }
    }
}

/* ---- the cache of blocks ---- */

struct qcow2_refblock *qcow2_refblock_insert(struct qcow2 *s, uint64_t index, uint64_t host_offset)
{
    struct qcow2_refblock *block = calloc(1, sizeof(*block));

    if (!block)
        return NULL;
    block->data = blk_buffer_alloc(s->node->file, s->cluster_size);
    if (!block->data) {
        free(block);
        return NULL;
    }
    memset(block->data, 0, s->cluster_size);
    block->index = index;
    block->host_offset = host_offset;
    block->used = true;
    list_append(&s->refblock_list, &block->link);
    s->refblocks[index] = block;
    s->refblock_count++;
    return block;
}

void qcow2_refblock_drop(struct qcow2 *s, struct qcow2_refblock *block)
{
    s->refblock_dirty_count -= block->dirty;
    list_remove(&block->link);
    s->refblocks[block->index] = NULL;
    s->refblock_count--;
    free(block->data);
    free(block);
}

void qcow2_refblocks_trim(struct qcow2 *s)
{
    size_t turns = s->refblock_count * 2;

    while (s->refblock_count > s->max_refblocks && turns-- > 0) {
        struct qcow2_refblock *block = list_first(&s->refblock_list, struct qcow2_refblock, link);
        if (block->dirty || block->committing || block->used) {
            block->used = false;
            list_remove(&block->link);
            list_append(&s->refblock_list, &block->link);
            continue;
        }
        qcow2_refblock_drop(s, block);
    }
}

void qcow2_refblocks_clean(struct qcow2 *s)
{
    struct qcow2_refblock *block, *next;

    list_for_each_safe(block, next, &s->refblock_list, link) {
        if (!block->dirty && !block->committing && !block->used)
            qcow2_refblock_drop(s, block);
        else
            block->used = false;
    }
}

void qcow2_refcounts_free(struct qcow2 *s)
{
    while (!list_empty(&s->refblock_list))
        qcow2_refblock_drop(s, list_first(&s->refblock_list, struct qcow2_refblock, link));
    free(s->refblocks);
    free(s->reftable);
    free(s->reftable_dirty);
    s->refblocks = NULL;
    s->reftable = NULL;
    s->reftable_dirty = NULL;
}

static coroutine_fn int co_load_block(struct qcow2 *s, uint64_t index, uint64_t offset, struct qcow2_refblock **out)
{
    if (qcow2_in_cluster(s, offset))
        return qcow2_co_mark_corrupt(s, "Refblock offset %#" PRIx64 " unaligned (reftable index: %#" PRIx64 ")", offset,
                                     index);
    qcow2_refblocks_trim(s);
    struct qcow2_refblock *block = qcow2_refblock_insert(s, index, offset);
    if (!block)
        return -ENOMEM;
    blk_co_event(s->node->file, BLK_EVENT_REFBLOCK_LOAD);
    int ret = blk_co_read(s->node->file, offset, block->data, s->cluster_size);
    if (ret < 0) {
        qcow2_refblock_drop(s, block);
        return ret;
    }
    *out = block;
    return 0;
}

coroutine_fn int qcow2_co_refblock(struct qcow2 *s, uint64_t index, struct qcow2_refblock **out)
{
    *out = NULL;
    if (index >= s->reftable_entries)
        return 0;
    uint64_t offset = be64toh(s->reftable[index]) & ~QCOW2_REFTABLE_RESERVED;
    if (offset == 0)
        return 0;
    *out = s->refblocks[index];
    if (!*out)
        return co_load_block(s, index, offset, out);
    (*out)->used = true;
    return 0;
}

/* The table is not trusted: its block may lie where something else is. */
coroutine_fn int qcow2_co_refblock_for_write(struct qcow2 *s, uint64_t index, struct qcow2_refblock **out)
{
    int ret = qcow2_co_refblock(s, index, out);

    if (ret < 0 || !*out || (*out)->checked)
        return ret;
    ret = qcow2_co_check_overlap(s, (*out)->host_offset, s->cluster_size, QCOW2_REGION_REFBLOCK);
    if (ret == 0)
        (*out)->checked = true;
    return ret;
}

void qcow2_refblock_dirty(struct qcow2 *s, struct qcow2_refblock *block, uint32_t start, uint32_t end)
{
    start = (uint32_t)align_down(start, s->write_unit);
    end = (uint32_t)align_up(end, s->write_unit);
    if (!block->dirty) {
        block->dirty = true;
        block->dirty_start = start;
        block->dirty_end = end;
        s->refblock_dirty_count++;
    } else {
        block->dirty_start = MIN(block->dirty_start, start);
        block->dirty_end = MAX(block->dirty_end, end);
    }
    qcow2_note_dirty(s);
}

void qcow2_reftable_set(struct qcow2 *s, uint64_t index, uint64_t offset)
{
    s->reftable[index] = qcow2_be(offset);
    s->reftable_dirty[index / (BLK_SECTOR_SIZE / 8)] |= 1;
}

/* ---- single refcounts ---- */

coroutine_fn int qcow2_co_refcount(struct qcow2 *s, uint64_t cluster, uint64_t *out)
{
    struct qcow2_refblock *block;
    int ret = qcow2_co_refblock(s, cluster >> s->refblock_bits, &block);

    *out = 0;
    if (ret == 0 && block)
        *out = qcow2_refcount_get(block->data, s->header.refcount_order,
                                  cluster & ((UINT64_C(1) << s->refblock_bits) - 1));
    return ret;
}

void qcow2_bytes_forget(struct qcow2 *s, uint64_t cluster)
{
    if (s->free_bytes >> s->cluster_bits == cluster)
        s->free_bytes = 0;
}

coroutine_fn int qcow2_co_refcount_change(struct qcow2 *s, uint64_t cluster, uint64_t value)
{
    uint64_t index = cluster & ((UINT64_C(1) << s->refblock_bits) - 1);
    struct qcow2_refblock *block;
    int ret = qcow2_co_refblock_for_write(s, cluster >> s->refblock_bits, &block);

    if (ret < 0)
        return ret;
    if (!block || value > qcow2_refcount_max(s->header.refcount_order))
        return -EINVAL;
    qcow2_refcount_set(block->data, s->header.refcount_order, index, value);
    uint32_t at = (uint32_t)((index << s->header.refcount_order) >> 3);
    qcow2_refblock_dirty(s, block, at, at + 1);
    if (value == 0) {
        s->free_cursor = MIN(s->free_cursor, cluster);
        qcow2_bytes_forget(s, cluster);
    }
    return 0;
}

coroutine_fn int qcow2_co_refcount_lower(struct qcow2 *s, uint64_t cluster)
{
    uint64_t count;
    int ret = qcow2_co_refcount(s, cluster, &count);

    return ret < 0 || count == 0 ? ret : qcow2_co_refcount_change(s, cluster, count - 1);
}

coroutine_fn int qcow2_co_refcount_take(struct qcow2 *s, uint64_t cluster, uint64_t count)
{
    uint64_t first = cluster & ((UINT64_C(1) << s->refblock_bits) - 1);
    unsigned order = s->header.refcount_order;
    struct qcow2_refblock *block;
    int ret = qcow2_co_check_overlap(s, cluster << s->cluster_bits, count << s->cluster_bits, 0);

    if (ret == 0)
        ret = qcow2_co_refblock_for_write(s, cluster >> s->refblock_bits, &block);
    if (ret < 0)
        return ret;
    if (!block)
        return -EIO;
    for (uint64_t i = 0; i < count; i++)
        qcow2_refcount_set(block->data, order, first + i, 1);
    qcow2_refblock_dirty(s, block, (uint32_t)((first << order) >> 3),
                         (uint32_t)(((first + count - 1) << order) >> 3) + 1);
    s->fresh_from = MAX(s->fresh_from, cluster + count);
    return 0;
}

coroutine_fn void qcow2_co_unalloc(struct qcow2 *s, uint64_t offset, uint64_t count)
{
    /* A failure here leaves a leak, which harms nothing; the error that led here is reported. */
    for (uint64_t i = 0; i < count; i++)
        qcow2_co_refcount_change(s, (offset >> s->cluster_bits) + i, 0);
}
