/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * L2 slices in memory: loading, evicting, changing.
 *
 * A slice is loaded once however many wait for it, without the lock held during the read; it is published only if the
 * L1 entry is still the one that was read through. Clean slices are evicted by a clock when the budget is used up; an
 * evicted slice is unlinked first and freed when every request that could have seen it has ended. A slice with changes
 * that are not durable (`unstable`) is never evicted (W10): memory is then the only true copy, the file has an older
 * one.
 */
#include "corrupt.h"
#include "dirty.h"
#include "l2.h"
#include "overlap.h"

#include <string.h>

struct loading {
    struct list link;
    uint64_t number;
};

static uint64_t slices_per_table(const struct qcow2 *s) { return UINT64_C(1) << (s->l2_bits - s->slice_bits); }

static _Atomic(struct qcow2_slice *) *place_of(struct qcow2 *s, uint64_t number)
{
    uint64_t l1_index = number >> (s->l2_bits - s->slice_bits);
    struct qcow2_dir *dir = atomic_load_explicit(&s->dir[l1_index], memory_order_relaxed);

    return dir ? &dir->slices[number & (slices_per_table(s) - 1)] : NULL;
}

struct qcow2_slice *qcow2_slice_find(const struct qcow2 *s, uint64_t offset)
{
    uint64_t l1_index = offset >> s->l1_shift;
    uint64_t mask = (UINT64_C(1) << (s->l2_bits - s->slice_bits)) - 1;
    struct qcow2_dir *dir = atomic_load_explicit(&s->dir[l1_index], memory_order_acquire);

    return dir ? atomic_load_explicit(&dir->slices[(offset >> s->slice_shift) & mask], memory_order_acquire) : NULL;
}

/* ---- freeing ---- */

static void free_passed(struct qcow2 *s)
{
    while (!list_empty(&s->limbo_slices)) {
        struct qcow2_slice *slice = list_first(&s->limbo_slices, struct qcow2_slice, link);
        if (!blk_epoch_passed(s->node, slice->retired))
            return;
        list_remove(&slice->link);
        free(slice);
    }
}

static void unlink_slice(struct qcow2 *s, struct qcow2_slice *slice)
{
    atomic_store_explicit(place_of(s, slice->number), NULL, memory_order_release);
    list_remove(&slice->link);
    s->slice_count--;
}

/* Out of sight at once, out of memory when no request can have seen it. */
static void retire_slice(struct qcow2 *s, struct qcow2_slice *slice)
{
    unlink_slice(s, slice);
    slice->retired = epoch_retire();
    list_append(&s->limbo_slices, &slice->link);
}

void qcow2_slices_clean(struct qcow2 *s)
{
    struct qcow2_slice *slice, *next;

    list_for_each_safe(slice, next, &s->slices, link) {
        if (!atomic_load_explicit(&slice->unstable, memory_order_relaxed) &&
            !atomic_exchange_explicit(&slice->referenced, false, memory_order_relaxed))
            retire_slice(s, slice);
    }
    free_passed(s);
}

/* Makes room for one: two turns of the clock at most. Where all are in use the budget is overdrawn. */
static void evict(struct qcow2 *s)
{
    size_t turns = s->slice_count * 2;

    while (s->slice_count >= s->max_slices && turns-- > 0) {
        struct qcow2_slice *slice = list_first(&s->slices, struct qcow2_slice, link);
        if (atomic_load_explicit(&slice->unstable, memory_order_relaxed) ||
            atomic_exchange_explicit(&slice->referenced, false, memory_order_relaxed)) {
            list_remove(&slice->link);
            list_append(&s->slices, &slice->link);
            continue;
        }
        retire_slice(s, slice);
    }
    free_passed(s);
}

void qcow2_slices_drop(struct qcow2 *s, uint64_t l1_index)
{
    struct qcow2_dir *dir = atomic_load(&s->dir[l1_index]);

    for (size_t i = 0; dir && i < dir->count; i++) {
        struct qcow2_slice *slice = atomic_load(&dir->slices[i]);
        if (slice && !slice->dirty && !slice->committing) {
            unlink_slice(s, slice);
            free(slice);
        }
    }
}

void qcow2_slices_forget(struct qcow2 *s)
{
    for (uint64_t i = 0; i < s->l1_size; i++)
        qcow2_slices_drop(s, i);
}

