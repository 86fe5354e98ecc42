/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Refcount table and blocks built anew, from a count of all references: where the old ones are damaged, of another
 * width, or in places that shall be free. They are written where nothing is, and the header names them last, in its
 * first sector.
 */
#include "check.h"

#include "commit.h"
#include "header.h"
#include "l2.h"
#include "overlap.h"
#include "refcount.h"

#include <string.h>

/* ---- rebuilding ---- */

/* Clusters that are looked at behind the end: more than tables take. */
#define MAX_TRIES (UINT64_C(1) << 18)

struct rebuild {
    unsigned order;                         /* of a refcount's width */
    uint64_t total, blocks, table_clusters; /* clusters; of the file as it will be */
    uint64_t *place;                        /* cluster of each block, then the table's first */
    uint8_t *memory;                        /* the blocks, then the table */
};

static void free_rebuild(struct rebuild *r)
{
    free(r->place);
    free(r->memory);
}

static unsigned block_bits(const struct qcow2 *s, const struct rebuild *r)
{
    return s->header.cluster_bits + 3 - r->order;
}

/* How many blocks and clusters of the table count `clusters`, and themselves if they come behind these. */
static void measure(const struct qcow2 *s, struct rebuild *r, uint64_t clusters, bool behind)
{
    r->total = clusters;
    if (behind) {
        qcow2_refcounts_for(s->header.cluster_bits, r->order, clusters, &r->blocks, &r->table_clusters);
        r->total += r->blocks + r->table_clusters;
    } else {
        r->blocks = MAX(div_round_up(clusters, UINT64_C(1) << block_bits(s, r)), UINT64_C(1));
        r->table_clusters = div_round_up(r->blocks * 8, s->cluster_size);
    }
}

/* The first cluster behind the file and behind tables that a damaged header places there. */
static int place_behind(const struct qcow2_checker *c, struct rebuild *r, uint64_t *first)
{
    const struct qcow2 *s = c->s;

    for (*first = c->clusters; *first < c->clusters + MAX_TRIES; ++*first) {
        measure(s, r, *first, true);
        if (!qcow2_overlap(s, *first << s->cluster_bits, (r->total - *first) << s->cluster_bits,
                           QCOW2_REGION_REFTABLE | QCOW2_REGION_REFBLOCK))
            return 0;
    }
    return -EFBIG;
}

/* Takes the first `want` clusters in a row to which nothing refers. False: there are none. */
static bool take_unused(struct qcow2_checker *c, uint64_t end, uint64_t want, uint64_t *first)
{
    uint64_t run = 0, at = 0;

    while (at < end && run < want)
        run = qcow2_references(c, at++) ? 0 : run + 1;
    *first = at - run;
    for (uint64_t i = 0; i < run && run == want; i++)
        qcow2_references_set(c, *first + i, 1);
    return run == want;
}

/* Behind the end of the file, or inside a host that does not grow. What the old structures lie in is in use until the
 * header names the new ones. */
static int place(struct qcow2_checker *c, struct rebuild *r)
{
    const struct qcow2 *s = c->s;
    bool grows = qcow2_host_grows(s);
    uint64_t end = blk_node_size(s->node->file) >> s->cluster_bits, first = 0;
    int ret = 0;

    if (grows)
        ret = place_behind(c, r, &first);
    else
        measure(s, r, c->clusters, false);
    if (ret < 0 || r->table_clusters * s->cluster_size > QCOW2_MAX_REFTABLE_BYTES)
        return -EFBIG;
    r->place = calloc(r->blocks + 1, sizeof(*r->place));
    if (!r->place)
        return -ENOMEM;
    for (uint64_t i = 0; i <= r->blocks && grows; i++)
        r->place[i] = first + i;
    if (grows)
        return 0;
    bool room = take_unused(c, end, r->table_clusters, &r->place[r->blocks]);
    for (uint64_t i = 0; i < r->blocks && room; i++)
        room = take_unused(c, end, 1, &r->place[i]);
    if (c->counts.failed) /* what was taken would be taken again */
        return -ENOMEM;
    return room ? 0 : -ENOSPC;
}

static bool set_count(const struct qcow2 *s, struct rebuild *r, uint64_t cluster, uint64_t value)
{
    uint64_t index = cluster & ((UINT64_C(1) << block_bits(s, r)) - 1);

    qcow2_refcount_set(r->memory + (cluster >> block_bits(s, r)) * s->cluster_size, r->order, index, value);
    return value <= qcow2_refcount_max(r->order);
}

static void forget_reference(struct qcow2_checker *c, const struct rebuild *r, uint64_t cluster)
{
    if (cluster < c->clusters && qcow2_references(c, cluster) > qcow2_refcount_max(r->order))
        qcow2_references_set(c, cluster, qcow2_references(c, cluster) - 1);
}

/* The old table and blocks are counted too until they are given back, but not where narrow refcounts have no room for
 * it: a damaged table may name clusters of others. What is counted stays above zero, so it is not taken for unused. */
