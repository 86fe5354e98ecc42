/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For tests that hold a `blkdebug` node (block/filters/blkdebug.c) and arm faults while it is in use. */
#pragma once

#include <block/node.h>

/* I/Os (block status is none) that came to this node since it was opened, those failed included: the N-th of them
 * from now is what a rule with after=N and no iotype fails. An idle node counts nothing. Any thread. */
uint64_t blkdebug_requests(const struct blk_node *node);
/* Adds one inject-error rule, given as text: "iotype=write,errno=28,after=3,once=on". Main loop; requests may be in
 * flight. */
int blkdebug_inject(struct blk_node *node, const char *rule, struct error **errp);
/* Drops all inject-error rules. Main loop. */
void blkdebug_clear(struct blk_node *node);

/* ---- breakpoints, on the nearest blkdebug node at or below `node`. -ENOTSUP: there is none. Main loop ---- */

/* The next request that comes to this event stops there. -ENOENT: no event is called like that. */
int blkdebug_break(struct blk_node *node, const char *event, const char *tag);
/* Whether a request has stopped by this tag. */
int blkdebug_has_stopped(struct blk_node *node, const char *tag);
/* The oldest of them goes on; -ENOENT: there is none. */
int blkdebug_resume(struct blk_node *node, const char *tag);
/* The tag's breakpoints go (NULL: all), and its requests go on; -ENOENT: there is no breakpoint at which nothing has
 * stopped yet. */
int blkdebug_remove_break(struct blk_node *node, const char *tag);
