/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Compressed clusters: encoding, decoding on any processor, and the few decoded last.
 *
 * A decoded cluster belongs to one entry of one guest cluster; requests that need it while it is being decoded wait
 * for it instead of doing the work again, and small sequential reads find it. When the entry changes it is forgotten.
 */
#include "compress.h"
#include "entropy.h"

#include <base/crew.h>
#include <pthread.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

/* ---- decoding ---- */

/* Raw deflate with a window of 4 KiB; what follows its end in the last sector is not ours. */
static int inflate_cluster(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length, size_t *used)
{
    z_stream stream = {
        .next_in = (Bytef *)(uintptr_t)in,
        .avail_in = (uInt)in_length,
        .next_out = out,
        .avail_out = (uInt)out_length,
    };

    if (inflateInit2(&stream, -12) != Z_OK)
        return -EIO;
    int ret = inflate(&stream, Z_FINISH);
    bool whole = stream.avail_out == 0 && (ret == Z_STREAM_END || ret == Z_BUF_ERROR);
    *used = whole && ret == Z_STREAM_END ? in_length - stream.avail_in : 0;
    inflateEnd(&stream);
    return whole ? 0 : -EIO;
}

/* A context is more work to make than a cluster to decode: each thread keeps its own, unless it has become large. A
 * frame says how large its window is (up to 128 MiB), and a hostile image shall not have each thread keep that. */
static pthread_key_t zstd_key;
enum { ZSTD_KEEP = 8 << 20 };

static void free_zstd(void *context) { ZSTD_freeDCtx(context); }

static __attribute__((constructor)) void make_zstd_key(void) { pthread_key_create(&zstd_key, free_zstd); }

static ZSTD_DCtx *this_threads_zstd(void)
{
    ZSTD_DCtx *context = pthread_getspecific(zstd_key);

    if (context) {
        ZSTD_DCtx_reset(context, ZSTD_reset_session_only);
        return context;
    }
    context = ZSTD_createDCtx();
    if (context && pthread_setspecific(zstd_key, context) != 0) {
        ZSTD_freeDCtx(context);
        context = NULL;
    }
    return context;
}

static void keep_zstd(ZSTD_DCtx *context)
{
    if (ZSTD_sizeof_DCtx(context) <= ZSTD_KEEP)
        return;
    pthread_setspecific(zstd_key, NULL);
    ZSTD_freeDCtx(context);
}

static int unzstd_cluster(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    ZSTD_inBuffer input = { .src = in, .size = in_length };
    ZSTD_outBuffer output = { .dst = out, .size = out_length };
    ZSTD_DCtx *context = this_threads_zstd();
    size_t ret = 1;

    if (!context)
        return -ENOMEM;
    while (output.pos < output.size) {
        size_t in_before = input.pos, out_before = output.pos;
        ret = ZSTD_decompressStream(context, &output, &input);
        if (ZSTD_isError(ret) || (input.pos == in_before && output.pos == out_before))
            break;
    }
    keep_zstd(context);
    return output.pos == output.size && !ZSTD_isError(ret) ? 0 : -EIO;
}

int qcow2_decompress(enum qcow2_compression how, const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    size_t used;

    return how == QCOW2_ZSTD ? unzstd_cluster(in, in_length, out, out_length)
                             : inflate_cluster(in, in_length, out, out_length, &used);
}

size_t qcow2_compressed_length(enum qcow2_compression how, const uint8_t *in, size_t in_length, uint8_t *out,
                               size_t out_length)
{
    size_t used = 0;

    if (how == QCOW2_ZSTD) {
        used = ZSTD_findFrameCompressedSize(in, in_length);
        return ZSTD_isError(used) ? 0 : used;
    }
    return inflate_cluster(in, in_length, out, out_length, &used) == 0 ? used : 0;
}

/* ---- encoding ---- */

