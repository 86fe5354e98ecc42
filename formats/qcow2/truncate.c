/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Resizing, and preallocation. Nothing else is in flight.
 *
 * The size in the header changes in one sector. Growing: first a larger L1 table where the present one is too small
 * (written and flushed before the header names it), then what lies past the old end is made to read as zeroes, then
 * the size. Shrinking: first the size, then what lies past it is given up. Cut off half way, that leaves entries past
 * the end, so growing does not take for granted that there are none.
 */
#include "truncate.h"

#include "alloc.h"
#include "commit.h"
#include "dirty.h"
#include "driver.h"
#include "header.h"
#include "l1table.h"
#include "l2.h"
#include "overlap.h"
#include "refcount.h"
#include "request.h"

#include <block/bitmap.h>
#include <string.h>

/* The longest hole that is looked at when an image is opened: more than a file is grown ahead. */
#define HOLE_MAX (UINT64_C(320) << 20)

/* ---- the L1 table ---- */

coroutine_fn int qcow2_co_grow_l1(struct qcow2 *s, uint64_t entries)
{
    struct qcow2_l1_table table;

    if (entries * 8 > QCOW2_MAX_L1_BYTES)
        return -EFBIG;
    blk_co_event(s->node->file, BLK_EVENT_L1_GROW_ALLOC_TABLE);
    int ret = qcow2_co_settle(s); /* what was freed may be where it goes */
    if (ret == 0)
        ret = qcow2_co_l1_prepare(s, entries, &table);
    if (ret < 0)
        return ret;
    return qcow2_co_l1_replace(s, &table);
}

/* ---- preallocation ---- */

/* Entries may be committed at any time: the file reaches to the last cluster before one points there. */
static coroutine_fn int co_reserve_host(struct qcow2 *s, uint64_t end, const char *prealloc, struct error **errp)
{
    if (s->external || end <= blk_node_size(s->node->file))
        return 0;
    int ret = blk_co_truncate(s->node->file, end, false, strcmp(prealloc, "metadata") == 0 ? "off" : prealloc, errp);
    if (ret < 0)
        error_prepend(errp, "Failed to resize underlying file: ");
    return ret;
}

/* Is there more than what is below the image? */
static bool has_any(const struct qcow2 *s, struct qcow2_entry entry)
{
    return qcow2_entry_kind(entry) != QCOW2_UNALLOCATED || (s->extended && entry.subclusters);
}

/* Allocates and links clusters for a run without entries in one slice's range. Lock held. */
static coroutine_fn int co_preallocate_some(struct qcow2 *s, uint64_t offset, uint64_t end, const char *prealloc,
                                            uint64_t *step, struct error **errp)
{
    uint64_t host = 0, got = 0;
    struct qcow2_slice *slice;
    bool fresh = false;
    /* Who writes to a raw disk shows in all of it; else subclusters come as they are written. */
    uint64_t subclusters = s->extended && qcow2_data_is_raw(s) ? qcow2_subclusters(UINT32_MAX, 0) : 0;
    int ret = qcow2_co_slice_for_write(s, offset, &slice);
    uint32_t index = qcow2_slice_index(s, offset);
    uint64_t count = MIN(div_round_up(end - offset, s->cluster_size), (uint64_t)(qcow2_slice_entries(s) - index));

    if (ret < 0)
        return ret;
    *step = s->cluster_size;
    if (has_any(s, qcow2_slice_entry(s, slice, index)))
        return 0;
    for (uint64_t i = 1; i < count; i++) {
        if (has_any(s, qcow2_slice_entry(s, slice, index + (uint32_t)i)))
            count = i;
    }
    ret = qcow2_co_alloc_data(s, offset, count, &host, &got, &fresh);
    if (ret < 0)
        return ret;
    *step = got << s->cluster_bits;
    ret = co_reserve_host(s, host + *step, prealloc, errp);
    /* co_grow_data_file() has seen to an external one; where subclusters are not allocated nobody looks. */
    if (ret == 0 && !fresh && !s->external && !s->extended)
        ret = blk_co_write_zeroes(s->node->file, host, *step, 0);
    if (ret < 0) {
        qcow2_co_unalloc_data(s, host, got);
        return ret;
    }
    for (uint64_t i = 0; i < got; i++)
        qcow2_slice_set(s, slice, index + (uint32_t)i, qcow2_entry_data(host + (i << s->cluster_bits), subclusters));
    return 0;
}

