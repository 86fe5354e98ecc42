/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to block/: what changes of the graph report to the drained sections that are open (drain.c). Main loop. */
#pragma once

#include <block/node.h>

/* A link has been added: who came above a drained node by it is held too, until that section's end. */
void blk_drain_link_added(const struct blk_child *link);
/* A front end goes, or a node is gone: no section holds it any more. */
void blk_drain_forget_front(struct blk_front *front);
void blk_drain_forget_node(struct blk_node *node);
/* The last reference to the node has gone: its driver is to be closed next. From now on nobody finds it. */
coroutine_fn void blk_co_drain_node_closes(struct blk_node *node);
/* The driver has opened the node: if sections hold it already, its own work does not begin. */
void blk_drain_node_opened(struct blk_node *node);
/* Is the front end held, and by no section but those that the calling coroutine has begun itself? */
bool blk_drain_is_ours(const struct blk_front *front);