/* The specification's form: raw deflate, window 4 KiB. */
static size_t deflate_cluster(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    z_stream stream = {
        .next_in = (Bytef *)(uintptr_t)in,
        .avail_in = (uInt)in_length,
        .next_out = out,
        .avail_out = (uInt)out_length,
    };

    if (deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return 0;
    bool whole = deflate(&stream, Z_FINISH) == Z_STREAM_END;
    deflateEnd(&stream);
    return whole ? out_length - stream.avail_out : 0;
}

size_t qcow2_compress(enum qcow2_compression how, const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    if (how == QCOW2_ZLIB && qcow2_looks_random(in, in_length))
        return 0;
    if (how == QCOW2_ZLIB)
        return deflate_cluster(in, in_length, out, out_length);
    size_t got = ZSTD_compress(out, out_length, in, in_length, ZSTD_CLEVEL_DEFAULT);
    return ZSTD_isError(got) ? 0 : got;
}

/* ---- decoding for a request ---- */

struct decode_job {
    enum qcow2_compression how;
    const uint8_t *in;
    size_t in_length;
    uint8_t *out;
    size_t out_length;
};

static int decode_job_run(void *arg)
{
    struct decode_job *job = arg;

    return qcow2_decompress(job->how, job->in, job->in_length, job->out, job->out_length);
}

static coroutine_fn int co_decode(struct qcow2 *s, struct qcow2_entry entry, uint8_t *out)
{
    uint64_t offset, length;

    qcow2_entry_compressed_place(entry, s->cluster_bits, &offset, &length);
    uint8_t *in = blk_buffer_alloc(qcow2_data_file(s), length);
    if (!in)
        return -ENOMEM;
    int ret = blk_co_read(qcow2_data_file(s), offset, in, length);
    if (ret == 0) {
        struct decode_job job = { s->header.compression, in, length, out, s->cluster_size };
        ret = co_crew_do(decode_job_run, &job);
    }
    free(in);
    return ret;
}

/* ---- the decoded ones: lock held ---- */

static void unref_decoded(struct qcow2_decoded *d)
{
    if (--d->references > 0)
        return;
    free(d->data);
    free(d);
}

static void unlist(struct qcow2 *s, struct qcow2_decoded *d)
{
    if (d->stale)
        return;
    d->stale = true;
    list_remove(&d->link);
    s->decoded_count--;
    unref_decoded(d);
}

void qcow2_decoded_forget(struct qcow2 *s, uint64_t guest_cluster)
{
    struct qcow2_decoded *d, *next;

    list_for_each_safe(d, next, &s->decoded, link) {
        if (d->guest_cluster == guest_cluster)
            unlist(s, d);
    }
}

void qcow2_decoded_free(struct qcow2 *s)
{
    while (!list_empty(&s->decoded))
        unlist(s, list_first(&s->decoded, struct qcow2_decoded, link));
}

static struct qcow2_decoded *find_decoded(struct qcow2 *s, uint64_t guest_cluster, struct qcow2_entry entry)
{
    struct qcow2_decoded *d;

    list_for_each(d, &s->decoded, link) {
        if (d->guest_cluster == guest_cluster && qcow2_entry_equal(d->entry, entry))
            return d;
    }
    return NULL;
}

static struct qcow2_decoded *new_decoded(struct qcow2 *s, uint64_t guest_cluster, struct qcow2_entry entry)
{
    struct qcow2_decoded *d = calloc(1, sizeof(*d));

    if (!d)
        return NULL;
    d->data = malloc(s->cluster_size);
    if (!d->data) {
        free(d);
        return NULL;
    }
    d->guest_cluster = guest_cluster;
    d->entry = entry;
    d->references = 1;
    if (s->decoded_count >= QCOW2_DECODED_MAX)
        unlist(s, list_last(&s->decoded, struct qcow2_decoded, link));
    list_prepend(&s->decoded, &d->link);
    s->decoded_count++;
    return d;
}

/* With a reference of the caller's. */
static coroutine_fn int co_get_decoded(struct qcow2 *s, uint64_t guest_cluster, struct qcow2_entry entry,
                                       struct qcow2_decoded **out)
{
    struct qcow2_decoded *d = find_decoded(s, guest_cluster, entry);

    if (d) {
        d->references++;
        list_remove(&d->link);
        list_prepend(&s->decoded, &d->link);
        while (!d->ready)
            co_cond_wait(&s->decoded_ready, &s->lock);
    } else {
        d = new_decoded(s, guest_cluster, entry);
        if (!d)
            return -ENOMEM;
        d->references++;
        co_mutex_unlock(&s->lock);
        int ret = co_decode(s, entry, d->data);
        co_mutex_lock(&s->lock);
        d->result = ret;
        d->ready = true;
        if (ret < 0)
            unlist(s, d);
        co_cond_broadcast(&s->decoded_ready);
    }
    *out = d;
    return 0;
}

coroutine_fn int qcow2_co_read_compressed(struct qcow2 *s, struct qcow2_entry entry, uint64_t offset, uint64_t length,
                                          const struct iovec *iov, int iov_count)
{
    struct qcow2_decoded *d;

    co_mutex_lock(&s->lock);
    int ret = co_get_decoded(s, offset >> s->cluster_bits, entry, &d);
    co_mutex_unlock(&s->lock);
    if (ret < 0)
        return ret;
    ret = d->result;
    if (ret == 0)
        iov_from_buffer(iov, iov_count, 0, d->data + qcow2_in_cluster(s, offset), length);
    co_mutex_lock(&s->lock);
    unref_decoded(d);
    co_mutex_unlock(&s->lock);
    return ret;
}
