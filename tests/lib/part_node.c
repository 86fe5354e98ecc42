/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A part of another node, for tests: `size` bytes of its "file" from `offset` on. Unlike a raw node it lets others use
 * the rest of the file as they like, so several parts of one file can be the files of one image.
 */
#include <base/checked.h>
#include <base/opts.h>
#include <block/image.h>
#include <block/node.h>
#include <errno.h>

struct part_state {
    uint64_t offset, size;
};

static const struct opt_desc part_options[] = {
    { .name = "offset", .type = OPT_SIZE, .def = "0", .help = "where it begins" },
    { .name = "size", .type = OPT_SIZE, .def = "0", .help = "its length" },
    { 0 },
};

static coroutine_fn int part_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct part_state *s = node->state;
    int ret = opts_size(opts, part_options, "offset", &s->offset, errp);

    if (ret >= 0)
        ret = opts_size(opts, part_options, "size", &s->size, errp);
    if (ret >= 0)
        ret = blk_co_open_child(node, "file", opts, NULL, flags, false, errp);
    if (ret < 0)
        return ret;
    if (!range_inside(s->offset, s->size, blk_node_size(node->file)))
        return error_set(errp, -EINVAL, "The part does not lie in the file");
    node->limits = node->file->limits;
    atomic_store(&node->size, s->size);
    return 0;
}

static void part_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                     struct blk_extent *extent)
{
    const struct part_state *s = node->state;

    (void)op, (void)flags;
    blk_extent_pass(extent, node->file, s->offset + offset, length);
}

static void part_child_perm(struct blk_node *node, const char *role, unsigned perm, unsigned shared,
                            unsigned *child_perm, unsigned *child_shared)
{
    (void)node, (void)role, (void)shared;
    *child_perm = perm & ~(unsigned)BLK_PERM_RESIZE;
    *child_shared = BLK_PERM_ALL;
}

static const struct blk_driver part_driver = {
    .name = "part",
    .flags = BLK_DRIVER_FORMAT,
    .state_size = sizeof(struct part_state),
    .options = part_options,
    .co_open = part_co_open,
    .map = part_map,
    .child_perm = part_child_perm,
};
BLK_DRIVER(part_driver)
