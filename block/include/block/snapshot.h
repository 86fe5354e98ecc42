/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Internal snapshots: states of a disk that its format keeps in the image, beside the one that is in use. Changes of a
 * graph as those in change.h: each takes its turn and drains the node; it happens or leaves all as it was. Filters pass
 * on to what is below. Main loop.
 */
#pragma once

#include <block/node.h>

/* Bytes that a snapshot's name may have. */
#define BLK_SNAPSHOT_NAME_MAX 255u

/* What a new snapshot says of itself. */
struct blk_snapshot {
    const char *name;
    uint32_t date_sec, date_nsec; /* since 1970, UTC */
    uint64_t vm_clock_nsec;       /* how long the guest had run */
    uint64_t vm_state_size;       /* bytes past the end of the disk that belong to it */
    uint64_t icount;
};

/* Keeps what the disk holds now. 0, or -errno and *errp: -ENOTSUP if the format has no snapshots. */
coroutine_fn int blk_co_snapshot_create(struct blk_node *node, const struct blk_snapshot *what, struct error **errp);
/* The disk holds, and is as large as, what the snapshot with this id, or else name, kept. -ENOENT: there is none. */
coroutine_fn int blk_co_snapshot_apply(struct blk_node *node, const char *id_or_name, struct error **errp);
/* Forgets the first snapshot of this name. -ENOENT: there is none. */
coroutine_fn int blk_co_snapshot_delete(struct blk_node *node, const char *name, struct error **errp);
/* VM state: bytes beside the disk, from offset 0 on, which the next snapshot that says how many there are takes along,
 * and which are there again when that is applied. What was never written reads as zeroes. -ENOTSUP: the format has
 * none. */
coroutine_fn int blk_co_vm_state_read(struct blk_node *node, uint64_t offset, void *buffer, uint64_t length);
coroutine_fn int blk_co_vm_state_write(struct blk_node *node, uint64_t offset, const void *buffer, uint64_t length,
                                       struct error **errp);
/* A read-only node shows what a snapshot kept, from now until it is closed: the first with this id and this name (NULL:
 * any). -ENOENT: there is none; -EBUSY: the node is writable. */
coroutine_fn int blk_co_snapshot_show(struct blk_node *node, const char *id, const char *name, struct error **errp);
