/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps (block/bitmap.h): bits in memory, by atomic words. */
#include "graph.h"
#include "links.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <block/bitmap.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* More memory than this has no bitmap. */
#define MAX_BYTES (UINT64_C(512) << 20)
/* The usual granularity is the cluster size, between these. */
#define USUAL_MIN 4096u
#define USUAL_MAX 65536u

uint64_t blk_bitmap_bits(const struct blk_bitmap *bitmap)
{
    return div_round_up(bitmap->size, UINT64_C(1) << bitmap->granularity_bits);
}

uint64_t blk_bitmap_words(const struct blk_bitmap *bitmap) { return div_round_up(blk_bitmap_bits(bitmap), 64); }

/* ---- bits ---- */

int blk_bitmap_make_words(struct blk_bitmap *bitmap)
{
    uint64_t words = blk_bitmap_words(bitmap);

    if (words > MAX_BYTES / 8)
        return -EFBIG;
    bitmap->words = calloc(words + 1, 8);
    return bitmap->words ? 0 : -ENOMEM;
}

/* Bits first … last of one word. */
static uint64_t mask(uint64_t first, uint64_t last) { return (UINT64_MAX << first) & (UINT64_MAX >> (63 - last)); }

static void set_bits(struct blk_bitmap *bitmap, uint64_t first, uint64_t last)
{
    for (uint64_t word = first / 64; word <= last / 64; word++) {
        uint64_t bits = mask(word == first / 64 ? first % 64 : 0, word == last / 64 ? last % 64 : 63);
        /* Only if one is new: threads that write to the same parts would pass the line around. */
        if ((atomic_load_explicit(&bitmap->words[word], memory_order_relaxed) & bits) != bits)
            atomic_fetch_or_explicit(&bitmap->words[word], bits, memory_order_release);
    }
    if (!atomic_load_explicit(&bitmap->changed, memory_order_relaxed))
        atomic_store_explicit(&bitmap->changed, true, memory_order_relaxed);
}

static void set_range(struct blk_bitmap *bitmap, uint64_t offset, uint64_t length)
{
    if (length == 0 || offset >= bitmap->size)
        return;
    uint64_t end = MIN(bitmap->size, offset + length);
    set_bits(bitmap, offset >> bitmap->granularity_bits, (end - 1) >> bitmap->granularity_bits);
}

static bool records(const struct blk_bitmap *bitmap)
{
    return bitmap->enabled && !bitmap->inconsistent && bitmap->words;
}

atomic_uint blk_recording_nodes;

void blk_bitmaps_record(struct blk_node *node, uint64_t offset, uint64_t length)
{
    struct blk_bitmap *bitmap;

    list_for_each(bitmap, &node->bitmaps, link) {
        if (records(bitmap))
            set_range(bitmap, offset, length);
    }
}

void blk_bitmaps_recount(struct blk_node *node)
{
    const struct blk_bitmap *bitmap;
    unsigned count = 0;

    list_for_each(bitmap, &node->bitmaps, link)
        count += records(bitmap) && blk_node_writable(node);
    if (count && !node->recording)
        atomic_fetch_add(&blk_recording_nodes, 1);
    unsigned before = atomic_exchange(&node->recording, count);
    if (before && !count)
        atomic_fetch_sub(&blk_recording_nodes, 1);
}

int blk_bitmap_check_usable(const struct blk_bitmap *bitmap, struct error **errp)
{
    if (!bitmap->inconsistent)
        return 0;
    return error_set(errp, -EINVAL,
                     "Bitmap '%s' is inconsistent and cannot be used\n"
                     "Try block-dirty-bitmap-remove to delete this bitmap from disk",
                     bitmap->name);
}

int blk_bitmaps_check_usable(const struct blk_node *node, struct error **errp)
{
    const struct blk_bitmap *bitmap;
    int ret = 0;

    list_for_each(bitmap, &node->bitmaps, link) {
        ret = blk_bitmap_check_usable(bitmap, errp);
        if (ret < 0)
            break;
    }
    return ret;
}

void blk_bitmap_clear(struct blk_bitmap *bitmap)
{
    for (uint64_t i = 0; i < blk_bitmap_words(bitmap); i++)
        atomic_store(&bitmap->words[i], 0);
    atomic_store(&bitmap->changed, true);
}

void blk_bitmap_enable(struct blk_bitmap *bitmap, bool enable)
{
    atomic_store(&bitmap->changed, true);
    bitmap->enabled = enable;
    blk_bitmaps_recount(bitmap->node);
}

int blk_bitmap_merge(struct blk_bitmap *into, const struct blk_bitmap *from, struct error **errp)
{
    if (into->size != from->size)
        return error_set(errp, -EINVAL,
                         "Bitmaps are of different sizes (destination size is %llu, source size is %llu) and can't be "
                         "merged",
                         (unsigned long long)into->size, (unsigned long long)from->size);
    for (uint64_t i = 0; i < blk_bitmap_words(from); i++) {
        uint64_t word = atomic_load(&from->words[i]);
        for (; word; word &= word - 1) {
            uint64_t bit = i * 64 + (uint64_t)__builtin_ctzll(word);
            set_range(into, bit << from->granularity_bits, UINT64_C(1) << from->granularity_bits);
        }
    }
    return 0;
}

/* ---- lists ---- */

struct blk_bitmap *blk_bitmap_attach(struct blk_node *node, const char *name, size_t name_length,
                                     unsigned granularity_bits)
{
    struct blk_bitmap *bitmap = xcalloc(1, sizeof(*bitmap));

    bitmap->node = node;
    bitmap->name = xcalloc(1, name_length + 1);
    memcpy(bitmap->name, name, name_length);
    bitmap->granularity_bits = granularity_bits;
    bitmap->size = blk_node_size(node);
    list_append(&node->bitmaps, &bitmap->link);
    return bitmap;
}

