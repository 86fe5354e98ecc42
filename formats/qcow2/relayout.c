/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changing what the first cluster says behind the header's fixed fields: another backing file, whose name lies behind
 * the header extensions, of which one is its format; and another version, whose extensions begin elsewhere.
 *
 * Only the first sector is written in one piece, and what it refers to may reach beyond it. So nothing changes there
 * that the sector on disk refers to: what is new is written, and durable, where nothing was, and then the sector names
 * it. If the new list and the old one overlap, and they nearly always do, that takes two steps. The list between them
 * has its second part behind both; readers get there over an extension of a type that nobody knows.
 */
#include "commit.h"
#include "driver.h"
#include "header.h"
#include "relayout.h"

#include <base/error.h>
#include <stdlib.h>
#include <string.h>

/* The first cluster, as it is or shall be. */
struct head {
    uint8_t *data;     /* of a whole cluster */
    size_t begin, end; /* what its first sector refers to beyond itself */
    uint32_t version, header_length;
    uint32_t name_offset, name_length;
};

/* What it shall say. */
struct wanted {
    const char *name, *format, *data; /* backing file, external data file; NULL: none */
    bool data_changes;                /* else `data` is what it was */
    bool bitmaps_change;
    const uint8_t *bitmaps; /* if they change: the extension; NULL: none */
    uint32_t version;
    bool features; /* keep the table of features' names, which nothing depends on */
    size_t behind; /* the part that is not in the first sector begins here at the earliest */
};

/* ---- laying out ---- */

enum { EXTENSION_HEADER = 8, BITMAPS_EXTENSION = 24, FILLER = 0x66696c6c };

static bool put(struct head *head, size_t room, const void *data, size_t length)
{
    if (length > room - head->end)
        return false;
    if (length)
        memcpy(head->data + head->end, data, length);
    head->end += length;
    return true;
}

static bool put_extension(struct head *head, size_t room, uint32_t type, const void *data, size_t length)
{
    static const uint8_t padding[8];
    uint8_t header[EXTENSION_HEADER];

    store_be32(header, type);
    store_be32(header + 4, (uint32_t)length);
    return put(head, room, header, sizeof(header)) && put(head, room, data, length) &&
           put(head, room, padding, align_up(length, 8) - length);
}

/* An extension that ends at `until`. */
static bool put_filler(struct head *head, size_t room, size_t until)
{
    size_t length = until - head->end - EXTENSION_HEADER;

    if (until > room || head->end + EXTENSION_HEADER > until)
        return false;
    store_be32(head->data + head->end, FILLER);
    store_be32(head->data + head->end + 4, (uint32_t)length);
    head->end = until;
    return true;
}

/* The next extension of `from` at *at, or false at the end. The list was checked when the image was opened; here it is
 * only seen to that it ends inside the cluster. */
static bool next_extension(const struct head *from, size_t room, size_t *at, uint32_t *type, const uint8_t **data,
                           size_t *length)
{
    size_t end = from->name_offset ? from->name_offset : room;

    if (*at + EXTENSION_HEADER > end)
        return false;
    *type = load_be32(from->data + *at);
    *length = load_be32(from->data + *at + 4);
    *data = from->data + *at + EXTENSION_HEADER;
    *at += EXTENSION_HEADER;
    if (*type == QCOW2_EXT_END || *length > end - *at)
        return false;
    *at += align_up(*length, 8);
    return true;
}

static bool stays(const struct wanted *wanted, uint32_t type)
{
    if (type == QCOW2_EXT_FEATURE_TABLE)
        return wanted->features;
    if (type == QCOW2_EXT_BITMAPS)
        return !wanted->bitmaps_change;
    return type != QCOW2_EXT_BACKING_FORMAT && type != QCOW2_EXT_DATA_FILE && type != FILLER;
}

