/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes of a graph while requests run. Each drains what it changes, and either happens or leaves all as it was:
 * links, permissions and locks on the host, options. Requests of front ends wait meanwhile and then go the new way.
 * docs/architecture.md, section 4, has the order of steps. Main loop; one at a time: others wait for their turn.
 */
#pragma once

#include <block/node.h>

/* All parents of `from` get `to` instead, except those that are `to` itself or below it. `from` must have a reference
 * of the caller's, who drops it when he does not need the node any more. A parent that is a node does not get a smaller
 * child. 0, or -errno and *errp. */
coroutine_fn int blk_co_replace(struct blk_node *from, struct blk_node *to, struct error **errp);

/* Opens a filter on `below` (opts: driver, node-name and its own; its child is set here) and puts it between the node
 * and all its parents. Returns the filter with a reference of the caller's, or NULL and *errp. */
coroutine_fn struct blk_node *blk_co_insert_filter(struct blk_node *below, const struct opts *opts,
                                                   struct error **errp);
/* The parents of the filter get its child. The caller's reference is usually the last one then. */
coroutine_fn int blk_co_remove_filter(struct blk_node *filter, struct error **errp);

/* What shows through a format node where it has nothing itself is another node from now on, or (NULL) nothing. The
 * image's own word about its backing file stays as it is. */
coroutine_fn int blk_co_set_backing(struct blk_node *node, struct blk_node *backing, struct error **errp);

/* The image, or that below a filter, records another backing file, and its format; NULL: none. Which nodes there are
 * stays as it is. -ENOTSUP: its format has no place for that. */
coroutine_fn int blk_co_change_backing(struct blk_node *node, const char *name, const char *format,
                                       struct error **errp);

/* The image, or that below a filter, has other options (driver->amend_options) than it was created with. If one of
 * several fails, others may have changed. -ENOTSUP: its format has none. */
coroutine_fn int blk_co_amend(struct blk_node *node, struct opts *opts, struct error **errp);

/* Zeroed, freed and leaked clusters of the image, or that below a filter, go back to the host, and what lies behind is
 * moved down, so that its file becomes as short as what is in use. Nothing that it shows changes. Cut off at any point
 * it is whole. -EIO: it has errors, and is as it was. -ENOTSUP: its format cannot. */
struct blk_compact {
    bool find_zeroes; /* also clusters whose data are all zero bytes: everything is read */
    /* Bytes that have been moved, of those that were to be; NULL: nobody asks. */
    void (*progress)(struct blk_compact *compact, uint64_t done, uint64_t total);
    uint64_t end_before, end_after; /* the file's bytes up to the last cluster in use */
    uint64_t moved;                 /* bytes */
    uint64_t leaks, dropped;        /* clusters: references that nothing had; and to zeroes */
};
coroutine_fn int blk_co_compact(struct blk_node *node, struct blk_compact *compact, struct error **errp);

/* Everything that the image, or that below a filter, holds itself goes: the whole disk shows its backing file.
 * Snapshots keep what they have. Cut off half way, some of it is gone. -ENOTSUP: its format has no place for a backing
 * file. */
coroutine_fn int blk_co_make_empty(struct blk_node *node, struct error **errp);

struct blk_reopen {
    struct blk_node *node;
    unsigned set, clear; /* BLK_O_* that the caller decides: RDWR, the cache mode */
    /* Given anew, or NULL; what is not here stays as it was. "backing": a node's name, or null. */
    const struct opts *opts;
};
/* Opens a set of open nodes anew, all or none: read-only and read-write, cache mode, and every option that its table
 * marks OPT_REOPEN. Children that were opened by a node of the set follow it, as when they were opened. */
coroutine_fn int blk_co_reopen(const struct blk_reopen *items, size_t count, struct error **errp);