void qcow2_slices_reset(struct qcow2 *s)
{
    struct qcow2_slice *slice, *next;

    list_for_each_safe(slice, next, &s->slices, link)
        free(slice);
    list_for_each_safe(slice, next, &s->limbo_slices, link)
        free(slice);
    list_init(&s->slices);
    list_init(&s->limbo_slices);
    list_init(&s->dirty_slices);
    s->slice_count = s->dirty_count = 0;
    for (uint64_t i = 0; s->dir && i < s->l1_size; i++)
        free(atomic_exchange(&s->dir[i], NULL));
}

void qcow2_slices_free(struct qcow2 *s)
{
    qcow2_slices_reset(s);
    free(s->dir);
    s->dir = NULL;
}

/* ---- loading ---- */

bool qcow2_entry_readable(const struct qcow2 *s, uint64_t guest, struct qcow2_entry entry)
{
    if (qcow2_entry_kind(entry) == QCOW2_IS_COMPRESSED)
        return !s->external;
    if (s->external && qcow2_entry_has_cluster(entry) && qcow2_entry_host(entry) != guest)
        return false;
    if (s->extended && !qcow2_entry_subclusters_valid(entry))
        return false;
    return qcow2_in_cluster(s, qcow2_entry_host(entry)) == 0 &&
           !(qcow2_entry_zero_flag(entry) && s->header.version < 3);
}

bool qcow2_entry_plausible(const struct qcow2 *s, uint64_t guest, struct qcow2_entry entry)
{
    bool compressed = qcow2_entry_kind(entry) == QCOW2_IS_COMPRESSED;

    if (!qcow2_entry_readable(s, guest, entry) || (compressed && qcow2_entry_copied(entry)))
        return false;
    return s->external || !qcow2_entry_has_cluster(entry) ||
           !qcow2_overlap(s, qcow2_entry_host(entry), s->cluster_size, 0);
}

static struct qcow2_slice *new_slice(struct qcow2 *s, uint64_t number, uint64_t host_offset)
{
    struct qcow2_slice *slice = calloc(1, sizeof(*slice) + qcow2_slice_bytes(s));

    if (!slice)
        return NULL;
    slice->number = number;
    slice->host_offset = host_offset;
    slice->lowest = UINT64_MAX;
    atomic_init(&slice->referenced, true);
    list_init(&slice->dirty_link);
    return slice;
}

/* The entry names a cluster of the file now. */
static void widen(const struct qcow2 *s, struct qcow2_slice *slice, struct qcow2_entry entry)
{
    uint64_t cluster = qcow2_entry_host(entry) >> s->cluster_bits;

    if (s->external || !qcow2_entry_has_cluster(entry))
        return;
    slice->lowest = MIN(slice->lowest, cluster);
    slice->highest = MAX(slice->highest, cluster);
}

/* A slice as it was read, which nobody else sees yet. */
static void look_through(struct qcow2 *s, struct qcow2_slice *slice)
{
    for (uint32_t i = 0; i < qcow2_slice_entries(s); i++) {
        struct qcow2_entry entry = qcow2_entry_normal(qcow2_slice_entry(s, slice, i), qcow2_layout(s));
        atomic_store_explicit(&slice->words[s->extended ? i * 2 : i], qcow2_be(entry.word), memory_order_relaxed);
        slice->suspect = slice->suspect || !qcow2_entry_plausible(s, qcow2_slice_guest(s, slice, i), entry);
        widen(s, slice, entry);
    }
    /* What nobody gave out yet may become metadata unasked. */
    if (slice->lowest <= slice->highest && slice->highest >= s->fresh_from)
        slice->suspect = true;
}

static int publish(struct qcow2 *s, struct qcow2_slice *slice)
{
    uint64_t l1_index = slice->number >> (s->l2_bits - s->slice_bits);

    if (!atomic_load_explicit(&s->dir[l1_index], memory_order_relaxed)) {
        struct qcow2_dir *dir = calloc(1, sizeof(*dir) + slices_per_table(s) * sizeof(dir->slices[0]));
        if (!dir)
            return -ENOMEM;
        dir->count = slices_per_table(s);
        atomic_store_explicit(&s->dir[l1_index], dir, memory_order_release);
    }
    evict(s);
    atomic_store_explicit(place_of(s, slice->number), slice, memory_order_release);
    list_append(&s->slices, &slice->link);
    s->slice_count++;
    return 0;
}

