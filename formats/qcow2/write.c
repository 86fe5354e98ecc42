/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Slow writes: into clusters that have to be allocated, filled or copied, and in place where the request came here
 * with others.
 *
 * A write goes piece by piece. For each, under the lock: look up, register in flight, allocate. Without it: read what
 * the cluster held around the request (copy on write), and write head, data and tail in one go. Under it again: only
 * now, the data being written, set the entries (W3), and pass on what they referred to before. A commit later makes
 * both durable in that order.
 */
#include "alloc.h"
#include "commit.h"
#include "compress.h"
#include "dirty.h"
#include "driver.h"
#include "free.h"
#include "inflight.h"
#include "l2.h"
#include "overlap.h"
#include "refcount.h"
#include "request.h"

#include <base/crew.h>
#include <base/testpoint.h>
#include <string.h>

/* Copy on write reads across what the request itself writes, up to so many bytes. */
#define READ_ACROSS (16u * 1024)

enum how {
    SKIP,     /* what is there already, if only absent parts are wanted */
    IN_PLACE, /* clusters, or subclusters, that are ours alone and have data */
    FILL,     /* ours alone, but without data so far */
    ALLOCATE, /* everything else */
};

struct piece {
    bool absent_only; /* BLK_REQ_ABSENT_ONLY */
    enum how how;
    uint64_t offset, length;                    /* guest */
    uint64_t host;                              /* of the first cluster's start */
    uint64_t zeroed_epoch;                      /* waits until it has passed, if others may have had the place */
    bool fresh;                                 /* host clusters that were never written */
    struct qcow2_entry first_entry, last_entry; /* as they were: for copy on write */
    struct qcow2_inflight inflight;
};

/* [offset, end) lies in the entry's cluster, or (absent_only) in one subcluster of it. */
static enum how how_to_write(const struct qcow2 *s, const struct piece *p, struct qcow2_entry entry, uint64_t offset,
                             uint64_t end)
{
    if (p->absent_only && qcow2_kind_at(s, entry, offset) != QCOW2_UNALLOCATED)
        return SKIP;
    if (!qcow2_entry_copied(entry) || !qcow2_entry_has_cluster(entry))
        return ALLOCATE;
    if (!s->extended)
        return qcow2_entry_kind(entry) == QCOW2_NORMAL ? IN_PLACE : FILL;
    uint32_t touched = qcow2_sub_mask(s, qcow2_cluster_start(s, offset), offset, end);
    return (touched & ~qcow2_entry_allocated(entry)) == 0 ? IN_PLACE : FILL;
}

/* ---- planning: lock held ---- */

/* Extends the piece over entries of the same way, within the slice. */
static coroutine_fn int co_plan_run(struct qcow2 *s, struct qcow2_slice *slice, uint64_t length, struct piece *p)
{
    uint32_t index = qcow2_slice_index(s, p->offset);
    uint64_t expected = 0, at = qcow2_cluster_start(s, p->offset), end = p->offset + length;

    if (p->absent_only && s->extended) /* each for itself */
        end = MIN(end, align_down(p->offset, qcow2_sub_size(s)) + qcow2_sub_size(s));
    for (; index < qcow2_slice_entries(s) && at < end; index++, at += s->cluster_size) {
        struct qcow2_entry entry = qcow2_slice_entry(s, slice, index);
        uint64_t host = qcow2_entry_host(entry);
        bool first = at <= p->offset;
        enum how how = how_to_write(s, p, entry, MAX(at, p->offset), MIN(end, at + s->cluster_size));
        if (slice->suspect) {
            int ret = qcow2_co_check_entry(s, slice, index, entry, true);
            if (ret < 0)
                return ret;
        }
        if (first) {
            p->how = how;
            p->host = host;
            p->first_entry = entry;
        } else if (how != p->how || (p->how != ALLOCATE && host != expected)) {
            break;
        }
        p->last_entry = entry;
        expected = host + s->cluster_size;
    }
    p->length = MIN(at, end) - p->offset;
    return 0;
}

/* The run may have become shorter: the last entry is another one. */
static void shorten(struct qcow2 *s, struct qcow2_slice *slice, struct piece *p, uint64_t end)
{
    if (end >= p->offset + p->length)
        return;
    p->length = end - p->offset;
    p->last_entry = qcow2_slice_entry(s, slice, qcow2_slice_index(s, end - 1));
    p->inflight.last = (end - 1) >> s->cluster_bits;
}

/* A table of our own, unless no entry of it is going to change. */
static coroutine_fn int co_find_slice(struct qcow2 *s, const struct piece *p, uint64_t length,
                                      struct qcow2_slice **slice)
{
    uint64_t end = MIN(p->offset + length, qcow2_cluster_start(s, p->offset) + s->cluster_size);
    int ret = qcow2_co_slice(s, p->offset, slice);

