/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Resizing, and preallocation. Nothing else is in flight.
 *
 * The size in the header changes in one sector. Growing: first a larger L1 table where the present one is too small
 * (written and flushed before the header names it), then what lies past the old end is made to read as zeroes, then
 * the size. Shrinking: first the size, then what lies past it is given up. Cut off half way, that leaves entries past
 * the end, so growing does not take for granted that there are none.
 */
#include "qcow2.h"

#include <string.h>

/* ---- the L1 table ---- */

struct l1_memory {
    _Atomic uint64_t *l1;
    uint8_t *dirty;
    _Atomic(struct qcow2_dir *) *dir;
};

static int grow_l1_memory(const struct qcow2 *s, uint64_t entries, struct l1_memory *m)
{
    uint64_t bytes = align_up(entries * 8, BLK_SECTOR_SIZE);

    m->l1 = calloc(1, bytes);
    m->dirty = calloc(1, bytes / BLK_SECTOR_SIZE);
    m->dir = calloc(entries, sizeof(*m->dir));
    if (!m->l1 || !m->dirty || !m->dir) {
        free(m->l1);
        free(m->dirty);
        free(m->dir);
        *m = (struct l1_memory){ 0 };
        return -ENOMEM;
    }
    memcpy((void *)m->l1, (const void *)s->l1, (size_t)s->l1_size * 8);
    memcpy((void *)m->dir, (const void *)s->dir, (size_t)s->l1_size * sizeof(*m->dir));
    return 0;
}

/* Everything is committed, so memory and disk say the same. Lock held: nobody else is here. */
static coroutine_fn int co_move_l1(struct qcow2 *s, uint64_t entries, uint64_t offset, const struct l1_memory *m)
{
    int ret = blk_co_write(s->node->file, offset, (const void *)m->l1, align_up(entries * 8, BLK_SECTOR_SIZE), 0);

    if (ret == 0)
        ret = blk_co_flush(s->node->file);
    if (ret < 0)
        return ret;
    uint32_t old_size = s->header.l1_size;
    uint64_t old_offset = s->header.l1_offset;
    qcow2_header_set32(s, QCOW2_AT_L1_SIZE, (uint32_t)entries);
    qcow2_header_set64(s, QCOW2_AT_L1_OFFSET, offset);
    ret = qcow2_co_header_write(s);
    if (ret < 0) {
        qcow2_header_set32(s, QCOW2_AT_L1_SIZE, old_size);
        qcow2_header_set64(s, QCOW2_AT_L1_OFFSET, old_offset);
        return ret;
    }
    s->header.l1_size = (uint32_t)entries;
    s->header.l1_offset = offset;
    return 0;
}

/* The refcounts of the new table must be durable before the header names it: a commit lies between. */
static coroutine_fn int co_grow_l1(struct qcow2 *s, uint64_t entries)
{
    uint64_t clusters = div_round_up(entries * 8, s->cluster_size), offset = 0;
    uint64_t old_offset = s->header.l1_offset, old_clusters = div_round_up((uint64_t)s->l1_size * 8, s->cluster_size);
    struct l1_memory m = { 0 };

    if (entries * 8 > QCOW2_MAX_L1_BYTES)
        return -EFBIG;
    co_mutex_lock(&s->lock);
    int ret = qcow2_co_begin_changes(s);
    if (ret == 0)
        ret = qcow2_co_alloc_exact(s, clusters, &offset);
    co_mutex_unlock(&s->lock);
    if (ret < 0)
        return ret;
    ret = qcow2_co_settle(s);
    if (ret == 0)
        ret = grow_l1_memory(s, entries, &m);
    co_mutex_lock(&s->lock);
    if (ret == 0)
        ret = co_move_l1(s, entries, offset, &m);
    if (ret == 0) {
        free(s->l1);
        free(s->l1_dirty);
        free(s->dir);
        s->l1 = m.l1;
        s->l1_dirty = m.dirty;
        s->dir = m.dir;
        s->l1_size = (uint32_t)entries;
        if (old_clusters)
            qcow2_freed_add(&s->freed, old_offset >> s->cluster_bits, old_clusters, false);
    } else {
        free(m.l1);
        free(m.dirty);
        free(m.dir);
        /* Once a commit has made sure that the header on disk does not name it. */
        qcow2_freed_add(&s->freed, offset >> s->cluster_bits, clusters, false);
    }
    qcow2_note_dirty(s);
    co_mutex_unlock(&s->lock);
    return ret;
}

