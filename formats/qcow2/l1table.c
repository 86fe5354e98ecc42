/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Another L1 table in place of the active one: a larger one, or that of a snapshot. It is written and durable before
 * the header names it, in the one sector that also has the disk's size: after a power cut one of the two is in force.
 */
#include "l1table.h"

#include "alloc.h"
#include "commit.h"
#include "dirty.h"
#include "header.h"
#include "l2.h"

#include <string.h>

void qcow2_l1_memory_free(struct qcow2_l1_table *table)
{
    free(table->l1);
    free(table->dirty);
    free(table->dir);
    *table = (struct qcow2_l1_table){ 0 };
}

int qcow2_l1_memory_new(const struct qcow2 *s, uint64_t entries, struct qcow2_l1_table *table)
{
    uint64_t bytes = qcow2_l1_memory(s, entries);

    *table = (struct qcow2_l1_table){ .l1 = calloc(1, bytes),
                                      .dirty = calloc(1, bytes / s->write_unit),
                                      .dir = calloc(MAX(entries, UINT64_C(1)), sizeof(*table->dir)),
                                      .entries = entries };
    if (table->l1 && table->dirty && table->dir)
        return 0;
    qcow2_l1_memory_free(table);
    return -ENOMEM;
}

coroutine_fn int qcow2_co_l1_prepare(struct qcow2 *s, uint64_t entries, struct qcow2_l1_table *table)
{
    int ret = qcow2_l1_memory_new(s, entries, table);

    if (ret < 0)
        return ret;
    co_mutex_lock(&s->lock);
    ret = qcow2_co_begin_changes(s);
    if (ret == 0)
        ret = qcow2_co_alloc_exact(s, MAX(div_round_up(entries * 8, s->cluster_size), UINT64_C(1)), &table->offset);
    co_mutex_unlock(&s->lock);
    if (ret < 0)
        qcow2_l1_memory_free(table);
    return ret;
}

static void set_header(struct qcow2 *s, uint64_t entries, uint64_t offset, uint64_t disk_size)
{
    qcow2_header_set32(s, QCOW2_AT_L1_SIZE, (uint32_t)entries);
    qcow2_header_set64(s, QCOW2_AT_L1_OFFSET, offset);
    qcow2_header_set64(s, QCOW2_AT_SIZE, disk_size);
}

coroutine_fn int qcow2_co_l1_name(struct qcow2 *s, const struct qcow2_l1_table *table, uint64_t disk_size)
{
    co_mutex_unlock(&s->lock);
    blk_co_event(s->node->file, BLK_EVENT_L1_GROW_WRITE_TABLE);
    int ret = blk_co_write(s->node->file, table->offset, (const void *)table->l1, qcow2_l1_memory(s, table->entries),
                           0);
    if (ret == 0)
        ret = blk_co_flush(s->node->file);
    co_mutex_lock(&s->lock);
    if (ret < 0)
        return ret;
    set_header(s, table->entries, table->offset, disk_size);
    blk_co_event(s->node->file, BLK_EVENT_L1_GROW_ACTIVATE_TABLE);
    ret = qcow2_co_header_write(s);
    if (ret < 0) {
        set_header(s, s->header.l1_size, s->header.l1_offset, s->header.size);
        return ret;
    }
    s->header.l1_size = (uint32_t)table->entries;
    s->header.l1_offset = table->offset;
    s->header.size = disk_size;
    return 0;
}

void qcow2_l1_install(struct qcow2 *s, struct qcow2_l1_table *table)
{
    free(s->l1);
    free(s->l1_dirty);
    free(s->dir);
    s->l1 = table->l1;
    s->l1_dirty = table->dirty;
    s->dir = table->dir;
    s->l1_size = (uint32_t)table->entries;
    s->l1_checked = false;
    *table = (struct qcow2_l1_table){ 0 };
}

void qcow2_l1_drop(struct qcow2 *s, struct qcow2_l1_table *table)
{
    qcow2_free_clusters(s, table->offset >> s->cluster_bits,
                        MAX(div_round_up(table->entries * 8, s->cluster_size), UINT64_C(1)), QCOW2_FREED_BY_OTHER);
    qcow2_l1_memory_free(table);
}

coroutine_fn int qcow2_co_l1_replace(struct qcow2 *s, struct qcow2_l1_table *table)
{
    uint64_t old_offset = s->header.l1_offset, old_clusters = div_round_up((uint64_t)s->l1_size * 8, s->cluster_size);
    int ret = qcow2_co_settle(s); /* the refcounts of the new table are durable before the header names it */

    co_mutex_lock(&s->lock);
    if (ret == 0) {
        memcpy((void *)table->l1, (const void *)s->l1, (size_t)s->l1_size * 8);
        memcpy((void *)table->dir, (const void *)s->dir, (size_t)s->l1_size * sizeof(*table->dir));
        ret = qcow2_co_l1_name(s, table, s->header.size);
    }
    if (ret == 0) {
        qcow2_l1_install(s, table);
        if (old_clusters)
            qcow2_free_clusters(s, old_offset >> s->cluster_bits, old_clusters, QCOW2_FREED_BY_OTHER);
    } else {
        qcow2_l1_drop(s, table);
    }
    qcow2_note_dirty(s);
    co_mutex_unlock(&s->lock);
    return ret;
}
