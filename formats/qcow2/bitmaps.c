/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Persistent dirty bitmaps (the specification's "Bitmaps extension"): read, marked as in use, kept.
 *
 * While the image is open for writing its directory on disk says of each bitmap that it is in use, so after a crash
 * none is believed. When the image is closed, bitmaps that have changed get new tables, all get a new directory, and
 * the header names it once these are durable: before, the old ones are in force, still in use. Bitmaps that nobody
 * changed keep their tables.
 */
#include "bitmaps.h"

#include "alloc.h"
#include "bitmap.h"
#include "commit.h"
#include "dirty.h"
#include "driver.h"
#include "refcount.h"
#include "relayout.h"

#include <block/bitmap.h>
#include <string.h>

/* How a bitmap lies in the image. */
struct stored {
    struct qcow2_bitmap_table table;
    uint32_t flags, extra_length;
    uint8_t extra[];
};

static const struct stored *stored_of(const struct blk_bitmap *bitmap) { return bitmap->stored; }

/* ---- the list ---- */

static uint64_t table_entries(const struct qcow2 *s, const struct blk_bitmap *bitmap)
{
    return div_round_up(div_round_up(blk_bitmap_bits(bitmap), 8), s->cluster_size);
}

static bool name_taken(const struct qcow2 *s, const struct blk_bitmap *new)
{
    const struct blk_bitmap *bitmap;

    list_for_each(bitmap, &s->node->bitmaps, link) {
        if (bitmap != new &&strcmp(bitmap->name, new->name) == 0)
            return true;
    }
    return false;
}

/* What any entry has to be. */
static bool is_valid(const struct qcow2 *s, const struct qcow2_bitmap *entry, const struct blk_bitmap *bitmap)
{
    return entry->type == QCOW2_BITMAP_TYPE_DIRTY && !(entry->flags & ~QCOW2_BITMAP_KNOWN_FLAGS) &&
           entry->name_length > 0 && strlen(bitmap->name) == entry->name_length && !name_taken(s, bitmap) &&
           entry->granularity_bits >= BLK_BITMAP_MIN_GRANULARITY_BITS &&
           entry->granularity_bits <= BLK_BITMAP_MAX_GRANULARITY_BITS && entry->table_offset &&
           qcow2_in_cluster(s, entry->table_offset) == 0 && entry->table_offset <= INT64_MAX - QCOW2_MAX_BITMAP_TABLE &&
           (uint64_t)entry->table_entries * 8 <= QCOW2_MAX_BITMAP_TABLE;
}

static int attach(struct qcow2 *s, const struct qcow2_bitmap *entry, struct error **errp)
{
    struct blk_bitmap *bitmap;
    struct stored *stored = xcalloc(1, sizeof(*stored) + entry->extra_length);

    stored->table = (struct qcow2_bitmap_table){ entry->table_offset, entry->table_entries };
    stored->flags = entry->flags;
    stored->extra_length = entry->extra_length;
    memcpy(stored->extra, entry->extra, entry->extra_length);
    bitmap = blk_bitmap_attach(s->node, entry->name, entry->name_length, MIN(entry->granularity_bits, (uint8_t)31));
    bitmap->stored = stored;
    bitmap->enabled = entry->flags & QCOW2_BITMAP_AUTO;
    bitmap->inconsistent = (entry->flags & QCOW2_BITMAP_IN_USE) ||
                           (entry->extra_length && !(entry->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE));
    if (!is_valid(s, entry, bitmap))
        return error_set(errp, -EINVAL, "Bitmap '%s' doesn't satisfy the constraints", bitmap->name);
    /* Of one in use only the clusters matter: the disk may have got another size since. */
    if (bitmap->inconsistent || entry->table_entries == table_entries(s, bitmap))
        return 0;
    return error_set_errno(errp, -EINVAL, "Could not read bitmap '%s' from image", bitmap->name);
}

/* Another program has changed the image, and left the bitmaps as they were. */
static void warn_of_stale(const struct qcow2 *s)
{
    if (s->header.version < 3)
        warn_report("This qcow2 v2 image contains bitmaps, but they may have been modified by a program without "
                    "persistent bitmap support; so now they must all be considered inconsistent");
    else
        warn_report("a program lacking bitmap support modified this file, so all bitmaps are now considered "
                    "inconsistent");
}

coroutine_fn int qcow2_co_bitmaps_open(struct qcow2 *s, struct error **errp)
{
    AUTO_FREE uint8_t *directory = NULL;
    struct qcow2_bitmap entry;
    uint64_t at = 0;
    uint32_t count = 0;

    if (s->bitmap_count == 0)
        return 0;
    if (!qcow2_has_bitmaps(s)) {
        warn_of_stale(s);
        return 0;
    }
    int ret = s->bitmap_count > QCOW2_MAX_BITMAPS || qcow2_in_cluster(s, s->bitmap_directory_offset)
                  ? -EINVAL
                  : qcow2_co_bitmap_directory(s, &directory);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read the directory of bitmaps");
    for (; ret == 0 && qcow2_bitmap_next(directory, s->bitmap_directory_size, &at, &entry); count++)
        ret = attach(s, &entry, errp);
    if (ret == 0 && (count != s->bitmap_count || at != s->bitmap_directory_size))
        ret = error_set(errp, -EINVAL, "The directory of bitmaps has %" PRIu32 " whole entries, not %" PRIu32, count,
                        s->bitmap_count);
    return ret;
}

void qcow2_bitmaps_free(struct qcow2 *s)
{
    blk_bitmaps_free(s->node);
    free(s->old_bitmaps);
    s->old_bitmaps = NULL;
    s->old_bitmap_count = 0;
}

int qcow2_bitmap_check(const struct blk_node *node, const char *name, struct error **errp)
{
    const struct qcow2 *s = node->state;
    const struct blk_bitmap *bitmap;
    uint32_t count = 0;

    list_for_each(bitmap, &node->bitmaps, link)
        count++;
    if (s->header.version < 3)
        return error_set(errp, -EINVAL, "Cannot store dirty bitmaps in qcow2 v2 files");
    if (strlen(name) > BLK_BITMAP_NAME_MAX)
        return error_set(errp, -EINVAL, "Name length exceeds maximum (%u characters)", BLK_BITMAP_NAME_MAX);
    if (*name && count >= QCOW2_MAX_BITMAPS)
        return error_set(errp, -EINVAL, "Maximum number of persistent bitmaps is already reached");
    return 0;
}

/* ---- bits from the image ---- */

/* A cluster's bytes from bit `first` on, as far as the bitmap reaches. Bit 0 of byte 0 is the first. */
static void take_bytes(struct blk_bitmap *bitmap, uint64_t first_byte, const uint8_t *bytes, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = first_byte + i;
        if (bytes[i])
            atomic_fetch_or(&bitmap->words[at / 8], (uint64_t)bytes[i] << at % 8 * 8);
    }
}

