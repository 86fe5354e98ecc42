/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Write zeroes and discard: changes of entries, hardly any data.
 *
 * As QEMU: write zeroes keeps a cluster that is ours as a zero cluster with its place, unless it may unmap; discard of
 * a version 3 image leaves zero clusters, never a view of the backing image; version 2 has no zero clusters, so there
 * zeroes over a backing image have to be written as data, and a discard does nothing. With discard-no-unref a cluster
 * keeps its place whatever may unmap it. A part of a cluster makes the
 * whole one a zero cluster where the rest reads as zeroes already, else it is written as data.
 */
#include "commit.h"
#include "compress.h"
#include "dirty.h"
#include "driver.h"
#include "free.h"
#include "inflight.h"
#include "l2.h"
#include "request.h"

#include <string.h>

static bool may_unmap(enum qcow2_clear how) { return how == QCOW2_CLEAR_ZERO_UNMAP || how == QCOW2_CLEAR_DISCARD; }

/* A cluster of ours stays ours, as a zero cluster. */
static bool keeps_place(const struct qcow2 *s, enum qcow2_clear how)
{
    return how == QCOW2_CLEAR_ZERO || (s->discard_keeps_place && may_unmap(how));
}

/* What becomes of an entry that can be trusted. Returns the new one; *release: what the old one referred to is free. */
static struct qcow2_entry cleared_cluster(const struct qcow2 *s, struct qcow2_entry entry, enum qcow2_clear how,
                                          bool *release)
{
    enum qcow2_kind kind = qcow2_entry_kind(entry);
    bool has_zero = s->header.version >= 3;
    struct qcow2_entry zero = has_zero ? qcow2_entry_zero(false) : qcow2_entry_absent();

    if (how == QCOW2_CLEAR_ABSENT)
        return kind == QCOW2_UNALLOCATED ? zero : entry;
    if (how == QCOW2_CLEAR_DROP) {
        *release = kind != QCOW2_UNALLOCATED && kind != QCOW2_ZERO_PLAIN;
        return qcow2_entry_absent();
    }
    switch (kind) {
    case QCOW2_UNALLOCATED: return how == QCOW2_CLEAR_DISCARD && !s->node->backing ? entry : zero;
    case QCOW2_ZERO_PLAIN: return entry;
    case QCOW2_ZERO_ALLOCATED:
        if (keeps_place(s, how))
            return entry;
        break;
    case QCOW2_NORMAL:
        if (keeps_place(s, how) && has_zero && qcow2_entry_copied(entry))
            return qcow2_entry_zeroed(entry);
        break;
    default: break;
    }
    *release = true;
    return zero;
}

/* The same of an extended entry, in these subclusters. A compressed cluster has none of its own: a part of it stays. */
static struct qcow2_entry cleared_subclusters(const struct qcow2 *s, struct qcow2_entry entry, enum qcow2_clear how,
                                              uint32_t which, bool *release)
{
    bool compressed = qcow2_entry_kind(entry) == QCOW2_IS_COMPRESSED,
         any = compressed || qcow2_entry_has_cluster(entry);
    bool whole = which == UINT32_MAX;

    if (how == QCOW2_CLEAR_ABSENT)
        return compressed ? entry : qcow2_entry_zeroed_in(entry, which & ~qcow2_entry_allocated(entry));
    if (how == QCOW2_CLEAR_DROP) {
        *release = any;
        return qcow2_entry_absent();
    }
    if (how == QCOW2_CLEAR_DISCARD && !any && !entry.subclusters && !s->node->backing)
        return entry;
    bool kept = keeps_place(s, how) && qcow2_entry_copied(entry) && !compressed;
    if (!any || (!whole && !compressed) || kept)
        return qcow2_entry_zeroed_in(entry, which);
    if (!whole)
        return entry;
    *release = true;
    return qcow2_entry_zero(true);
}

static struct qcow2_entry cleared(const struct qcow2 *s, struct qcow2_entry entry, enum qcow2_clear how, uint32_t which,
                                  bool *release)
{
    *release = false;
    return s->extended ? cleared_subclusters(s, entry, how, which, release) : cleared_cluster(s, entry, how, release);
}

/* No L2 table: does clearing change anything here? */
static bool absent_stays(const struct qcow2 *s, enum qcow2_clear how)
{
    bool release;

    return qcow2_entry_equal(cleared(s, qcow2_entry_absent(), how, UINT32_MAX, &release), qcow2_entry_absent());
}

struct clear_range {
    uint64_t offset, length; /* within one slice */
    uint32_t first, count;   /* entries */
};

