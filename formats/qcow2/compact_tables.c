/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Compact: what all tables name, the active ones and those of snapshots.
 *
 * First what L2 tables name goes down, then the L2 tables themselves. What only one table names has its new place for
 * itself at once. A cluster that several name gets all its references at its new place before any of them names it, and
 * keeps all at its old one until none does (so no COPIED flag is ever wrong): when the pass is at its end. Compressed
 * clusters have no such flag: their references go one by one.
 */
#include "compact.h"

#include "alloc.h"
#include "commit.h"
#include "compress.h"
#include "dirty.h"
#include "l2.h"
#include "overlap.h"
#include "refcount.h"
#include "references.h"
#include "snapshot.h"
#include "tables.h"

#include <string.h>

/* An L2 table on its way through. */
struct table {
    struct qcow2_compactor *k;
    uint64_t *entries; /* as on disk */
    uint64_t weight;   /* L1 entries that name it */
    bool *zeroes;      /* by entry: all of its data are zero bytes; NULL: nobody has looked */
    bool changed;
};

static bool is_high(const struct qcow2_compactor *k, uint64_t offset, uint64_t length)
{
    return (offset + length - 1) >> k->s->cluster_bits >= k->boundary;
}

/* ---- a new place ---- */

/* For the cluster at `from`, with all its references; *to is 0 if there is none further down. */
static coroutine_fn int co_take_cluster(struct qcow2_compactor *k, uint64_t from, uint64_t *to)
{
    struct qcow2 *s = k->s;
    uint64_t got = 0, references = qcow2_references(&k->checker, from >> s->cluster_bits);

    *to = 0;
    if (k->full)
        return 0;
    co_mutex_lock(&s->lock);
    int ret = qcow2_co_alloc(s, 1, to, &got, NULL);
    if (ret == 0 && *to < from) {
        ret = references > 1 ? qcow2_co_refcount_change(s, *to >> s->cluster_bits, references) : 0;
    } else if (ret == 0) {
        qcow2_co_unalloc(s, *to, 1);
        ret = -ENOSPC;
    }
    co_mutex_unlock(&s->lock);
    if (ret == -ENOSPC) {
        k->full = true;
        *to = 0;
        ret = 0;
    }
    return ret;
}

/* Copies the cluster, unless that has been done; *to is 0 if it stays where it is. */
static coroutine_fn int co_move_cluster(struct qcow2_compactor *k, uint64_t from, uint64_t *to)
{
    struct qcow2 *s = k->s;
    bool shared = qcow2_references(&k->checker, from >> s->cluster_bits) > 1;

    *to = shared ? qcow2_place_of(&k->clusters, from) : 0;
    if (*to)
        return 0;
    int ret = co_take_cluster(k, from, to);
    if (ret < 0 || *to == 0)
        return ret;
    ret = qcow2_batch_copy(&k->batch, from, *to, s->cluster_size);
    if (ret == 0 && shared)
        ret = qcow2_place_add(&k->clusters, from, *to);
    else if (ret == 0)
        ret = qcow2_batch_free(&k->batch, from >> s->cluster_bits, 1, 1);
    k->moved = true;
    return ret;
}

/* ---- compressed clusters ---- */

/* So many more references to each cluster that the bytes touch; false: a refcount cannot go so high. Lock held. */
static coroutine_fn int co_raise_bytes(struct qcow2 *s, uint64_t offset, uint64_t length, uint64_t by, bool *raised)
{
    uint64_t first = offset >> s->cluster_bits, last = (offset + length - 1) >> s->cluster_bits, count;
    int ret = 0;

    *raised = true;
    for (uint64_t i = first; i <= last && ret == 0; i++) {
        ret = qcow2_co_refcount(s, i, &count);
        *raised = *raised && count <= qcow2_refcount_max(s->header.refcount_order) - by;
    }
    for (uint64_t i = first; i <= last && ret == 0 && *raised && by; i++) {
        ret = qcow2_co_refcount(s, i, &count);
        if (ret == 0)
            ret = qcow2_co_refcount_change(s, i, count + by);
    }
    return ret;
}