static void forget_old_references(struct qcow2_checker *c, const struct rebuild *r)
{
    const struct qcow2 *s = c->s;
    uint64_t table = s->reftable_offset >> s->cluster_bits;

    for (uint64_t i = 0; i < s->reftable_entries; i++)
        forget_reference(c, r, be64toh(s->reftable[i]) >> s->cluster_bits);
    for (uint64_t i = 0; i < s->reftable_entries * 8 >> s->cluster_bits; i++)
        forget_reference(c, r, table + i);
}

/* The counts of the first `clusters`, and of the structures themselves. r->place is set. */
static int fill(struct qcow2_checker *c, struct rebuild *r, uint64_t clusters)
{
    const struct qcow2 *s = c->s;
    bool fits = true;

    r->memory = calloc(r->blocks + r->table_clusters, s->cluster_size);
    if (!r->memory)
        return -ENOMEM;
    for (uint64_t i = 0; i < clusters; i++)
        fits = set_count(s, r, i, qcow2_references(c, i)) && fits;
    for (uint64_t i = 0; i < r->blocks; i++) {
        set_count(s, r, r->place[i], 1);
        store_be64(r->memory + r->blocks * s->cluster_size + i * 8, r->place[i] << s->cluster_bits);
    }
    for (uint64_t i = 0; i < r->table_clusters; i++)
        set_count(s, r, r->place[r->blocks] + i, 1);
    return fits ? 0 : -ERANGE;
}

static int build(struct qcow2_checker *c, struct rebuild *r)
{
    int ret = place(c, r);

    if (ret < 0)
        return ret;
    forget_old_references(c, r);
    return fill(c, r, c->clusters);
}

static coroutine_fn int co_write_rebuilt(struct qcow2 *s, const struct rebuild *r)
{
    int ret = 0;

    s->fresh_from = MAX(s->fresh_from, r->total); /* also if it fails: what is free there is not zeroes any more */
    for (uint64_t i = 0; i <= r->blocks && ret == 0; i++)
        ret = blk_co_write(s->node->file, r->place[i] << s->cluster_bits, r->memory + i * s->cluster_size,
                           (i < r->blocks ? 1 : r->table_clusters) << s->cluster_bits, 0);
    return ret < 0 ? ret : blk_co_flush(s->node->file);
}

/* The new structures in place of the old ones in memory. */
static int adopt(struct qcow2 *s, const struct rebuild *r)
{
    qcow2_refcounts_free(s);
    s->header.refcount_order = r->order;
    s->refblock_bits = block_bits(s, r);
    s->reftable_offset = r->place[r->blocks] << s->cluster_bits;
    s->reftable_entries = r->table_clusters * s->cluster_size / 8;
    s->reftable_disk_entries = s->reftable_entries;
    s->reftable_moved = false;
    s->header.reftable_offset = s->reftable_offset;
    s->header.reftable_clusters = (uint32_t)r->table_clusters;
    s->reftable = calloc(s->reftable_entries, 8);
    s->reftable_dirty = calloc(s->reftable_entries * 8 / BLK_SECTOR_SIZE, 1);
    s->refblocks = calloc(s->reftable_entries, sizeof(*s->refblocks));
    if (!s->reftable || !s->reftable_dirty || !s->refblocks)
        return -ENOMEM;
    memcpy(s->reftable, r->memory + r->blocks * s->cluster_size, s->reftable_entries * 8);
    s->free_cursor = s->free_bytes = 0;
    return qcow2_collect_metadata(s);
}

/* What the header's first sector says of them. */
static void name_refcounts(struct qcow2 *s, uint64_t table, uint64_t clusters, unsigned order)
{
    qcow2_header_set64(s, QCOW2_AT_REFTABLE_OFFSET, table);
    qcow2_header_set32(s, QCOW2_AT_REFTABLE_CLUSTERS, (uint32_t)clusters);
    if (s->header.version >= 3)
        qcow2_header_set32(s, QCOW2_AT_REFCOUNT_ORDER, order);
}

/* Writes what was built, and names it in the header's first sector. */
static coroutine_fn int co_install(struct qcow2 *s, const struct rebuild *r)
{
    int ret = co_write_rebuilt(s, r);

    if (ret < 0)
        return ret;
    co_mutex_lock(&s->lock);
    name_refcounts(s, r->place[r->blocks] << s->cluster_bits, r->table_clusters, r->order);
    ret = qcow2_co_header_write(s);
    if (ret < 0) /* whichever is on disk, the old ones are those in force, and every commit says so first */
        name_refcounts(s, s->header.reftable_offset, s->header.reftable_clusters, s->header.refcount_order);
    else
        ret = adopt(s, r);
    co_mutex_unlock(&s->lock);
    return ret;
}

/* Builds them of this width. */
static coroutine_fn int co_rebuild(struct qcow2_checker *c, unsigned order)
{
    struct rebuild r = { .order = order };
    int ret = build(c, &r);

    if (ret == -ENOSPC)
        qcow2_check_say(c, true, "ERROR no room for new refcount structures: make '%s' larger",
                        c->s->node->file->filename);
    if (ret == 0)
        ret = co_install(c->s, &r);
    free_rebuild(&r);
    return ret;
}

