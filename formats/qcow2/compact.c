/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Compact: an image's file becomes as short as what is in use. The node is drained.
 *
 * What lies behind as many clusters as are in use is moved to free places before that, in passes, as one frees places
 * that the next can use: first what can go anywhere (data, compressed clusters, L2 tables), then what has to be in one
 * piece (L1 tables, the list of snapshots, bitmaps), last the refcounts, which are built anew. Then the file is cut,
 * and what is free in it goes back to the host.
 *
 * Everything is in force at its old place until the new one is durable, as for any other change (commit.h); what a
 * power cut can leave are clusters with references that nothing has, and the dirty bit, by which who opens the image
 * next gives them up. (Version 2 has no such bit: there they are leaks.)
 */
#include "compact.h"

#include "alloc.h"
#include "bitmaps.h"
#include "commit.h"
#include "compress.h"
#include "driver.h"
#include "l1table.h"
#include "l2.h"
#include "refcount.h"
#include "references.h"
#include "snapshot.h"
#include "snapshot_list.h"
#include "truncate.h"

#include <string.h>

/* What a pass leaves is little, and each of them reads all tables. */
#define MAX_PASSES 6u

static uint64_t cluster_of(const struct qcow2 *s, uint64_t offset, uint64_t length)
{
    return (offset + MAX(length, UINT64_C(1)) - 1) >> s->cluster_bits;
}

/* ---- counting ---- */

static coroutine_fn int co_count(struct qcow2_compactor *k)
{
    struct qcow2_checker *c = &k->checker;
    uint64_t used = 0, high = 0;

    *c->check = (struct blk_check){ 0 };
    int ret = qcow2_co_count_references(c);
    if (ret < 0)
        return ret;
    for (uint64_t i = 0; i < c->clusters; i++)
        used += qcow2_references(c, i) > 0;
    for (uint64_t i = used; i < c->clusters; i++)
        high += qcow2_references(c, i) > 0;
    k->boundary = used;
    if (k->total == 0)
        k->total = high << k->s->cluster_bits;
    return 0;
}

/* Errors are not moved about, and leaks are given up. */
static coroutine_fn int co_count_first(struct qcow2_compactor *k, struct error **errp)
{
    struct blk_check *check = k->checker.check;
    int ret = co_count(k);

    if (ret == 0)
        ret = qcow2_co_compare_refcounts(&k->checker, 0);
    if (ret == 0 && (check->corruptions || check->check_errors)) {
        error_set(errp, -EIO, "The image has errors");
        error_hint(errp, "repair it first: check -r all");
        return -EIO;
    }
    k->compact->leaks = check->leaks;
    k->compact->end_before = check->image_end_offset;
    if (ret == 0 && check->leaks)
        ret = qcow2_co_compare_refcounts(&k->checker, BLK_FIX_LEAKS);
    return ret == 0 ? qcow2_co_settle(k->s) : ret;
}

/* ---- what has to be in one piece ---- */

/* Clusters for it that lie lower than `from`; *to is 0 if there are none. */
static coroutine_fn int co_take_lower(struct qcow2 *s, uint64_t bytes, uint64_t from, uint64_t *to)
{
    int ret = qcow2_co_bytes_alloc(s, bytes, to);

    if (ret < 0 || *to < from) {
        *to = ret < 0 ? 0 : *to;
        return ret == -ENOSPC ? 0 : ret;
    }
    co_mutex_lock(&s->lock);
    qcow2_co_unalloc(s, *to, div_round_up(bytes, s->cluster_size));
    co_mutex_unlock(&s->lock);
    *to = 0;
    return 0;
}

static coroutine_fn int co_move_l1(struct qcow2_compactor *k)
{
    struct qcow2 *s = k->s;
    uint64_t from = s->header.l1_offset, bytes = (uint64_t)s->l1_size * 8;
    struct qcow2_l1_table table = { 0 };

    if (s->l1_size == 0 || cluster_of(s, from, bytes) < k->boundary)
        return 0;
    int ret = qcow2_l1_memory_new(s, s->l1_size, &table);
    if (ret == 0)
        ret = co_take_lower(s, bytes, from, &table.offset);
    if (ret < 0 || table.offset == 0) {
        qcow2_l1_memory_free(&table);
        return ret;
    }
    ret = qcow2_co_l1_replace(s, &table);
    k->moved = k->moved || ret == 0;
    return ret;
}

