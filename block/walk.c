/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The part of the walk that is rare. */
#include "walk.h"

void blk_walk_recording(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                        struct blk_target *target)
{
    blk_walk_steps(node, op, flags, offset, length, target, true);
}
