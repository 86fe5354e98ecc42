/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw: the file's bytes are the disk's bytes, from `offset` on, `size` of them. A mapping is an addition.
 *
 * If nobody said that the image is raw (it was probed and nothing else fitted), changes at the edges of the file, which
 * probes look at, take the slow path through raw_guard.c.
 */
#include "raw.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <block/image.h>
#include <block/probe.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Written as zeroes in a new image: something of the file is allocated then, and alignment can be tried out on it. */
#define FIRST_BLOCK 4096u

static const struct opt_desc raw_options[] = {
    { .name = "offset",
      .type = OPT_SIZE,
      .flags = OPT_CONTENT | OPT_REOPEN,
      .def = "0",
      .help = "offset in the disk where the image starts" },
    { .name = "size", .type = OPT_SIZE, .flags = OPT_CONTENT | OPT_REOPEN, .help = "virtual disk size" },
    { 0 },
};

static const struct opt_desc raw_create_options[] = {
    { .name = "size", .type = OPT_SIZE, .help = "Virtual disk size" },
    { 0 },
};

/* Fits everything, worse than anything else. */
static int raw_probe(const struct blk_probe *probe) { return 1; }

/* ---- opening ---- */

static uint64_t whole_sectors(uint64_t size)
{
    return align_up(size, BLK_SECTOR_SIZE); /* a file's size is below 2^63 */
}

static int take_window(struct opts *opts, struct raw_window *window, struct error **errp)
{
    int ret = opts_size(opts, raw_options, "offset", &window->offset, errp);

    if (ret < 0)
        return ret;
    ret = opts_size(opts, raw_options, "size", &window->size, errp);
    window->fixed_size = ret > 0;
    return ret < 0 ? ret : 0;
}

/* Does it fit into the file? A size that was not given becomes what the file has. */
static int fit_window(const struct blk_node *node, struct raw_window *window, struct error **errp)
{
    uint64_t file_size = blk_node_size(node->file);

    if (window->offset > file_size)
        return error_set(errp, -EINVAL,
                         "Offset (%" PRIu64 ") cannot be greater than size of the containing file (%" PRIu64 ")",
                         window->offset, file_size);
    if (window->fixed_size && file_size - window->offset < window->size)
        return error_set(errp, -EINVAL,
                         "The sum of offset (%" PRIu64 ") and size (%" PRIu64
                         ") has to be smaller or equal to the  actual size of the containing file (%" PRIu64 ")",
                         window->offset, window->size, file_size);
    if (window->fixed_size && window->size % BLK_SECTOR_SIZE)
        return error_set(errp, -EINVAL, "Specified size is not multiple of %u", BLK_SECTOR_SIZE);
    if (!window->fixed_size)
        window->size = whole_sectors(file_size - window->offset);
    return 0;
}

static void use_window(struct blk_node *node, const struct raw_window *window)
{
    struct raw_state *s = node->state;

    s->offset = window->offset;
    s->fixed_size = window->fixed_size;
    atomic_store_explicit(&node->size, window->size, memory_order_relaxed);
}

static void warn_probed(const struct blk_node *node)
{
    fprintf(stderr,
            "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write operations on block 0 "
            "will be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n",
            node->file->filename);
}

static coroutine_fn int raw_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct raw_state *s = node->state;
    struct raw_window window = { 0 };
    int ret = take_window(opts, &window, errp);

    if (ret == 0)
        ret = blk_co_open_child(node, "file", opts, node->filename, flags, false, errp);
    if (ret == 0)
        ret = fit_window(node, &window, errp);
    if (ret < 0)
        return ret;
    use_window(node, &window);
    node->limits = node->file->limits;
    co_mutex_init(&s->guard);
    s->guarded = flags & BLK_O_PROBED;
    if (s->guarded && blk_node_writable(node))
        warn_probed(node);
    return 0;
}

static coroutine_fn int raw_co_close(struct blk_node *node)
{
    struct raw_state *s = node->state;

    co_mutex_finish(&s->guard);
    return 0;
}

/* ---- reopening ---- */

static coroutine_fn int raw_co_reopen_prepare(struct blk_node *node, struct opts *opts, unsigned flags,
                                              struct error **errp)
{
    struct raw_state *s = node->state;
    struct raw_window window = { 0 };
    int ret = take_window(opts, &window, errp);

    if (ret == 0)
        ret = fit_window(node, &window, errp);
    if (ret == 0)
        s->other = window;
    return ret;
}

static void raw_reopen_switch(struct blk_node *node)
{
    struct raw_state *s = node->state;
    struct raw_window now = { .offset = s->offset, .size = blk_node_size(node), .fixed_size = s->fixed_size };

    use_window(node, &s->other);
    s->other = now;
}

/* Nothing of the file is ours: others may do with it what our parents let them do with us. */
static void raw_child_perm(struct blk_node *node, const char *role, unsigned perm, unsigned shared,
                           unsigned *child_perm, unsigned *child_shared)
{
    *child_perm = perm;
    *child_shared = node->open_flags & BLK_O_FORCE_SHARE ? BLK_PERM_ALL : shared;
}

/* ---- requests ---- */

static void raw_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                    struct blk_extent *extent)
{
    struct raw_state *s = node->state;
    uint64_t in_file = s->offset + offset;

    blk_extent_pass(extent, node->file, in_file, length);
    bool changes = op != BLK_OP_READ && op != BLK_OP_FLUSH;
    if (unlikely(changes && offset + length > blk_node_size(node)) ||
        (unlikely(s->guarded) && changes && raw_guard_covers(node, in_file, length))) {
        extent->kind = BLK_SLOW;
        extent->flags = 0;
    }
}

