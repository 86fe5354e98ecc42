/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to block/: how nodes are made, linked and unlinked. Main loop only. */
#pragma once

#include <block/node.h>

struct blk_node *blk_node_new(const struct blk_driver *driver, const char *name, unsigned flags);
/* Frees a node that has no children, parents or open driver any more. */
void blk_node_free(struct blk_node *node);
/* Links `node` (takes over the caller's reference) below a parent node or a front end; exactly one of them is not NULL.
 * Sets the shortcuts. Permissions start as nothing done, all shared: blk_perm_set_child() comes next. */
struct blk_child *blk_child_attach(struct blk_node *parent, struct blk_front *front, const char *role,
                                   struct blk_node *node);
/* Unlinks and returns the node, whose reference is the caller's again. */
struct blk_node *blk_child_detach(struct blk_child *child);
/* Calls fn for every node that is open. */
void blk_node_each(void (*fn)(struct blk_node *node, void *arg), void *arg);

/* Asks for permissions of one parent on a node, then on all that lies below. Leaves everything as it was on failure. */
int blk_perm_set_child(struct blk_child *child, unsigned perm, unsigned shared, struct error **errp);
/* After a child went: what remains may need less. */
void blk_perm_refresh(struct blk_node *node);
