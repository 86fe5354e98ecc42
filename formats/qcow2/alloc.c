/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Allocating host clusters: first fit from a cursor below which nothing is free.
 *
 * A cluster is free when its refcount in memory is zero; free.c lowers a refcount only when nothing on disk or in
 * flight refers to the cluster any more, so nothing else has to be asked here. Every cluster handed out is checked
 * against the image's metadata: refcounts that call metadata free are a corruption, not an opportunity.
 */
#include "qcow2.h"

/* Host offsets have 56 bits. */
#define MAX_HOST_OFFSET (UINT64_C(1) << 56)

coroutine_fn int qcow2_co_begin_changes(struct qcow2 *s)
{
    if (!s->lazy_refcounts || s->dirty_bit)
        return 0;
    s->header.incompatible |= QCOW2_INCOMPAT_DIRTY;
    qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
    int ret = qcow2_co_header_write(s);
    if (ret < 0) {
        s->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
        qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
        return ret;
    }
    s->dirty_bit = true;
    return 0;
}

/* The first run of 1 … want free clusters at or after `from`, within one refcount block. */
static coroutine_fn int co_find_run(struct qcow2 *s, uint64_t from, uint64_t want, uint64_t *start, uint64_t *length)
{
    uint64_t per_block = UINT64_C(1) << s->refblock_bits;
    unsigned order = s->header.refcount_order;

    for (;;) {
        struct qcow2_refblock *block;
        if (from >= MAX_HOST_OFFSET >> s->cluster_bits)
            return -EFBIG;
        int ret = qcow2_co_refblock(s, from >> s->refblock_bits, &block);
        if (ret == 0 && !block) {
            ret = qcow2_co_refblock_create(s, from);
            if (ret == 0)
                continue;
        }
        if (ret < 0)
            return ret;
        uint64_t at = from & (per_block - 1), run = 0;
        while (at < per_block && qcow2_refcount_get(block->data, order, at) != 0)
            at++;
        while (run < want && at + run < per_block && qcow2_refcount_get(block->data, order, at + run) == 0)
            run++;
        from = (from & ~(per_block - 1)) + at;
        if (run > 0) {
            *start = from;
            *length = run;
            return 0;
        }
    }
}

/* A host device does not grow. */
static int check_room(const struct qcow2 *s, uint64_t cluster, uint64_t *count)
{
    uint64_t room = blk_node_size(s->node->file) >> s->cluster_bits;

    if (s->host_grows)
        return 0;
    if (cluster >= room)
        return -ENOSPC;
    *count = MIN(*count, room - cluster);
    return 0;
}

/* Sets the refcounts of clusters within one block to one. */
static coroutine_fn int co_take(struct qcow2 *s, uint64_t cluster, uint64_t count)
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

coroutine_fn int qcow2_co_alloc(struct qcow2 *s, uint64_t count, uint64_t *offset, uint64_t *got, bool *fresh)
{
    uint64_t cluster = 0, run = 0;
    int ret = co_find_run(s, s->free_cursor, count, &cluster, &run);

    if (ret == 0)
        ret = check_room(s, cluster, &run);
    if (ret < 0)
        return ret;
    if (fresh)
        *fresh = cluster >= s->fresh_from;
    ret = co_take(s, cluster, run);
    if (ret < 0)
        return ret;
    s->free_cursor = cluster + run;
    *offset = cluster << s->cluster_bits;
    *got = run;
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
        return qcow2_co_append_run(s, count, offset);
    ret = check_room(s, start, &room);
    if (ret == 0 && room < count)
        ret = -ENOSPC;
    for (uint64_t i = 0; i < count && ret == 0; i++) {
        ret = co_take(s, start + i, 1);
        if (ret < 0)
            qcow2_co_unalloc(s, start << s->cluster_bits, i);
    }
    *offset = start << s->cluster_bits;
    return ret;
}

coroutine_fn void qcow2_co_unalloc(struct qcow2 *s, uint64_t offset, uint64_t count)
{
    /* A failure here leaves a leak, which harms nothing; the error that led here is reported. */
    for (uint64_t i = 0; i < count; i++)
        qcow2_co_refcount_change(s, (offset >> s->cluster_bits) + i, 0);
}
