/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Check as a whole, and repair.
 *
 * Single wrong refcounts are set right where they are. Where a block of refcounts is missing or damaged, or calls a
 * cluster free that is in use, nothing may be allocated by it: table and blocks are then built anew (rebuild.c). COPIED
 * flags follow the refcounts once those are durable; the dirty and corrupt bits go when nothing is wrong any more.
 */
#include "check.h"

#include "commit.h"
#include "driver.h"
#include "header.h"
#include "l2.h"

#include <stdio.h>

/* Rebuilds; the old structures, now leaks, are given back without being counted as what was found. */
static coroutine_fn int co_rebuild_and_clean(struct qcow2_checker *c)
{
    struct blk_check before = *c->check;
    int ret = qcow2_co_rebuild_refcounts(c);

    if (ret < 0)
        return ret;
    c->check->allocated_clusters = c->check->fragmented_clusters = c->check->compressed_clusters = 0;
    c->check->corruptions = c->check->leaks = 0;
    ret = qcow2_co_count_references(c);
    if (ret == 0)
        ret = qcow2_co_compare_refcounts(c, BLK_FIX_LEAKS | BLK_FIX_ERRORS);
    c->check->leaks_fixed = before.leaks_fixed + before.leaks;
    uint64_t fixed = before.corruptions > c->check->corruptions ? before.corruptions - c->check->corruptions : 0;
    c->check->corruptions_fixed = before.corruptions_fixed + fixed;
    return ret;
}

static coroutine_fn int co_fix_refcounts(struct qcow2_checker *c, uint64_t other_corruptions)
{
    if (c->rebuild && (c->fix & BLK_FIX_ERRORS))
        return co_rebuild_and_clean(c);
    if (c->rebuild) {
        qcow2_check_say(c, true, "ERROR need to rebuild refcount structures");
        return -EIO;
    }
    if (!c->check->leaks && !c->check->corruptions)
        return 0;
    /* A second look, which mends: what it cannot mend it counts again. */
    c->check->leaks = 0;
    c->check->corruptions = other_corruptions;
    return qcow2_co_compare_refcounts(c, c->fix);
}

static coroutine_fn int co_clear_bits(struct qcow2 *s)
{
    uint64_t bits = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;

    if (s->header.version < 3 || !(s->header.incompatible & bits))
        return 0;
    co_mutex_lock(&s->lock);
    s->header.incompatible &= ~bits;
    qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
    int ret = qcow2_co_header_write(s);
    s->dirty_bit = false;
    co_mutex_unlock(&s->lock);
    return ret;
}

static coroutine_fn int co_check_all(struct qcow2_checker *c)
{
    struct qcow2 *s = c->s;
    bool lazy = s->lazy_refcounts;
    int ret = blk_node_writable(s->node) ? qcow2_co_settle(s) : 0;

    c->check->total_clusters = div_round_up(s->header.size, s->cluster_size);
    if (ret == 0 && c->fix)
        ret = qcow2_co_find_tables(c);
    if (ret == 0)
        ret = qcow2_co_count_references(c);
    if (ret < 0)
        return ret;
    /* What is mended here is written now, whatever the image prefers. */
    if (c->fix)
        s->lazy_refcounts = false;
    uint64_t other = c->check->corruptions;
    ret = qcow2_co_compare_refcounts(c, 0);
    if (ret == 0 && c->fix)
        ret = co_fix_refcounts(c, other);
    if (ret == 0 && c->fix)
        ret = qcow2_co_settle(s);
    /* The flags follow from the refcounts: where these are right now, mending them is no more than mending leaks. */
    unsigned fix = c->fix;
    if (fix && !c->check->corruptions && !c->check->leaks && !c->check->check_errors)
        fix |= BLK_FIX_ERRORS;
    if (ret == 0)
        ret = qcow2_co_check_copied(c, fix);
    if (ret == 0 && c->fix)
        ret = qcow2_co_settle(s);
    if (ret == 0 && c->fix && !c->check->corruptions && !c->check->check_errors)
        ret = co_clear_bits(s);
    s->lazy_refcounts = lazy;
    return ret;
}

coroutine_fn int qcow2_co_check(struct blk_node *node, struct blk_check *check, unsigned fix, struct error **errp)
{
    struct qcow2 *s = node->state;
    struct qcow2_checker c = { .s = s, .check = check, .fix = fix };

    if (fix && !blk_node_writable(node))
        return error_set(errp, -EPERM, "The image is read-only and cannot be repaired");
    /* Repair changes tables behind the cache. */
    if (fix)
        qcow2_slices_forget(s);
    int ret = co_check_all(&c);
    qcow2_checker_finish(&c);
    if (fix)
        qcow2_slices_forget(s);
    if (ret < 0 && errp && !*errp)
        error_set_errno(errp, ret, "Check failed");
    return ret;
}

/* Nobody has asked for it, so whoever opens the image is told. */
static void tell(struct blk_check *check, bool error, const char *line)
{
    (void)check;
    (void)error;
    fprintf(stderr, "%s\n", line);
}

coroutine_fn int qcow2_co_repair_dirty(struct qcow2 *s)
{
    struct blk_check check = { .report = tell };
    int ret = qcow2_co_check(s->node, &check, BLK_FIX_LEAKS | BLK_FIX_ERRORS, NULL);

    if (ret == 0 && (check.corruptions || check.check_errors))
        ret = -EIO;
    return ret;
}