/* A snapshot's L1 table: copied, and entry `index` of the list names it there. */
static coroutine_fn int co_copy_snapshot(struct qcow2_compactor *k, struct qcow2_snapshot *sn)
{
    struct qcow2 *s = k->s;
    uint64_t to = 0, from = sn->l1_offset, bytes = (uint64_t)sn->l1_size * 8;

    if (bytes == 0 || cluster_of(s, from, bytes) < k->boundary)
        return 0;
    int ret = co_take_lower(s, bytes, from, &to);
    if (ret < 0 || to == 0)
        return ret;
    AUTO_FREE uint8_t *copy = blk_buffer_alloc(s->node->file, align_up(bytes, BLK_SECTOR_SIZE));
    ret = copy ? blk_co_read(s->node->file, from, copy, bytes) : -ENOMEM;
    if (ret == 0) {
        memset(copy + bytes, 0, align_up(bytes, BLK_SECTOR_SIZE) - bytes);
        ret = blk_co_write(s->node->file, to, copy, align_up(bytes, BLK_SECTOR_SIZE), 0);
    }
    if (ret == 0)
        qcow2_snapshot_move(sn, to);
    else
        qcow2_co_bytes_free(s, to, bytes);
    return ret;
}

static coroutine_fn int co_store_list(struct qcow2 *s, struct qcow2_snapshot_list *next)
{
    int ret = qcow2_co_snapshot_list_write(s, next);

    if (ret == 0)
        ret = qcow2_co_commit(s); /* flushes, whatever there is to commit */
    return ret == 0 ? qcow2_co_snapshot_list_name(s, next) : ret;
}

/* The list that names the copies, in a place of its own: lower than before if there are no copies. */
static coroutine_fn int co_change_list(struct qcow2_compactor *k, struct qcow2_snapshot_list *next, bool copied)
{
    struct qcow2 *s = k->s;
    uint64_t from = s->header.snapshots_offset;
    int ret = 0;

    next->bytes = qcow2_snapshots_bytes(next->list, next->count);
    if (copied)
        ret = qcow2_co_snapshot_list_place(s, next);
    else if (next->count && cluster_of(s, from, next->bytes) >= k->boundary)
        ret = co_take_lower(s, next->bytes, from, &next->offset);
    if (ret < 0 || next->offset == 0)
        return ret;
    ret = co_store_list(s, next);
    k->moved = k->moved || ret == 0;
    return ret;
}

/* Places of L1 tables that the image's list does not name (any more, or after all). `old`: where they were. */
static coroutine_fn void co_free_other_l1(struct qcow2 *s, const uint64_t *old, const uint64_t *copies, bool changed)
{
    for (uint32_t i = 0; i < s->header.snapshot_count; i++) {
        struct qcow2_snapshot *sn = &s->snapshots[i];
        if (old[i] == copies[i])
            continue;
        qcow2_snapshot_move(sn, changed ? copies[i] : old[i]);
        qcow2_co_bytes_free(s, changed ? old[i] : copies[i], (uint64_t)sn->l1_size * 8);
    }
}

static coroutine_fn int co_move_snapshots(struct qcow2_compactor *k)
{
    struct qcow2 *s = k->s;
    uint32_t count = s->header.snapshot_count;
    struct qcow2_snapshot_list next = { .count = count, .list = calloc((size_t)count + 1, sizeof(*next.list)) };
    AUTO_FREE uint64_t *old = calloc((size_t)count + 1, sizeof(*old));
    AUTO_FREE uint64_t *copies = calloc((size_t)count + 1, sizeof(*copies));
    bool copied = false;
    int ret = next.list && old && copies ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < count && ret == 0; i++) {
        next.list[i] = s->snapshots[i];
        old[i] = copies[i] = s->snapshots[i].l1_offset;
        ret = co_copy_snapshot(k, &next.list[i]);
        copies[i] = next.list[i].l1_offset;
        copied = copied || copies[i] != old[i];
    }
    if (ret == 0)
        ret = co_change_list(k, &next, copied);
    if (old && copies)
        co_free_other_l1(s, old, copies, ret == 0);
    if (next.list)
        qcow2_co_snapshot_list_drop(s, &next);
    return ret;
}