/* ---- preallocation ---- */

/* Entries may be committed at any time: the file reaches to the last cluster before one points there. */
static coroutine_fn int co_reserve_host(struct qcow2 *s, uint64_t end, const char *prealloc, struct error **errp)
{
    if (end <= blk_node_size(s->node->file))
        return 0;
    return blk_co_truncate(s->node->file, end, false, strcmp(prealloc, "metadata") == 0 ? "off" : prealloc, errp);
}

/* Allocates and links clusters for a run without entries in one slice's range. Lock held. */
static coroutine_fn int co_preallocate_some(struct qcow2 *s, uint64_t offset, uint64_t end, const char *prealloc,
                                            uint64_t *step, struct error **errp)
{
    uint64_t host = 0, got = 0;
    struct qcow2_slice *slice;
    bool fresh = false;
    int ret = qcow2_co_slice_for_write(s, offset, &slice);
    uint32_t index = qcow2_slice_index(s, offset);
    uint64_t count = MIN(div_round_up(end - offset, s->cluster_size), (uint64_t)(qcow2_slice_entries(s) - index));

    if (ret < 0)
        return ret;
    *step = s->cluster_size;
    if (qcow2_kind(qcow2_slice_entry(slice, index)) != QCOW2_UNALLOCATED)
        return 0;
    for (uint64_t i = 1; i < count; i++) {
        if (qcow2_kind(qcow2_slice_entry(slice, index + (uint32_t)i)) != QCOW2_UNALLOCATED)
            count = i;
    }
    ret = qcow2_co_alloc(s, count, &host, &got, &fresh);
    if (ret < 0)
        return ret;
    *step = got << s->cluster_bits;
    ret = co_reserve_host(s, host + *step, prealloc, errp);
    if (ret == 0 && !fresh)
        ret = blk_co_write_zeroes(s->node->file, host, *step, 0);
    if (ret < 0) {
        qcow2_co_unalloc(s, host, got);
        return ret;
    }
    for (uint64_t i = 0; i < got; i++)
        qcow2_slice_set(s, slice, index + (uint32_t)i, (host + (i << s->cluster_bits)) | QCOW2_COPIED);
    return 0;
}

coroutine_fn int qcow2_co_preallocate(struct qcow2 *s, uint64_t offset, uint64_t end, const char *prealloc,
                                      struct error **errp)
{
    int ret = 0;