/* The extensions of `from` that stay, in their order. *any: there are some. `head` NULL: only that is asked. */
static bool put_others(struct head *head, size_t room, const struct head *from, const struct wanted *wanted, bool *any)
{
    uint32_t type;
    const uint8_t *data;
    size_t length;

    *any = false;
    for (size_t at = from->header_length; next_extension(from, room, &at, &type, &data, &length);) {
        if (!stays(wanted, type))
            continue;
        *any = true;
        if (head && !put_extension(head, room, type, data, length))
            return false;
    }
    return true;
}

/* The fixed fields. A header that becomes one of version 3 has no features, and ends after the compression type. */
static void put_fields(struct head *head, size_t room, const struct head *from, uint32_t version)
{
    head->version = version;
    head->header_length = from->header_length;
    if (version < from->version)
        head->header_length = QCOW2_V2_HEADER_LENGTH;
    else if (version > from->version)
        head->header_length = QCOW2_V3_HEADER_LENGTH + 8;
    memset(head->data, 0, room);
    memcpy(head->data, from->data, MIN(from->header_length, head->header_length));
    store_be32(head->data + QCOW2_AT_VERSION, version);
    if (version > from->version) {
        store_be32(head->data + QCOW2_AT_REFCOUNT_ORDER, QCOW2_V2_REFCOUNT_ORDER);
        store_be32(head->data + QCOW2_AT_HEADER_LENGTH, head->header_length);
    }
}

/* Fills `head` from `from` and what is wanted. false: there is no room. */
static bool lay_out(struct head *head, size_t room, const struct head *from, const struct wanted *wanted)
{
    size_t name_length = wanted->name ? strlen(wanted->name) : 0;
    bool others, fits = true;

    /* What is before the second part lies in the first sector. */
    put_fields(head, room, from, wanted->version);
    if (wanted->behind &&
        head->header_length + 4 * EXTENSION_HEADER + sizeof(((struct qcow2 *)0)->backing_format) > BLK_SECTOR_SIZE)
        return false;
    head->begin = MAX(wanted->behind, (size_t)BLK_SECTOR_SIZE);
    head->end = head->header_length;
    put_others(NULL, room, from, wanted, &others);
    if (wanted->format)
        fits = put_extension(head, room, QCOW2_EXT_BACKING_FORMAT, wanted->format, strlen(wanted->format));
    if (fits && (others || wanted->data || wanted->bitmaps) && wanted->behind)
        fits = put_filler(head, room, wanted->behind);
    if (fits && wanted->data)
        fits = put_extension(head, room, QCOW2_EXT_DATA_FILE, wanted->data, strlen(wanted->data));
    fits = fits && put_others(head, room, from, wanted, &others);
    if (fits && wanted->bitmaps)
        fits = put_extension(head, room, QCOW2_EXT_BITMAPS, wanted->bitmaps, BITMAPS_EXTENSION);
    fits = fits && put_extension(head, room, QCOW2_EXT_END, NULL, 0);
    if (fits && name_length)
        head->end = MAX(head->end, wanted->behind);
    head->name_offset = name_length ? (uint32_t)head->end : 0;
    head->name_length = (uint32_t)name_length;
    if (!fits || head->end > room || !put(head, room, wanted->name, name_length))
        return false;
    store_be64(head->data + QCOW2_AT_BACKING_OFFSET, head->name_offset);
    store_be32(head->data + QCOW2_AT_BACKING_LENGTH, head->name_length);
    return true;
}

/* Where what the first cluster on disk refers to ends. */
static size_t end_of(const struct head *head, size_t room)
{
    uint32_t type;
    const uint8_t *data;
    size_t length, at = head->header_length;

    while (next_extension(head, room, &at, &type, &data, &length))
        ;
    at = MAX(at, (size_t)head->name_offset + head->name_length);
    return MIN(room, at);
}

/* `data`, the cluster on disk, gets what `next` has beyond the first sector. false: it would change something to which
 * the first sector, still that of `now`, refers. */
static bool place(uint8_t *data, const struct head *now, const struct head *next)
{
    if (next->end > next->begin)
        memcpy(data + next->begin, next->data + next->begin, next->end - next->begin);
    return now->end <= now->begin || !memcmp(data + now->begin, now->data + now->begin, now->end - now->begin);
}