void blk_bitmap_free(struct blk_bitmap *bitmap)
{
    list_remove(&bitmap->link);
    free((void *)bitmap->words);
    free(bitmap->stored);
    free(bitmap->name);
    free(bitmap);
}

void blk_bitmaps_free(struct blk_node *node)
{
    while (!list_empty(&node->bitmaps))
        blk_bitmap_free(list_first(&node->bitmaps, struct blk_bitmap, link));
    blk_bitmaps_recount(node);
}

/* All that are in memory, with room for the new size, or none. */
int blk_bitmaps_resize(struct blk_node *node, uint64_t size)
{
    struct blk_bitmap *bitmap;

    list_for_each(bitmap, &node->bitmaps, link) {
        uint64_t old_size = bitmap->size, old_words = blk_bitmap_words(bitmap);
        bitmap->size = size;
        uint64_t words = blk_bitmap_words(bitmap), bits = blk_bitmap_bits(bitmap);
        _Atomic uint64_t *memory = bitmap->words && words <= MAX_BYTES / 8 ? calloc(words + 1, 8) : NULL;
        bitmap->size = old_size;
        if (bitmap->words && !memory)
            return words > MAX_BYTES / 8 ? -EFBIG : -ENOMEM;
        if (memory)
            memcpy((void *)memory, (const void *)bitmap->words, (size_t)MIN(words, old_words) * 8);
        if (memory && bits % 64)
            memory[words - 1] &= mask(0, bits % 64 - 1);
        free((void *)bitmap->words);
        bitmap->words = memory;
        bitmap->size = size;
        atomic_store(&bitmap->changed, true);
    }
    return 0;
}

/* ---- coming and going ---- */

static struct blk_bitmap *find(struct blk_node *image, const char *name)
{
    struct blk_bitmap *bitmap;

    list_for_each(bitmap, &image->bitmaps, link) {
        if (strcmp(bitmap->name, name) == 0)
            return bitmap;
    }
    return NULL;
}

struct blk_bitmap *blk_bitmap_find(struct blk_node *node, const char *name, struct error **errp)
{
    struct blk_bitmap *bitmap = find(blk_node_below_filters(node), name);

    if (!bitmap)
        error_set(errp, -ENOENT, "Dirty bitmap '%s' not found", name);
    return bitmap;
}

bool blk_bitmaps_supported(struct blk_node *node)
{
    struct blk_node *image = blk_node_below_filters(node);

    return image->driver->bitmap_check && image->driver->bitmap_check(image, "", NULL) == 0;
}

static int check_new(struct blk_node *image, const char *name, uint64_t granularity, struct error **errp)
{
    struct error *error = NULL;

    if (!*name)
        return error_set(errp, -EINVAL, "Bitmap name cannot be empty");
    if (granularity && (!is_power_of_two(granularity) || granularity < 1u << BLK_BITMAP_MIN_GRANULARITY_BITS ||
                        granularity > UINT64_C(1) << BLK_BITMAP_MAX_GRANULARITY_BITS))
        return error_set(errp, -EINVAL, "Granularity must be power of 2 and at least 512");
    if (find(image, name))
        return error_set(errp, -EEXIST, "Bitmap already exists: %s", name);
    if (!image->driver->bitmap_check)
        return error_set(errp, -ENOTSUP, "Can't store persistent bitmaps to %s: Operation not supported", image->name);
    if (image->driver->bitmap_check(image, name, &error) == 0)
        return 0;
    error_propagate(errp, error);
    error_prepend(errp, "Can't make bitmap '%s' persistent in '%s': ", name, image->name);
    return -EINVAL;
}

static uint64_t usual_granularity(const struct blk_node *image)
{
    uint64_t cluster = image->limits.opt_io, least = MAX(cluster, (uint64_t)USUAL_MIN);

    return cluster ? MIN(least, (uint64_t)USUAL_MAX) : USUAL_MAX;
}

coroutine_fn struct blk_bitmap *blk_co_bitmap_add(struct blk_node *node, const char *name, uint64_t granularity,
                                                  struct error **errp)
{
    struct blk_node *image = blk_co_image_begin(node);
    struct blk_bitmap *bitmap = NULL;

    if (check_new(image, name, granularity, errp) == 0) {
        if (!granularity)
            granularity = usual_granularity(image);
        bitmap = blk_bitmap_attach(image, name, strlen(name), log2_floor(granularity));
        bitmap->enabled = true;
        atomic_store(&bitmap->changed, true);
        int ret = blk_bitmap_make_words(bitmap);
        if (ret < 0) {
            error_set_errno(errp, ret, "Can't make bitmap '%s'", name);
            blk_bitmap_free(bitmap);
            bitmap = NULL;
        }
        blk_bitmaps_recount(image);
    }
    blk_co_image_end(image);
    return bitmap;
}

coroutine_fn void blk_co_bitmap_remove(struct blk_bitmap *bitmap)
{
    struct blk_node *image = blk_co_image_begin(bitmap->node);

    if (bitmap->stored)
        image->driver->bitmap_removed(image, bitmap);
    blk_bitmap_free(bitmap);
    blk_bitmaps_recount(image);
    blk_co_image_end(image);
}

coroutine_fn int blk_co_bitmaps_load(struct blk_node *node, struct error **errp)
{
    struct blk_node *image = blk_co_image_begin(node);
    int ret = image->driver->co_bitmaps_load ? image->driver->co_bitmaps_load(image, errp) : 0;

    blk_co_image_end(image);
    return ret;
}