/* Lock held, and may be given up. *to is 0 if there is no place further down. */
static coroutine_fn int co_take_bytes(struct qcow2_compactor *k, uint64_t from, uint64_t length, uint64_t weight,
                                      uint64_t *to)
{
    struct qcow2 *s = k->s;
    bool raised = false;
    int ret = qcow2_co_alloc_bytes(s, length, to);

    if (ret < 0) {
        k->bytes_full = ret == -ENOSPC;
        *to = 0;
        return k->bytes_full ? 0 : ret;
    }
    k->bytes_full = *to >= from;
    if (!k->bytes_full)
        ret = co_raise_bytes(s, *to, length, weight - 1, &raised);
    if (!raised) {
        qcow2_co_unalloc_bytes(s, *to, length);
        *to = 0;
    }
    return ret;
}

struct length_job {
    const struct qcow2 *s;
    const uint8_t *in;
    size_t in_length, length;
    uint8_t *out;
};

static int length_in_pool(void *arg)
{
    struct length_job *job = arg;

    job->length = qcow2_compressed_length(job->s->header.compression, job->in, job->in_length, job->out,
                                          job->s->cluster_size);
    return 0;
}

/* From the sectors in which the data lie to the bytes that they are: else each move would round them up. 0: they cannot
 * be moved, as nobody knows where they end. */
static coroutine_fn int co_compressed_length(struct qcow2_compactor *k, uint64_t offset, uint64_t *length)
{
    struct qcow2 *s = k->s;
    uint64_t size = blk_node_size(s->node->file);

    *length = offset < size ? MIN(*length, size - offset) : 0;
    if (*length == 0)
        return 0;
    AUTO_FREE uint8_t *in = malloc(*length), *out = malloc(s->cluster_size);
    int ret = in && out ? blk_co_read(s->node->file, offset, in, *length) : -ENOMEM;
    if (ret < 0)
        return ret;
    struct length_job job = { s, in, *length, 0, out };
    pool_co_run(length_in_pool, &job);
    if (job.length)
        *length = job.length;
    else if (*length > s->cluster_size)
        *length = 0;
    return 0;
}

static coroutine_fn int co_move_bytes(struct table *t, struct qcow2_entry *entry)
{
    struct qcow2_compactor *k = t->k;
    struct qcow2 *s = k->s;
    uint64_t from, whole, length, to = 0;
    bool raised = true;

    qcow2_entry_compressed_place(*entry, s->cluster_bits, &from, &whole);
    if (!is_high(k, from, whole) || k->bytes_full)
        return 0;
    length = whole;
    int ret = co_compressed_length(k, from, &length);
    if (ret < 0 || length == 0)
        return ret;
    co_mutex_lock(&s->lock);
    to = qcow2_place_of(&k->bytes, from);
    bool copied = to != 0;
    if (copied)
        ret = co_raise_bytes(s, to, length, t->weight, &raised);
    else
        ret = co_take_bytes(k, from, length, t->weight, &to);
    co_mutex_unlock(&s->lock);
    if (ret < 0 || to == 0 || !raised)
        return ret;
    if (!copied)
        ret = qcow2_batch_copy(&k->batch, from, to, length);
    if (ret == 0 && !copied && s->header.snapshot_count)
        ret = qcow2_place_add(&k->bytes, from, to);
    uint64_t first = from >> s->cluster_bits, last = (from + whole - 1) >> s->cluster_bits;
    if (ret == 0)
        ret = qcow2_batch_free(&k->batch, first, last - first + 1, t->weight);
    *entry = qcow2_entry_compressed(to, length, s->cluster_bits);
    k->moved = t->changed = true;
    return ret;
}

/* ---- entries ---- */

/* What the entry becomes without its cluster, which holds nothing but zeroes; false: it needs it. */
static bool without_cluster(const struct table *t, uint64_t index, struct qcow2_entry *entry)
{
    const struct qcow2 *s = t->k->s;
    bool zeroes = t->zeroes && t->zeroes[index];

    if (s->extended) {
        if (!zeroes && qcow2_entry_allocated(*entry))
            return false;
        *entry = qcow2_entry_zeroed_in(*entry, qcow2_entry_allocated(*entry));
        entry->word = 0;
        return true;
    }
    if (!zeroes && qcow2_entry_kind(*entry) != QCOW2_ZERO_ALLOCATED)
        return false;
    if (s->header.version < 3 && qcow2_has_backing(s))
        return false;
    *entry = s->header.version < 3 ? qcow2_entry_absent() : qcow2_entry_zero(false);
    return true;
}