static uint64_t bytes_of(const struct blk_bitmap *bitmap) { return div_round_up(blk_bitmap_bits(bitmap), 8); }

static coroutine_fn int co_read_entry(struct qcow2 *s, struct blk_bitmap *bitmap, uint64_t index, uint64_t entry,
                                      uint8_t *buffer)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK, first = index * s->cluster_size;
    uint64_t count = MIN(s->cluster_size, bytes_of(bitmap) - first);
    int ret = 0;

    if ((entry & QCOW2_BITMAP_TABLE_RESERVED) || (offset && (entry & QCOW2_BITMAP_ALL_ONES)) ||
        qcow2_in_cluster(s, offset))
        return -EINVAL;
    if (!offset && !(entry & QCOW2_BITMAP_ALL_ONES))
        return 0;
    if (offset)
        ret = blk_co_read(s->node->file, offset, buffer, s->cluster_size);
    else
        memset(buffer, 0xff, s->cluster_size);
    if (ret == 0)
        take_bytes(bitmap, first, buffer, count);
    return ret;
}

/* Bits behind the end are nobody's. */
static void clear_past_end(struct blk_bitmap *bitmap)
{
    uint64_t bits = blk_bitmap_bits(bitmap);

    if (bits % 64)
        atomic_fetch_and(&bitmap->words[bits / 64], (UINT64_C(1) << bits % 64) - 1);
}