/* Reads one slice with the lock given up; 0 if it is there now, or if the caller has to look again. */
static coroutine_fn int co_load_slice(struct qcow2 *s, uint64_t number, uint64_t host_offset, uint64_t l1_entry)
{
    uint64_t l1_index = number >> (s->l2_bits - s->slice_bits);
    struct loading loading = { .number = number };
    struct qcow2_slice *slice = new_slice(s, number, host_offset);

    if (!slice)
        return -ENOMEM;
    list_append(&s->loading, &loading.link);
    co_mutex_unlock(&s->lock);
    blk_co_event(s->node->file, BLK_EVENT_L2_LOAD);
    int ret = blk_co_read(s->node->file, host_offset, (void *)slice->words, qcow2_slice_bytes(s));
    co_mutex_lock(&s->lock);
    list_remove(&loading.link);
    co_cond_broadcast(&s->loaded);
    if (ret < 0 || qcow2_l1_entry(s, l1_index) != l1_entry) {
        free(slice);
        return ret;
    }
    look_through(s, slice);
    ret = publish(s, slice);
    if (ret < 0)
        free(slice);
    return ret;
}

static bool is_loading(const struct qcow2 *s, uint64_t number)
{
    const struct loading *loading;

    list_for_each(loading, &s->loading, link) {
        if (loading->number == number)
            return true;
    }
    return false;
}

coroutine_fn int qcow2_co_check_entry(struct qcow2 *s, const struct qcow2_slice *slice, uint32_t index,
                                      struct qcow2_entry entry, bool to_write)
{
    uint64_t offset = qcow2_entry_host(entry), table = qcow2_cluster_start(s, slice->host_offset);
    uint64_t in_table = ((slice->host_offset - table) >> qcow2_entry_shift(s->extended)) + index;
    uint64_t guest = qcow2_slice_guest(s, slice, index);

    if (qcow2_entry_readable(s, guest, entry))
        return 0;
    if (s->external && qcow2_entry_kind(entry) == QCOW2_IS_COMPRESSED)
        return qcow2_co_mark_corrupt(s,
                                     "Compressed cluster entry found in image with external data file (L2 offset: "
                                     "%#" PRIx64 ", L2 index: %#" PRIx64 ")",
                                     table, in_table);
    if (qcow2_entry_zero_flag(entry) && s->header.version < 3)
        return qcow2_co_mark_corrupt(
            s, "Zero cluster entry found in pre-v3 image (L2 offset: %#" PRIx64 ", L2 index: %#" PRIx64 ")", table,
            in_table);
    if (s->extended && !qcow2_entry_subclusters_valid(entry))
        return qcow2_co_mark_corrupt(
            s, "Invalid cluster entry found  (L2 offset: %#" PRIx64 ", L2 index: %#" PRIx64 ")", table, in_table);
    if (s->external && qcow2_in_cluster(s, offset) == 0)
        return qcow2_co_mark_corrupt(s,
                                     "External data file host cluster offset %#" PRIx64
                                     " does not match guest cluster offset: %#" PRIx64 ", L2 index: %#" PRIx64 ")",
                                     offset, guest, in_table);
    if (to_write)
        return qcow2_co_mark_corrupt(s, "%s cluster offset %#" PRIx64 " unaligned (guest offset: %#" PRIx64 ")",
                                     qcow2_entry_zero_flag(entry) ? "Preallocated zero" : "Data", offset, guest);
    return qcow2_co_mark_corrupt(
        s, "Cluster allocation offset %#" PRIx64 " unaligned (L2 offset: %#" PRIx64 ", L2 index: %#" PRIx64 ")", offset,
        table, in_table);
}

coroutine_fn int qcow2_co_check_l2_offset(struct qcow2 *s, uint64_t table, uint64_t l1_index)
{
    if (qcow2_in_cluster(s, table) == 0)
        return 0;
    return qcow2_co_mark_corrupt(s, "L2 table offset %#" PRIx64 " unaligned (L1 index: %#" PRIx64 ")", table, l1_index);
}

coroutine_fn int qcow2_co_slice(struct qcow2 *s, uint64_t offset, struct qcow2_slice **out)
{
    uint64_t l1_index = offset >> s->l1_shift, number = offset >> s->slice_shift;
    uint64_t in_table = (number & (slices_per_table(s) - 1)) * qcow2_slice_bytes(s);

    for (;;) {
        *out = NULL;
        if (l1_index >= s->l1_size)
            return 0;
        uint64_t l1_entry = qcow2_l1_entry(s, l1_index), table = l1_entry & QCOW2_OFFSET_MASK;
        if (table == 0)
            return 0;
        *out = qcow2_slice_find(s, offset);
        if (*out)
            return 0;
        if (is_loading(s, number)) {
            co_cond_wait(&s->loaded, &s->lock);
            continue;
        }
        int ret = qcow2_co_check_l2_offset(s, table, l1_index);
        if (ret == 0)
            ret = co_load_slice(s, number, table + in_table, l1_entry);
        if (ret < 0)
            return ret;
    }
}