/* All of these; then what they left is free. */
static coroutine_fn int co_move_pieces(struct qcow2_compactor *k, struct error **errp)
{
    bool moved = false;
    int ret = co_move_l1(k);

    if (ret == 0)
        ret = co_move_snapshots(k);
    if (ret == 0)
        ret = qcow2_co_bitmaps_move(k->s, k->boundary, &moved, errp);
    k->moved = k->moved || moved;
    return ret == 0 ? qcow2_co_settle(k->s) : ret;
}

/* ---- the end of the file ---- */

/* Refcounts built anew can be lower, and fewer; once more, as the places of the old ones may be lower still. */
static coroutine_fn int co_move_refcounts(struct qcow2_compactor *k)
{
    bool lower = true;
    int ret = 0;

    for (unsigned i = 0; i < 3 && lower && ret == 0; i++) {
        ret = co_count(k);
        if (ret == 0)
            ret = qcow2_co_pack_refcounts(&k->checker, &lower);
    }
    return ret;
}

/* A courtesy to the host: what is free in the file, and what lies behind the end where the file cannot be cut. */
static coroutine_fn int co_give_back(struct qcow2_compactor *k)
{
    struct qcow2 *s = k->s;
    struct blk_node *file = s->node->file;
    uint64_t start = 0, at = 0;
    int ret = co_count(k);

    for (; at < k->checker.clusters && ret == 0; at++) {
        if (qcow2_references(&k->checker, at) == 0)
            continue;
        if (at > start)
            blk_co_discard(file, start << s->cluster_bits, (at - start) << s->cluster_bits);
        start = at + 1;
    }
    k->compact->end_after = start << s->cluster_bits;
    if (ret == 0 && k->compact->end_after < blk_node_size(file))
        blk_co_discard(file, k->compact->end_after, blk_node_size(file) - k->compact->end_after);
    return ret;
}

/* ---- the whole ---- */

static coroutine_fn int co_passes(struct qcow2_compactor *k, struct error **errp)
{
    int ret = 0;

    k->moved = true;
    for (unsigned i = 0; i < MAX_PASSES && k->moved && ret == 0; i++) {
        k->moved = false;
        k->find_zeroes = k->compact->find_zeroes && i == 0;
        if (i > 0)
            ret = co_count(k);
        if (ret == 0)
            ret = qcow2_co_compact_tables(k, errp);
        if (ret == 0)
            ret = co_move_pieces(k, errp);
    }
    return ret;
}

/* A cluster that the active layer has shared with a snapshot's zeroes may be its own now. */
static coroutine_fn int co_set_flags(struct qcow2 *s)
{
    struct qcow2_tree active;
    int ret = qcow2_tree_active(s, &active);

    if (ret == 0)
        ret = qcow2_co_set_active_flags(s, &active);
    qcow2_tree_finish(&active);
    return ret;
}

static coroutine_fn int co_compact(struct qcow2_compactor *k, struct error **errp)
{
    struct qcow2 *s = k->s;
    int ret = co_passes(k, errp);

    if (ret == 0 && s->header.snapshot_count)
        ret = co_set_flags(s);
    if (ret == 0)
        ret = qcow2_co_settle_all(s);
    if (ret == 0)
        ret = co_move_refcounts(k);
    if (ret == 0)
        ret = qcow2_co_cut_file(s);
    return ret == 0 ? co_give_back(k) : ret;
}

static coroutine_fn int co_compact_marked(struct qcow2_compactor *k, struct error **errp)
{
    struct qcow2 *s = k->s;
    int ret = qcow2_co_marked_begin(s, errp);

    if (ret < 0)
        return ret;
    qcow2_slices_forget(s);
    qcow2_decoded_free(s);
    ret = co_count_first(k, errp);
    if (ret == 0) {
        ret = co_compact(k, errp);
        s->dirty_stays = s->dirty_stays || ret < 0;
    }
    int ended = qcow2_co_marked_end(s);
    return ret < 0 ? ret : ended;
}

coroutine_fn int qcow2_co_compact(struct blk_node *node, struct blk_compact *compact, struct error **errp)
{
    struct qcow2 *s = node->state;
    struct blk_check check = { 0 };
    struct qcow2_compactor k = { .s = s, .compact = compact, .checker = { .s = s, .check = &check } };
    struct error *error = NULL;
    int ret = co_compact_marked(&k, &error);

    qcow2_checker_finish(&k.checker);
    if (ret < 0)
        error_set_errno(&error, ret, "Could not compact the image");
    error_propagate(errp, error);
    return ret;
}
