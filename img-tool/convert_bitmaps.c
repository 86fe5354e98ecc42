/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* convert --bitmaps: the target gets the source's dirty bitmaps, with the same bits. */
#include "convert.h"

#include <block/bitmap.h>

static struct list *bitmaps_of(struct blk_front *front)
{
    return &blk_node_below_filters(blk_front_node(front))->bitmaps;
}

int convert_check_bitmaps(const struct convert *c, bool skip_broken)
{
    struct blk_front *source = c->sources[0].front;
    const struct blk_bitmap *bitmap, *broken = NULL;

    if (!blk_bitmaps_supported(blk_front_node(source))) {
        error_report("Source lacks bitmap support");
        return -1;
    }
    list_for_each(bitmap, bitmaps_of(source), link) {
        if (bitmap->inconsistent)
            broken = bitmap; /* the newest of them is named */
    }
    if (!broken || skip_broken)
        return 0;
    error_report("Cannot copy inconsistent bitmap '%s'\n"
                 "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
                 broken->name);
    return -1;
}

int convert_check_target_bitmaps(const struct convert *c)
{
    struct blk_node *target = blk_front_node(c->target);

    if (blk_bitmaps_supported(target))
        return 0;
    error_report("Format driver '%s' does not support bitmaps", blk_node_below_filters(target)->driver->name);
    return -1;
}

static coroutine_fn int co_copy_one(struct blk_node *target, const struct blk_bitmap *from)
{
    struct error *error = NULL;
    struct blk_bitmap *new = blk_co_bitmap_add(target, from->name, UINT64_C(1) << from->granularity_bits, &error);

    if (!new) {
        error_prepend(&error, "Failed to create bitmap %s: ", from->name);
        error_report_free(error);
        return -1;
    }
    if (blk_bitmap_merge(new, from, &error) < 0) {
        error_prepend(&error, "Failed to populate bitmap %s: ", from->name);
        error_report_free(error);
        blk_co_bitmap_remove(new);
        return -1;
    }
    blk_bitmap_enable(new, from->enabled);
    return 0;
}

/* The newest first, as qemu-img goes through them: which are left out, and whether a name is taken. */
static int look_through(struct list *bitmaps, struct blk_node *target)
{
    for (struct list *link = bitmaps->prev; link != bitmaps; link = link->prev) {
        const struct blk_bitmap *bitmap = container_of(link, struct blk_bitmap, link);
        if (bitmap->inconsistent) {
            warn_report("Skipping inconsistent bitmap '%s'", bitmap->name);
        } else if (blk_bitmap_find(target, bitmap->name, NULL)) {
            error_report("Failed to create bitmap %s: Bitmap already exists: %s", bitmap->name, bitmap->name);
            return -1;
        }
    }
    return 0;
}

coroutine_fn int convert_co_bitmaps(const struct convert *c)
{
    struct blk_front *source = c->sources[0].front;
    struct blk_node *target = blk_front_node(c->target);
    const struct blk_bitmap *bitmap;
    struct error *error = NULL;

    if (blk_co_bitmaps_load(blk_front_node(source), &error) < 0) {
        error_report_free(error);
        return -1;
    }
    if (look_through(bitmaps_of(source), target) < 0)
        return -1;
    list_for_each(bitmap, bitmaps_of(source), link) {
        if (!bitmap->inconsistent && co_copy_one(target, bitmap) < 0)
            return -1;
    }
    return 0;
}
