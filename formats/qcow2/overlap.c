/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What must never be overwritten: the image's own metadata. The options overlap-check and overlap-check.* say which
 * kinds are protected (options.c).
 *
 * Active L2 tables and refcount blocks are kept as sets of host clusters, the few contiguous tables as ranges. Every
 * write to newly allocated or slowly mapped clusters is checked against them; the hot path's entries are checked when
 * their slice is loaded. A hit means that the image's metadata contradicts itself: the image is marked corrupt
 * (corrupt.c). The L2 tables of snapshots are read at open, if `inactive-l2` is on and the image is written: what a
 * check has to know is in memory, as for all other kinds. They change only together with the list of snapshots.
 */
#include "overlap.h"

#include "corrupt.h"
#include "snapshot.h"

/* ---- what has to be known ---- */

static coroutine_fn int co_read_one(struct qcow2 *s, const struct qcow2_snapshot *snapshot)
{
    uint64_t bytes = (uint64_t)snapshot->l1_size * 8;
    AUTO_FREE uint8_t *l1 = malloc(bytes + 1);
    int ret = !l1 ? -ENOMEM : bytes ? blk_co_read(s->node->file, snapshot->l1_offset, l1, bytes) : 0;

    for (uint64_t i = 0; ret == 0 && i < snapshot->l1_size; i++) {
        uint64_t table = load_be64(l1 + i * 8) & QCOW2_OFFSET_MASK;
        if (table && qcow2_in_cluster(s, table) == 0)
            ret = qcow2_set_add(&s->inactive_l2_set, table >> s->cluster_bits);
    }
    return ret;
}

static int by_start(const void *a, const void *b)
{
    const struct qcow2_range *x = a, *y = b;

    return x->start < y->start ? -1 : x->start > y->start;
}

/* There may be tens of thousands, and each entry of a slice asks. */
static int collect_inactive_l1(struct qcow2 *s)
{
    struct qcow2_range *ranges = calloc((size_t)s->header.snapshot_count + 1, sizeof(*ranges));
    size_t count = 0, last = 0;

    if (!ranges)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->header.snapshot_count; i++) {
        const struct qcow2_snapshot *sn = &s->snapshots[i];
        if (sn->l1_size && qcow2_snapshot_l1_valid(s, sn))
            ranges[count++] = (struct qcow2_range){ sn->l1_offset, sn->l1_offset + (uint64_t)sn->l1_size * 8 };
    }
    qsort(ranges, count, sizeof(*ranges), by_start);
    for (size_t i = 1; i < count; i++) {
        if (ranges[i].start <= ranges[last].end)
            ranges[last].end = MAX(ranges[last].end, ranges[i].end);
        else
            ranges[++last] = ranges[i];
    }
    free(s->inactive_l1);
    s->inactive_l1 = ranges;
    s->inactive_l1_count = count ? last + 1 : 0;
    return 0;
}

coroutine_fn int qcow2_co_overlap_read(struct qcow2 *s, struct error **errp)
{
    int ret = collect_inactive_l1(s);

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read the L1 tables of snapshots");
    qcow2_set_finish(&s->inactive_l2_set);
    if (!(s->overlap_check & QCOW2_REGION_INACTIVE_L2) || !blk_node_writable(s->node))
        return 0;
    for (uint32_t i = 0; i < s->header.snapshot_count && ret == 0; i++) {
        if (qcow2_snapshot_l1_valid(s, &s->snapshots[i]))
            ret = co_read_one(s, &s->snapshots[i]);
    }
    return ret < 0 ? error_set_errno(errp, ret, "Could not read the L1 tables of snapshots") : 0;
}

int qcow2_collect_metadata(struct qcow2 *s)
{
    int ret = 0;

    qcow2_set_finish(&s->l2_set);
    qcow2_set_finish(&s->refblock_set);
    for (uint32_t i = 0; i < s->l1_size && ret == 0; i++) {
        uint64_t table = qcow2_l1_entry(s, i) & QCOW2_OFFSET_MASK;
        if (table && qcow2_in_cluster(s, table) == 0)
            ret = qcow2_set_add(&s->l2_set, table >> s->cluster_bits);
    }
    for (uint64_t i = 0; i < s->reftable_entries && ret == 0; i++) {
        uint64_t block = be64toh(s->reftable[i]) & ~QCOW2_REFTABLE_RESERVED;
        if (block && qcow2_in_cluster(s, block) == 0)
            ret = qcow2_set_add(&s->refblock_set, block >> s->cluster_bits);
    }
    return ret;
}

/* ---- the check ---- */