static coroutine_fn int co_visit_entry(struct table *t, uint64_t index, struct qcow2_entry *entry)
{
    struct qcow2_compactor *k = t->k;
    struct qcow2 *s = k->s;
    uint64_t from = qcow2_entry_host(*entry), to = 0;

    if (s->external)
        return 0;
    if (qcow2_entry_kind(*entry) == QCOW2_IS_COMPRESSED)
        return co_move_bytes(t, entry);
    if (!qcow2_entry_has_cluster(*entry))
        return 0;
    /* A cluster that is on its way already keeps its place: all its references are counted there. */
    if (!qcow2_place_of(&k->clusters, from) && without_cluster(t, index, entry)) {
        uint64_t cluster = from >> s->cluster_bits, references = qcow2_references(&k->checker, cluster);
        qcow2_references_set(&k->checker, cluster, references - MIN(t->weight, references));
        k->compact->dropped += t->weight;
        k->moved = t->changed = true;
        return qcow2_batch_free(&k->batch, cluster, 1, t->weight);
    }
    if (!is_high(k, from, s->cluster_size))
        return 0;
    int ret = co_move_cluster(k, from, &to);
    if (ret == 0 && to) {
        entry->word = (entry->word & ~(uint64_t)QCOW2_OFFSET_MASK) | to;
        t->changed = true;
    }
    return ret;
}

/* ---- L2 tables ---- */

/* Runs the batch, and tells how far it is. */
static coroutine_fn int co_run_batch(struct qcow2_compactor *k)
{
    struct blk_compact *compact = k->compact;

    compact->moved += k->batch.copied;
    int ret = qcow2_co_batch_run(k->s, &k->batch);
    if (ret == 0 && compact->progress)
        compact->progress(compact, compact->moved, k->total);
    return ret;
}

static coroutine_fn int co_visit_table(void *arg, uint64_t offset, uint64_t weight)
{
    struct qcow2_compactor *k = arg;
    struct qcow2 *s = k->s;
    struct table t = { .k = k, .weight = weight };
    AUTO_FREE bool *zeroes = NULL;

    t.entries = blk_buffer_alloc(s->node->file, s->cluster_size);
    int ret = t.entries ? blk_co_read(s->node->file, offset, t.entries, s->cluster_size) : -ENOMEM;
    if (ret == 0 && k->find_zeroes && !s->external) {
        ret = qcow2_co_find_zeroes(s, t.entries, &zeroes);
        t.zeroes = zeroes;
    }
    for (uint64_t i = 0; i < UINT64_C(1) << s->l2_bits && ret == 0; i++) {
        struct qcow2_entry entry = qcow2_entry_load(t.entries, i, qcow2_layout(s)), old = entry;
        ret = co_visit_entry(&t, i, &entry);
        if (ret == 0 && !qcow2_entry_equal(entry, old))
            qcow2_entry_store(t.entries, i, entry, qcow2_layout(s));
    }
    if (ret < 0 || !t.changed) {
        free(t.entries);
        return ret;
    }
    ret = qcow2_batch_rewrite(&k->batch, offset, t.entries, s->cluster_size);
    return ret == 0 && qcow2_batch_is_large(&k->batch) ? co_run_batch(k) : ret;
}

/* ---- L1 tables ---- */

/* The active one is written by a commit, from memory. */
static coroutine_fn int co_set_active(struct qcow2_compactor *k, const struct qcow2_tree *tree)
{
    struct qcow2 *s = k->s;
    int ret = co_run_batch(k);

    if (ret < 0)
        return ret;
    co_mutex_lock(&s->lock);
    ret = qcow2_co_check_l1(s);
    for (uint32_t i = 0; i < tree->l1_size && ret == 0; i++) {
        if (be64toh(tree->l1[i]) != qcow2_l1_entry(s, i))
            qcow2_l1_set(s, i, be64toh(tree->l1[i]));
    }
    co_mutex_unlock(&s->lock);
    return ret < 0 ? ret : qcow2_co_commit(s);
}