static struct clear_range range_in_slice(const struct qcow2 *s, uint64_t offset, uint64_t length, enum qcow2_clear how)
{
    uint64_t slice_bytes = UINT64_C(1) << s->slice_shift;
    struct clear_range r = { .offset = offset, .length = MIN(length, slice_bytes - (offset & (slice_bytes - 1))) };

    /* The raw data file is zeroed along with the range: that is one that changes as a whole. */
    if (how == QCOW2_CLEAR_ABSENT && qcow2_data_is_raw(s))
        r.length = MIN(r.length, qcow2_sub_size(s));
    r.first = qcow2_slice_index(s, offset);
    r.count = (uint32_t)(((offset + r.length - 1) >> s->cluster_bits) - (offset >> s->cluster_bits) + 1);
    return r;
}

/* An entry that makes no sense, or names metadata, just goes. What it names is neither freed nor kept as a place to
 * write to: QEMU does both, and so loses tables. */
static struct qcow2_entry cleared_in(const struct qcow2 *s, const struct qcow2_slice *slice,
                                     const struct clear_range *r, uint32_t index, enum qcow2_clear how, bool *release)
{
    struct qcow2_entry entry = qcow2_slice_entry(s, slice, index);
    uint64_t guest = qcow2_slice_guest(s, slice, index);
    uint32_t which = s->extended ? qcow2_sub_mask(s, guest, r->offset, r->offset + r->length) : UINT32_MAX;

    if (likely(!slice->suspect) || qcow2_entry_plausible(s, guest, entry))
        return cleared(s, entry, how, which, release);
    *release = false;
    return s->header.version >= 3 && how != QCOW2_CLEAR_DROP ? qcow2_entry_zero(s->extended) : qcow2_entry_absent();
}

static bool changes_anything(const struct qcow2 *s, const struct qcow2_slice *slice, const struct clear_range *r,
                             enum qcow2_clear how)
{
    bool release;

    for (uint32_t i = 0; i < r->count; i++) {
        struct qcow2_entry entry = qcow2_slice_entry(s, slice, r->first + i);
        if (!qcow2_entry_equal(cleared_in(s, slice, r, r->first + i, how, &release), entry))
            return true;
    }
    return false;
}

/* ---- space of clusters that keep their place ---- */

static bool gives_back(const struct qcow2 *s, enum qcow2_clear how)
{
    return may_unmap(how) && s->pass_discard[QCOW2_FREED_BY_REQUEST];
}

/* Bytes of the file that holds the clusters' data. */
struct places {
    struct place {
        uint64_t offset, length;
    } * items;
    size_t count, capacity;
};

static void note_place(struct places *places, uint64_t offset, uint64_t length)
{
    struct place *last = places->count ? &places->items[places->count - 1] : NULL;

    if (last && last->offset + last->length == offset) {
        last->length += length;
        return;
    }
    if (places->count == places->capacity) {
        places->capacity = places->capacity ? places->capacity * 2 : 16;
        places->items = xrealloc(places->items, places->capacity * sizeof(*places->items));
    }
    places->items[places->count++] = (struct place){ offset, length };
}

/* The part of a changed cluster that is within the range. */
static void note_kept(const struct qcow2 *s, struct places *places, struct qcow2_entry entry, uint64_t guest,
                      const struct clear_range *r)
{
    uint64_t start = MAX(guest, r->offset), end = MIN(guest + s->cluster_size, r->offset + r->length);

    note_place(places, qcow2_entry_host(entry) + (start - guest), end - start);
}

/* The host gets its space back. That comes before the entries are durable: one that is still on disk then just shows
 * the zeroes early. So zeroes it must be, but after a discard, which promises nothing. Failing does no harm. Lock held,
 * given up; the range is registered, so nobody writes to these places, or gets them. */
static coroutine_fn void co_give_back(struct qcow2 *s, const struct places *places, enum qcow2_clear how)
{
    struct blk_node *file = qcow2_data_file(s);

    co_mutex_unlock(&s->lock);
    for (size_t i = 0; i < places->count; i++) {
        const struct place *p = &places->items[i];
        if (how == QCOW2_CLEAR_DISCARD)
            blk_co_discard(file, p->offset, p->length);
        else
            blk_co_write_zeroes(file, p->offset, p->length, BLK_REQ_MAY_UNMAP | BLK_REQ_NO_FALLBACK);
    }
    co_mutex_lock(&s->lock);
}

/* ---- a range ---- */

/* *places, if not NULL: which clusters lost data and kept their place. */
static void change_range(struct qcow2 *s, struct qcow2_slice *slice, const struct clear_range *r, enum qcow2_clear how,
                         struct places *places)
{
    bool kept = s->external;