/* ---- writing ---- */

/* What a step changes of the first sector; its other fields, up to `fixed`, are others'. */
static void set_sector(struct qcow2 *s, const struct head *head, size_t fixed)
{
    memcpy(s->sector0 + QCOW2_AT_VERSION, head->data + QCOW2_AT_VERSION, 4);
    memcpy(s->sector0 + QCOW2_AT_BACKING_OFFSET, head->data + QCOW2_AT_BACKING_OFFSET, 12);
    memcpy(s->sector0 + fixed, head->data + fixed, sizeof(s->sector0) - fixed);
    s->header.version = head->version;
    s->header.header_length = head->header_length;
    s->header.backing_offset = head->name_offset;
    s->header.backing_length = head->name_length;
}

/* From `now`, whose cluster is `data` on disk, to `next`; or nothing has changed. */
static coroutine_fn int co_step(struct qcow2 *s, uint8_t *data, const struct head *now, const struct head *next)
{
    size_t end = align_up(next->end, BLK_SECTOR_SIZE);
    size_t shorter = MIN(now->header_length, next->header_length), fixed = MIN(shorter, (size_t)BLK_SECTOR_SIZE);
    int ret = 0;

    if (!place(data, now, next))
        return -ENOSPC;
    if (end > BLK_SECTOR_SIZE)
        ret = blk_co_write(s->node->file, BLK_SECTOR_SIZE, data + BLK_SECTOR_SIZE, end - BLK_SECTOR_SIZE, 0);
    if (ret == 0)
        ret = blk_co_flush(s->node->file);
    if (ret < 0)
        return ret;
    co_mutex_lock(&s->lock);
    set_sector(s, next, fixed);
    ret = qcow2_co_header_write(s);
    if (ret < 0)
        set_sector(s, now, fixed);
    co_mutex_unlock(&s->lock);
    return ret;
}

/* With the table of features' names, or without if there is no room for it. */
static bool lay_out_somehow(struct head *head, size_t room, const struct head *from, struct wanted *wanted)
{
    wanted->features = wanted->version >= 3;
    if (wanted->features && lay_out(head, room, from, wanted))
        return true;
    wanted->features = false;
    return lay_out(head, room, from, wanted);
}

static coroutine_fn int co_steps(struct qcow2 *s, uint8_t *data, const struct head *now, struct head *between,
                                 struct head *final, struct wanted *wanted)
{
    size_t room = s->cluster_size;
    int ret = -ENOSPC;

    if (!lay_out_somehow(final, room, now, wanted))
        return -ENOSPC;
    memcpy(data, now->data, room);
    if (place(data, now, final)) {
        ret = co_step(s, data, now, final);
    } else {
        memcpy(data, now->data, room);
        wanted->behind = align_up(MAX(now->end, final->end), 8);
        if (lay_out_somehow(between, room, now, wanted))
            ret = co_step(s, data, now, between);
        /* The second step is for tidiness alone: the list between says the same, and stays if the step fails. */
        if (ret == 0)
            co_step(s, data, between, final);
    }
    return ret;
}

static coroutine_fn int co_change_all(struct qcow2 *s, struct wanted *wanted)
{
    size_t room = s->cluster_size;
    uint8_t *memory = blk_buffer_alloc(s->node->file, 4 * room);
    struct head now = { .data = memory, .begin = BLK_SECTOR_SIZE }, between = { .data = memory + room },
                final = { .data = memory + 2 * room };
    int ret = memory ? blk_co_read(s->node->file, 0, now.data, room) : -ENOMEM;

    if (ret == 0) {
        now.version = s->header.version;
        now.header_length = s->header.header_length;
        now.name_offset = (uint32_t)s->header.backing_offset;
        now.name_length = s->header.backing_length;
        now.end = end_of(&now, room);
        ret = co_steps(s, memory + 3 * room, &now, &between, &final, wanted);
    }
    free(memory);
    return ret;
}