static coroutine_fn int co_set_snapshot(struct qcow2_compactor *k, const struct qcow2_tree *tree,
                                        const struct qcow2_snapshot *sn)
{
    uint64_t length = align_up((uint64_t)tree->l1_size * 8, BLK_SECTOR_SIZE);
    uint8_t *copy = blk_buffer_alloc(k->s->node->file, length);

    if (!copy)
        return -ENOMEM;
    memset(copy, 0, length);
    memcpy(copy, tree->l1, (size_t)tree->l1_size * 8);
    int ret = qcow2_batch_rewrite(&k->batch, sn->l1_offset, copy, length);
    return ret == 0 && qcow2_batch_is_large(&k->batch) ? co_run_batch(k) : ret;
}

/* Moves L2 tables. All are taken for shared: their old places stay protected until the pass is at its end. */
static coroutine_fn int co_visit_l1(void *arg, struct qcow2_tree *tree, const struct qcow2_snapshot *sn)
{
    struct qcow2_compactor *k = arg;
    struct qcow2 *s = k->s;
    bool changed = false;
    int ret = 0;

    for (uint32_t i = 0; i < tree->l1_size && ret == 0; i++) {
        uint64_t word = be64toh(tree->l1[i]), from = word & QCOW2_OFFSET_MASK, to = qcow2_place_of(&k->clusters, from);
        if (from == 0 || !is_high(k, from, s->cluster_size))
            continue;
        if (to == 0) {
            ret = co_take_cluster(k, from, &to);
            if (ret == 0 && to)
                ret = qcow2_batch_copy(&k->batch, from, to, s->cluster_size);
            if (ret == 0 && to)
                ret = qcow2_place_add(&k->clusters, from, to);
        }
        if (ret == 0 && to) {
            tree->l1[i] = qcow2_be((word & ~(uint64_t)QCOW2_OFFSET_MASK) | to);
            changed = k->moved = true;
        }
    }
    if (ret < 0 || !changed)
        return ret;
    return sn ? co_set_snapshot(k, tree, sn) : co_set_active(k, tree);
}

/* ---- the pass ---- */

/* Nothing names the old places of shared clusters any more. */
static coroutine_fn int co_free_shared(struct qcow2_compactor *k)
{
    const struct qcow2_place_map *map = &k->clusters;
    int ret = 0;

    for (size_t i = 0; i < map->capacity && ret == 0; i++) {
        uint64_t cluster = map->slots[i].from >> k->s->cluster_bits;
        if (cluster)
            ret = qcow2_batch_free(&k->batch, cluster, 1, qcow2_references(&k->checker, cluster));
    }
    return ret == 0 ? co_run_batch(k) : ret;
}

/* Where tables were they are not protected any more. */
static coroutine_fn int co_protect_tables(struct qcow2 *s, struct error **errp)
{
    co_mutex_lock(&s->lock);
    int ret = qcow2_collect_metadata(s);
    co_mutex_unlock(&s->lock);
    return ret == 0 ? qcow2_co_overlap_read(s, errp) : ret;
}

coroutine_fn int qcow2_co_compact_tables(struct qcow2_compactor *k, struct error **errp)
{
    int ret;

    k->full = k->bytes_full = false;
    k->s->free_bytes = 0; /* compressed clusters go where everything goes: down */
    ret = qcow2_co_each_table(k->s, &k->checker, co_visit_table, k, errp);
    if (ret == 0)
        ret = co_run_batch(k);
    if (ret == 0)
        ret = qcow2_co_each_tree(k->s, co_visit_l1, k, errp);
    if (ret == 0)
        ret = co_run_batch(k);
    if (ret == 0)
        ret = co_protect_tables(k->s, errp);
    if (ret == 0)
        ret = co_free_shared(k);
    qcow2_batch_finish(&k->batch);
    qcow2_place_finish(&k->clusters);
    qcow2_place_finish(&k->bytes);
    return ret;
}