    for (uint32_t i = 0; i < r->count; i++) {
        struct qcow2_entry old = qcow2_slice_entry(s, slice, r->first + i);
        bool release;
        struct qcow2_entry new = cleared_in(s, slice, r, r->first + i, how, &release);
        if (qcow2_entry_equal(new, old))
            continue;
        qcow2_slice_set(s, slice, r->first + i, new);
        if (!release && qcow2_entry_has_cluster(new)) {
            kept = true;
            if (places)
                note_kept(s, places, new, qcow2_slice_guest(s, slice, r->first + i), r);
        }
        if (release)
            qcow2_free_entry(s, old, QCOW2_FREED_BY_REQUEST);
        if (qcow2_entry_kind(old) == QCOW2_IS_COMPRESSED)
            qcow2_decoded_forget(s, (r->offset >> s->cluster_bits) + i);
    }
    if (kept) /* mapped writes may be on their way there */
        s->zeroed_epoch = epoch_retire();
}

/* ---- an external data file ---- */

static bool makes_zeroes(enum qcow2_clear how) { return how != QCOW2_CLEAR_DROP; }

/* Who reads the data file as a raw disk sees zeroes too: before an entry says so (W3), and once more if a write that
 * was mapped before may have landed since. Lock held, given up. */
static coroutine_fn int co_zero_data_file(struct qcow2 *s, const struct clear_range *r, enum qcow2_clear how)
{
    uint64_t end = MIN(r->offset + r->length, blk_node_size(s->node));

    if (!qcow2_data_is_raw(s) || !makes_zeroes(how) || end <= r->offset)
        return 0;
    co_mutex_unlock(&s->lock);
    int ret = blk_co_write_zeroes(qcow2_data_file(s), r->offset, end - r->offset,
                                  how == QCOW2_CLEAR_ZERO ? 0 : BLK_REQ_MAY_UNMAP);
    co_mutex_lock(&s->lock);
    return ret;
}

/* The entries have changed; nobody else may write here yet. */
static coroutine_fn int co_settle_data_file(struct qcow2 *s, const struct clear_range *r, enum qcow2_clear how)
{
    uint64_t epoch = s->zeroed_epoch;

    if (!qcow2_data_is_raw(s)) {
        const struct places places = { .items = &(struct place){ r->offset, r->length }, .count = 1 };
        if (gives_back(s, how))
            co_give_back(s, &places, how);
        return 0;
    }
    if (blk_epoch_passed(s->node, epoch))
        return 0;
    co_mutex_unlock(&s->lock);
    blk_co_epoch_wait(s->node, epoch);
    co_mutex_lock(&s->lock);
    return co_zero_data_file(s, r, how);
}

/* The range is registered, so its entries stay as they are. Lock held, and may be given up. */
static coroutine_fn int co_clear_external(struct qcow2 *s, const struct clear_range *r, enum qcow2_clear how)
{
    struct qcow2_slice *slice;
    int ret = co_zero_data_file(s, r, how);

    if (ret == 0)
        ret = qcow2_co_slice_for_write(s, r->offset, &slice);
    if (ret < 0)
        return ret;
    change_range(s, slice, r, how, NULL);
    return co_settle_data_file(s, r, how);
}

/* The same where the image has its data itself. */
static coroutine_fn void co_clear_own(struct qcow2 *s, struct qcow2_slice *slice, const struct clear_range *r,
                                      enum qcow2_clear how)
{
    struct places places = { 0 };

    change_range(s, slice, r, how, s->discard_keeps_place && gives_back(s, how) ? &places : NULL);
    if (places.count)
        co_give_back(s, &places, how);
    free(places.items);
}

/* ---- entries ---- */

/* One slice's part of the range. Lock held; *step is how far it got. */
static coroutine_fn int co_clear_slice(struct qcow2 *s, uint64_t offset, uint64_t length, enum qcow2_clear how,
                                       uint64_t *step)
{
    struct clear_range r = range_in_slice(s, offset, length, how);
    struct qcow2_inflight inflight;
    struct qcow2_slice *slice;

    *step = r.length;
    do {
        if (atomic_load(&s->corrupt))
            return -EIO;
        int ret = qcow2_co_slice(s, offset, &slice);
        if (ret < 0)
            return ret;
        if (!slice && absent_stays(s, how)) {
            *step = MIN(length, (((offset >> s->l1_shift) + 1) << s->l1_shift) - offset);
            return 0;
        }
        if (slice && !changes_anything(s, slice, &r, how))
            return 0;
        ret = qcow2_co_slice_for_write(s, offset, &slice);
        if (ret < 0)
            return ret;
        inflight = (struct qcow2_inflight){ .first = offset >> s->cluster_bits,
                                            .last = (offset >> s->cluster_bits) + r.count - 1,
                                            .exclusive = true };
    } while (!qcow2_co_inflight_begin(s, &inflight));
    r.count = (uint32_t)(inflight.last - inflight.first + 1);
    r.length = MIN(r.length, ((inflight.last + 1) << s->cluster_bits) - offset);
    *step = r.length;
    int ret = 0;
    if (s->external)
        ret = co_clear_external(s, &r, how);
    else
        co_clear_own(s, slice, &r, how);
    qcow2_inflight_end(s, &inflight);
    return ret;
}

