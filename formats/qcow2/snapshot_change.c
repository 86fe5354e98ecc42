/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Creating, applying, deleting and showing internal snapshots. The node is drained.
 *
 * What a snapshot is changes in one sector, the header's: it names another snapshot table, or another L1 table and
 * size. Before that, refcounts go up and everything new is written and durable; after it, refcounts of what is not
 * referred to any more go down. In between refcounts and COPIED flags on disk do not agree, so all of it happens under
 * the dirty bit: after a power cut who opens the image next counts again. (Version 2 has no such bit. There refcounts
 * are too high, which harms nothing, and `check -r all` mends them.)
 *
 * The flags are cleared, and durable, before the header names a snapshot: nobody may take a cluster for his own that it
 * shares.
 */
#include "alloc.h"
#include "commit.h"
#include "compress.h"
#include "dirty.h"
#include "driver.h"
#include "header.h"
#include "l1table.h"
#include "l2.h"
#include "overlap.h"
#include "references.h"
#include "request.h"
#include "snapshot.h"
#include "snapshot_list.h"

#include <stdio.h>
#include <string.h>

/* What has been raised goes down again. What fails here is left too high: leaks, and the dirty bit. */
static coroutine_fn void co_undo_raise(struct qcow2 *s, const struct qcow2_tree *tree, uint64_t done)
{
    int ret = qcow2_co_tree_free(s, tree, done, QCOW2_FREED_BY_OTHER);

    if (ret == 0)
        ret = qcow2_co_settle(s);
    if (ret < 0)
        s->dirty_stays = true;
}

/* The first with this id and this name; NULL: whatever it is. */
static const struct qcow2_snapshot *find(const struct qcow2 *s, const char *id, const char *name)
{
    for (uint32_t i = 0; i < s->header.snapshot_count; i++) {
        const struct qcow2_snapshot *sn = &s->snapshots[i];
        if ((!id || strcmp(sn->id, id) == 0) && (!name || strcmp(sn->name, name) == 0))
            return sn;
    }
    return NULL;
}

/* ---- create ---- */

static void choose_id(const struct qcow2 *s, char *out, size_t size)
{
    unsigned long highest = 0;

    for (uint32_t i = 0; i < s->header.snapshot_count; i++)
        highest = MAX(highest, strtoul(s->snapshots[i].id, NULL, 10));
    snprintf(out, size, "%lu", highest + 1);
}

/* The list with one more. */
static int extend_list(struct qcow2 *s, const struct blk_snapshot *what, uint64_t l1_offset, uint32_t l1_size,
                       struct qcow2_snapshot_list *next)
{
    uint32_t count = s->header.snapshot_count;
    char id[24];

    choose_id(s, id, sizeof(id));
    next->list = calloc(count + 1, sizeof(*next->list));
    if (!next->list)
        return -ENOMEM;
    if (count)
        memcpy(next->list, s->snapshots, count * sizeof(*next->list));
    int ret = qcow2_snapshot_make(&next->list[count], what, id, blk_node_size(s->node), l1_offset, l1_size);
    if (ret < 0)
        qcow2_snapshot_finish(&next->list[count]);
    else
        next->count = count + 1;
    return ret;
}

/* The flags are right. A copy of the L1 table and a list that names it; everything durable, then the header. */
static coroutine_fn int co_keep(struct qcow2 *s, const struct blk_snapshot *what, const struct qcow2_tree *tree)
{
    uint64_t bytes = (uint64_t)tree->l1_size * 8, length = align_up(bytes, BLK_SECTOR_SIZE), l1_offset = 0;
    AUTO_FREE uint8_t *copy = calloc(1, length + 1);
    struct qcow2_snapshot_list next = { 0 };
    int ret = copy ? qcow2_co_bytes_alloc(s, bytes, &l1_offset) : -ENOMEM;

    if (ret == 0)
        ret = extend_list(s, what, l1_offset, tree->l1_size, &next);
    if (ret == 0)
        ret = qcow2_co_snapshot_list_place(s, &next);
    if (ret == 0 && bytes) {
        memcpy(copy, tree->l1, bytes);
        ret = blk_co_write(s->node->file, l1_offset, copy, length, 0);
    }
    if (ret == 0)
        ret = qcow2_co_snapshot_list_write(s, &next);
    if (ret == 0)
        ret = qcow2_co_commit(s); /* and its flush makes all that was written durable */
    if (ret == 0)
        ret = qcow2_co_snapshot_list_name(s, &next);
    if (ret < 0) {
        if (next.count)
            qcow2_snapshot_finish(&next.list[next.count - 1]);
        qcow2_co_snapshot_list_drop(s, &next);
        qcow2_co_bytes_free(s, l1_offset, bytes);
    }
    return ret;
}

