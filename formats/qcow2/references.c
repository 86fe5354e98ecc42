/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * All that an L1 table refers to, for snapshots. A tree is walked in one order, so that what a raise that failed has
 * done can be taken back by walking again. The lock is held for one L2 table at a time.
 */
#include "references.h"

#include "commit.h"
#include "corrupt.h"
#include "dirty.h"
#include "l2.h"
#include "overlap.h"
#include "refcount.h"
#include "snapshot.h"

#include <string.h>

/* Changed refcount blocks, and freed runs, after which a walk commits. */
#define DIRTY_MAX 64u
#define FREED_MAX 4096u

/* ---- trees ---- */

int qcow2_tree_active(const struct qcow2 *s, struct qcow2_tree *tree)
{
    size_t bytes = (size_t)s->l1_size * 8;

    *tree = (struct qcow2_tree){ .l1 = malloc(bytes + 1) };
    if (!tree->l1)
        return -ENOMEM;
    memcpy(tree->l1, (const void *)s->l1, bytes);
    tree->l1_size = s->l1_size;
    return 0;
}

coroutine_fn int qcow2_co_tree_of_snapshot(struct qcow2 *s, const struct qcow2_snapshot *snapshot,
                                           struct qcow2_tree *tree, struct error **errp)
{
    size_t bytes = (size_t)snapshot->l1_size * 8;

    *tree = (struct qcow2_tree){ 0 };
    if (!qcow2_snapshot_l1_valid(s, snapshot))
        return error_set(errp, -EINVAL, "The L1 table of snapshot '%s' is invalid", snapshot->name);
    tree->l1 = malloc(bytes + 1);
    int ret = !tree->l1 ? -ENOMEM : bytes ? blk_co_read(s->node->file, snapshot->l1_offset, tree->l1, bytes) : 0;
    if (ret < 0) {
        qcow2_tree_finish(tree);
        return error_set_errno(errp, ret, "Could not read the L1 table of snapshot '%s'", snapshot->name);
    }
    tree->l1_size = snapshot->l1_size;
    return 0;
}

void qcow2_tree_finish(struct qcow2_tree *tree)
{
    free(tree->l1);
    *tree = (struct qcow2_tree){ 0 };
}

/* ---- walking ---- */

struct walk {
    struct qcow2 *s;
    uint64_t count; /* references so far */
    uint64_t limit;
    enum qcow2_freed_by by;
    struct error **errp;
    /* One reference to a host cluster. Lock held. */
    coroutine_fn int (*co_visit)(struct walk *walk, uint64_t cluster);
};

static coroutine_fn int co_visit_run(struct walk *walk, uint64_t first, uint64_t last)
{
    int ret = 0;

    for (uint64_t cluster = first; cluster <= last && ret == 0 && walk->count < walk->limit; cluster++) {
        ret = walk->co_visit(walk, cluster);
        if (ret == 0)
            walk->count++;
    }
    return ret;
}

static coroutine_fn int co_visit_entry(struct walk *walk, struct qcow2_entry entry)
{
    uint64_t offset = qcow2_entry_host(entry), length = walk->s->cluster_size;
    unsigned bits = walk->s->cluster_bits;

    if (qcow2_entry_kind(entry) == QCOW2_IS_COMPRESSED)
        qcow2_entry_compressed_place(entry, bits, &offset, &length);
    else if (!qcow2_entry_has_cluster(entry))
        return 0;
    else if (qcow2_in_cluster(walk->s, offset))
        return error_set(walk->errp, -EIO, "Data cluster offset %#" PRIx64 " is unaligned", offset);
    return co_visit_run(walk, offset >> bits, (offset + length - 1) >> bits);
}

/* The table's place; 0: none. */
static int table_of(const struct qcow2 *s, const struct qcow2_tree *tree, uint32_t index, uint64_t *table)
{
    *table = be64toh(tree->l1[index]) & QCOW2_OFFSET_MASK;
    return qcow2_in_cluster(s, *table) ? -EIO : 0;
}

/* What the table refers to, then the table itself: the other way round it could be free before it is read. */
static coroutine_fn int co_visit_table(struct walk *walk, uint64_t table, uint64_t *buffer)
{
    struct qcow2 *s = walk->s;
    int ret = blk_co_read(s->node->file, table, buffer, s->cluster_size);

    if (ret < 0)
        return error_set_errno(walk->errp, ret, "Could not read the L2 table at %#" PRIx64, table);
    co_mutex_lock(&s->lock);
    for (uint64_t i = 0; i < UINT64_C(1) << s->l2_bits && ret == 0 && walk->count < walk->limit; i++)
        ret = co_visit_entry(walk, qcow2_entry_load(buffer, i, qcow2_layout(s)));
    if (ret == 0)
        ret = co_visit_run(walk, table >> s->cluster_bits, table >> s->cluster_bits);
    bool much = s->refblock_dirty_count > DIRTY_MAX || s->freed.count > FREED_MAX;
    bool freed = s->freed.count > 0;
    co_mutex_unlock(&s->lock);
    if (ret == 0 && much)
        ret = freed ? qcow2_co_settle(s) : qcow2_co_commit(s);
    return ret;
}

