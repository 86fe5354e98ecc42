/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Zero clusters of snapshots become what version 2 has. Without a backing file nothing is there any more, which reads
 * as zeroes; over one a cluster of zeroes of its own is. The active layer's have gone by requests of its own
 * (qcow2_co_expand_zeroes()), but for those in tables that it shares.
 */
#include "expand.h"

#include "alloc.h"
#include "batch.h"
#include "check.h"
#include "commit.h"
#include "l2.h"
#include "refcount.h"
#include "tables.h"

struct expansion {
    struct qcow2 *s;
    struct qcow2_checker checker;
    struct qcow2_batch batch;
};

/* A cluster of zeroes with so many references. */
static coroutine_fn int co_take_zeroes(struct qcow2 *s, uint64_t references, uint64_t *offset)
{
    uint64_t got;

    co_mutex_lock(&s->lock);
    int ret = qcow2_co_alloc(s, 1, offset, &got, NULL);
    if (ret == 0 && references > 1)
        ret = qcow2_co_refcount_change(s, *offset >> s->cluster_bits, references);
    co_mutex_unlock(&s->lock);
    return ret < 0 ? ret : blk_co_write_zeroes(s->node->file, *offset, s->cluster_size, 0);
}

static coroutine_fn int co_expand_entry(struct expansion *x, struct qcow2_entry *entry, uint64_t weight)
{
    struct qcow2 *s = x->s;
    uint64_t offset = 0;
    enum qcow2_kind kind = qcow2_entry_kind(*entry);
    int ret = qcow2_has_backing(s) ? co_take_zeroes(s, weight, &offset) : 0;

    if (ret == 0 && kind == QCOW2_ZERO_ALLOCATED)
        ret = qcow2_batch_free(&x->batch, qcow2_entry_host(*entry) >> s->cluster_bits, 1, weight);
    *entry = offset ? qcow2_entry_with_copied(qcow2_entry_data(offset, 0), weight == 1) : qcow2_entry_absent();
    return ret;
}

static coroutine_fn int co_expand_table(void *arg, uint64_t offset, uint64_t weight)
{
    struct expansion *x = arg;
    struct qcow2 *s = x->s;
    uint64_t *entries = blk_buffer_alloc(s->node->file, s->cluster_size);
    int ret = entries ? blk_co_read(s->node->file, offset, entries, s->cluster_size) : -ENOMEM;
    bool changed = false;

    for (uint64_t i = 0; i < UINT64_C(1) << s->l2_bits && ret == 0; i++) {
        struct qcow2_entry entry = qcow2_entry_load(entries, i, qcow2_layout(s));
        if (!qcow2_entry_zero_flag(entry))
            continue;
        ret = co_expand_entry(x, &entry, weight);
        qcow2_entry_store(entries, i, entry, qcow2_layout(s));
        changed = true;
    }
    if (ret < 0 || !changed) {
        free(entries);
        return ret;
    }
    ret = qcow2_batch_rewrite(&x->batch, offset, entries, s->cluster_size);
    return ret == 0 && qcow2_batch_is_large(&x->batch) ? qcow2_co_batch_run(s, &x->batch) : ret;
}

static coroutine_fn int co_expand(struct expansion *x, struct error **errp)
{
    struct qcow2 *s = x->s;
    struct qcow2_tree active;
    int ret = qcow2_co_count_references(&x->checker);

    if (ret == 0 && (x->checker.check->corruptions || x->checker.check->check_errors))
        return error_set(errp, -EIO, "The image has errors: repair it first (check -r all)");
    if (ret == 0)
        ret = qcow2_co_each_table(s, &x->checker, co_expand_table, x, errp);
    if (ret == 0)
        ret = qcow2_co_batch_run(s, &x->batch);
    if (ret == 0)
        ret = qcow2_tree_active(s, &active);
    if (ret < 0)
        return ret;
    ret = qcow2_co_set_active_flags(s, &active);
    qcow2_tree_finish(&active);
    return ret;
}

coroutine_fn int qcow2_co_expand_snapshots(struct qcow2 *s, struct error **errp)
{
    struct blk_check check = { 0 };
    struct expansion x = { .s = s, .checker = { .s = s, .check = &check } };
    int ret = qcow2_co_marked_begin(s, errp);

    if (ret < 0)
        return ret;
    qcow2_slices_forget(s);
    ret = co_expand(&x, errp);
    s->dirty_stays = s->dirty_stays || ret < 0;
    qcow2_batch_finish(&x.batch);
    qcow2_checker_finish(&x.checker);
    int ended = qcow2_co_marked_end(s);
    return ret < 0 ? ret : ended;
}
