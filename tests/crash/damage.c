/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Damaging images (damage.h). */
#include "damage.h"
#include "random.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <string.h>

#define COPIED (UINT64_C(1) << 63)
#define COMPRESSED (UINT64_C(1) << 62)
#define OFFSET_MASK UINT64_C(0x00fffffffffffe00)

struct layout {
    unsigned cluster_bits, refcount_order;
    uint64_t cluster_size, reftable, reftable_entries, per_block;
    uint64_t l1, l1_size;
    uint32_t version;
};

static struct layout layout_of(const uint8_t *image)
{
    struct layout l = { .version = load_be32(image + 4), .cluster_bits = load_be32(image + 20) };

    l.cluster_size = UINT64_C(1) << l.cluster_bits;
    l.refcount_order = l.version >= 3 ? load_be32(image + 96) : 4;
    l.per_block = (l.cluster_size * 8) >> l.refcount_order;
    l.l1_size = load_be32(image + 36);
    l.l1 = load_be64(image + 40);
    l.reftable = load_be64(image + 48);
    l.reftable_entries = load_be32(image + 56) * (l.cluster_size / 8);
    return l;
}

static uint64_t below(struct damage *d, uint64_t bound) { return random_below(&d->random, bound); }

/* ---- refcounts ---- */

/* The byte that holds (the least significant byte of) a cluster's refcount, NULL where no block counts it. */
static uint8_t *place_of(const struct damage *d, const struct layout *l, uint64_t cluster, unsigned *shift)
{
    uint64_t index = cluster / l->per_block, bit = (cluster % l->per_block) << l->refcount_order;
    uint64_t block = index < l->reftable_entries ? load_be64(d->image + l->reftable + index * 8) : 0;

    if (block == 0 || block + l->cluster_size > d->length)
        return NULL;
    *shift = l->refcount_order < 3 ? (unsigned)(bit % 8) : 0;
    return d->image + block + bit / 8 + (l->refcount_order > 3 ? (1u << (l->refcount_order - 3)) - 1 : 0);
}

/* Adds to the refcount what fits into its width. Small numbers: the lowest byte is enough. */
static void add_to(const struct damage *d, const struct layout *l, uint64_t cluster, int change)
{
    unsigned shift = 0, max = l->refcount_order < 3 ? (1u << (1u << l->refcount_order)) - 1 : 255;
    uint8_t *place = place_of(d, l, cluster, &shift);

    if (!place)
        return;
    int value = (int)((*place >> shift) & max) + change;
    if (value >= 0 && value <= (int)max)
        *place = (uint8_t)((*place & ~(max << shift)) | ((unsigned)value << shift));
}

static void leak(struct damage *d, const struct layout *l)
{
    uint64_t clusters = div_round_up(d->length, l->cluster_size), length = (clusters + below(d, 8)) << l->cluster_bits;

    for (uint64_t n = below(d, 6); n > 0; n--)
        add_to(d, l, below(d, clusters), 1 + (int)below(d, 2));
    memset(d->image + d->length, 0, length - d->length);
    d->length = length;
    for (uint64_t i = clusters; i < d->length >> l->cluster_bits; i++)
        add_to(d, l, i, 1);
}

static void lower(struct damage *d, const struct layout *l)
{
    for (uint64_t n = 1 + below(d, 6); n > 0; n--)
        add_to(d, l, below(d, d->length >> l->cluster_bits), -1);
}

/* The block that counts the first clusters, or another. */
static void unname_block(struct damage *d, const struct layout *l, uint64_t instead)
{
    uint64_t blocks = div_round_up(div_round_up(d->length, l->cluster_size), l->per_block);

    store_be64(d->image + l->reftable + below(d, blocks) * 8, instead);
}

/* ---- flags ---- */

static void flip_in_table(struct damage *d, const struct layout *l, uint64_t table)
{
    for (uint64_t i = 0; i < l->cluster_size / 8; i++) {
        uint64_t entry = load_be64(d->image + table + i * 8);
        if ((entry & OFFSET_MASK) && !(entry & COMPRESSED) && below(d, 6) == 0)
            store_be64(d->image + table + i * 8, entry ^ COPIED);
    }
}

static void flip_flags(struct damage *d, const struct layout *l)
{
    for (uint64_t i = 0; i < l->l1_size; i++) {
        uint64_t entry = load_be64(d->image + l->l1 + i * 8), table = entry & OFFSET_MASK;
        if (table == 0)
            continue;
        flip_in_table(d, l, table);
        if (below(d, 6) == 0)
            store_be64(d->image + l->l1 + i * 8, entry ^ COPIED);
    }
}

/* ---- public ---- */

void damage_image(struct damage *d, unsigned kinds)
{
    struct layout l = layout_of(d->image);

    if (kinds & DAMAGE_LEAK)
        leak(d, &l);
    if (kinds & DAMAGE_LOW)
        lower(d, &l);
    if (kinds & DAMAGE_COPIED)
        flip_flags(d, &l);
    if (kinds & DAMAGE_MISSING)
        unname_block(d, &l, 0);
    if (kinds & DAMAGE_WILD)
        unname_block(d, &l, (d->length + l.cluster_size * below(d, 100)) & ~(l.cluster_size - 1));
    if (l.version >= 3)
        d->image[79] |= (uint8_t)((kinds & DAMAGE_DIRTY ? 1 : 0) | (kinds & DAMAGE_CORRUPT ? 2 : 0));
}

void damage_show_snapshot(uint8_t *image)
{
    const uint8_t *snapshot = image + load_be64(image + 64);
    uint64_t l1 = load_be64(snapshot);
    uint32_t l1_size = load_be32(snapshot + 8);

    store_be64(image + 40, l1);
    store_be32(image + 36, l1_size);
    store_be32(image + 60, 0); /* no snapshots */
    store_be64(image + 64, 0);
}