static coroutine_fn int co_create(struct qcow2 *s, const struct blk_snapshot *what, struct qcow2_tree *tree,
                                  struct error **errp)
{
    uint64_t done = 0;
    int ret = qcow2_co_tree_raise(s, tree, &done, errp);

    if (ret == 0)
        ret = qcow2_co_commit(s);
    if (ret == 0)
        ret = qcow2_co_set_active_flags(s, tree);
    if (ret == 0)
        ret = co_keep(s, what, tree);
    if (ret == 0)
        return what->vm_state_size ? qcow2_co_drop_past_end(s, s->header.size) : 0;
    co_undo_raise(s, tree, done);
    if (qcow2_co_set_active_flags(s, tree) < 0)
        s->dirty_stays = true;
    return ret;
}

coroutine_fn int qcow2_co_snapshot_create(struct blk_node *node, const struct blk_snapshot *what, struct error **errp)
{
    struct qcow2 *s = node->state;
    struct qcow2_tree tree = { 0 };
    struct error *error = NULL;

    if (s->external)
        return error_set_errno(errp, -ENOTSUP, "An image with an external data file has no snapshots");
    if (s->header.snapshot_count >= QCOW2_MAX_SNAPSHOTS)
        return error_set(errp, -EFBIG, "The image has %u snapshots, as many as it can have", QCOW2_MAX_SNAPSHOTS);
    if (atomic_load(&s->corrupt))
        return error_set(errp, -EIO, "The image is marked corrupt");
    int ret = what->vm_state_size ? 0 : qcow2_co_drop_past_end(s, s->header.size);
    if (ret == 0)
        ret = qcow2_co_marked_begin(s, &error);
    if (ret == 0) {
        ret = qcow2_tree_active(s, &tree);
        if (ret == 0)
            ret = co_create(s, what, &tree, &error);
        qcow2_tree_finish(&tree);
        int ended = qcow2_co_marked_end(s);
        ret = ret < 0 ? ret : ended;
    }
    if (ret < 0)
        error_set_errno(&error, ret, "Could not write the snapshot");
    error_propagate(errp, error);
    return ret;
}

/* ---- delete ---- */

/* The list without one. */
static int shorten_list(const struct qcow2 *s, const struct qcow2_snapshot *gone, struct qcow2_snapshot_list *next)
{
    next->list = calloc(s->header.snapshot_count, sizeof(*next->list));
    if (!next->list)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->header.snapshot_count; i++) {
        if (&s->snapshots[i] != gone)
            next->list[next->count++] = s->snapshots[i];
    }
    return 0;
}

/* What only the snapshot had is free, and what the active layer has for itself now is flagged so. */
static coroutine_fn int co_give_up(struct qcow2 *s, const struct qcow2_snapshot *gone, const struct qcow2_tree *tree)
{
    struct qcow2_tree active;
    int ret = qcow2_co_tree_free(s, tree, UINT64_MAX, QCOW2_FREED_BY_SNAPSHOT);

    qcow2_co_bytes_free(s, gone->l1_offset, (uint64_t)gone->l1_size * 8);
    if (ret == 0)
        ret = qcow2_co_settle(s);
    if (ret == 0)
        ret = qcow2_tree_active(s, &active);
    if (ret == 0) {
        ret = qcow2_co_set_active_flags(s, &active);
        qcow2_tree_finish(&active);
    }
    return ret;
}

