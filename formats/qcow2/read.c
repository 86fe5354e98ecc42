/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Slow reads: compressed clusters, slices with wild entries, and the old content that copy on write needs.
 *
 * The guest cluster is registered in flight (shared), so the entry that was read under the lock stays true, and what
 * it refers to is not reused, until the read has ended.
 */
#include "compress.h"
#include "driver.h"
#include "inflight.h"
#include "l2.h"
#include "request.h"

/* Nothing here: the backing image's content, up to its end and ours. */
static coroutine_fn int co_read_below(struct qcow2 *s, uint64_t offset, uint64_t length, const struct iovec *iov,
                                      int iov_count)
{
    struct blk_node *backing = s->node->backing;
    uint64_t end = backing ? MIN(blk_node_size(backing), blk_node_size(s->node)) : 0;
    uint64_t below = offset < end ? MIN(length, end - offset) : 0;

    iov_zero(iov, iov_count, below, length - below);
    if (below == 0)
        return 0;
    struct iovec *part = malloc((size_t)iov_count * sizeof(*part));
    if (!part)
        return -ENOMEM;
    int count = iov_slice(iov, iov_count, 0, below, part, iov_count);
    int ret = blk_co_readv(backing, offset, below, part, count);
    free(part);
    return ret;
}

/* All of one kind. */
static coroutine_fn int co_read_run(struct qcow2 *s, struct qcow2_entry entry, uint64_t offset, uint64_t length,
                                    const struct iovec *iov, int iov_count)
{
    switch (qcow2_kind_at(s, entry, offset)) {
    case QCOW2_UNALLOCATED: return co_read_below(s, offset, length, iov, iov_count);
    case QCOW2_NORMAL:
        return blk_co_readv(qcow2_data_file(s), qcow2_entry_host(entry) + qcow2_in_cluster(s, offset), length, iov,
                            iov_count);
    case QCOW2_IS_COMPRESSED: return qcow2_co_read_compressed(s, entry, offset, length, iov, iov_count);
    default: iov_zero(iov, iov_count, 0, length); return 0;
    }
}

/* How far what the entry says at this offset reaches. */
static uint64_t run_length(const struct qcow2 *s, struct qcow2_entry entry, uint64_t offset, uint64_t length)
{
    enum qcow2_kind kind = qcow2_kind_at(s, entry, offset);
    uint64_t end = offset + length, at = align_down(offset, qcow2_sub_size(s)) + qcow2_sub_size(s);

    if (kind == QCOW2_IS_COMPRESSED)
        return length;
    while (at < end && qcow2_kind_at(s, entry, at) == kind)
        at += qcow2_sub_size(s);
    return MIN(at, end) - offset;
}

coroutine_fn int qcow2_co_read_entry(struct qcow2 *s, struct qcow2_entry entry, uint64_t offset, uint64_t length,
                                     const struct iovec *iov, int iov_count)
{
    uint64_t run = run_length(s, entry, offset, length);
    int ret = 0;

    if (run == length)
        return co_read_run(s, entry, offset, length, iov, iov_count);
    struct iovec *part = malloc((size_t)iov_count * sizeof(*part));
    for (uint64_t done = 0; ret == 0 && done < length; done += run) {
        run = run_length(s, entry, offset + done, length - done);
        int count = part ? iov_slice(iov, iov_count, done, run, part, iov_count) : 0;
        ret = part ? co_read_run(s, entry, offset + done, run, part, count) : -ENOMEM;
    }
    free(part);
    return ret;
}

/* Finds the entry of one guest cluster and registers it. Lock held. */
static coroutine_fn int co_hold_entry(struct qcow2 *s, uint64_t offset, struct qcow2_entry *entry,
                                      struct qcow2_inflight *inflight)
{
    struct qcow2_slice *slice;

    do {
        int ret = qcow2_co_slice(s, offset, &slice);
        *entry = qcow2_entry_absent();
        if (ret == 0 && slice) {
            uint32_t index = qcow2_slice_index(s, offset);
            *entry = qcow2_slice_entry(s, slice, index);
            ret = qcow2_co_check_entry(s, slice, index, *entry, false);
        }
        if (ret < 0)
            return ret;
        *inflight = (struct qcow2_inflight){ .first = offset >> s->cluster_bits, .last = offset >> s->cluster_bits };
    } while (!qcow2_co_inflight_begin(s, inflight));
    return 0;
}

static coroutine_fn void co_tell(struct qcow2 *s, struct qcow2_entry entry, uint64_t offset)
{
    switch (qcow2_kind_at(s, entry, offset)) {
    case QCOW2_NORMAL: blk_co_event(s->node->file, BLK_EVENT_READ_AIO); return;
    case QCOW2_IS_COMPRESSED: blk_co_event(s->node->file, BLK_EVENT_READ_COMPRESSED); return;
    case QCOW2_UNALLOCATED:
        if (s->node->backing)
            blk_co_event(s->node->file, BLK_EVENT_READ_BACKING_AIO);
        return;
    default: return;
    }
}

static coroutine_fn int co_read_cluster(struct qcow2 *s, uint64_t offset, uint64_t length, const struct iovec *iov,
                                        int iov_count)
{
    struct qcow2_inflight inflight;
    struct qcow2_entry entry;

    co_mutex_lock(&s->lock);
    int ret = co_hold_entry(s, offset, &entry, &inflight);
    co_mutex_unlock(&s->lock);
    if (ret < 0)
        return ret;
    co_tell(s, entry, offset);
    ret = qcow2_co_read_entry(s, entry, offset, length, iov, iov_count);
    co_mutex_lock(&s->lock);
    qcow2_inflight_end(s, &inflight);
    co_mutex_unlock(&s->lock);
    return ret;
}

coroutine_fn int qcow2_co_read(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                               int iov_count)
{
    struct qcow2 *s = node->state;
    struct iovec *part = malloc((size_t)MAX(iov_count, 1) * sizeof(*part));
    uint64_t done = 0;
    int ret = part ? 0 : -ENOMEM;

    while (ret == 0 && done < length) {
        uint64_t step = MIN(length - done, s->cluster_size - qcow2_in_cluster(s, offset + done));
        int count = iov_slice(iov, iov_count, done, step, part, iov_count);
        ret = co_read_cluster(s, offset + done, step, part, count);
        done += step;
    }
    free(part);
    return ret;
}