    if (ret < 0)
        return ret;
    if (p->absent_only && s->extended)
        end = MIN(end, align_down(p->offset, qcow2_sub_size(s)) + qcow2_sub_size(s));
    if (*slice &&
        how_to_write(s, p, qcow2_slice_entry(s, *slice, qcow2_slice_index(s, p->offset)), p->offset, end) <= IN_PLACE)
        return 0;
    return qcow2_co_slice_for_write(s, p->offset, slice);
}

/* Host clusters for the piece. Registered in flight already. */
static coroutine_fn int co_get_clusters(struct qcow2 *s, struct qcow2_slice *slice, struct piece *p)
{
    uint64_t got = 0, count = p->inflight.last - p->inflight.first + 1;

    if (p->how != ALLOCATE)
        return s->external ? 0 : qcow2_co_check_overlap(s, p->host, count << s->cluster_bits, 0);
    int ret = qcow2_co_alloc_data(s, p->inflight.first << s->cluster_bits, count, &p->host, &got, &p->fresh);
    if (ret == 0 && got < count)
        shorten(s, slice, p, (p->inflight.first + got) << s->cluster_bits);
    return ret;
}

static coroutine_fn int co_plan(struct qcow2 *s, uint64_t offset, uint64_t length, bool absent_only, struct piece *p)
{
    struct qcow2_slice *slice = NULL;

    do {
        *p = (struct piece){ .offset = offset, .absent_only = absent_only };
        if (atomic_load(&s->corrupt))
            return -EIO;
        int ret = co_find_slice(s, p, length, &slice);
        if (ret == 0)
            ret = co_plan_run(s, slice, length, p);
        if (ret < 0 || p->how == SKIP)
            return ret;
        p->inflight.first = offset >> s->cluster_bits;
        p->inflight.last = (offset + p->length - 1) >> s->cluster_bits;
        p->inflight.exclusive = p->how != IN_PLACE;
    } while (!qcow2_co_inflight_begin(s, &p->inflight));
    shorten(s, slice, p, (p->inflight.last + 1) << s->cluster_bits);
    p->zeroed_epoch = s->zeroed_epoch;
    int ret = co_get_clusters(s, slice, p);
    if (ret < 0)
        qcow2_inflight_end(s, &p->inflight);
    return ret;
}

/* ---- writing: lock not held ---- */

/* All from here on, `length` bytes in the entry's cluster. */
static bool reads_zero(const struct qcow2 *s, struct qcow2_entry entry, uint64_t offset, uint64_t length)
{
    enum qcow2_kind kind = qcow2_kind_at(s, entry, offset);

    if (align_down(offset, qcow2_sub_size(s)) != align_down(offset + length - 1, qcow2_sub_size(s)))
        return false; /* of several kinds, maybe: who reads them knows */
    if (kind == QCOW2_UNALLOCATED)
        return !s->node->backing || offset >= MIN(blk_node_size(s->node->backing), blk_node_size(s->node));
    return kind == QCOW2_ZERO_PLAIN || kind == QCOW2_ZERO_ALLOCATED;
}

/* What is next to the request in its first or last cluster. */
struct margin {
    uint64_t offset, length; /* guest */
    bool zero;
    uint8_t *buffer;
};

/* Clusters that were never written need no zeroes but those that fill up the host's sectors: the file shall not end
 * within one. */
static void set_margin(const struct qcow2 *s, const struct piece *p, struct qcow2_entry entry, uint64_t offset,
                       uint64_t length, bool before, struct margin *m)
{
    uint64_t host_align = MAX(qcow2_data_file(s)->limits.request_alignment, BLK_SECTOR_SIZE);
    uint64_t align = MIN(host_align, s->cluster_size);
    uint64_t part = length & (align - 1);

    *m = (struct margin){ .offset = offset, .length = length, .zero = length && reads_zero(s, entry, offset, length) };
    if (m->zero && p->fresh) {
        m->offset = before ? offset + length - part : offset;
        m->length = part;
    }
}

struct margins {
    struct qcow2 *s;
    const struct piece *p;
    struct margin side[2]; /* before, after */
};

static coroutine_fn int co_fill_margin(void *arg, size_t index)
{
    const struct margins *margins = arg;
    const struct margin *m = &margins->side[index];
    struct iovec iov = { m->buffer, m->length };

    if (m->length == 0)
        return 0;
    if (!m->zero)
        return qcow2_co_read_entry(margins->s, index == 0 ? margins->p->first_entry : margins->p->last_entry, m->offset,
                                   m->length, &iov, 1);
    memset(m->buffer, 0, m->length);
    return 0;
}

