/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Allocating host clusters: first fit from a cursor below which nothing is free.
 *
 * A cluster is free when its refcount in memory is zero; free.c lowers a refcount only when nothing on disk or in
 * flight refers to the cluster any more, so nothing else has to be asked here (W6). Every cluster handed out is checked
 * against the image's metadata: refcounts that call metadata free are a corruption, not an opportunity.
 */
#include "alloc.h"

#include "dirty.h"

#include "refcount.h"

/* Host offsets have 56 bits. */
#define MAX_HOST_OFFSET (UINT64_C(1) << 56)

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

coroutine_fn int qcow2_co_alloc(struct qcow2 *s, uint64_t count, uint64_t *offset, uint64_t *got, bool *fresh)
{
    uint64_t cluster = 0, run = 0;

    blk_co_event(s->node->file, BLK_EVENT_CLUSTER_ALLOC);
    int ret = co_find_run(s, s->free_cursor, count, &cluster, &run);

    if (ret == 0)
        ret = qcow2_check_room(s, cluster, &run);
    if (ret < 0)
        return ret;
    if (fresh)
        *fresh = cluster >= s->fresh_from;
    ret = qcow2_co_refcount_take(s, cluster, run);
    if (ret < 0)
        return ret;
    s->free_cursor = cluster + run;
    *offset = cluster << s->cluster_bits;
    *got = run;
    return 0;
}

coroutine_fn int qcow2_co_alloc_data(struct qcow2 *s, uint64_t guest, uint64_t count, uint64_t *offset, uint64_t *got,
                                     bool *fresh)
{
    if (!s->external)
        return qcow2_co_alloc(s, count, offset, got, fresh);
    blk_co_event(s->node->file, BLK_EVENT_CLUSTER_ALLOC);
    *offset = guest;
    *got = count;
    *fresh = false; /* others may have written there */
    return 0;
}

coroutine_fn void qcow2_co_unalloc_data(struct qcow2 *s, uint64_t offset, uint64_t count)
{
    if (!s->external)
        qcow2_co_unalloc(s, offset, count);
}

/* ---- bytes ---- */

/* One more reference to a host cluster of compressed ones; *shared is false if its refcount can go no higher. */
static coroutine_fn int co_share(struct qcow2 *s, uint64_t cluster, bool *shared)
{
    uint64_t count;
    int ret = qcow2_co_refcount(s, cluster, &count);

    *shared = ret == 0 && count > 0 && count < qcow2_refcount_max(s->header.refcount_order);
    return *shared ? qcow2_co_refcount_change(s, cluster, count + 1) : ret;
}

/* A new host cluster. The bytes begin at `start`, in the one before, if that is in use and the two are neighbours. */
static coroutine_fn int co_take_cluster(struct qcow2 *s, uint64_t start, uint64_t *offset)
{
    uint64_t fresh, got;
    bool shared = false;
    int ret = qcow2_co_alloc(s, 1, &fresh, &got, NULL);

    if (ret < 0)
        return ret;
    if (start && align_up(start, s->cluster_size) == fresh)
        ret = co_share(s, start >> s->cluster_bits, &shared);
    if (ret < 0)
        qcow2_co_unalloc(s, fresh, 1);
    else
        *offset = shared ? start : fresh;
    return ret;
}

/* Readers take whole sectors, so the file shall not end within the one in which these bytes end. It is made longer
 * before anybody else gets bytes there, as this must overwrite none. Lock given up. */
static coroutine_fn int co_extend_file(struct qcow2 *s, uint64_t end)
{
    uint64_t sector = align_down(end, s->write_unit);

    if (end == sector || !qcow2_host_grows(s) || blk_node_size(qcow2_data_file(s)) >= end)
        return 0;
    s->extending = true;
    co_mutex_unlock(&s->lock);
    int ret = blk_co_write_zeroes(qcow2_data_file(s), sector, s->write_unit, 0);
    co_mutex_lock(&s->lock);
    s->extending = false;
    co_cond_broadcast(&s->file_extended);
    return ret;
}

coroutine_fn int qcow2_co_alloc_bytes(struct qcow2 *s, uint64_t length, uint64_t *offset)
{
    blk_co_event(s->node->file, BLK_EVENT_CLUSTER_ALLOC_BYTES);
    while (s->extending)
        co_cond_wait(&s->file_extended, &s->lock);
    uint64_t start = s->free_bytes;
    bool shared = false;
    int ret = 0;

    if (start && qcow2_in_cluster(s, start) + length <= s->cluster_size)
        ret = co_share(s, start >> s->cluster_bits, &shared);
    if (ret == 0 && !shared)
        ret = co_take_cluster(s, start, &start);
    if (ret < 0)
        return ret;
    ret = co_extend_file(s, start + length);
    if (ret < 0) {
        qcow2_co_unalloc_bytes(s, start, length);
        return ret;
    }
    *offset = start;
    s->free_bytes = qcow2_in_cluster(s, start + length) ? start + length : 0;
    return 0;
}

coroutine_fn void qcow2_co_unalloc_bytes(struct qcow2 *s, uint64_t offset, uint64_t length)
{
    /* A failure here leaves a leak, as in qcow2_co_unalloc(). */
    for (uint64_t cluster = offset >> s->cluster_bits; cluster <= (offset + length - 1) >> s->cluster_bits; cluster++)
        qcow2_co_refcount_lower(s, cluster);
}

coroutine_fn int qcow2_co_bytes_alloc(struct qcow2 *s, uint64_t bytes, uint64_t *offset)
{
    *offset = 0;
    if (bytes == 0)
        return 0;
    co_mutex_lock(&s->lock);
    int ret = qcow2_co_alloc_exact(s, div_round_up(bytes, s->cluster_size), offset);
    co_mutex_unlock(&s->lock);
    return ret;
}

coroutine_fn void qcow2_co_bytes_free(struct qcow2 *s, uint64_t offset, uint64_t bytes)
{
    if (offset == 0 || bytes == 0)
        return;
    co_mutex_lock(&s->lock);
    qcow2_free_clusters(s, offset >> s->cluster_bits, div_round_up(bytes, s->cluster_size), QCOW2_FREED_BY_OTHER);
    co_mutex_unlock(&s->lock);
}
