/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preallocate: before a write passes the end of the file, the file is made longer by many megabytes that the host has
 * allocated. So a file that grows in small steps lies in a few pieces on the host's disk, and growing costs it little.
 * What was not used is cut off when the node is closed, read only, or may not be resized any more.
 *
 * The protocol driver does all that, since nobody but it sees the longer file (grow_ahead in block/node.h). The filter
 * finds the node that grows with it, tells it how, and follows its size.
 */
#include "filter.h"

#include <base/compiler.h>
#include <block/image.h>
#include <errno.h>
#include <stdlib.h>

struct preallocate {
    struct blk_ahead how;
    struct blk_ahead other; /* while a reopen is under way: the other one */
    struct blk_node *grown; /* the node that was told; NULL: none */
};

static const struct opt_desc preallocate_options[] = {
    { .name = "prealloc-align",
      .type = OPT_SIZE,
      .def = "1M",
      .flags = OPT_REOPEN,
      .help = "the file is made longer up to a multiple of this",
      .at = OPT_AT(struct blk_ahead, align) },
    { .name = "prealloc-size",
      .type = OPT_SIZE,
      .def = "128M",
      .flags = OPT_REOPEN,
      .help = "how much of the file is allocated past the end of a write",
      .at = OPT_AT(struct blk_ahead, size) },
    { 0 },
};

static int read_options(struct opts *opts, struct blk_ahead *how, struct error **errp)
{
    int ret = opts_read(opts, preallocate_options, how, errp);

    if (ret < 0)
        return ret;
    how->allocate = true;
    if (how->align % BLK_SECTOR_SIZE)
        return error_set(errp, -EINVAL, "prealloc-align parameter of preallocate filter is not aligned to %u",
                         BLK_SECTOR_SIZE);
    return 0;
}

/* The node that becomes larger if this one does. */
static struct blk_node *find_grown(struct blk_node *node)
{
    if (!blk_node_writable(node) || !blk_node_grows(node))
        return NULL;
    while (!node->driver->grow_ahead && !(node->driver->flags & BLK_DRIVER_PROTOCOL))
        node = node->file;
    return node->driver->grow_ahead ? node : NULL;
}

static void tell(struct preallocate *s, struct blk_node *grown)
{
    if (s->grown && s->grown != grown)
        s->grown->driver->grow_ahead(s->grown, NULL);
    s->grown = grown;
    if (grown)
        grown->driver->grow_ahead(grown, &s->how);
}

static coroutine_fn int preallocate_co_open(struct blk_node *node, struct opts *opts, unsigned flags,
                                            struct error **errp)
{
    struct preallocate *s = node->state;
    int ret = read_options(opts, &s->how, errp);

    if (ret == 0)
        ret = blk_co_open_child(node, "file", opts, node->filename, flags, false, errp);
    if (ret < 0)
        return ret;
    blk_filter_follow(node);
    tell(s, find_grown(node));
    return 0;
}

static coroutine_fn int preallocate_co_close(struct blk_node *node)
{
    tell(node->state, NULL);
    return 0;
}

static void preallocate_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                            struct blk_extent *extent)
{
    (void)flags;
    if (filter_grows(node, op, offset, length))
        *extent = (struct blk_extent){ .kind = BLK_SLOW, .length = length };
    else
        blk_extent_pass(extent, node->file, offset, length);
}

static void preallocate_child_changed(struct blk_node *node)
{
    struct preallocate *s = node->state;
    struct blk_node *grown = find_grown(node);

    blk_filter_follow(node);
    if (grown != s->grown)
        tell(s, grown);
}

/* ---- reopen ---- */

static coroutine_fn int preallocate_co_reopen_prepare(struct blk_node *node, struct opts *opts, unsigned flags,
                                                      struct error **errp)
{
    struct preallocate *s = node->state;

    (void)flags;
    return read_options(opts, &s->other, errp);
}

static void preallocate_reopen_switch(struct blk_node *node)
{
    struct preallocate *s = node->state;

    SWAP(s->how, s->other);
}

/* The options and flags that are in force now are those that stay. */
static coroutine_fn void preallocate_co_reopen_clean(struct blk_node *node) { tell(node->state, find_grown(node)); }

static const struct blk_driver preallocate_driver = {
    .name = "preallocate",
    .flags = BLK_DRIVER_FILTER | BLK_DRIVER_GROWS,
    .state_size = sizeof(struct preallocate),
    .options = preallocate_options,
    .co_open = preallocate_co_open,
    .co_close = preallocate_co_close,
    .map = preallocate_map,
    .co_write = filter_co_write,
    .co_write_zeroes = filter_co_write_zeroes,
    .child_changed = preallocate_child_changed,
    .co_reopen_prepare = preallocate_co_reopen_prepare,
    .reopen_switch = preallocate_reopen_switch,
    .co_reopen_clean = preallocate_co_reopen_clean,
};
BLK_DRIVER(preallocate_driver)