/* Both sides of one cluster in one read, with what lies between: cheaper than two reads when that is little. */
static coroutine_fn int co_fill_in_one(const struct margins *margins)
{
    const struct margin *before = &margins->side[0], *after = &margins->side[1];
    uint8_t *between = blk_buffer_alloc(qcow2_data_file(margins->s), margins->p->length);

    if (!between)
        return -ENOMEM;
    struct iovec iov[] = { { before->buffer, before->length },
                           { between, margins->p->length },
                           { after->buffer, after->length } };
    int ret = qcow2_co_read_entry(margins->s, margins->p->first_entry, before->offset,
                                  before->length + margins->p->length + after->length, iov, 3);
    free(between);
    return ret;
}

static coroutine_fn int co_fill_margins(struct margins *margins)
{
    const struct piece *p = margins->p;
    const struct margin *before = &margins->side[0], *after = &margins->side[1];

    for (size_t i = 0; i < ARRAY_SIZE(margins->side); i++) {
        struct margin *m = &margins->side[i];
        m->buffer = m->length ? blk_buffer_alloc(qcow2_data_file(margins->s), m->length) : NULL;
        if (m->length && !m->buffer)
            return -ENOMEM;
    }
    if ((before->length && !before->zero) || (after->length && !after->zero))
        blk_co_event(margins->s->node->file, BLK_EVENT_COW_READ);
    if (!before->length || !after->length)
        return co_fill_margin(margins, before->length ? 0 : 1);
    if (!before->zero && !after->zero && p->inflight.first == p->inflight.last && p->length <= READ_ACROSS)
        return co_fill_in_one(margins);
    return co_crew(ARRAY_SIZE(margins->side), ARRAY_SIZE(margins->side), co_fill_margin, margins);
}

/* Subclusters whose data go along into a new cluster. */
static uint32_t brought_along(const struct piece *p, struct qcow2_entry entry)
{
    if (p->how != ALLOCATE)
        return 0;
    return qcow2_entry_kind(entry) == QCOW2_IS_COMPRESSED ? UINT32_MAX : qcow2_entry_allocated(entry);
}

/* What is written begins and ends with whole subclusters: those that the request touches, and those that are brought
 * along, with what lies between. */
static uint64_t first_byte(const struct qcow2 *s, const struct piece *p)
{
    uint32_t along = s->extended ? brought_along(p, p->first_entry) : 0;
    uint64_t start = align_down(p->offset, qcow2_sub_size(s));

    if (along)
        start = MIN(start, qcow2_cluster_start(s, p->offset) + ((uint64_t)__builtin_ctz(along) << s->sub_bits));
    return start;
}

static uint64_t end_byte(const struct qcow2 *s, const struct piece *p)
{
    uint32_t along = s->extended ? brought_along(p, p->last_entry) : 0;
    uint64_t last = p->offset + p->length - 1, end = align_up(last + 1, qcow2_sub_size(s));

    if (along)
        end = MAX(end, qcow2_cluster_start(s, last) + ((uint64_t)(32 - __builtin_clz(along)) << s->sub_bits));
    return end;
}

/* iov[0] is free for what comes before, iov[iov_count] for what comes after. */
static coroutine_fn int co_write_around(struct qcow2 *s, const struct piece *p, struct iovec *iov, int iov_count)
{
    uint64_t end = p->offset + p->length, start = first_byte(s, p), whole = end_byte(s, p);
    struct margins margins = { .s = s, .p = p };
    struct margin *before = &margins.side[0], *after = &margins.side[1];

    set_margin(s, p, p->first_entry, start, p->offset - start, true, before);
    if (s->external) /* its data file ends where the disk ends */
        whole = MIN(whole, blk_node_size(s->node));
    set_margin(s, p, p->last_entry, end, whole - end, false, after);
    int ret = co_fill_margins(&margins);
    if (ret < 0)
        goto out;
    if (before->length) {
        iov[0] = (struct iovec){ before->buffer, before->length };
    } else {
        iov++;
        iov_count--;
    }
    if (after->length)
        iov[iov_count++] = (struct iovec){ after->buffer, after->length };
    uint64_t host = p->host + (p->offset - before->length - qcow2_cluster_start(s, p->offset));
    if (before->length || after->length)
        blk_co_event(s->node->file, BLK_EVENT_COW_WRITE);
    blk_co_event(s->node->file, BLK_EVENT_WRITE_AIO);
    ret = blk_co_writev(qcow2_data_file(s), host, before->length + p->length + after->length, iov, iov_count, 0);
out:
    free(before->buffer);
    free(after->buffer);
    return ret;
}