static bool in_set(const struct qcow2 *s, const struct qcow2_set *set, uint64_t offset, uint64_t length)
{
    uint64_t last = (offset + length - 1) >> s->cluster_bits;

    for (uint64_t cluster = offset >> s->cluster_bits; cluster <= last; cluster++) {
        if (qcow2_set_has(set, cluster))
            return true;
    }
    return false;
}

static bool in_inactive_l1(const struct qcow2 *s, uint64_t offset, uint64_t length)
{
    size_t low = 0, high = s->inactive_l1_count;

    while (low < high) { /* the first that ends after the start */
        size_t middle = low + (high - low) / 2;
        if (s->inactive_l1[middle].end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < s->inactive_l1_count && s->inactive_l1[low].start < offset + length;
}

unsigned qcow2_overlap(const struct qcow2 *s, uint64_t offset, uint64_t length, unsigned ignore)
{
    unsigned check = s->overlap_check & ~ignore;
    uint64_t reftable_length = s->reftable_disk_entries * 8;

    if (length == 0)
        return 0;
    if ((check & QCOW2_REGION_HEADER) && offset < s->cluster_size)
        return QCOW2_REGION_HEADER;
    if ((check & QCOW2_REGION_L1) && ranges_overlap(offset, length, s->header.l1_offset, (uint64_t)s->l1_size * 8))
        return QCOW2_REGION_L1;
    if ((check & QCOW2_REGION_L2) && in_set(s, &s->l2_set, offset, length))
        return QCOW2_REGION_L2;
    if ((check & QCOW2_REGION_REFTABLE) && ranges_overlap(offset, length, s->reftable_offset, reftable_length))
        return QCOW2_REGION_REFTABLE;
    if ((check & QCOW2_REGION_REFBLOCK) && in_set(s, &s->refblock_set, offset, length))
        return QCOW2_REGION_REFBLOCK;
    if ((check & QCOW2_REGION_SNAPSHOTS) &&
        ranges_overlap(offset, length, s->header.snapshots_offset, s->snapshots_length))
        return QCOW2_REGION_SNAPSHOTS;
    if ((check & QCOW2_REGION_INACTIVE_L1) && in_inactive_l1(s, offset, length))
        return QCOW2_REGION_INACTIVE_L1;
    if ((check & QCOW2_REGION_INACTIVE_L2) && in_set(s, &s->inactive_l2_set, offset, length))
        return QCOW2_REGION_INACTIVE_L2;
    if ((check & QCOW2_REGION_BITMAPS) && (s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) &&
        ranges_overlap(offset, length, s->bitmap_directory_offset, s->bitmap_directory_size))
        return QCOW2_REGION_BITMAPS;
    return 0;
}

static const char *region_name(unsigned region)
{
    switch (region) {
    case QCOW2_REGION_HEADER: return "qcow2_header";
    case QCOW2_REGION_L1: return "active L1 table";
    case QCOW2_REGION_L2: return "active L2 table";
    case QCOW2_REGION_REFBLOCK: return "refcount block";
    case QCOW2_REGION_REFTABLE: return "refcount table";
    case QCOW2_REGION_SNAPSHOTS: return "snapshot table";
    case QCOW2_REGION_INACTIVE_L1: return "inactive L1 table";
    case QCOW2_REGION_INACTIVE_L2: return "inactive L2 table";
    default: return "bitmap directory";
    }
}

coroutine_fn int qcow2_co_check_overlap(struct qcow2 *s, uint64_t offset, uint64_t length, unsigned ignore)
{
    unsigned region = qcow2_overlap(s, offset, length, ignore);

    if (!region)
        return 0;
    return qcow2_co_mark_corrupt(s, "Preventing invalid write on metadata (overlaps with %s)", region_name(region));
}

/* Once is enough: whatever is allocated later is checked against the table. So is a table's new place. */
static coroutine_fn int co_check_table(struct qcow2 *s, uint64_t offset, uint64_t length, unsigned region,
                                       bool *checked)
{
    int ret = *checked ? 0 : qcow2_co_check_overlap(s, offset, length, region);

    *checked = ret == 0;
    return ret;
}

coroutine_fn int qcow2_co_check_l1(struct qcow2 *s)
{
    return co_check_table(s, s->header.l1_offset, (uint64_t)s->l1_size * 8, QCOW2_REGION_L1, &s->l1_checked);
}

coroutine_fn int qcow2_co_check_reftable(struct qcow2 *s)
{
    return co_check_table(s, s->reftable_offset, s->reftable_disk_entries * 8, QCOW2_REGION_REFTABLE,
                          &s->reftable_checked);
}