/* What raw_map() sent the slow way: the range touches an edge of a guessed disk, or reaches past the end of one that
 * grows with its file. */
static bool is_guarded(const struct blk_node *node, uint64_t offset, uint64_t length)
{
    const struct raw_state *s = node->state;

    return s->guarded && raw_guard_covers(node, offset, length);
}

/* After a write that may have made the file larger. Others may be doing the same: only upwards. */
static void grow_with_file(struct blk_node *node)
{
    const struct raw_state *s = node->state;
    uint64_t size = blk_node_size(node), file_size = blk_node_size(node->file);
    uint64_t now = file_size > s->offset ? whole_sectors(file_size - s->offset) : 0;

    while (!s->fixed_size && now > size && !atomic_compare_exchange_weak(&node->size, &size, now))
        ;
}

static coroutine_fn int raw_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                     int iov_count, unsigned flags)
{
    struct raw_state *s = node->state;

    offset += s->offset;
    int ret = is_guarded(node, offset, length) ? raw_guard_co_write(node, offset, length, iov, iov_count, flags)
                                               : blk_co_writev(node->file, offset, length, iov, iov_count, flags);
    grow_with_file(node);
    return ret;
}

static coroutine_fn int raw_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct raw_state *s = node->state;

    offset += s->offset;
    int ret = is_guarded(node, offset, length) ? raw_guard_co_write_zeroes(node, offset, length, flags)
                                               : blk_co_write_zeroes(node->file, offset, length, flags);
    grow_with_file(node);
    return ret;
}

static coroutine_fn int raw_co_discard(struct blk_node *node, uint64_t offset, uint64_t length)
{
    struct raw_state *s = node->state;

    offset += s->offset;
    return is_guarded(node, offset, length) ? raw_guard_co_discard(node, offset, length)
                                            : blk_co_discard(node->file, offset, length);
}

/* ---- size ---- */

static bool raw_grows(const struct blk_node *node)
{
    const struct raw_state *s = node->state;

    return !s->fixed_size;
}

static void raw_child_changed(struct blk_node *node)
{
    struct raw_state *s = node->state;
    uint64_t file_size = blk_node_size(node->file);

    node->limits = node->file->limits;
    if (!s->fixed_size)
        atomic_store(&node->size, file_size > s->offset ? whole_sectors(file_size - s->offset) : 0);
}

static coroutine_fn int raw_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                        struct error **errp)
{
    struct raw_state *s = node->state;

    if (s->fixed_size)
        return error_set(errp, -ENOTSUP, "Cannot resize fixed-size raw disks");
    if (size > INT64_MAX - s->offset)
        return error_set(errp, -EINVAL, "Disk size too large for the chosen offset");
    return blk_co_truncate(node->file, size + s->offset, exact, prealloc, errp); /* our size follows the file's */
}

static int raw_create_check(const struct blk_create *create, struct error **errp)
{
    const char *prealloc = create->options ? opts_text(create->options, "preallocation") : NULL;

    if (prealloc && !blk_is_preallocation(prealloc))
        return error_set(errp, -EINVAL, "invalid parameter value: %s", prealloc);
    if (prealloc && !strcmp(prealloc, "metadata")) /* there is none */
        return error_set(errp, -ENOTSUP, "Unsupported preallocation mode: metadata");
    return 0;
}

/* The file is there, empty (a device: as it was). */
static coroutine_fn int raw_co_create(struct blk_create *create, struct error **errp)
{
    struct opts *opts = create->options ? opts_clone(create->options) : opts_new();
    AUTO_FREE char *given = opts_take(opts, "preallocation");
    const char *prealloc = given ? given : "off";

    opts_free(opts);
    int ret = blk_co_truncate(create->file, whole_sectors(create->size), false, prealloc, errp);
    if (ret == 0 && create->size && strcmp(prealloc, "full") != 0) {
        AUTO_FREE uint8_t *zeroes = xcalloc(1, FIRST_BLOCK);
        /* On a device: what another format may have left there. */
        uint64_t length = blk_node_grows(create->file) ? FIRST_BLOCK : BLK_SECTOR_SIZE;
        ret = blk_co_write(create->file, 0, zeroes, MIN(create->size, length), 0);
        if (ret < 0)
            error_set_errno(errp, ret, "Could not write to '%s'", create->filename);
    }
    return ret;
}

/* A file is all there is: holes may save room, or not. */
static coroutine_fn int raw_co_measure(const struct opts *options, uint64_t size, struct blk_node *source,
                                       struct blk_measure *measure, struct error **errp)
{
    (void)options, (void)source, (void)errp;
    measure->required = measure->fully_allocated = whole_sectors(size);
    return 0;
}

static const struct blk_driver raw_driver = {
    .name = "raw",
    .flags = BLK_DRIVER_FORMAT | BLK_DRIVER_GROWS,
    .state_size = sizeof(struct raw_state),
    .options = raw_options,
    .create_options = raw_create_options,
    .probe = raw_probe,
    .co_open = raw_co_open,
    .co_close = raw_co_close,
    .create_check = raw_create_check,
    .co_create = raw_co_create,
    .co_measure = raw_co_measure,
    .map = raw_map,
    .co_write = raw_co_write,
    .co_write_zeroes = raw_co_write_zeroes,
    .co_discard = raw_co_discard,
    .co_truncate = raw_co_truncate,
    .grows = raw_grows,
    .child_changed = raw_child_changed,
    .child_perm = raw_child_perm,
    .co_reopen_prepare = raw_co_reopen_prepare,
    .reopen_switch = raw_reopen_switch,
};

BLK_DRIVER(raw_driver)