coroutine_fn int qcow2_co_clear(struct qcow2 *s, uint64_t offset, uint64_t length, enum qcow2_clear how)
{
    int ret = 0;

    co_mutex_lock(&s->lock);
    while (ret == 0 && length > 0) {
        uint64_t step = 0;
        qcow2_co_throttle(s);
        qcow2_co_reap(s, false);
        ret = co_clear_slice(s, offset, length, how, &step);
        if (ret == -ENOSPC) {
            ret = qcow2_co_make_room(s);
            continue;
        }
        offset += step;
        length -= step;
    }
    co_mutex_unlock(&s->lock);
    return ret;
}

/* ---- parts of clusters ---- */

static coroutine_fn int co_kind(struct qcow2 *s, uint64_t offset, enum qcow2_kind *kind)
{
    struct qcow2_slice *slice;

    co_mutex_lock(&s->lock);
    int ret = qcow2_co_slice(s, offset, &slice);
    *kind = ret == 0 && slice ? qcow2_kind_at(s, qcow2_slice_entry(s, slice, qcow2_slice_index(s, offset)), offset)
                              : QCOW2_UNALLOCATED;
    co_mutex_unlock(&s->lock);
    return ret;
}

/* Does the backing image show nothing but zeroes through an unallocated subcluster? Where it cannot say: no. */
static coroutine_fn bool co_zero_below(const struct qcow2 *s, uint64_t start)
{
    struct blk_node *backing = s->node->backing;
    uint64_t end = backing ? MIN(start + qcow2_sub_size(s), blk_node_size(backing)) : 0;
    struct blk_status status;

    for (uint64_t offset = start; offset < end; offset += status.length) {
        if (blk_co_status(backing, NULL, offset, end - offset, &status) < 0 || !status.zero)
            return false;
    }
    return true;
}

static coroutine_fn int co_write_zero_data(struct qcow2 *s, uint64_t offset, uint64_t length)
{
    uint8_t *buffer = blk_buffer_alloc(qcow2_data_file(s), length);
    if (!buffer)
        return -ENOMEM;
    memset(buffer, 0, length);
    struct iovec iov = { buffer, length };
    int ret = qcow2_co_write(s->node, offset, length, &iov, 1, 0);
    free(buffer);
    return ret;
}

/* Part of one subcluster. */
static coroutine_fn int co_zero_part(struct qcow2 *s, uint64_t offset, uint64_t length, unsigned flags)
{
    uint64_t start = align_down(offset, qcow2_sub_size(s));
    enum qcow2_kind kind = QCOW2_ZERO_PLAIN;
    int ret = length ? co_kind(s, start, &kind) : 0;

    if (ret == 0 && kind == QCOW2_UNALLOCATED && co_zero_below(s, start)) {
        /* A write to the rest may have come first; its cluster is left alone, and asks for data. */
        ret = qcow2_co_clear(s, start, qcow2_sub_size(s), QCOW2_CLEAR_ABSENT);
        if (ret == 0)
            ret = co_kind(s, start, &kind);
        if (kind == QCOW2_UNALLOCATED) /* version 2, and no backing image */
            return ret;
    }
    if (ret < 0 || kind == QCOW2_ZERO_PLAIN || kind == QCOW2_ZERO_ALLOCATED)
        return ret;
    if ((flags & BLK_REQ_ABSENT_ONLY) && kind != QCOW2_UNALLOCATED)
        return 0;
    return flags & BLK_REQ_NO_FALLBACK ? -ENOTSUP : co_write_zero_data(s, offset, length);
}