static coroutine_fn int co_delete(struct qcow2 *s, struct qcow2_snapshot gone, const struct qcow2_snapshot *in_list,
                                  const struct qcow2_tree *tree)
{
    struct qcow2_snapshot_list next = { 0 };
    int ret = shorten_list(s, in_list, &next);

    if (ret == 0)
        ret = qcow2_co_snapshot_list_place(s, &next);
    if (ret == 0)
        ret = qcow2_co_snapshot_list_write(s, &next);
    if (ret == 0)
        ret = qcow2_co_commit(s); /* flushes, whatever there is to commit */
    if (ret == 0)
        ret = qcow2_co_snapshot_list_name(s, &next);
    if (ret < 0) {
        qcow2_co_snapshot_list_drop(s, &next);
        return ret;
    }
    ret = co_give_up(s, &gone, tree);
    s->dirty_stays = s->dirty_stays || ret < 0;
    qcow2_snapshot_finish(&gone);
    return ret;
}

coroutine_fn int qcow2_co_snapshot_delete(struct blk_node *node, const char *name, struct error **errp)
{
    struct qcow2 *s = node->state;
    const struct qcow2_snapshot *sn = find(s, NULL, name);
    struct qcow2_tree tree;
    struct error *error = NULL;

    if (!sn)
        return error_set(errp, -ENOENT, "snapshot not found");
    int ret = qcow2_co_tree_of_snapshot(s, sn, &tree, &error);
    if (ret == 0) {
        ret = qcow2_co_marked_begin(s, &error);
        if (ret == 0) {
            ret = co_delete(s, *sn, sn, &tree);
            int ended = qcow2_co_marked_end(s);
            ret = ret < 0 ? ret : ended;
        }
        qcow2_tree_finish(&tree);
    }
    if (ret < 0)
        error_set_errno(&error, ret, "Could not write the list of snapshots");
    error_propagate(errp, error);
    return ret;
}

/* ---- apply ---- */

/* How large the disk was, in whole sectors, as it is shown when the image is opened; false: that cannot be. */
static bool disk_size(const struct qcow2 *s, const struct qcow2_snapshot *sn, uint64_t *size)
{
    *size = align_down(sn->disk_size ? sn->disk_size : s->header.size, BLK_SECTOR_SIZE);
    return *size <= INT64_MAX - BLK_SECTOR_SIZE &&
           div_round_up(*size, UINT64_C(1) << s->l1_shift) <= QCOW2_MAX_L1_BYTES / 8;
}

static uint64_t entries_for(const struct qcow2 *s, const struct qcow2_tree *tree, uint64_t size)
{
    return MAX((uint64_t)tree->l1_size, div_round_up(size, UINT64_C(1) << s->l1_shift));
}

/* Memory follows the table. Lock held. */
static void install(struct qcow2 *s, uint64_t size, struct qcow2_l1_table *table)
{
    qcow2_slices_reset(s);
    qcow2_decoded_free(s);
    qcow2_l1_install(s, table);
    atomic_store(&s->node->size, size);
}

/* The snapshot's tree, which has one reference more already, is in force, and *table empty; or nothing has changed. */
static coroutine_fn int co_switch(struct qcow2 *s, const struct qcow2_tree *tree, uint64_t size,
                                  struct qcow2_l1_table *table)
{
    for (uint32_t i = 0; i < tree->l1_size; i++)
        atomic_store(&table->l1[i], tree->l1[i]);
    co_mutex_lock(&s->lock);
    int ret = qcow2_co_l1_name(s, table, size);
    if (ret == 0)
        install(s, size, table);
    co_mutex_unlock(&s->lock);
    return ret;
}

static coroutine_fn int co_give_up_old(struct qcow2 *s, const struct qcow2_tree *old, uint64_t l1_offset)
{
    co_mutex_lock(&s->lock);
    int ret = qcow2_collect_metadata(s);
    co_mutex_unlock(&s->lock);
    if (ret < 0)
        return ret;
    qcow2_co_bytes_free(s, l1_offset, (uint64_t)old->l1_size * 8);
    return qcow2_co_tree_free(s, old, UINT64_MAX, QCOW2_FREED_BY_SNAPSHOT);
}