coroutine_fn int qcow2_co_preallocate(struct qcow2 *s, uint64_t offset, uint64_t end, const char *prealloc,
                                      struct error **errp)
{
    int ret = 0;

    offset = qcow2_cluster_start(s, offset);
    co_mutex_lock(&s->lock);
    /* All the data's space at once: if the host has too little, nothing has been taken of it. */
    if (strcmp(prealloc, "metadata") != 0)
        ret = co_reserve_host(s, align_up(blk_node_size(s->node->file), s->cluster_size) + (end - offset), prealloc,
                              errp);
    if (ret == 0)
        ret = qcow2_co_begin_changes(s);
    while (ret == 0 && offset < end) {
        uint64_t step = 0;
        qcow2_co_throttle(s);
        ret = co_preallocate_some(s, offset, end, prealloc, &step, errp);
        if (ret == -ENOSPC && qcow2_co_make_room(s) == 0) {
            if (errp) {
                error_free(*errp);
                *errp = NULL;
            }
            ret = 0;
            continue;
        }
        offset += step;
    }
    co_mutex_unlock(&s->lock);
    if (ret == 0)
        ret = qcow2_co_settle(s);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not preallocate metadata");
    return 0;
}

/* ---- growing ---- */

/* Bytes past the old end: of its last cluster, and those that a longer backing image would show. */
static coroutine_fn int co_zero_new_range(struct qcow2 *s, uint64_t old_size, uint64_t size)
{
    uint64_t cluster_end = MIN(align_up(old_size, s->cluster_size), size);
    uint64_t backing_end = s->node->backing ? MIN(blk_node_size(s->node->backing), size) : 0;
    uint64_t end = MAX(cluster_end, backing_end);

    if (end <= old_size)
        return 0;
    int ret = qcow2_co_write_zeroes(s->node, old_size, end - old_size, BLK_REQ_MAY_UNMAP);
    if (ret != -ENOTSUP)
        return ret;
    /* Version 2 over a backing image: zeroes are data. */
    uint64_t step = MIN(end - old_size, UINT64_C(1) << 20);
    uint8_t *buffer = calloc(1, step);
    ret = buffer ? 0 : -ENOMEM;
    for (uint64_t at = old_size; ret == 0 && at < end; at += step) {
        struct iovec iov = { buffer, MIN(step, end - at) };
        ret = qcow2_co_write(s->node, at, iov.iov_len, &iov, 1, 0);
    }
    free(buffer);
    return ret;
}

/* An external data file becomes as large as the disk. What it may have there already reads as zeroes if entries are
 * going to name it. */
static coroutine_fn int co_grow_data_file(struct qcow2 *s, uint64_t old_size, uint64_t size, const char *prealloc,
                                          struct error **errp)
{
    struct blk_node *data = qcow2_data_file(s);
    uint64_t end = MIN(blk_node_size(data), size);
    int ret = 0;

    if (!s->external)
        return 0;
    if (end > old_size && strcmp(prealloc, "off") != 0)
        ret = blk_co_write_zeroes(data, old_size, end - old_size, BLK_REQ_MAY_UNMAP);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not zero the new area");
    if (blk_node_size(data) >= size)
        return 0;
    return blk_co_truncate(data, size, false, strcmp(prealloc, "metadata") == 0 ? "off" : prealloc, errp);
}

static coroutine_fn int co_set_size(struct qcow2 *s, uint64_t size)
{
    co_mutex_lock(&s->lock);
    qcow2_header_set64(s, QCOW2_AT_SIZE, size);
    int ret = qcow2_co_header_write(s);
    if (ret < 0)
        qcow2_header_set64(s, QCOW2_AT_SIZE, s->header.size);
    else
        s->header.size = size;
    co_mutex_unlock(&s->lock);
    return ret;
}

/* ---- what lies past an end ---- */

