/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * L2 slices in memory: loading, evicting, changing.
 *
 * A slice is loaded once however many wait for it, without the lock held during the read; it is published only if the
 * L1 entry is still the one that was read through. Clean slices are evicted by a clock when the budget is used up; an
 * evicted slice is unlinked first and freed when every request that could have seen it has ended. A slice with changes
 * that are not durable (`unstable`) is never evicted: memory is then the only true copy, the file has an older one.
 */
#include "qcow2.h"

#include <string.h>

struct loading {
    struct list link;
    uint64_t number;
};

static size_t slice_bytes(const struct qcow2 *s) { return (size_t)8 << s->slice_bits; }
static uint64_t slices_per_table(const struct qcow2 *s) { return UINT64_C(1) << (s->l2_bits - s->slice_bits); }

static _Atomic(struct qcow2_slice *) *place_of(struct qcow2 *s, uint64_t number)
{
    uint64_t l1_index = number >> (s->l2_bits - s->slice_bits);
    struct qcow2_dir *dir = atomic_load_explicit(&s->dir[l1_index], memory_order_relaxed);

    return dir ? &dir->slices[number & (slices_per_table(s) - 1)] : NULL;
}

/* ---- freeing ---- */

static void free_passed(struct qcow2 *s)
{
    while (!list_empty(&s->limbo_slices)) {
        struct qcow2_slice *slice = list_first(&s->limbo_slices, struct qcow2_slice, link);
        if (!epoch_passed(slice->retired))
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

void qcow2_slices_free(struct qcow2 *s)
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
        free(atomic_load(&s->dir[i]));
    free(s->dir);
    s->dir = NULL;
}

/* ---- loading ---- */

bool qcow2_entry_readable(const struct qcow2 *s, uint64_t entry)
{
    if (entry & QCOW2_COMPRESSED)
        return true;
    return qcow2_in_cluster(s, entry & QCOW2_OFFSET_MASK) == 0 && !((entry & QCOW2_ZERO) && s->header.version < 3);
}

bool qcow2_entry_plausible(const struct qcow2 *s, uint64_t entry)
{
    enum qcow2_kind kind = qcow2_kind(entry);

    if (!qcow2_entry_readable(s, entry) || (kind == QCOW2_IS_COMPRESSED && (entry & QCOW2_COPIED)))
        return false;
    return (kind != QCOW2_NORMAL && kind != QCOW2_ZERO_ALLOCATED) ||
           !qcow2_overlap(s, entry & QCOW2_OFFSET_MASK, s->cluster_size, 0);
}

static struct qcow2_slice *new_slice(struct qcow2 *s, uint64_t number, uint64_t host_offset)
{
    struct qcow2_slice *slice = calloc(1, sizeof(*slice) + slice_bytes(s));

    if (!slice)
        return NULL;
    slice->number = number;
    slice->host_offset = host_offset;
    atomic_init(&slice->referenced, true);
    list_init(&slice->dirty_link);
    return slice;
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

/* Reads one slice with the lock given up; 0 where it is there now, or where the caller has to look again. */
static coroutine_fn int co_load_slice(struct qcow2 *s, uint64_t number, uint64_t host_offset, uint64_t l1_entry)
{
    uint64_t l1_index = number >> (s->l2_bits - s->slice_bits);
    struct loading loading = { .number = number };
    struct qcow2_slice *slice = new_slice(s, number, host_offset);

    if (!slice)
        return -ENOMEM;
    list_append(&s->loading, &loading.link);
    co_mutex_unlock(&s->lock);
    int ret = blk_co_read(s->node->file, host_offset, (void *)slice->entries, slice_bytes(s));
    co_mutex_lock(&s->lock);
    list_remove(&loading.link);
    co_cond_broadcast(&s->loaded);
    if (ret < 0 || qcow2_l1_entry(s, l1_index) != l1_entry) {
        free(slice);
        return ret;
    }
    for (uint32_t i = 0; i < qcow2_slice_entries(s) && !slice->suspect; i++)
        slice->suspect = !qcow2_entry_plausible(s, qcow2_slice_entry(slice, i));
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

static coroutine_fn int co_check_l2_offset(struct qcow2 *s, uint64_t table, uint64_t l1_index)
{
    if (qcow2_in_cluster(s, table) == 0)
        return 0;
    return qcow2_co_mark_corrupt(s, "L2 table offset %#" PRIx64 " unaligned (L1 index: %#" PRIx64 ")", table, l1_index);
}

coroutine_fn int qcow2_co_slice(struct qcow2 *s, uint64_t offset, struct qcow2_slice **out)
{
    uint64_t l1_index = offset >> s->l1_shift, number = offset >> s->slice_shift;
    uint64_t in_table = (number & (slices_per_table(s) - 1)) * slice_bytes(s);

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
        int ret = co_check_l2_offset(s, table, l1_index);
        if (ret == 0)
            ret = co_load_slice(s, number, table + in_table, l1_entry);
        if (ret < 0)
            return ret;
    }
}

/* ---- changing ---- */

void qcow2_l1_set(struct qcow2 *s, uint32_t index, uint64_t entry)
{
    uint8_t *sector = &s->l1_dirty[index / (BLK_SECTOR_SIZE / 8)];

    atomic_store_explicit(&s->l1[index], qcow2_be(entry), memory_order_release);
    if (!(*sector & 1))
        s->l1_dirty_count++;
    *sector |= 1;
    atomic_store_explicit(&s->need_commit, true, memory_order_release);
    qcow2_note_dirty(s);
}

void qcow2_slice_set(struct qcow2 *s, struct qcow2_slice *slice, uint32_t index, uint64_t entry)
{
    /* First unstable, then the entry: a durable write that maps through the new entry must see that it is not on
     * disk. */
    atomic_store_explicit(&slice->unstable, true, memory_order_release);
    atomic_store_explicit(&s->need_commit, true, memory_order_release);
    atomic_store_explicit(&slice->entries[index], qcow2_be(entry), memory_order_release);
    if (!slice->dirty) {
        slice->dirty = true;
        list_append(&s->dirty_slices, &slice->dirty_link);
        s->dirty_count++;
        qcow2_note_dirty(s);
    }
}

/* Writes what a new L2 table holds: zeroes, or what the shared one held. */
static coroutine_fn int co_fill_table(struct qcow2 *s, uint64_t old_table, uint64_t new_table)
{
    uint8_t *buffer = blk_buffer_alloc(s->node->file, s->cluster_size);
    int ret = 0;

    if (!buffer)
        return -ENOMEM;
    if (old_table)
        ret = blk_co_read(s->node->file, old_table, buffer, s->cluster_size);
    else
        memset(buffer, 0, s->cluster_size);
    if (ret == 0)
        ret = blk_co_write(s->node->file, new_table, buffer, s->cluster_size, 0);
    free(buffer);
    return ret;
}

static void move_slices(struct qcow2 *s, uint64_t l1_index, uint64_t table)
{
    struct qcow2_dir *dir = atomic_load_explicit(&s->dir[l1_index], memory_order_relaxed);

    for (size_t i = 0; dir && i < dir->count; i++) {
        struct qcow2_slice *slice = atomic_load_explicit(&dir->slices[i], memory_order_relaxed);
        if (slice)
            slice->host_offset = table + i * slice_bytes(s);
    }
}

/* A table of its own for this L1 entry. The lock stays held: nobody else may see the old table as the one to change. */
static coroutine_fn int co_own_table(struct qcow2 *s, uint32_t l1_index)
{
    uint64_t old = qcow2_l1_entry(s, l1_index) & QCOW2_OFFSET_MASK, table = 0, got = 0;
    int ret = co_check_l2_offset(s, old, l1_index);

    if (ret == 0)
        ret = qcow2_co_check_l1(s);
    if (ret == 0)
        ret = qcow2_co_alloc(s, 1, &table, &got, NULL);
    if (ret < 0)
        return ret;
    ret = co_fill_table(s, old, table);
    if (ret == 0)
        ret = qcow2_set_add(&s->l2_set, table >> s->cluster_bits);
    if (ret < 0) {
        qcow2_co_unalloc(s, table, 1);
        return ret;
    }
    if (old) {
        qcow2_set_remove(&s->l2_set, old >> s->cluster_bits);
        qcow2_freed_add(&s->freed, old >> s->cluster_bits, 1, false);
        move_slices(s, l1_index, table);
    }
    qcow2_l1_set(s, l1_index, table | QCOW2_COPIED);
    return 0;
}

coroutine_fn int qcow2_co_slice_for_write(struct qcow2 *s, uint64_t offset, struct qcow2_slice **out)
{
    uint32_t l1_index = (uint32_t)(offset >> s->l1_shift);

    if (l1_index >= s->l1_size)
        return -EIO;
    for (;;) {
        uint64_t l1_entry = qcow2_l1_entry(s, l1_index);
        if (!(l1_entry & QCOW2_COPIED) || !(l1_entry & QCOW2_OFFSET_MASK)) {
            int ret = qcow2_co_begin_changes(s);
            if (ret == 0)
                ret = co_own_table(s, l1_index);
            if (ret < 0)
                return ret;
        } else {
            int ret = qcow2_co_check_overlap(s, l1_entry & QCOW2_OFFSET_MASK, s->cluster_size, QCOW2_REGION_L2);
            if (ret < 0)
                return ret;
        }
        int ret = qcow2_co_slice(s, offset, out);
        if (ret < 0)
            return ret;
        /* The lock may have been given up: is the table still there and ours? */
        if (*out && (qcow2_l1_entry(s, l1_index) & QCOW2_COPIED))
            return 0;
    }
}
