/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Steps of a format, told to a filter below it that listens: blkdebug lets them fail, or stops there. The names are
 * QEMU's (BlkdebugEvent).
 */
#pragma once

#include <base/compiler.h>
#include <stdatomic.h>
#include <stdbool.h>

struct blk_node;

enum blk_event {
    BLK_EVENT_NONE,
    BLK_EVENT_L1_UPDATE,
    BLK_EVENT_L1_GROW_ALLOC_TABLE,
    BLK_EVENT_L1_GROW_WRITE_TABLE,
    BLK_EVENT_L1_GROW_ACTIVATE_TABLE,
    BLK_EVENT_L2_LOAD,
    BLK_EVENT_L2_UPDATE,
    BLK_EVENT_L2_UPDATE_COMPRESSED,
    BLK_EVENT_L2_ALLOC_COW_READ,
    BLK_EVENT_L2_ALLOC_WRITE,
    BLK_EVENT_READ_AIO,
    BLK_EVENT_READ_BACKING_AIO,
    BLK_EVENT_READ_COMPRESSED,
    BLK_EVENT_WRITE_AIO,
    BLK_EVENT_WRITE_COMPRESSED,
    BLK_EVENT_VMSTATE_LOAD,
    BLK_EVENT_VMSTATE_SAVE,
    BLK_EVENT_COW_READ,
    BLK_EVENT_COW_WRITE,
    BLK_EVENT_REFTABLE_LOAD,
    BLK_EVENT_REFTABLE_GROW,
    BLK_EVENT_REFTABLE_UPDATE,
    BLK_EVENT_REFBLOCK_LOAD,
    BLK_EVENT_REFBLOCK_UPDATE,
    BLK_EVENT_REFBLOCK_UPDATE_PART,
    BLK_EVENT_REFBLOCK_ALLOC,
    BLK_EVENT_REFBLOCK_ALLOC_HOOKUP,
    BLK_EVENT_REFBLOCK_ALLOC_WRITE,
    BLK_EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS,
    BLK_EVENT_REFBLOCK_ALLOC_WRITE_TABLE,
    BLK_EVENT_REFBLOCK_ALLOC_SWITCH_TABLE,
    BLK_EVENT_CLUSTER_ALLOC,
    BLK_EVENT_CLUSTER_ALLOC_BYTES,
    BLK_EVENT_CLUSTER_FREE,
    BLK_EVENT_FLUSH_TO_OS,
    BLK_EVENT_FLUSH_TO_DISK,
    BLK_EVENT_PWRITEV_RMW_HEAD,
    BLK_EVENT_PWRITEV_RMW_AFTER_HEAD,
    BLK_EVENT_PWRITEV_RMW_TAIL,
    BLK_EVENT_PWRITEV_RMW_AFTER_TAIL,
    BLK_EVENT_PWRITEV,
    BLK_EVENT_PWRITEV_ZERO,
    BLK_EVENT_PWRITEV_DONE,
    BLK_EVENT_EMPTY_IMAGE_PREPARE,
    BLK_EVENT_L1_SHRINK_WRITE_TABLE,
    BLK_EVENT_L1_SHRINK_FREE_L2_CLUSTERS,
    BLK_EVENT_COR_WRITE,
    BLK_EVENT_CLUSTER_ALLOC_SPACE,
    BLK_EVENT_COUNT,
};
/* Their names, by number; NULL at the end. */
extern const char *const blk_event_words[];

/* Nodes that listen. */
extern atomic_uint blk_event_listeners;
coroutine_fn void blk_co_event_told(struct blk_node *node, enum blk_event event);
/* Does a format right above this node tell its steps? Any thread. */
bool blk_event_is_told(const struct blk_node *node);
/* `event` is about to happen on `node`, a format's file. The nearest node from there on down the files that listens
 * hears of it, and may keep the caller waiting, whatever locks it holds. Any thread. */
static inline coroutine_fn void blk_co_event(struct blk_node *node, enum blk_event event)
{
    if (unlikely(atomic_load_explicit(&blk_event_listeners, memory_order_relaxed)))
        blk_co_event_told(node, event);
}
