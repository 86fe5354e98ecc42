/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The qcow2 driver's table. One file a concern beside it; qcow2.h says what they share.
 *
 *   map.c extent.c   the hot path: lock-free look-ups, and block status made of them
 *   read.c write.c zero.c compress.c    what map leaves to coroutines
 *   l2cache.c refcount.c alloc.c reftable.c free.c cacheclean.c    metadata in memory
 *   commit.c writeback.c    metadata to disk, in the one order allowed
 *   header.c open.c snapshot.c corrupt.c overlap.c create.c truncate.c check*.c info.c    the image as a whole
 */
#include "qcow2.h"

static int probe(const uint8_t *data, size_t length)
{
    return length >= 8 && load_be32(data) == QCOW2_MAGIC && load_be32(data + 4) >= 2 ? 100 : 0;
}

static const struct blk_driver qcow2_driver = {
    .name = "qcow2",
    .flags = BLK_DRIVER_FORMAT,
    .state_size = sizeof(struct qcow2),
    .options = qcow2_options,
    .create_options = qcow2_create_options,
    .probe = probe,
    .co_open = qcow2_co_open,
    .co_close = qcow2_co_close,
    .co_create = qcow2_co_create,
    .map = qcow2_map,
    .co_load = qcow2_co_load,
    .co_extent = qcow2_co_extent,
    .co_read = qcow2_co_read,
    .co_write = qcow2_co_write,
    .co_write_zeroes = qcow2_co_write_zeroes,
    .co_discard = qcow2_co_discard,
    .co_flush = qcow2_co_flush,
    .co_truncate = qcow2_co_truncate,
    .co_info = qcow2_co_info,
    .co_check = qcow2_co_check,
};
BLK_DRIVER(qcow2_driver)
