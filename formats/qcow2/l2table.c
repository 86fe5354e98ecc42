/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * L2 tables of our own: an L1 entry that has none gets one before an entry in it changes, and one that a snapshot
 * shares is copied. The new table's content is written before the L1 entry that names it is set (W3); the old one goes
 * the way of freed clusters.
 */
#include "alloc.h"
#include "dirty.h"
#include "l2.h"
#include "overlap.h"
#include "refcount.h"

#include <base/testpoint.h>
#include <string.h>

/* Writes what a new L2 table holds: zeroes, or what the shared one held. Lock not held. */
static coroutine_fn int co_fill_table(struct qcow2 *s, uint64_t old_table, uint64_t new_table)
{
    uint8_t *buffer = blk_buffer_alloc(s->node->file, s->cluster_size);
    int ret = 0;

    if (!buffer)
        return -ENOMEM;
    if (old_table)
        blk_co_event(s->node->file, BLK_EVENT_L2_ALLOC_COW_READ);
    if (old_table)
        ret = blk_co_read(s->node->file, old_table, buffer, s->cluster_size);
    else
        memset(buffer, 0, s->cluster_size);
    blk_co_event(s->node->file, BLK_EVENT_L2_ALLOC_WRITE);
    if (ret == 0)
        ret = blk_co_write(s->node->file, new_table, buffer, s->cluster_size, 0);
    free(buffer);
    return ret;
}

/* Somebody makes the table of this L1 entry, with the lock given up. Nobody else may take the old one as the one to
 * change, or make another. */
struct making {
    struct list link;
    uint32_t l1_index;
};

static bool is_making(const struct qcow2 *s, uint32_t l1_index)
{
    const struct making *making;

    list_for_each(making, &s->making, link) {
        if (making->l1_index == l1_index)
            return true;
    }
    return false;
}

/* The new table has what the old one has on disk, which is all: entries of a table that is not ours do not change. It
 * counts as a table from the beginning, so that what is loaded meanwhile is checked against it. */
static coroutine_fn int co_make_table(struct qcow2 *s, uint32_t l1_index, uint64_t old, uint64_t table)
{
    struct making making = { .l1_index = l1_index };
    int ret = qcow2_set_add(&s->l2_set, table >> s->cluster_bits);

    if (ret < 0)
        return ret;
    list_append(&s->making, &making.link);
    co_mutex_unlock(&s->lock);
    testpoint_co("qcow2-make-table");
    ret = co_fill_table(s, old, table);
    co_mutex_lock(&s->lock);
    list_remove(&making.link);
    co_cond_broadcast(&s->loaded);
    if (ret < 0)
        qcow2_set_remove(&s->l2_set, table >> s->cluster_bits);
    return ret;
}

/* A table of its own for this L1 entry. */
static coroutine_fn int co_own_table(struct qcow2 *s, uint32_t l1_index)
{
    uint64_t old = qcow2_l1_entry(s, l1_index) & QCOW2_OFFSET_MASK, table = 0, got = 0;
    bool fresh = false;
    int ret = qcow2_co_check_l2_offset(s, old, l1_index);

    if (ret == 0)
        ret = qcow2_co_check_l1(s);
    if (ret == 0)
        ret = qcow2_co_alloc(s, 1, &table, &got, &fresh);
    if (ret < 0)
        return ret;
    ret = fresh ? 0 : qcow2_co_check_unnamed(s, table >> s->cluster_bits, 1, "allocation of metadata");
    if (ret == 0)
        ret = co_make_table(s, l1_index, old, table);
    if (ret < 0) {
        qcow2_co_unalloc(s, table, 1);
        return ret;
    }
    if (old) {
        qcow2_set_remove(&s->l2_set, old >> s->cluster_bits);
        qcow2_free_clusters(s, old >> s->cluster_bits, 1, QCOW2_FREED_BY_OTHER);
        qcow2_slices_move(s, l1_index, table);
    }
    qcow2_l1_set(s, l1_index, table | QCOW2_COPIED);
    return 0;
}

coroutine_fn int qcow2_co_slice_for_write(struct qcow2 *s, uint64_t offset, struct qcow2_slice **out)
{
    uint32_t l1_index = (uint32_t)(offset >> s->l1_shift);

    if (l1_index >= s->l1_size)
        return -EIO;
    for (;;) {
        int ret = qcow2_co_begin_changes(s);
        if (ret < 0)
            return ret;
        uint64_t l1_entry = qcow2_l1_entry(s, l1_index);
        if (!(l1_entry & QCOW2_COPIED) || !(l1_entry & QCOW2_OFFSET_MASK)) {
            if (is_making(s, l1_index)) {
                co_cond_wait(&s->loaded, &s->lock);
                continue;
            }
            ret = co_own_table(s, l1_index);
            if (ret < 0)
                return ret;
        } else {
            ret = qcow2_co_check_overlap(s, l1_entry & QCOW2_OFFSET_MASK, s->cluster_size, QCOW2_REGION_L2);
            if (ret < 0)
                return ret;
        }
        ret = qcow2_co_slice(s, offset, out);
        if (ret < 0)
            return ret;
        /* The lock may have been given up: is the table still there and ours? */
        if (*out && (qcow2_l1_entry(s, l1_index) & QCOW2_COPIED))
            return 0;
    }
}