static coroutine_fn int co_walk(struct walk *walk, const struct qcow2_tree *tree)
{
    uint64_t *buffer = blk_buffer_alloc(walk->s->node->file, walk->s->cluster_size), table;
    int ret = buffer ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < tree->l1_size && ret == 0 && walk->count < walk->limit; i++) {
        ret = table_of(walk->s, tree, i, &table);
        if (ret < 0)
            error_set(walk->errp, ret, "L2 table offset %#" PRIx64 " is unaligned (L1 index: %#x)", table, i);
        else if (table)
            ret = co_visit_table(walk, table, buffer);
    }
    free(buffer);
    return ret;
}

/* ---- raising ---- */

static coroutine_fn int co_raise_one(struct walk *walk, uint64_t cluster)
{
    struct qcow2 *s = walk->s;
    uint64_t count = 0;
    int ret = qcow2_co_refcount(s, cluster, &count);

    if (ret == 0 && count == 0) {
        error_set(walk->errp, -EIO, "The cluster at %#" PRIx64 " is in use, but its refcount is 0",
                  cluster << s->cluster_bits);
        error_hint(walk->errp, "repair the image first: check -r all");
        return -EIO;
    }
    if (ret == 0 && count == qcow2_refcount_max(s->header.refcount_order)) {
        error_set(walk->errp, -EINVAL, "The refcount of the cluster at %#" PRIx64 " cannot grow: it has %u bits",
                  cluster << s->cluster_bits, 1u << s->header.refcount_order);
        return -EINVAL;
    }
    return ret == 0 ? qcow2_co_refcount_change(s, cluster, count + 1) : ret;
}

coroutine_fn int qcow2_co_tree_raise(struct qcow2 *s, const struct qcow2_tree *tree, uint64_t *done,
                                     struct error **errp)
{
    struct walk walk = { .s = s, .limit = UINT64_MAX, .errp = errp, .co_visit = co_raise_one };
    int ret = co_walk(&walk, tree);

    *done = walk.count;
    return ret;
}

/* ---- freeing ---- */

static coroutine_fn int co_free_one(struct walk *walk, uint64_t cluster)
{
    qcow2_free_clusters(walk->s, cluster, 1, walk->by);
    return 0;
}

coroutine_fn int qcow2_co_tree_free(struct qcow2 *s, const struct qcow2_tree *tree, uint64_t limit,
                                    enum qcow2_freed_by by)
{
    struct walk walk = { .s = s, .limit = limit, .by = by, .co_visit = co_free_one };

    return co_walk(&walk, tree);
}

/* ---- flags ---- */

static coroutine_fn int co_is_single(struct qcow2 *s, uint64_t cluster, bool *single)
{
    uint64_t count = 0;
    int ret = qcow2_co_refcount(s, cluster, &count);

    *single = count == 1;
    return ret;
}

/* A table that others share has no flag set. Lock held. */
static coroutine_fn int co_table_flags(struct qcow2 *s, uint64_t *buffer, bool own, bool *changed)
{
    int ret = 0;

    for (uint64_t i = 0; i < UINT64_C(1) << s->l2_bits && ret == 0; i++) {
        struct qcow2_entry entry = qcow2_entry_load(buffer, i, qcow2_layout(s)), right;
        bool single = false;
        if (own && qcow2_entry_has_cluster(entry))
            ret = co_is_single(s, qcow2_entry_host(entry) >> s->cluster_bits, &single);
        right = qcow2_entry_with_copied(entry, single);
        if (ret == 0 && !qcow2_entry_equal(entry, right)) {
            qcow2_entry_store(buffer, i, right, qcow2_layout(s));
            *changed = true;
        }
    }
    return ret;
}

static coroutine_fn int co_set_flags(struct qcow2 *s, uint64_t *l1_word, uint64_t table, uint64_t *buffer)
{
    bool own = false, changed = false;
    int ret = blk_co_read(s->node->file, table, buffer, s->cluster_size);

    if (ret < 0)
        return ret;
    co_mutex_lock(&s->lock);
    ret = co_is_single(s, table >> s->cluster_bits, &own);
    if (ret == 0)
        ret = co_table_flags(s, buffer, own, &changed);
    if (ret == 0 && changed)
        ret = qcow2_co_check_overlap(s, table, s->cluster_size, QCOW2_REGION_L2 | QCOW2_REGION_INACTIVE_L2);
    co_mutex_unlock(&s->lock);
    if (ret == 0 && changed)
        ret = blk_co_write(s->node->file, table, buffer, s->cluster_size, 0);
    *l1_word = qcow2_be(table | (own ? QCOW2_COPIED : 0));
    return ret;
}

coroutine_fn int qcow2_co_tree_set_flags(struct qcow2 *s, struct qcow2_tree *tree)
{
    uint64_t *buffer = blk_buffer_alloc(s->node->file, s->cluster_size), table;
    int ret = buffer ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < tree->l1_size && ret == 0; i++) {
        ret = table_of(s, tree, i, &table);
        if (ret == 0 && table)
            ret = co_set_flags(s, &tree->l1[i], table, buffer);
    }
    free(buffer);
    return ret;
}

coroutine_fn int qcow2_co_set_active_flags(struct qcow2 *s, struct qcow2_tree *tree)
{
    int ret = qcow2_co_tree_set_flags(s, tree);

    co_mutex_lock(&s->lock);
    qcow2_slices_forget(s);
    for (uint32_t i = 0; i < tree->l1_size; i++) {
        if (be64toh(tree->l1[i]) != qcow2_l1_entry(s, i))
            qcow2_l1_set(s, i, be64toh(tree->l1[i]));
    }
    co_mutex_unlock(&s->lock);
    return ret;
}