static coroutine_fn int co_read_bits(struct qcow2 *s, struct blk_bitmap *bitmap)
{
    const struct stored *stored = stored_of(bitmap);
    uint64_t bytes = (uint64_t)stored->table.entries * 8;
    AUTO_FREE uint64_t *table = malloc(bytes + 1);
    AUTO_FREE uint8_t *buffer = blk_buffer_alloc(s->node->file, s->cluster_size);
    int ret = blk_bitmap_make_words(bitmap);

    if (ret == 0 && (!table || !buffer))
        ret = -ENOMEM;
    if (ret == 0 && bytes)
        ret = blk_co_read(s->node->file, stored->table.offset, table, bytes);
    for (uint32_t i = 0; i < stored->table.entries && ret == 0; i++)
        ret = co_read_entry(s, bitmap, i, be64toh(table[i]), buffer);
    if (ret == 0) {
        clear_past_end(bitmap);
    } else {
        free((void *)bitmap->words);
        bitmap->words = NULL;
    }
    return ret;
}

coroutine_fn int qcow2_co_bitmaps_load(struct blk_node *node, struct error **errp)
{
    struct blk_bitmap *bitmap;

    list_for_each(bitmap, &node->bitmaps, link) {
        int ret = bitmap->inconsistent || bitmap->words ? 0 : co_read_bits(node->state, bitmap);
        if (ret < 0)
            return error_set_errno(errp, ret, "Could not read bitmap '%s' from image", bitmap->name);
    }
    return 0;
}

/* ---- the directory ---- */

/* On disk and in memory. */
static coroutine_fn int co_mark_in_use(struct qcow2 *s)
{
    AUTO_FREE uint8_t *directory = NULL;
    struct qcow2_bitmap entry;
    struct blk_bitmap *bitmap;
    uint64_t at = 0, start = 0;
    int ret = qcow2_co_bitmap_directory(s, &directory);

    if (ret < 0)
        return ret;
    for (; qcow2_bitmap_next(directory, s->bitmap_directory_size, &at, &entry); start = at)
        store_be32(directory + start + 12, entry.flags | QCOW2_BITMAP_IN_USE);
    ret = blk_co_write(s->node->file, s->bitmap_directory_offset, directory, s->bitmap_directory_size, 0);
    if (ret == 0)
        ret = blk_co_flush(s->node->file);
    list_for_each(bitmap, &s->node->bitmaps, link) {
        if (ret == 0 && bitmap->stored)
            ((struct stored *)bitmap->stored)->flags |= QCOW2_BITMAP_IN_USE;
    }
    s->bitmaps_in_use = ret == 0;
    return ret;
}

coroutine_fn int qcow2_co_bitmaps_begin(struct qcow2 *s, struct error **errp)
{
    int ret = qcow2_co_bitmaps_load(s->node, errp);

    if (ret < 0 || !qcow2_has_bitmaps(s) || s->bitmaps_in_use) {
        blk_bitmaps_recount(s->node);
        return ret;
    }
    ret = co_mark_in_use(s);
    blk_bitmaps_recount(s->node);
    return ret < 0 ? error_set_errno(errp, ret, "Could not mark the bitmaps as in use") : 0;
}

/* ---- keeping them ---- */

/* What is written for one bitmap, or would be kept of it: its table. */
struct kept {
    struct blk_bitmap *bitmap;
    struct qcow2_bitmap_table table;
    bool written; /* for this directory */
};

struct keeping {
    struct qcow2 *s;
    struct kept *list;
    uint32_t count;
    uint64_t offset, bytes; /* the directory */
};

/* A table on disk and the clusters that it names. */
static coroutine_fn int co_free_table(struct qcow2 *s, const struct qcow2_bitmap_table *table)
{
    uint64_t bytes = (uint64_t)table->entries * 8;
    AUTO_FREE uint64_t *entries = malloc(bytes + 1);
    int ret = !entries ? -ENOMEM : bytes ? blk_co_read(s->node->file, table->offset, entries, bytes) : 0;

    if (ret < 0)
        return ret;
    for (uint32_t i = 0; i < table->entries; i++) {
        uint64_t offset = be64toh(entries[i]) & QCOW2_OFFSET_MASK;
        if (qcow2_in_cluster(s, offset) == 0)
            qcow2_co_bytes_free(s, offset, s->cluster_size);
    }
    qcow2_co_bytes_free(s, table->offset, MAX(bytes, UINT64_C(1)));
    return 0;
}

