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
/* The main loop changes a node's list of parents under this lock; others hold it while they walk up. It is a leaf. */
void blk_links_lock(void);
void blk_links_unlock(void);
/* The node may have another size now: parents that follow their child's take it over, and front ends hear of it. */
void blk_node_report_size(struct blk_node *node);
/* By a node that is open, or opens. Nodes that close do not count. */
bool blk_node_name_taken(const char *name);
