/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to block/: moving links from one node to another, for changes of the graph (change.c, reopen.c). Main
 * loop. */
#pragma once

#include "perm.h"

/* The lock that makes changes of the graph take turns. */
coroutine_fn void blk_co_changes_lock(void);
void blk_changes_unlock(void);
/* What changes an image as a whole: a turn, and a drained section of the first node at or below this one that is no
 * filter. Returns it; NULL: all below are filters. The end takes what the beginning returned. */
coroutine_fn struct blk_node *blk_co_image_begin(struct blk_node *node);
coroutine_fn void blk_co_image_end(struct blk_node *image);

/* Is `below` the node, or one of its descendants? */
bool blk_is_at_or_below(const struct blk_node *node, const struct blk_node *below);
/* The link points at `to` from now on; references move with it. Drained; permissions are the caller's to settle. */
void blk_link_move(struct blk_child *link, struct blk_node *to);
/* After a change that has succeeded: parents take over the node's size and limits, and front ends hear of it. */
void blk_node_report_change(struct blk_node *node);

/* Another backing child, in steps: the new link beside the old one, permissions in between, then one of the two goes.
 * The node is drained, the change has its turn. */
struct blk_backing_change {
    struct blk_node *node;
    struct blk_child *old, *new; /* NULL: none */
};
/* `backing` may be NULL. Fails for a cycle, and for a driver that has none: then nothing has changed. */
int blk_backing_begin(struct blk_backing_change *change, struct blk_node *node, struct blk_node *backing,
                      struct error **errp);
/* Permissions are in force. Returns what closing the old one came to. */
coroutine_fn int blk_co_backing_commit(struct blk_backing_change *change);
/* All is as it was before the beginning. */
coroutine_fn void blk_co_backing_abort(struct blk_backing_change *change);