static coroutine_fn int co_change(struct qcow2 *s, struct wanted *wanted, struct error **errp)
{
    /* What the new header relies on is on disk before: content that the new backing file does not have, say. */
    int ret = qcow2_co_settle_all(s);

    wanted->data = wanted->data_changes ? wanted->data : s->data_name;
    if (ret == 0)
        ret = co_change_all(s, wanted);
    if (ret == -ENOSPC)
        return error_set(errp, ret, "No space left in the file header");
    return ret < 0 ? error_set_errno(errp, ret, "Could not write the image's header") : 0;
}

/* ---- what changes ---- */

coroutine_fn int qcow2_co_change_backing(struct blk_node *node, const char *name, const char *format,
                                         struct error **errp)
{
    struct qcow2 *s = node->state;
    struct wanted wanted = { .name = name, .format = format, .version = s->header.version };

    if (name && strlen(name) > QCOW2_MAX_BACKING_NAME)
        return error_set(errp, -EINVAL, "%s", strerror(EINVAL));
    if (format && strlen(format) >= sizeof(s->backing_format))
        return error_set(errp, -EINVAL, "%s", strerror(EINVAL));
    if (atomic_load(&s->corrupt))
        return error_set(errp, -EIO, "The image is marked corrupt");
    int ret = co_change(s, &wanted, errp);
    if (ret < 0)
        return ret;
    free(s->backing_name);
    s->backing_name = name ? xstrdup(name) : NULL;
    snprintf(s->backing_format, sizeof(s->backing_format), "%s", format ? format : "");
    return 0;
}

coroutine_fn int qcow2_co_change_data_name(struct qcow2 *s, const char *name, struct error **errp)
{
    struct wanted wanted = { .name = s->backing_name,
                             .format = *s->backing_format ? s->backing_format : NULL,
                             .data = *name ? name : NULL,
                             .data_changes = true,
                             .version = s->header.version };
    int ret = co_change(s, &wanted, errp);

    if (ret < 0)
        return ret;
    free(s->data_name);
    s->data_name = *name ? xstrdup(name) : NULL;
    return 0;
}

static coroutine_fn void co_set_autoclear(struct qcow2 *s, uint64_t bits)
{
    co_mutex_lock(&s->lock);
    s->header.autoclear = bits;
    qcow2_header_set64(s, QCOW2_AT_AUTOCLEAR, bits);
    co_mutex_unlock(&s->lock);
}

coroutine_fn int qcow2_co_change_bitmaps(struct qcow2 *s, uint32_t count, uint64_t size, uint64_t offset,
                                         struct error **errp)
{
    uint8_t extension[BITMAPS_EXTENSION] = { 0 };
    uint64_t old = s->header.autoclear, other = old & ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
    struct wanted wanted = { .name = s->backing_name,
                             .format = *s->backing_format ? s->backing_format : NULL,
                             .bitmaps_change = true,
                             .bitmaps = count ? extension : NULL,
                             .version = s->header.version };

    store_be32(extension, count);
    store_be64(extension + 8, size);
    store_be64(extension + 16, offset);
    co_set_autoclear(s, count ? other | QCOW2_AUTOCLEAR_BITMAPS : other); /* on disk with the sector that names them */
    int ret = co_change(s, &wanted, errp);
    if (ret < 0) {
        co_set_autoclear(s, old);
        return ret;
    }
    s->bitmap_count = count;
    s->bitmap_directory_size = size;
    s->bitmap_directory_offset = offset;
    return 0;
}

coroutine_fn int qcow2_co_change_version(struct qcow2 *s, uint32_t version, struct error **errp)
{
    struct wanted wanted = { .name = s->backing_name,
                             .format = *s->backing_format ? s->backing_format : NULL,
                             .version = version };
    int ret = co_change(s, &wanted, errp);

    if (ret == 0) /* either way: version 2 has none, and a new version 3 begins with none */
        s->header.incompatible = s->header.compatible = s->header.autoclear = 0;
    return ret;
}