/* L2 tables past the end hold nothing any more. */
static coroutine_fn int co_drop_tables(struct qcow2 *s, uint64_t first)
{
    co_mutex_lock(&s->lock);
    int ret = qcow2_co_check_l1(s);
    if (ret == 0)
        ret = qcow2_co_begin_changes(s);
    for (uint64_t i = first; i < s->l1_size && ret == 0; i++) {
        uint64_t entry = qcow2_l1_entry(s, i), table = entry & QCOW2_OFFSET_MASK;
        if (!table || qcow2_in_cluster(s, table))
            continue;
        qcow2_slices_drop(s, i);
        qcow2_set_remove(&s->l2_set, table >> s->cluster_bits);
        qcow2_l1_set(s, (uint32_t)i, 0);
        qcow2_free_clusters(s, table >> s->cluster_bits, 1, QCOW2_FREED_BY_OTHER);
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

/* How many clusters the file has, up to the last one in use; looks no lower than `least`. Lock held. */
static coroutine_fn int co_used_clusters(struct qcow2 *s, uint64_t least, uint64_t *clusters)
{
    uint64_t used = 0;
    int ret = 0;

    *clusters = div_round_up(blk_node_size(s->node->file), s->cluster_size);
    while (ret == 0 && *clusters > least && used == 0) {
        ret = qcow2_co_refcount(s, *clusters - 1, &used);
        *clusters -= used == 0;
    }
    return ret;
}

coroutine_fn int qcow2_co_cut_file(struct qcow2 *s)
{
    uint64_t file_clusters = div_round_up(blk_node_size(s->node->file), s->cluster_size), clusters;

    co_mutex_lock(&s->lock);
    int ret = co_used_clusters(s, 0, &clusters);
    uint64_t end = clusters << s->cluster_bits;
    bool cut = ret == 0 && qcow2_host_grows(s) && clusters > 0 && end < blk_node_size(s->node->file);
    if (cut)
        ret = qcow2_co_check_unnamed(s, clusters, file_clusters - clusters, "cut");
    if (cut && ret == 0) {
        ret = blk_co_truncate(s->node->file, end, true, "off", NULL);
        if (ret == 0)
            s->fresh_from = clusters;
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

static coroutine_fn bool co_is_hole(struct blk_node *file, uint64_t offset)
{
    struct blk_extent extent = { 0 };
    uint64_t length = blk_node_size(file) - offset;

    return file->driver->co_extent(file, offset, length, &extent) == 0 && extent.kind == BLK_ZERO &&
           extent.length == length;
}

coroutine_fn void qcow2_co_cut_hole(struct qcow2 *s)
{
    struct blk_node *file = s->node->file;
    uint64_t size = blk_node_size(file), clusters = size >> s->cluster_bits;

    if (!qcow2_host_grows(s) || !file->driver->co_extent || clusters < 2)
        return;
    uint64_t least = clusters - MIN(clusters, HOLE_MAX >> s->cluster_bits);
    co_mutex_lock(&s->lock);
    int ret = co_used_clusters(s, least, &clusters);
    uint64_t end = clusters << s->cluster_bits; /* of the usual image the file's end: the host is not asked */
    if (ret == 0 && clusters > least && end < size && co_is_hole(file, end) &&
        blk_co_truncate(file, end, true, "off", NULL) == 0)
        s->fresh_from = clusters;
    co_mutex_unlock(&s->lock);
}

/* Gives up entries and tables from `size` on, and what the file has at its end for them. */
static coroutine_fn int co_give_up_from(struct qcow2 *s, uint64_t size, struct error **errp)
{
    int ret = qcow2_co_drop_past_end(s, size);

    if (ret == 0)
        ret = qcow2_co_settle(s);
    if (ret < 0)
        return error_set_errno(errp, ret, "Failed to discard cropped clusters");
    blk_co_event(s->node->file, BLK_EVENT_L1_SHRINK_FREE_L2_CLUSTERS);
    ret = co_drop_tables(s, div_round_up(size, UINT64_C(1) << s->l1_shift));
    if (ret == 0)
        ret = qcow2_co_settle(s);
    if (ret == 0)
        ret = qcow2_co_cut_file(s);
    return ret < 0 ? error_set_errno(errp, ret, "Failed to discard unused refblocks") : 0;
}

/* ---- the new size ---- */

/* Tables first, entries past the old end then, and the size in the file at last. */
static coroutine_fn int co_grow_steps(struct qcow2 *s, uint64_t old_size, uint64_t size, const char *prealloc,
                                      struct error **errp)
{
    uint64_t entries = div_round_up(size, UINT64_C(1) << s->l1_shift);
    int ret = co_grow_data_file(s, old_size, size, prealloc, errp);

    if (ret < 0)
        return ret;
    if (entries > s->l1_size)
        ret = qcow2_co_grow_l1(s, entries);
    if (ret < 0)
        return error_set_errno(errp, ret, "Failed to grow the L1 table");
    /* Requests are bounded by the node's size: it grows first, for what follows here only. */
    atomic_store(&s->node->size, size);
    ret = co_zero_new_range(s, old_size, size);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not zero the new area");
    if (strcmp(prealloc, "off") != 0)
        ret = qcow2_co_preallocate(s, old_size, size, prealloc, errp);
    if (ret < 0)
        return ret;
    ret = qcow2_co_settle(s);
    if (ret == 0)
        ret = co_set_size(s, size);
    return ret < 0 ? error_set_errno(errp, ret, "Failed to update the image size") : 0;
}

static coroutine_fn int co_grow(struct qcow2 *s, uint64_t old_size, uint64_t size, const char *prealloc,
                                struct error **errp)
{
    uint64_t data_size = blk_node_size(qcow2_data_file(s));
    int ret = qcow2_co_drop_past_end(s, old_size);

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not zero the new area");
    if (qcow2_data_is_raw(s) && strcmp(prealloc, "off") == 0)
        prealloc = "metadata"; /* what is written to the raw disk shows here */
    ret = co_grow_steps(s, old_size, size, prealloc, errp);
    if (ret < 0) {
        /* The host has no room, perhaps: others need what was taken. The first error is the one that is told. */
        atomic_store(&s->node->size, old_size);
        co_give_up_from(s, old_size, NULL);
        if (s->external && blk_node_size(qcow2_data_file(s)) > data_size)
            blk_co_truncate(qcow2_data_file(s), data_size, true, "off", NULL);
    }
    return ret;
}

static coroutine_fn int co_shrink(struct qcow2 *s, uint64_t size, struct error **errp)
{
    int ret = qcow2_co_settle(s);

    if (ret == 0)
        ret = co_set_size(s, size);
    if (ret < 0)
        return error_set_errno(errp, ret, "Failed to update the image size");
    atomic_store(&s->node->size, size);
    ret = co_give_up_from(s, size, errp); /* what lay past the old end goes too */
    if (ret == 0 && s->external && blk_node_size(qcow2_data_file(s)) > size)
        ret = blk_co_truncate(qcow2_data_file(s), size, true, "off", errp);
    return ret;
}

coroutine_fn int qcow2_co_make_empty(struct blk_node *node, struct error **errp)
{
    struct qcow2 *s = node->state;

    if (atomic_load(&s->corrupt))
        return error_set(errp, -EIO, "The image is marked corrupt");
    blk_co_event(node->file, BLK_EVENT_EMPTY_IMAGE_PREPARE);
    int ret = co_give_up_from(s, 0, errp);
    if (ret == 0 && s->external) /* a courtesy, as no entry on disk names it any more */
        blk_co_discard(qcow2_data_file(s), 0, blk_node_size(node));
    return ret;
}

static int resize_bitmaps(struct blk_node *node, uint64_t size, struct error **errp)
{
    int ret = blk_bitmaps_resize(node, size);

    return ret < 0 ? error_set_errno(errp, ret, "Could not resize the image's bitmaps") : 0;
}

coroutine_fn int qcow2_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                   struct error **errp)
{
    struct qcow2 *s = node->state;
    uint64_t old_size = blk_node_size(node);

    if (!prealloc)
        prealloc = "off";
    if (!is_aligned(size, BLK_SECTOR_SIZE))
        return error_set(errp, -EINVAL, "The new size must be a multiple of 512");
    if (atomic_load(&s->corrupt))
        return error_set(errp, -EIO, "The image is marked corrupt");
    if (blk_bitmaps_check_usable(node, errp) < 0)
        return -EINVAL;
    if (s->header.snapshot_count && s->header.version < 3)
        return error_set(errp, -ENOTSUP, "Can't resize a v2 image which has snapshots");
    if (size < old_size && strcmp(prealloc, "off") != 0)
        return error_set(errp, -EINVAL, "Preallocation can't be used for shrinking an image");
    if (size > INT64_MAX - BLK_SECTOR_SIZE || div_round_up(size, UINT64_C(1) << s->l1_shift) > QCOW2_MAX_L1_BYTES / 8)
        return error_set(errp, -EFBIG, "The image size is too large (try using a larger cluster size)");
    int ret = size > old_size ? resize_bitmaps(node, size, errp) : 0;
    if (ret == 0 && size > old_size)
        ret = co_grow(s, old_size, size, prealloc, errp);
    else if (ret == 0 && size < old_size)
        ret = co_shrink(s, size, errp);
    if (ret == 0 && size < old_size)
        ret = resize_bitmaps(node, size, errp);
    else if (ret < 0 && size > old_size)
        blk_bitmaps_resize(node, old_size);
    return ret;
}
