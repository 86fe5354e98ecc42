/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Reading the directory of persistent dirty bitmaps (the specification's "Bitmap directory"). */
#include "bitmap.h"

bool qcow2_has_bitmaps(const struct qcow2 *s)
{
    return (s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) && s->bitmap_count > 0;
}

coroutine_fn int qcow2_co_bitmap_directory(struct qcow2 *s, uint8_t **directory)
{
    int ret = s->bitmap_directory_size > QCOW2_MAX_BITMAP_DIRECTORY ? -EFBIG : 0;

    *directory = ret == 0 ? malloc(s->bitmap_directory_size + 1) : NULL;
    if (ret == 0 && !*directory)
        ret = -ENOMEM;
    if (ret == 0)
        ret = blk_co_read(s->node->file, s->bitmap_directory_offset, *directory, s->bitmap_directory_size);
    if (ret == 0)
        return 0;
    free(*directory);
    *directory = NULL;
    return ret;
}

bool qcow2_bitmap_next(const uint8_t *directory, uint64_t size, uint64_t *at, struct qcow2_bitmap *bitmap)
{
    const uint8_t *entry = directory + *at;
    uint64_t left = size - *at;

    if (left < QCOW2_BITMAP_ENTRY)
        return false;
    uint64_t extra = load_be32(entry + 20), length = QCOW2_BITMAP_ENTRY + extra + load_be16(entry + 18);
    if (length > left)
        return false;
    *bitmap = (struct qcow2_bitmap){ .table_offset = load_be64(entry),
                                     .table_entries = load_be32(entry + 8),
                                     .flags = load_be32(entry + 12),
                                     .type = entry[16],
                                     .granularity_bits = entry[17],
                                     .name_length = load_be16(entry + 18),
                                     .extra_length = (uint32_t)extra,
                                     .extra = entry + QCOW2_BITMAP_ENTRY,
                                     .name = (const char *)entry + QCOW2_BITMAP_ENTRY + extra };
    *at += MIN(align_up(length, 8), left);
    return true;
}
