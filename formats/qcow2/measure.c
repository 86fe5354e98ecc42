/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How large a new image's file becomes (blk_co_measure()): with all of its disk written, and with what a source has.
 * Metadata count for the whole disk in both, as in QEMU.
 */
#include "bitmap.h"
#include "create_options.h"
#include "driver.h"
#include "refcount.h"

#include <string.h>

/* As qcow2_plan_check(), of what changes sizes alone, and in measure's words. */
static int check_plan(const struct qcow2_plan *p, struct error **errp)
{
    bool v2 = strcmp(p->compat, "0.10") == 0;

    if (!v2 && strcmp(p->compat, "1.1") != 0)
        return error_set(errp, -EINVAL, "Invalid compatibility level: '%s'", p->compat);
    if (!qcow2_check_cluster_size(p->cluster_size, errp))
        return -EINVAL;
    if (!blk_is_preallocation(p->prealloc))
        return error_set(errp, -EINVAL, "invalid parameter value: %s", p->prealloc);
    if (!qcow2_check_refcount_bits(p->refcount_bits, errp))
        return -EINVAL;
    if (v2 && p->refcount_bits != 16)
        return error_set(errp, -EINVAL,
                         "Different refcount widths than 16 bits require compatibility level 1.1 or above (use "
                         "compat=1.1 or greater)");
    return 0;
}

/* Of a disk that is all there. */
static uint64_t metadata_clusters(const struct qcow2_plan *p, uint64_t disk_clusters)
{
    uint64_t l2 = div_round_up(disk_clusters, p->cluster_size >> qcow2_entry_shift(p->extended_l2));
    uint64_t others = 1 + l2 + div_round_up(l2 * 8, p->cluster_size), blocks, table;

    qcow2_refcounts_for(log2_floor(p->cluster_size), log2_floor(p->refcount_bits), disk_clusters + others, &blocks,
                        &table);
    return others + blocks + table;
}

/* Clusters of the new image that the source has data for. */
static coroutine_fn int co_data_clusters(struct blk_node *source, uint64_t cluster_size, uint64_t *clusters)
{
    uint64_t size = blk_node_size(source), counted = 0; /* up to where */
    struct blk_status status;

    *clusters = 0;
    for (uint64_t offset = 0; offset < size; offset += status.length) {
        int ret = blk_co_status(source, NULL, offset, size - offset, &status);
        if (ret < 0)
            return ret;
        if (!status.data || status.zero)
            continue;
        uint64_t from = MAX(counted, align_down(offset, cluster_size));
        uint64_t to = align_up(offset + status.length, cluster_size);
        if (to > from)
            *clusters += (to - from) / cluster_size;
        counted = MAX(counted, to);
    }
    return 0;
}

/* What the source's bitmaps take in the new image: tables, data, and the directory. */
static coroutine_fn int co_bitmap_clusters(struct qcow2 *s, uint64_t cluster_size, uint64_t *clusters)
{
    AUTO_FREE uint8_t *directory = NULL;
    struct qcow2_bitmap bitmap;
    uint64_t at = 0, entries = 0;
    int ret = qcow2_has_bitmaps(s) ? qcow2_co_bitmap_directory(s, &directory) : 0;

    *clusters = 0;
    while (ret == 0 && directory && qcow2_bitmap_next(directory, s->bitmap_directory_size, &at, &bitmap)) {
        if (bitmap.granularity_bits > 31)
            return -EINVAL;
        uint64_t bits = div_round_up(s->header.size, UINT64_C(1) << bitmap.granularity_bits);
        uint64_t data = div_round_up(div_round_up(bits, 8), cluster_size);
        *clusters += data + div_round_up(data * 8, cluster_size);
        entries += align_up(QCOW2_BITMAP_ENTRY + (uint64_t)bitmap.name_length, 8);
    }
    *clusters += div_round_up(entries, cluster_size);
    return ret;
}

static coroutine_fn int co_measure_bitmaps(const struct qcow2_plan *p, struct blk_node *source,
                                           struct blk_measure *measure)
{
    struct blk_node *image = source ? blk_node_below_filters(source) : NULL;
    uint64_t clusters = 0;

    if (!image || image->driver->co_measure != qcow2_co_measure || strcmp(p->compat, "1.1") != 0)
        return 0;
    struct qcow2 *s = image->state;
    if (s->header.version < 3)
        return 0;
    int ret = co_bitmap_clusters(s, p->cluster_size, &clusters);
    measure->has_bitmaps = true;
    measure->bitmaps = clusters * p->cluster_size;
    return ret;
}

static coroutine_fn int co_measure(const struct qcow2_plan *p, uint64_t size, struct blk_node *source,
                                   struct blk_measure *measure, struct error **errp)
{
    uint64_t disk_clusters = div_round_up(size, p->cluster_size), data = 0, entries;

    if (!qcow2_l1_entries(size, log2_floor(p->cluster_size), p->extended_l2, &entries))
        return error_set(errp, -EFBIG, "The image size is too large (try using a larger cluster size)");
    int ret = source ? co_data_clusters(source, p->cluster_size, &data) : 0;
    if (ret < 0)
        return error_set_errno(errp, ret, "Unable to get block status");
    /* Over a backing file nobody knows what will be the same there. */
    bool all = strcmp(p->prealloc, "full") == 0 || strcmp(p->prealloc, "falloc") == 0 || (source && p->backing_name);
    uint64_t metadata = metadata_clusters(p, disk_clusters);
    measure->fully_allocated = (metadata + disk_clusters) * p->cluster_size;
    measure->required = (metadata + (all ? disk_clusters : data)) * p->cluster_size;
    ret = co_measure_bitmaps(p, source, measure);
    return ret < 0 ? error_set_errno(errp, ret, "Could not read the source's bitmaps") : 0;
}

coroutine_fn int qcow2_co_measure(const struct opts *options, uint64_t size, struct blk_node *source,
                                  struct blk_measure *measure, struct error **errp)
{
    struct opts *opts = options ? opts_clone(options) : opts_new();
    struct qcow2_plan plan;
    int ret = qcow2_plan_read(&plan, opts, errp);

    if (ret == 0)
        ret = check_plan(&plan, errp);
    if (ret == 0)
        ret = co_measure(&plan, size, source, measure, errp);
    opts_free(opts);
    return ret;
}