/* The bits that cluster `index` of the bitmap holds; false: none is set. */
static bool put_bytes(const struct qcow2 *s, const struct blk_bitmap *bitmap, uint64_t index, uint8_t *buffer)
{
    uint64_t first = index * s->cluster_size, count = MIN(s->cluster_size, bytes_of(bitmap) - first);
    uint8_t any = 0;

    memset(buffer, 0, s->cluster_size);
    for (uint64_t i = 0; i < count; i++) {
        buffer[i] = (uint8_t)(atomic_load(&bitmap->words[(first + i) / 8]) >> (first + i) % 8 * 8);
        any |= buffer[i];
    }
    return any;
}

/* A new table with what the bitmap holds. What it fails on is given back by co_drop(). */
static coroutine_fn int co_write_table(struct qcow2 *s, struct kept *kept)
{
    uint64_t entries = table_entries(s, kept->bitmap), bytes = MAX(entries * 8, UINT64_C(1));
    uint64_t length = align_up(bytes, s->cluster_size);
    AUTO_FREE uint64_t *table = blk_buffer_alloc(s->node->file, length);
    AUTO_FREE uint8_t *buffer = blk_buffer_alloc(s->node->file, s->cluster_size);
    uint64_t offset = 0;

    if (!table || !buffer)
        return -ENOMEM;
    memset(table, 0, length);
    int ret = qcow2_co_bytes_alloc(s, bytes, &kept->table.offset);
    for (uint64_t i = 0; i < entries && ret == 0; i++) {
        if (!put_bytes(s, kept->bitmap, i, buffer))
            continue;
        ret = qcow2_co_bytes_alloc(s, s->cluster_size, &offset);
        if (ret == 0)
            ret = blk_co_write(s->node->file, offset, buffer, s->cluster_size, 0);
        table[i] = htobe64(offset);
    }
    kept->table.entries = (uint32_t)entries;
    kept->written = kept->table.offset != 0;
    /* Also after an error: who gives it back reads it. */
    if (kept->written) {
        int written = blk_co_write(s->node->file, kept->table.offset, table, length, 0);
        ret = ret < 0 ? ret : written;
    }
    return ret;
}

static uint64_t entry_bytes(const struct blk_bitmap *bitmap)
{
    const struct stored *stored = stored_of(bitmap);

    return align_up(QCOW2_BITMAP_ENTRY + (stored ? stored->extra_length : 0) + strlen(bitmap->name), 8);
}

/* Of one that says nothing the flag stays. */
static uint32_t flags_of(const struct blk_bitmap *bitmap)
{
    const struct stored *stored = stored_of(bitmap);
    uint32_t others = stored ? stored->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE : 0;

    return others | (bitmap->enabled ? QCOW2_BITMAP_AUTO : 0) |
           (bitmap->inconsistent && stored && (stored->flags & QCOW2_BITMAP_IN_USE) ? QCOW2_BITMAP_IN_USE : 0);
}

static void put_entry(const struct kept *kept, uint8_t *out)
{
    const struct stored *stored = stored_of(kept->bitmap);
    uint32_t extra = stored ? stored->extra_length : 0;
    size_t name_length = strlen(kept->bitmap->name);

    store_be64(out, kept->table.offset);
    store_be32(out + 8, kept->table.entries);
    store_be32(out + 12, flags_of(kept->bitmap));
    out[16] = QCOW2_BITMAP_TYPE_DIRTY;
    out[17] = (uint8_t)kept->bitmap->granularity_bits;
    store_be16(out + 18, (uint16_t)name_length);
    store_be32(out + 20, extra);
    if (extra)
        memcpy(out + QCOW2_BITMAP_ENTRY, stored->extra, extra);
    memcpy(out + QCOW2_BITMAP_ENTRY + extra, kept->bitmap->name, name_length);
}