static coroutine_fn int co_write_in_place(struct qcow2 *s, const struct piece *p, const struct iovec *iov,
                                          int iov_count)
{
    blk_co_event(s->node->file, BLK_EVENT_WRITE_AIO);
    return blk_co_writev(qcow2_data_file(s), p->host + qcow2_in_cluster(s, p->offset), p->length, iov, iov_count, 0);
}

/* ---- linking: lock held ---- */

/* What a cluster of the piece has once it is written: data in what was, and zeroes where there were some before. */
static uint64_t subclusters_after(const struct qcow2 *s, const struct piece *p, struct qcow2_entry old,
                                  uint64_t cluster)
{
    if (!s->extended)
        return 0;
    bool compressed = qcow2_entry_kind(old) == QCOW2_IS_COMPRESSED;
    uint32_t written = qcow2_sub_mask(s, cluster, first_byte(s, p), end_byte(s, p));
    uint32_t allocated = p->how == FILL ? qcow2_entry_allocated(old) : 0;
    uint32_t zeroes = compressed ? 0 : qcow2_entry_zeroes(old);
    return qcow2_subclusters(allocated | written, zeroes & ~written);
}

static coroutine_fn int co_link(struct qcow2 *s, const struct piece *p)
{
    struct qcow2_slice *slice;
    int ret = qcow2_co_slice_for_write(s, p->offset, &slice);
    uint32_t index = qcow2_slice_index(s, p->offset);

    if (ret < 0)
        return ret;
    for (uint64_t i = 0; i <= p->inflight.last - p->inflight.first; i++, index++) {
        struct qcow2_entry old = qcow2_slice_entry(s, slice, index);
        uint64_t subclusters = subclusters_after(s, p, old, (p->inflight.first + i) << s->cluster_bits);
        qcow2_slice_set(s, slice, index, qcow2_entry_data(p->host + (i << s->cluster_bits), subclusters));
        if (p->how == FILL)
            continue;
        qcow2_free_entry(s, old, QCOW2_FREED_BY_OTHER);
        if (qcow2_entry_kind(old) == QCOW2_IS_COMPRESSED)
            qcow2_decoded_forget(s, p->inflight.first + i);
    }
    return 0;
}

/* One piece; *done is how much of the request it covered. Lock held. */
static coroutine_fn int co_write_piece(struct qcow2 *s, uint64_t offset, uint64_t length, const struct iovec *iov,
                                       int iov_count, uint64_t skip, struct iovec *scratch, unsigned flags,
                                       uint64_t *done)
{
    struct piece p;
    int ret = co_plan(s, offset, length, flags & BLK_REQ_ABSENT_ONLY, &p);

    *done = p.length;
    if (ret < 0 || p.how == SKIP)
        return ret;
    co_mutex_unlock(&s->lock);
    int count = iov_slice(iov, iov_count, skip, p.length, scratch + 1, iov_count);
    /* A mapped write from before the cluster was zeroed would land among our zeroes (W6). */
    if ((p.how == FILL || (p.how == ALLOCATE && s->external)) && !blk_epoch_passed(s->node, p.zeroed_epoch))
        blk_co_epoch_wait(s->node, p.zeroed_epoch);
    if (p.how == IN_PLACE)
        ret = co_write_in_place(s, &p, scratch + 1, count);
    else
        ret = co_write_around(s, &p, scratch, count + 1);
    testpoint_co("qcow2-link");
    co_mutex_lock(&s->lock);
    if (ret == 0 && p.how != IN_PLACE)
        ret = co_link(s, &p);
    if (ret < 0 && p.how == ALLOCATE)
        qcow2_co_unalloc_data(s, p.host, p.inflight.last - p.inflight.first + 1);
    qcow2_inflight_end(s, &p.inflight);
    *done = p.length;
    return ret;
}

coroutine_fn int qcow2_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                int iov_count, unsigned flags)
{
    struct qcow2 *s = node->state;
    struct iovec *scratch = malloc((size_t)(iov_count + 2) * sizeof(*scratch));
    uint64_t done = 0;
    int ret = scratch ? 0 : -ENOMEM;

    co_mutex_lock(&s->lock);
    while (ret == 0 && done < length) {
        uint64_t step = 0;
        qcow2_co_throttle(s);
        qcow2_co_reap(s, false);
        ret = co_write_piece(s, offset + done, length - done, iov, iov_count, done, scratch, flags, &step);
        if (ret == -ENOSPC) {
            ret = qcow2_co_make_room(s);
            continue;
        }
        done += step;
    }
    co_mutex_unlock(&s->lock);
    free(scratch);
    if (ret == 0 && (flags & BLK_REQ_FUA))
        ret = qcow2_co_commit(s);
    return ret;
}