/* ---- clusters that are to be metadata ---- */

/* An entry of the slice that names one of these clusters: where in the disk, or UINT64_MAX. */
static uint64_t guest_of(const struct qcow2 *s, const struct qcow2_slice *slice, uint64_t first, uint64_t last)
{
    if (last < slice->lowest || first > slice->highest)
        return UINT64_MAX;
    for (uint32_t i = 0; i < qcow2_slice_entries(s); i++) {
        struct qcow2_entry entry = qcow2_slice_entry(s, slice, i);
        uint64_t cluster = qcow2_entry_host(entry) >> s->cluster_bits;
        if (qcow2_entry_has_cluster(entry) && cluster >= first && cluster <= last)
            return qcow2_slice_guest(s, slice, i);
    }
    return UINT64_MAX;
}

coroutine_fn int qcow2_co_check_unnamed(struct qcow2 *s, uint64_t cluster, uint64_t count, const char *what)
{
    const struct list *lists[] = { &s->slices, &s->limbo_slices };
    uint64_t guest = UINT64_MAX;

    if (!s->overlap_check)
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(lists) && guest == UINT64_MAX; i++) {
        const struct qcow2_slice *slice;
        list_for_each(slice, lists[i], link) {
            /* Nobody looks at it any more, and what it says may be old. */
            if (lists[i] == &s->limbo_slices && blk_epoch_passed(s->node, slice->retired))
                continue;
            guest = guest_of(s, slice, cluster, cluster + count - 1);
            if (guest != UINT64_MAX)
                break;
        }
    }
    if (guest == UINT64_MAX)
        return 0;
    return qcow2_co_mark_corrupt(s,
                                 "Preventing invalid %s at offset %#" PRIx64 " (in use for guest offset %#" PRIx64 ")",
                                 what, cluster << s->cluster_bits, guest);
}

/* ---- changing ---- */

void qcow2_l1_set(struct qcow2 *s, uint32_t index, uint64_t entry)
{
    uint8_t *part = &s->l1_dirty[index / (s->write_unit / 8)];

    atomic_store_explicit(&s->l1[index], qcow2_be(entry), memory_order_release);
    if (!(*part & 1))
        s->l1_dirty_count++;
    *part |= 1;
    atomic_store_explicit(&s->need_commit, true, memory_order_release);
    qcow2_note_dirty(s);
}

void qcow2_slice_set(struct qcow2 *s, struct qcow2_slice *slice, uint32_t index, struct qcow2_entry entry)
{
    /* W9: first unstable, then the entry. */
    atomic_store_explicit(&slice->unstable, true, memory_order_release);
    atomic_store_explicit(&s->need_commit, true, memory_order_release);
    if (s->extended) {
        atomic_fetch_add_explicit(&slice->changes, 1, memory_order_acq_rel);
        atomic_store_explicit(&slice->words[index * 2], qcow2_be(entry.word), memory_order_release);
        atomic_store_explicit(&slice->words[index * 2 + 1], qcow2_be(entry.subclusters), memory_order_release);
        atomic_fetch_add_explicit(&slice->changes, 1, memory_order_release);
    } else {
        atomic_store_explicit(&slice->words[index], qcow2_be(entry.word), memory_order_release);
    }
    widen(s, slice, entry);
    if (!slice->dirty) {
        slice->dirty = true;
        list_append(&s->dirty_slices, &slice->dirty_link);
        s->dirty_count++;
        qcow2_note_dirty(s);
    }
}

void qcow2_slices_move(struct qcow2 *s, uint64_t l1_index, uint64_t table)
{
    struct qcow2_dir *dir = atomic_load_explicit(&s->dir[l1_index], memory_order_relaxed);

    for (size_t i = 0; dir && i < dir->count; i++) {
        struct qcow2_slice *slice = atomic_load_explicit(&dir->slices[i], memory_order_relaxed);
        if (slice)
            slice->host_offset = table + i * qcow2_slice_bytes(s);
    }
}