    offset = qcow2_cluster_start(s, offset);
    co_mutex_lock(&s->lock);
    ret = qcow2_co_begin_changes(s);
    while (ret == 0 && offset < end) {
        uint64_t step = 0;
        qcow2_co_throttle(s);
        ret = co_preallocate_some(s, offset, end, prealloc, &step, errp);
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

/* Entries past the end: of a shrink that was cut off, or VM state of the snapshot that was applied last. */
static coroutine_fn int co_drop_leftovers(struct qcow2 *s, uint64_t old_size)
{
    uint64_t start = align_up(old_size, s->cluster_size), end = (uint64_t)s->l1_size << s->l1_shift;

    return end > start ? qcow2_co_clear(s, start, end - start, QCOW2_CLEAR_DROP) : 0;
}

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

static coroutine_fn int co_grow(struct qcow2 *s, uint64_t old_size, uint64_t size, const char *prealloc,
                                struct error **errp)
{
    uint64_t entries = div_round_up(size, UINT64_C(1) << s->l1_shift);
    int ret = co_drop_leftovers(s, old_size);

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not zero the new area");
    if (entries > s->l1_size)
        ret = co_grow_l1(s, entries);
    if (ret < 0)
        return error_set_errno(errp, ret, "Failed to grow the L1 table");
    /* Requests are bounded by the node's size: it grows first, for what follows here only. */
    atomic_store(&s->node->size, size);
    ret = co_zero_new_range(s, old_size, size);
    if (ret < 0)
        error_set_errno(errp, ret, "Could not zero the new area");
    if (ret == 0 && strcmp(prealloc, "off") != 0)
        ret = qcow2_co_preallocate(s, old_size, size, prealloc, errp);
    if (ret == 0) {
        ret = qcow2_co_settle(s);
        if (ret == 0)
            ret = co_set_size(s, size);
        if (ret < 0)
            error_set_errno(errp, ret, "Failed to update the image size");
    }
    if (ret < 0)
        atomic_store(&s->node->size, old_size);
    return ret;
}

/* ---- shrinking ---- */

/* L2 tables past the end hold nothing any more. */
static coroutine_fn int co_drop_tables(struct qcow2 *s, uint64_t first)
{
    co_mutex_lock(&s->lock);
    int ret = qcow2_co_check_l1(s);
    for (uint64_t i = first; i < s->l1_size && ret == 0; i++) {
        uint64_t entry = qcow2_l1_entry(s, i), table = entry & QCOW2_OFFSET_MASK;
        if (!table || qcow2_in_cluster(s, table))
            continue;
        qcow2_slices_drop(s, i);
        qcow2_set_remove(&s->l2_set, table >> s->cluster_bits);
        qcow2_l1_set(s, (uint32_t)i, 0);
        qcow2_freed_add(&s->freed, table >> s->cluster_bits, 1, false);
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

static coroutine_fn int co_cut_file(struct qcow2 *s)
{
    uint64_t clusters = div_round_up(blk_node_size(s->node->file), s->cluster_size), used = 0;
    int ret = 0;

    co_mutex_lock(&s->lock);
    while (ret == 0 && clusters > 0 && used == 0) {
        ret = qcow2_co_refcount(s, clusters - 1, &used);
        clusters -= used == 0;
    }
    uint64_t end = clusters << s->cluster_bits;
    if (ret == 0 && s->host_grows && clusters > 0 && end < blk_node_size(s->node->file)) {
        ret = blk_co_truncate(s->node->file, end, true, "off", NULL);
        if (ret == 0)
            s->fresh_from = clusters;
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

static coroutine_fn int co_shrink(struct qcow2 *s, uint64_t old_size, uint64_t size, struct error **errp)
{
    uint64_t start = align_up(size, s->cluster_size), end = align_up(old_size, s->cluster_size);
    int ret = qcow2_co_settle(s);

    if (ret == 0)
        ret = co_set_size(s, size);
    if (ret < 0)
        return error_set_errno(errp, ret, "Failed to update the image size");
    atomic_store(&s->node->size, size);
    if (end > start)
        ret = qcow2_co_clear(s, start, end - start, QCOW2_CLEAR_DROP);
    if (ret == 0)
        ret = qcow2_co_settle(s);
    if (ret < 0)
        return error_set_errno(errp, ret, "Failed to discard cropped clusters");
    ret = co_drop_tables(s, div_round_up(size, UINT64_C(1) << s->l1_shift));
    if (ret == 0)
        ret = qcow2_co_settle(s);
    if (ret == 0)
        ret = co_cut_file(s);
    return ret < 0 ? error_set_errno(errp, ret, "Failed to discard unused refblocks") : 0;
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
    if (s->header.snapshot_count && s->header.version < 3)
        return error_set(errp, -ENOTSUP, "Can't resize a v2 image which has snapshots");
    if (size < old_size && strcmp(prealloc, "off") != 0)
        return error_set(errp, -EINVAL, "Preallocation can't be used for shrinking an image");
    if (size > INT64_MAX - BLK_SECTOR_SIZE || div_round_up(size, UINT64_C(1) << s->l1_shift) > QCOW2_MAX_L1_BYTES / 8)
        return error_set(errp, -EFBIG, "The image size is too large (try using a larger cluster size)");
    if (size > old_size)
        return co_grow(s, old_size, size, prealloc, errp);
    return size < old_size ? co_shrink(s, old_size, size, errp) : 0;
}
