/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Private to block/: changes of permissions, as transactions. Main loop.
 *
 *     begin, then any number of blk_perm_link() and blk_perm_node(), then prepare; if that succeeds, commit or abort.
 *
 * Nothing yields between begin and the end but a reopen, which says so by blk_perm_keep().
 */
#pragma once

#include <block/node.h>

struct saved_link;

struct blk_perm_change {
    struct saved_link *links; /* as they were */
    size_t link_count;
    struct blk_node **nodes; /* that are checked, and locked on the host; parents before children */
    size_t node_count, prepared;
};

void blk_perm_begin(struct blk_perm_change *change);
/* The parent of this link does `perm` and shares `shared` from now on, and what is below follows. */
void blk_perm_link(struct blk_perm_change *change, struct blk_child *link, unsigned perm, unsigned shared);
/* The node's parents, or what it is open for, are others: it is checked, and what is below follows. */
void blk_perm_node(struct blk_perm_change *change, struct blk_node *node);
/* Checks all nodes and takes new locks; old ones are still held. On failure everything is as it was, and the change is
 * over. */
int blk_perm_prepare(struct blk_perm_change *change, struct error **errp);
/* After a prepare that succeeded: the caller yields before the end, and nobody else changes these nodes meanwhile. */
void blk_perm_keep(struct blk_perm_change *change);
/* Sleeps while such a change has this node, or one below it, in hand: before permissions on it are asked for. Not by
 * who keeps it. */
coroutine_fn void blk_co_perm_wait(const struct blk_node *node);
/* Gives up the locks that nobody needs any more. */
void blk_perm_commit(struct blk_perm_change *change);
/* Everything as it was before begin. */
void blk_perm_abort(struct blk_perm_change *change);

/* Each a whole transaction: */
/* The permissions of one parent on a node. */
int blk_perm_set_child(struct blk_child *child, unsigned perm, unsigned shared, struct error **errp);
/* Of a new child of a node: what the node needs of it by its rules. */
int blk_perm_attach(struct blk_child *child, struct error **errp);
/* After a parent went: what remains may need less, which cannot fail. */
void blk_perm_refresh(struct blk_node *node);
/* The host shows these BLK_PERM_ bits of the node as done and as not shared, whoever in this process uses it: for an
 * image that is being created. 0: no longer. */
int blk_perm_pin(struct blk_node *node, unsigned pinned, struct error **errp);