static coroutine_fn int co_write_directory(struct keeping *k)
{
    struct qcow2 *s = k->s;
    uint64_t at = 0;

    for (uint32_t i = 0; i < k->count; i++)
        k->bytes += entry_bytes(k->list[i].bitmap);
    if (k->bytes == 0)
        return 0;
    if (k->bytes > QCOW2_MAX_BITMAP_DIRECTORY)
        return -EFBIG;
    uint64_t length = align_up(k->bytes, s->cluster_size);
    AUTO_FREE uint8_t *directory = blk_buffer_alloc(s->node->file, length);
    int ret = directory ? qcow2_co_bytes_alloc(s, k->bytes, &k->offset) : -ENOMEM;
    if (ret < 0)
        return ret;
    memset(directory, 0, length);
    for (uint32_t i = 0; i < k->count; at += entry_bytes(k->list[i++].bitmap))
        put_entry(&k->list[i], directory + at);
    return blk_co_write(s->node->file, k->offset, directory, length, 0);
}

static bool must_write(const struct blk_bitmap *bitmap)
{
    return !bitmap->inconsistent && (!bitmap->stored || atomic_load(&bitmap->changed));
}

static coroutine_fn int co_write_all(struct keeping *k)
{
    struct blk_bitmap *bitmap;
    uint32_t count = 0;
    int ret = 0;

    list_for_each(bitmap, &k->s->node->bitmaps, link)
        count++;
    k->list = xcalloc(count + 1, sizeof(*k->list));
    list_for_each(bitmap, &k->s->node->bitmaps, link) {
        struct kept *kept = &k->list[k->count++];
        kept->bitmap = bitmap;
        if (bitmap->stored)
            kept->table = stored_of(bitmap)->table;
        if (must_write(bitmap)) {
            kept->table = (struct qcow2_bitmap_table){ 0 };
            ret = co_write_table(k->s, kept);
        }
        if (ret < 0)
            return ret;
    }
    return co_write_directory(k);
}

/* Nothing came of it: what is new goes. A failure here leaves leaks. */
static coroutine_fn void co_drop(struct keeping *k)
{
    for (uint32_t i = 0; i < k->count; i++) {
        if (k->list[i].written)
            co_free_table(k->s, &k->list[i].table);
    }
    qcow2_co_bytes_free(k->s, k->offset, k->bytes);
}

/* A bitmap's table is another one now: the old one's clusters go. */
static coroutine_fn void co_take_over(struct qcow2 *s, const struct kept *kept)
{
    struct blk_bitmap *bitmap = kept->bitmap;
    struct stored *stored = bitmap->stored;

    if (kept->written && stored)
        co_free_table(s, &stored->table);
    if (!stored)
        stored = bitmap->stored = xcalloc(1, sizeof(*stored));
    stored->flags = flags_of(bitmap);
    stored->table = kept->table;
    atomic_store(&bitmap->changed, false);
}

/* The header names the new directory. */
static coroutine_fn void co_finish(struct keeping *k, uint64_t old_offset, uint64_t old_bytes)
{
    struct qcow2 *s = k->s;

    for (uint32_t i = 0; i < k->count; i++)
        co_take_over(s, &k->list[i]);
    for (size_t i = 0; i < s->old_bitmap_count; i++)
        co_free_table(s, &s->old_bitmaps[i]);
    free(s->old_bitmaps);
    s->old_bitmaps = NULL;
    s->old_bitmap_count = 0;
    qcow2_co_bytes_free(s, old_offset, old_bytes);
    s->bitmaps_in_use = false;
}

coroutine_fn int qcow2_co_bitmaps_store(struct qcow2 *s, struct error **errp)
{
    struct keeping k = { .s = s };
    bool there = qcow2_has_bitmaps(s);
    uint64_t old_offset = there ? s->bitmap_directory_offset : 0, old_bytes = there ? s->bitmap_directory_size : 0;

    if (!there && list_empty(&s->node->bitmaps))
        return 0;
    int ret = qcow2_co_settle(s);
    if (ret == 0)
        ret = co_write_all(&k);
    if (ret == 0) /* settles: all is durable before the header names it */
        ret = qcow2_co_change_bitmaps(s, k.count, k.bytes, k.offset, errp);
    if (ret == 0)
        co_finish(&k, old_offset, old_bytes);
    else
        co_drop(&k);
    free(k.list);
    int settled = qcow2_co_settle(s);
    ret = ret < 0 ? ret : settled;
    if (ret < 0 && errp && !*errp)
        error_set_errno(errp, ret, "Could not store the image's bitmaps");
    return ret;
}

