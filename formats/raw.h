/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* raw: what its driver and the guard of a guessed disk share. */
#pragma once

#include <base/sync.h>
#include <block/node.h>

/* Which part of the file is the disk. */
struct raw_window {
    uint64_t offset, size;
    bool fixed_size;
};

struct raw_state {
    struct raw_window other; /* while it is reopened: the one that is not in force */
    uint64_t offset;
    bool fixed_size;       /* `size` was given */
    bool guarded;          /* the format was guessed */
    struct co_mutex guard; /* held over the check of a change at an edge and the change itself */
};

/* raw_guard.c. All offsets are the file's. Does the range touch an edge of the file? */
bool raw_guard_covers(const struct blk_node *node, uint64_t offset, uint64_t length);
/* Changes of a range that touches an edge: -EPERM, with nothing changed, if a probe would recognise what they make. */
coroutine_fn int raw_guard_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                    int iov_count, unsigned flags);
coroutine_fn int raw_guard_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags);
/* Leaves the edges as they are. */
coroutine_fn int raw_guard_co_discard(struct blk_node *node, uint64_t offset, uint64_t length);