coroutine_fn int qcow2_co_rebuild_refcounts(struct qcow2_checker *c)
{
    qcow2_check_say(c, false, "Rebuilding refcount structure");
    return co_rebuild(c, c->s->header.refcount_order);
}

/* ---- refcounts of another width ---- */

/* Every count has room in the new width. */
static int check_width(const struct qcow2_checker *c, unsigned order, struct error **errp)
{
    for (uint64_t i = 0; i < c->clusters; i++) {
        if (qcow2_references(c, i) > qcow2_refcount_max(order))
            return error_set(errp, -EINVAL,
                             "Cannot decrease refcount entry width to %u bits: Cluster at offset %#" PRIx64
                             " has a refcount of %" PRIu64,
                             1u << order, i << c->s->cluster_bits, qcow2_references(c, i));
    }
    return 0;
}

static coroutine_fn int co_change_width(struct qcow2_checker *c, unsigned order, struct error **errp)
{
    struct qcow2 *s = c->s;
    int ret = qcow2_co_settle_all(s);

    if (ret == 0)
        ret = qcow2_co_count_references(c);
    if (ret == 0 && (c->check->corruptions || c->check->check_errors))
        return error_set(errp, -EIO, "The image has errors: repair it first (check -r all)");
    if (ret == 0 && check_width(c, order, errp) < 0)
        return -EINVAL;
    if (ret == 0)
        ret = co_rebuild(c, order);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not change the width of the refcounts");
    ret = qcow2_co_count_references(c);
    if (ret == 0)
        ret = qcow2_co_compare_refcounts(c, BLK_FIX_LEAKS);
    if (ret == 0)
        ret = qcow2_co_settle_all(s);
    return ret < 0 ? error_set_errno(errp, ret,
                                     "The refcounts have their new width, but the old ones could not be given back "
                                     "(check -r leaks)")
                   : 0;
}

coroutine_fn int qcow2_co_change_refcount_width(struct qcow2 *s, unsigned order, struct error **errp)
{
    struct blk_check check = { 0 };
    struct qcow2_checker c = { .s = s, .check = &check, .fix = BLK_FIX_LEAKS };

    qcow2_slices_forget(s);
    int ret = co_change_width(&c, order, errp);
    qcow2_checker_finish(&c);
    qcow2_slices_forget(s);
    return ret;
}

/* ---- lower refcounts ---- */

static bool is_old(const struct qcow2 *s, uint64_t cluster)
{
    uint64_t table = s->reftable_offset >> s->cluster_bits;

    return qcow2_set_has(&s->refblock_set, cluster) ||
           (cluster >= table && cluster - table < s->reftable_entries * 8 >> s->cluster_bits);
}

/* The cluster behind the last one in use; `others`: the old structures do not count. */
static uint64_t end_of_use(const struct qcow2_checker *c, bool others)
{
    uint64_t end = c->clusters;

    while (end > 0 && (qcow2_references(c, end - 1) == 0 || (others && is_old(c->s, end - 1))))
        end--;
    return end;
}

/* The first run of `want` clusters from *at on in which nothing lies; *at goes behind it. */
static uint64_t next_unused(const struct qcow2_checker *c, uint64_t *at, uint64_t want)
{
    uint64_t run = 0;

    for (; run < want; ++*at)
        run = *at < c->clusters && qcow2_references(c, *at) ? 0 : run + 1;
    return *at - want;
}

/* Each as low as there is room beside what is in use now, the old structures included. */
static int place_low(const struct qcow2_checker *c, struct rebuild *r)
{
    uint64_t at = 1, end = end_of_use(c, true);

    measure(c->s, r, end, true);
    r->place = calloc(r->blocks + 1, sizeof(*r->place));
    if (!r->place)
        return -ENOMEM;
    for (uint64_t i = 0; i < r->blocks; i++)
        r->place[i] = next_unused(c, &at, 1);
    r->place[r->blocks] = next_unused(c, &at, r->table_clusters);
    r->total = MAX(end, at);
    return 0;
}

static void forget_old(struct qcow2_checker *c)
{
    for (uint64_t i = 0; i < c->clusters; i++) {
        if (is_old(c->s, i))
            qcow2_references_set(c, i, 0);
    }
}

coroutine_fn int qcow2_co_pack_refcounts(struct qcow2_checker *c, bool *lower)
{
    struct rebuild r = { .order = c->s->header.refcount_order };
    int ret = place_low(c, &r);

    *lower = ret == 0 && r.total < end_of_use(c, false) && r.total <= r.blocks << block_bits(c->s, &r);
    if (*lower) {
        forget_old(c);
        ret = fill(c, &r, MIN(c->clusters, r.total));
        if (ret == 0)
            ret = co_install(c->s, &r);
    }
    free_rebuild(&r);
    return ret;
}