void qcow2_bitmap_removed(struct blk_node *node, const struct blk_bitmap *bitmap)
{
    struct qcow2 *s = node->state;

    s->old_bitmaps = xrealloc(s->old_bitmaps, (s->old_bitmap_count + 1) * sizeof(*s->old_bitmaps));
    s->old_bitmaps[s->old_bitmap_count++] = stored_of(bitmap)->table;
}

coroutine_fn int qcow2_co_bitmaps_drop(struct qcow2 *s, struct error **errp)
{
    while (!list_empty(&s->node->bitmaps)) {
        struct blk_bitmap *bitmap = list_first(&s->node->bitmaps, struct blk_bitmap, link);
        if (bitmap->stored)
            qcow2_bitmap_removed(s->node, bitmap);
        blk_bitmap_free(bitmap);
    }
    blk_bitmaps_recount(s->node);
    return qcow2_co_bitmaps_store(s, errp);
}

/* ---- compact ---- */

/* Does any of it lie at this cluster or behind it? */
static coroutine_fn int co_reaches(struct qcow2 *s, const struct qcow2_bitmap_table *table, uint64_t cluster, bool *out)
{
    uint64_t bytes = (uint64_t)table->entries * 8, bound = cluster << s->cluster_bits;
    AUTO_FREE uint64_t *entries = malloc(bytes + 1);
    int ret = !entries ? -ENOMEM : bytes ? blk_co_read(s->node->file, table->offset, entries, bytes) : 0;

    *out = table->offset + bytes > bound;
    for (uint32_t i = 0; i < table->entries && ret == 0; i++)
        *out = *out || (be64toh(entries[i]) & QCOW2_OFFSET_MASK) >= bound;
    return ret;
}

coroutine_fn int qcow2_co_bitmaps_move(struct qcow2 *s, uint64_t cluster, bool *moved, struct error **errp)
{
    bool any = s->bitmap_directory_offset + s->bitmap_directory_size > cluster << s->cluster_bits;
    struct blk_bitmap *bitmap;
    int ret = 0;

    *moved = false;
    if (!qcow2_has_bitmaps(s) || list_empty(&s->node->bitmaps))
        return 0;
    list_for_each(bitmap, &s->node->bitmaps, link) {
        bool reaches = false;
        if (ret == 0 && !bitmap->inconsistent && bitmap->stored)
            ret = co_reaches(s, &stored_of(bitmap)->table, cluster, &reaches);
        if (reaches)
            atomic_store(&bitmap->changed, true);
        any = any || reaches;
    }
    if (ret < 0 || !any)
        return ret;
    ret = qcow2_co_bitmaps_store(s, errp);
    *moved = ret == 0;
    return ret == 0 ? qcow2_co_bitmaps_begin(s, errp) : ret;
}

/* ---- info ---- */

json_t *qcow2_bitmaps_json(const struct qcow2 *s)
{
    const struct blk_bitmap *bitmap;
    json_t *list = list_empty(&s->node->bitmaps) ? NULL : json_array();

    list_for_each(bitmap, &s->node->bitmaps, link) {
        const struct stored *stored = stored_of(bitmap);
        json_t *flags = json_array();
        if (stored && (stored->flags & QCOW2_BITMAP_IN_USE))
            json_array_append_new(flags, json_string("in-use"));
        if (stored ? stored->flags & QCOW2_BITMAP_AUTO : bitmap->enabled)
            json_array_append_new(flags, json_string("auto"));
        json_array_append_new(list,
                              json_pack("{s:o, s:o, s:I}", "flags", flags, "name", json_string_nocheck(bitmap->name),
                                        "granularity", (json_int_t)1 << bitmap->granularity_bits));
    }
    return list;
}