/* Whole subclusters of one cluster. A compressed one has none: there zeroes are data. */
static coroutine_fn int co_zero_subclusters(struct qcow2 *s, uint64_t offset, uint64_t length, enum qcow2_clear how,
                                            unsigned flags)
{
    enum qcow2_kind kind = QCOW2_UNALLOCATED;
    int ret = length ? co_kind(s, offset, &kind) : 0;

    if (ret < 0 || length == 0)
        return ret;
    if (kind != QCOW2_IS_COMPRESSED || how == QCOW2_CLEAR_ABSENT)
        return qcow2_co_clear(s, offset, length, how);
    return flags & BLK_REQ_NO_FALLBACK ? -ENOTSUP : co_write_zero_data(s, offset, length);
}

/* [first, last): whole subclusters. */
static coroutine_fn int co_zero_whole(struct qcow2 *s, uint64_t first, uint64_t last, enum qcow2_clear how,
                                      unsigned flags)
{
    uint64_t from = MIN(align_up(first, s->cluster_size), last), to = MAX(align_down(last, s->cluster_size), from);
    int ret = co_zero_subclusters(s, first, from - first, how, flags);

    if (ret == 0 && to > from)
        ret = qcow2_co_clear(s, from, to - from, how);
    return ret == 0 ? co_zero_subclusters(s, to, last - to, how, flags) : ret;
}

/* Where the last whole `unit` ends. The end of the disk counts as the end of a cluster: nobody sees what follows. */
static uint64_t end_of_whole(const struct qcow2 *s, uint64_t end, uint64_t unit)
{
    return end == blk_node_size(s->node) ? align_up(end, s->cluster_size) : align_down(end, unit);
}

coroutine_fn int qcow2_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct qcow2 *s = node->state;
    uint64_t end = offset + length;
    uint64_t first = align_up(offset, qcow2_sub_size(s)), last = end_of_whole(s, end, qcow2_sub_size(s));
    enum qcow2_clear how = flags & BLK_REQ_ABSENT_ONLY ? QCOW2_CLEAR_ABSENT
                           : flags & BLK_REQ_MAY_UNMAP ? QCOW2_CLEAR_ZERO_UNMAP
                                                       : QCOW2_CLEAR_ZERO;
    int ret;

    if (s->header.version < 3 && node->backing)
        return -ENOTSUP;
    if (flags & BLK_REQ_ABSENT_ONLY) /* data in place of zeroes would be written over what is there */
        flags |= BLK_REQ_NO_FALLBACK;
    if (first > last || (first == last && end <= first)) {
        ret = co_zero_part(s, offset, length, flags);
    } else {
        ret = co_zero_part(s, offset, first - offset, flags);
        if (ret == 0 && last > first)
            ret = co_zero_whole(s, first, last, how, flags);
        if (ret == 0 && end > last)
            ret = co_zero_part(s, last, end - last, flags);
    }
    if (ret == 0 && (flags & BLK_REQ_FUA))
        ret = qcow2_co_commit(s);
    return ret;
}

coroutine_fn int qcow2_co_discard(struct blk_node *node, uint64_t offset, uint64_t length)
{
    struct qcow2 *s = node->state;
    uint64_t first = align_up(offset, s->cluster_size), last = end_of_whole(s, offset + length, s->cluster_size);

    if (s->header.version < 3 && node->backing)
        return -ENOTSUP;
    return last > first ? qcow2_co_clear(s, first, last - first, QCOW2_CLEAR_DISCARD) : 0;
}

/* A run of zero clusters: what shows through an absent one may be zeroes too, else they are data. */
static coroutine_fn int co_expand_run(struct qcow2 *s, uint64_t offset, uint64_t length)
{
    uint64_t step = MIN(length, UINT64_C(2) << 20);
    int ret = 0;

    if (!s->node->backing)
        return qcow2_co_clear(s, offset, align_up(length, s->cluster_size), QCOW2_CLEAR_DROP);
    for (uint64_t at = 0; at < length && ret == 0; at += step)
        ret = co_write_zero_data(s, offset + at, MIN(step, length - at));
    return ret;
}

coroutine_fn int qcow2_co_expand_zeroes(struct qcow2 *s)
{
    uint64_t size = blk_node_size(s->node);
    struct blk_extent extent;
    int ret = qcow2_co_drop_past_end(s, size);

    for (uint64_t offset = 0; offset < size && ret == 0; offset += extent.length) {
        ret = blk_co_map(s->node, offset, size - offset, &extent);
        if (ret == 0 && extent.kind == BLK_ZERO)
            ret = co_expand_run(s, offset, extent.length);
    }
    return ret;
}

coroutine_fn int qcow2_co_drop_past_end(struct qcow2 *s, uint64_t size)
{
    uint64_t start = align_up(size, s->cluster_size), end = (uint64_t)s->l1_size << s->l1_shift;

    return end > start ? qcow2_co_clear(s, start, end - start, QCOW2_CLEAR_DROP) : 0;
}