static coroutine_fn int co_apply(struct qcow2 *s, struct qcow2_tree *tree, uint64_t size, struct error **errp)
{
    uint64_t done = 0, old_offset = s->header.l1_offset;
    struct qcow2_l1_table table = { 0 };
    struct qcow2_tree old = { 0 };
    int ret = qcow2_co_tree_raise(s, tree, &done, errp);

    if (ret == 0)
        ret = qcow2_co_l1_prepare(s, entries_for(s, tree, size), &table);
    if (ret == 0)
        ret = qcow2_co_commit(s);
    if (ret == 0)
        ret = qcow2_co_tree_set_flags(s, tree); /* all have another owner: none is set */
    if (ret == 0)
        ret = qcow2_tree_active(s, &old);
    if (ret == 0)
        ret = co_switch(s, tree, size, &table);
    if (ret == 0) {
        ret = co_give_up_old(s, &old, old_offset);
        s->dirty_stays = s->dirty_stays || ret < 0;
    } else {
        co_mutex_lock(&s->lock);
        if (table.l1)
            qcow2_l1_drop(s, &table);
        co_mutex_unlock(&s->lock);
        co_undo_raise(s, tree, done);
    }
    qcow2_tree_finish(&old);
    return ret;
}

coroutine_fn int qcow2_co_snapshot_apply(struct blk_node *node, const char *id_or_name, struct error **errp)
{
    struct qcow2 *s = node->state;
    const struct qcow2_snapshot *sn = find(s, id_or_name, NULL);
    struct qcow2_tree tree;
    struct error *error = NULL;
    uint64_t size;

    if (s->external)
        return error_set_errno(errp, -ENOTSUP, "Failed to load snapshot");
    if (!list_empty(&node->bitmaps)) /* what they say of the disk would not be true any more */
        return error_set(errp, -EBUSY, "Device has active dirty bitmaps");
    if (!sn)
        sn = find(s, NULL, id_or_name);
    if (!sn)
        return error_set_errno(errp, -ENOENT, "Failed to load snapshot");
    if (!disk_size(s, sn, &size))
        return error_set(errp, -EINVAL, "The disk size of snapshot '%s' is invalid", sn->name);
    int ret = qcow2_co_tree_of_snapshot(s, sn, &tree, &error);
    if (ret == 0) {
        ret = qcow2_co_marked_begin(s, &error);
        if (ret == 0) {
            ret = co_apply(s, &tree, size, &error);
            int ended = qcow2_co_marked_end(s);
            ret = ret < 0 ? ret : ended;
        }
        qcow2_tree_finish(&tree);
    }
    if (ret < 0)
        error_set_errno(&error, ret, "Could not make the snapshot the disk's content");
    error_propagate(errp, error);
    return ret;
}

/* ---- show ---- */

coroutine_fn int qcow2_co_snapshot_show(struct blk_node *node, const char *id, const char *name, struct error **errp)
{
    struct qcow2 *s = node->state;
    const struct qcow2_snapshot *sn = find(s, id, name);
    struct qcow2_l1_table table;
    struct qcow2_tree tree;
    uint64_t size;

    if (!sn)
        return error_set(errp, -ENOENT, "Can't find snapshot");
    if (!disk_size(s, sn, &size))
        return error_set(errp, -EINVAL, "The disk size of snapshot '%s' is invalid", sn->name);
    int ret = qcow2_co_tree_of_snapshot(s, sn, &tree, errp);
    if (ret < 0)
        return ret;
    ret = qcow2_l1_memory_new(s, entries_for(s, &tree, size), &table);
    if (ret == 0) {
        memcpy((void *)table.l1, tree.l1, (size_t)tree.l1_size * 8);
        co_mutex_lock(&s->lock);
        install(s, size, &table);
        co_mutex_unlock(&s->lock);
    }
    qcow2_tree_finish(&tree);
    return ret < 0 ? error_set_errno(errp, ret, "Could not read the snapshot") : 0;
}
