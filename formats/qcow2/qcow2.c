/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The qcow2 driver's table. One file a concern beside it, in layers: a file calls only files that stand before it here
 * (tests/cli/qcow2-layers checks it).
 *
 *   format.h entry.c set.c counts.c entropy.c state.h  the format; the state in memory
 *   header.c snapshot.c bitmap.c compress.c    what is read of the file and needs nothing else
 *   inflight.c writeback.c                     slow requests by guest cluster; sets of writes
 *   corrupt.c dirty.c overlap.c                contradictions; news of changes; what is never overwritten
 *   refcount.c l2cache.c                       metadata in memory
 *   reftable.c alloc.c l2table.c               host clusters, and tables made of them
 *   free.c cacheclean.c                        giving back: clusters, memory
 *   commit.c                                   metadata to disk, in the one order allowed (rules W1 to W10: commit.h)
 *   map.c extent.c                             the hot path: lock-free look-ups, and block status made of them
 *   read.c write.c write_compressed.c zero.c   what map leaves to coroutines
 *   l1table.c references.c                     the active L1 table replaced; all that an L1 table refers to
 *   options.c create_options.c truncate.c relayout.c bitmaps.c vmstate.c snapshot_list.c snapshot_change.c survey.c
 *   check.c rebuild.c check_repair.c batch.c tables.c place_map.c compact_zeroes.c compact_tables.c compact.c expand.c
 *   amend.c info.c open.c reopen.c create.c measure.c qcow2.c
 *                                              the image as a whole
 */
#include "driver.h"

#include "dirty.h"

#include <block/probe.h>

static int qcow2_probe(const struct blk_probe *probe)
{
    bool fits = probe->head_length >= 8 && load_be32(probe->head) == QCOW2_MAGIC && load_be32(probe->head + 4) >= 2;

    return fits ? BLK_PROBE_HEAD_FITS : 0;
}

static const struct blk_driver qcow2_driver = {
    .name = "qcow2",
    .flags = BLK_DRIVER_FORMAT | BLK_DRIVER_BACKING | BLK_DRIVER_REMAPS | BLK_DRIVER_TELLS,
    .state_size = sizeof(struct qcow2),
    .options = qcow2_options,
    .create_options = qcow2_create_options,
    .probe = qcow2_probe,
    .co_open = qcow2_co_open,
    .co_close = qcow2_co_close,
    .create_check = qcow2_create_check,
    .co_create = qcow2_co_create,
    .co_measure = qcow2_co_measure,
    .map = qcow2_map,
    .co_load = qcow2_co_load,
    .co_extent = qcow2_co_extent,
    .co_read = qcow2_co_read,
    .co_write = qcow2_co_write,
    .co_write_compressed = qcow2_co_write_compressed,
    .co_write_zeroes = qcow2_co_write_zeroes,
    .co_discard = qcow2_co_discard,
    .co_flush = qcow2_co_flush,
    .drain_begin = qcow2_drain_begin,
    .co_drain_settle = qcow2_co_drain_settle,
    .drain_end = qcow2_drain_end,
    .co_truncate = qcow2_co_truncate,
    .child_changed = qcow2_child_changed,
    .amend_options = qcow2_amend_options,
    .co_amend = qcow2_co_amend,
    .co_make_empty = qcow2_co_make_empty,
    .co_change_backing = qcow2_co_change_backing,
    .co_snapshot_create = qcow2_co_snapshot_create,
    .co_snapshot_apply = qcow2_co_snapshot_apply,
    .co_snapshot_delete = qcow2_co_snapshot_delete,
    .co_snapshot_show = qcow2_co_snapshot_show,
    .bitmap_check = qcow2_bitmap_check,
    .bitmap_removed = qcow2_bitmap_removed,
    .co_bitmaps_load = qcow2_co_bitmaps_load,
    .co_vm_state_read = qcow2_co_vm_state_read,
    .co_vm_state_write = qcow2_co_vm_state_write,
    .co_reopen_prepare = qcow2_co_reopen_prepare,
    .reopen_switch = qcow2_reopen_switch,
    .co_reopen_begin = qcow2_co_reopen_begin,
    .co_reopen_clean = qcow2_co_reopen_clean,
    .co_info = qcow2_co_info,
    .co_check = qcow2_co_check,
    .co_compact = qcow2_co_compact,
};
BLK_DRIVER(qcow2_driver)
