/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writing compressed clusters: whole ones, where the image has no data itself.
 *
 * A few at a time are encoded in the worker pool; each then gets its bytes, is written, and only then named by its
 * entry (W3), like any other allocating write. What does not become smaller is written as it is.
 */
#include "alloc.h"
#include "commit.h"
#include "compress.h"
#include "dirty.h"
#include "driver.h"
#include "free.h"
#include "inflight.h"
#include "l2.h"

#include <base/crew.h>
#include <base/testpoint.h>
#include <string.h>

/* Clusters of one request that are in work at a time: the pool's threads shall not starve. */
#define WORKERS 8u

struct compressed_write {
    struct qcow2 *s;
    uint64_t offset, length; /* guest */
    const struct iovec *iov;
    int iov_count;
};

/* ---- one encoded cluster: lock held ---- */

struct encoded {
    uint64_t guest_cluster;
    const uint8_t *data;
    uint64_t length, host;
    struct qcow2_inflight inflight;
};

static coroutine_fn int co_check_no_data(struct qcow2 *s, const struct encoded *e)
{
    uint64_t offset = e->guest_cluster << s->cluster_bits;
    struct qcow2_slice *slice;

    if (atomic_load(&s->corrupt))
        return -EIO;
    int ret = qcow2_co_slice_for_write(s, offset, &slice);
    if (ret < 0)
        return ret;
    uint32_t index = qcow2_slice_index(s, offset);
    struct qcow2_entry entry = qcow2_slice_entry(s, slice, index);
    if (slice->suspect)
        ret = qcow2_co_check_entry(s, slice, index, entry, true);
    enum qcow2_kind kind = qcow2_entry_kind(entry);
    return ret < 0 ? ret : kind == QCOW2_NORMAL || kind == QCOW2_IS_COMPRESSED ? -EIO : 0;
}

/* Nobody else has changed the entry since it was looked at: it is registered in flight. */
static coroutine_fn int co_link(struct qcow2 *s, const struct encoded *e)
{
    uint64_t offset = e->guest_cluster << s->cluster_bits;
    struct qcow2_slice *slice;
    int ret = qcow2_co_slice_for_write(s, offset, &slice);

    if (ret < 0)
        return ret;
    uint32_t index = qcow2_slice_index(s, offset);
    struct qcow2_entry old = qcow2_slice_entry(s, slice, index);
    qcow2_slice_set(s, slice, index, qcow2_entry_compressed(e->host, e->length, s->cluster_bits));
    qcow2_free_entry(s, old, QCOW2_FREED_BY_OTHER);
    return 0;
}

static coroutine_fn int co_get_bytes(struct qcow2 *s, struct encoded *e)
{
    int ret = qcow2_co_alloc_bytes(s, e->length, &e->host);

    if (ret == 0 && e->host + e->length > qcow2_entry_compressed_end(s->cluster_bits)) {
        qcow2_co_unalloc_bytes(s, e->host, e->length);
        ret = -EFBIG;
    }
    return ret;
}

static coroutine_fn int co_store_once(struct qcow2 *s, struct encoded *e)
{
    int ret;

    do {
        ret = co_check_no_data(s, e);
        if (ret < 0)
            return ret;
        e->inflight = (struct qcow2_inflight){ .first = e->guest_cluster, .last = e->guest_cluster, .exclusive = true };
    } while (!qcow2_co_inflight_begin(s, &e->inflight));
    ret = co_get_bytes(s, e);
    if (ret == 0) {
        co_mutex_unlock(&s->lock);
        blk_co_event(s->node->file, BLK_EVENT_WRITE_COMPRESSED);
        ret = blk_co_write(qcow2_data_file(s), e->host, e->data, e->length, 0);
        testpoint_co("qcow2-link");
        co_mutex_lock(&s->lock);
        if (ret == 0)
            ret = co_link(s, e);
        if (ret < 0)
            qcow2_co_unalloc_bytes(s, e->host, e->length);
    }
    qcow2_inflight_end(s, &e->inflight);
    return ret;
}

static coroutine_fn int co_store(struct qcow2 *s, struct encoded *e)
{
    bool stored = false;
    int ret = 0;

    co_mutex_lock(&s->lock);
    while (ret == 0 && !stored) {
        qcow2_co_throttle(s);
        qcow2_co_reap(s, false);
        ret = co_store_once(s, e);
        stored = ret == 0;
        if (ret == -ENOSPC)
            ret = qcow2_co_make_room(s);
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

/* ---- one cluster of the request: lock not held ---- */

struct encode_job {
    enum qcow2_compression how;
    const uint8_t *in;
    uint8_t *out;
    size_t cluster_size, got;
};

static int encode_in_pool(void *arg)
{
    struct encode_job *job = arg;

    job->got = qcow2_compress(job->how, job->in, job->cluster_size, job->out, job->cluster_size - 1);
    return 0;
}

static coroutine_fn int co_write_cluster(void *arg, size_t number)
{
    const struct compressed_write *w = arg;
    struct qcow2 *s = w->s;
    uint64_t done = number * s->cluster_size, length = MIN(s->cluster_size, w->length - done);
    AUTO_FREE uint8_t *in = blk_buffer_alloc(qcow2_data_file(s), s->cluster_size);
    AUTO_FREE uint8_t *out = blk_buffer_alloc(qcow2_data_file(s), s->cluster_size);

    if (!in || !out)
        return -ENOMEM;
    iov_to_buffer(w->iov, w->iov_count, done, in, length);
    memset(in + length, 0, s->cluster_size - length);
    struct encode_job job = { s->header.compression, in, out, s->cluster_size, 0 };
    pool_co_run(encode_in_pool, &job);
    if (job.got == 0) {
        struct iovec iov = { in, length };
        return qcow2_co_write(s->node, w->offset + done, length, &iov, 1, 0);
    }
    struct encoded encoded = { .guest_cluster = (w->offset + done) >> s->cluster_bits, .data = out, .length = job.got };
    return co_store(s, &encoded);
}

coroutine_fn int qcow2_co_write_compressed(struct blk_node *node, uint64_t offset, uint64_t length,
                                           const struct iovec *iov, int iov_count, unsigned flags)
{
    struct qcow2 *s = node->state;
    struct compressed_write w = { s, offset, length, iov, iov_count };

    if (s->external)
        return -ENOTSUP;
    if (qcow2_in_cluster(s, offset) || (qcow2_in_cluster(s, length) && offset + length != blk_node_size(node)))
        return -EINVAL;
    int ret = co_crew(div_round_up(length, s->cluster_size), WORKERS, co_write_cluster, &w);
    if (ret == 0 && (flags & BLK_REQ_FUA))
        ret = qcow2_co_commit(s);
    return ret;
}
