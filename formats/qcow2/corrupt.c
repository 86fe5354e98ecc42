/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What must never be overwritten: the image's own metadata.
 *
 * Active L2 tables and refcount blocks are kept as sets of host clusters, the few contiguous tables as ranges. Every
 * write to newly allocated or slowly mapped clusters is checked against them; the hot path's entries are checked when
 * their slice is loaded. A hit means that the image's metadata contradicts itself: the corrupt bit is set, durably,
 * and no write follows.
 */
#include "qcow2.h"

#include <stdarg.h>
#include <stdio.h>

/* ---- sets of clusters ---- */

static size_t slot_of(const struct qcow2_set *set, uint64_t cluster)
{
    return (size_t)((cluster * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (set->capacity - 1);
}

static int grow(struct qcow2_set *set)
{
    struct qcow2_set bigger = { .capacity = set->capacity ? set->capacity * 2 : 64 };

    bigger.slots = calloc(bigger.capacity, sizeof(*bigger.slots));
    if (!bigger.slots)
        return -ENOMEM;
    for (size_t i = 0; i < set->capacity; i++) {
        if (set->slots[i])
            qcow2_set_add(&bigger, set->slots[i]);
    }
    free(set->slots);
    *set = bigger;
    return 0;
}

int qcow2_set_add(struct qcow2_set *set, uint64_t cluster)
{
    if (cluster == 0)
        return 0;
    if (set->count * 2 >= set->capacity && grow(set) < 0)
        return -ENOMEM;
    size_t i = slot_of(set, cluster);
    while (set->slots[i] && set->slots[i] != cluster)
        i = (i + 1) & (set->capacity - 1);
    set->count += set->slots[i] == 0;
    set->slots[i] = cluster;
    return 0;
}

bool qcow2_set_has(const struct qcow2_set *set, uint64_t cluster)
{
    if (set->count == 0 || cluster == 0)
        return false;
    size_t i = slot_of(set, cluster);
    while (set->slots[i] && set->slots[i] != cluster)
        i = (i + 1) & (set->capacity - 1);
    return set->slots[i] == cluster;
}

/* Takes the entry out and moves up those that had been pushed past it. */
void qcow2_set_remove(struct qcow2_set *set, uint64_t cluster)
{
    if (!qcow2_set_has(set, cluster))
        return;
    size_t mask = set->capacity - 1, hole = slot_of(set, cluster);
    while (set->slots[hole] != cluster)
        hole = (hole + 1) & mask;
    for (size_t i = (hole + 1) & mask; set->slots[i]; i = (i + 1) & mask) {
        size_t home = slot_of(set, set->slots[i]);
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            set->slots[hole] = set->slots[i];
            hole = i;
        }
    }
    set->slots[hole] = 0;
    set->count--;
}

void qcow2_set_finish(struct qcow2_set *set)
{
    free(set->slots);
    *set = (struct qcow2_set){ 0 };
}

/* ---- the check ---- */

static bool in_set(const struct qcow2 *s, const struct qcow2_set *set, uint64_t offset, uint64_t length)
{
    uint64_t last = (offset + length - 1) >> s->cluster_bits;

    for (uint64_t cluster = offset >> s->cluster_bits; cluster <= last; cluster++) {
        if (qcow2_set_has(set, cluster))
            return true;
    }
    return false;
}

static bool in_inactive_l1(const struct qcow2 *s, uint64_t offset, uint64_t length)
{
    for (uint32_t i = 0; i < s->header.snapshot_count; i++) {
        if (qcow2_snapshot_l1_valid(s, &s->snapshots[i]) &&
            ranges_overlap(offset, length, s->snapshots[i].l1_offset, (uint64_t)s->snapshots[i].l1_size * 8))
            return true;
    }
    return false;
}

unsigned qcow2_overlap(const struct qcow2 *s, uint64_t offset, uint64_t length, unsigned ignore)
{
    unsigned check = s->overlap_check & ~ignore;
    uint64_t reftable_length = s->reftable_disk_entries * 8;

    if (length == 0)
        return 0;
    if ((check & QCOW2_REGION_HEADER) && offset < s->cluster_size)
        return QCOW2_REGION_HEADER;
    if ((check & QCOW2_REGION_L1) && ranges_overlap(offset, length, s->header.l1_offset, (uint64_t)s->l1_size * 8))
        return QCOW2_REGION_L1;
    if ((check & QCOW2_REGION_L2) && in_set(s, &s->l2_set, offset, length))
        return QCOW2_REGION_L2;
    if ((check & QCOW2_REGION_REFTABLE) && ranges_overlap(offset, length, s->reftable_offset, reftable_length))
        return QCOW2_REGION_REFTABLE;
    if ((check & QCOW2_REGION_REFBLOCK) && in_set(s, &s->refblock_set, offset, length))
        return QCOW2_REGION_REFBLOCK;
    if ((check & QCOW2_REGION_SNAPSHOTS) &&
        ranges_overlap(offset, length, s->header.snapshots_offset, s->snapshots_length))
        return QCOW2_REGION_SNAPSHOTS;
    if ((check & QCOW2_REGION_INACTIVE_L1) && in_inactive_l1(s, offset, length))
        return QCOW2_REGION_INACTIVE_L1;
    if ((check & QCOW2_REGION_INACTIVE_L2) && in_set(s, &s->inactive_l2_set, offset, length))
        return QCOW2_REGION_INACTIVE_L2;
    if ((check & QCOW2_REGION_BITMAPS) && (s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) &&
        ranges_overlap(offset, length, s->bitmap_directory_offset, s->bitmap_directory_size))
        return QCOW2_REGION_BITMAPS;
    return 0;
}

static const char *region_name(unsigned region)
{
    switch (region) {
    case QCOW2_REGION_HEADER: return "qcow2_header";
    case QCOW2_REGION_L1: return "active L1 table";
    case QCOW2_REGION_L2: return "active L2 table";
    case QCOW2_REGION_REFBLOCK: return "refcount block";
    case QCOW2_REGION_REFTABLE: return "refcount table";
    case QCOW2_REGION_SNAPSHOTS: return "snapshot table";
    case QCOW2_REGION_INACTIVE_L1: return "inactive L1 table";
    case QCOW2_REGION_INACTIVE_L2: return "inactive L2 table";
    default: return "bitmap directory";
    }
}

coroutine_fn int qcow2_co_check_overlap(struct qcow2 *s, uint64_t offset, uint64_t length, unsigned ignore)
{
    unsigned region = qcow2_overlap(s, offset, length, ignore);

    if (!region)
        return 0;
    return qcow2_co_mark_corrupt(s, "Preventing invalid write on metadata (overlaps with %s)", region_name(region));
}

/* Once is enough: whatever is allocated later is checked against the table. So is a table's new place. */
static coroutine_fn int co_check_table(struct qcow2 *s, uint64_t offset, uint64_t length, unsigned region,
                                       bool *checked)
{
    int ret = *checked ? 0 : qcow2_co_check_overlap(s, offset, length, region);

    *checked = ret == 0;
    return ret;
}

coroutine_fn int qcow2_co_check_l1(struct qcow2 *s)
{
    return co_check_table(s, s->header.l1_offset, (uint64_t)s->l1_size * 8, QCOW2_REGION_L1, &s->l1_checked);
}

coroutine_fn int qcow2_co_check_reftable(struct qcow2 *s)
{
    return co_check_table(s, s->reftable_offset, s->reftable_disk_entries * 8, QCOW2_REGION_REFTABLE,
                          &s->reftable_checked);
}

coroutine_fn int qcow2_co_mark_corrupt(struct qcow2 *s, const char *fmt, ...)
{
    bool writable = blk_node_writable(s->node);
    char text[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (!s->corruption_signalled || (writable && !atomic_load(&s->corrupt))) {
        if (writable)
            fprintf(stderr, "qcow2: Marking image as corrupt: %s; further corruption events will be suppressed\n",
                    text);
        else
            fprintf(stderr, "qcow2: Image is corrupt: %s; further non-fatal corruption events will be suppressed\n",
                    text);
        s->corruption_signalled = true;
    }
    if (!writable || atomic_exchange(&s->corrupt, true))
        return -EIO;
    if (s->header.version >= 3) {
        s->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
        qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
        qcow2_co_header_write(s); /* that it failed changes nothing: writes are refused all the same */
    }
    return -EIO;
}
