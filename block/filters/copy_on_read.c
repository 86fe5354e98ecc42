/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * copy-on-read: what is read from a backing image is written into the image, so that it is read from there the next
 * time.
 *
 * Only what the image does not have is written (BLK_REQ_ABSENT_ONLY), so a guest's write that comes between the reading
 * and the copying stays. A copy that cannot be written harms nobody: the reader has the data. What the image has itself
 * is mapped through to it.
 */
#include "filter.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <block/image.h>
#include <block/iov.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The most that is copied at a time. */
#define MAX_COPY (UINT64_C(1) << 20)
/* Zeroes are found in pieces of this size, or of a cluster. */
#define ZERO_UNIT UINT64_C(32768)

struct copy_on_read {
    const char *bottom_name;
    struct blk_node *bottom; /* the last image of the chain whose content is copied; owns a reference; NULL: all */
};

static const struct opt_desc copy_on_read_options[] = {
    { .name = "bottom",
      .type = OPT_STRING,
      .help = "node-name of the last image of the chain whose content is copied (default: that of all)",
      .at = OPT_AT(struct copy_on_read, bottom_name) },
    { 0 },
};

/* ---- opening ---- */

static bool is_below(const struct blk_node *wanted, struct blk_node *image)
{
    while (image && image != wanted)
        image = blk_node_backing(image);
    return image != NULL;
}

static int take_bottom(struct blk_node *node, struct opts *opts, struct error **errp)
{
    struct copy_on_read *s = node->state;
    int ret = opts_read(opts, copy_on_read_options, s, errp);

    if (ret < 0 || !s->bottom_name)
        return ret < 0 ? ret : 0;
    struct blk_node *bottom = blk_node_find(s->bottom_name);
    if (!bottom)
        return error_set(errp, -EINVAL, "Bottom node '%s' not found", s->bottom_name);
    if (bottom->driver->flags & BLK_DRIVER_FILTER)
        return error_set(errp, -EINVAL, "Bottom node '%s' is a filter", s->bottom_name);
    if (!is_below(bottom, blk_node_below_filters(node->file)))
        return error_set(errp, -EINVAL, "Bottom node '%s' is not below the copy-on-read filter", s->bottom_name);
    s->bottom = blk_node_ref(bottom);
    return 0;
}

static coroutine_fn int copy_on_read_co_open(struct blk_node *node, struct opts *opts, unsigned flags,
                                             struct error **errp)
{
    int ret = blk_co_open_child(node, "file", opts, node->filename, flags, false, errp);

    if (ret < 0)
        return ret;
    if (!blk_node_writable(node))
        return error_set(errp, -EACCES, "Can't use copy-on-read on read-only device");
    blk_filter_follow(node);
    return take_bottom(node, opts, errp);
}

static coroutine_fn int copy_on_read_co_close(struct blk_node *node)
{
    struct copy_on_read *s = node->state;
    int ret = blk_co_node_unref(s->bottom);

    s->bottom = NULL;
    return ret;
}

/* It writes, though what is read stays what it was, whatever its parents do. */
static void copy_on_read_child_perm(struct blk_node *node, const char *role, unsigned perm, unsigned shared,
                                    unsigned *child_perm, unsigned *child_shared)
{
    (void)node;
    (void)role;
    *child_perm = perm | BLK_PERM_WRITE_UNCHANGED;
    *child_shared = shared;
}

/* ---- requests ---- */

static void copy_on_read_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                             struct blk_extent *extent)
{
    struct blk_node *child = node->file;

    if (filter_grows(node, op, offset, length)) {
        *extent = (struct blk_extent){ .kind = BLK_SLOW, .length = length };
        return;
    }
    if (op == BLK_OP_READ && child->driver->map) {
        child->driver->map(child, op, flags, offset, length, extent);
        length = extent->length;
        if (extent->kind == BLK_SLOW || (extent->kind == BLK_ABSENT && child->backing)) {
            *extent = (struct blk_extent){ .kind = BLK_SLOW, .length = length };
            return;
        }
    }
    *extent = (struct blk_extent){ 0 };
    blk_extent_pass(extent, child, offset, length);
}

static coroutine_fn int copy_on_read_co_extent(struct blk_node *node, uint64_t offset, uint64_t length,
                                               struct blk_extent *extent)
{
    blk_extent_pass(extent, node->file, offset, length);
    return 0;
}

/* Is it to be copied: not in the image, and in one below it down to the bottom? *length is shortened to what is alike.
 * */
static coroutine_fn int co_wanted(struct blk_node *node, uint64_t offset, uint64_t *length, bool *wanted)
{
    struct copy_on_read *s = node->state;
    struct blk_node *image = blk_node_below_filters(node->file);
    struct blk_extent extent;
    struct blk_status status;
    int ret = blk_co_map(image, offset, *length, &extent);

    *wanted = ret == 0 && extent.kind == BLK_ABSENT && image->backing;
    if (ret < 0)
        return ret;
    *length = MIN(*length, extent.length);
    if (!*wanted || !s->bottom)
        return 0;
    ret = blk_co_status(image, blk_node_backing(s->bottom), offset, *length, &status);
    *wanted = ret == 0 && status.present;
    *length = ret == 0 ? MIN(*length, status.length) : *length;
    return ret;
}

static coroutine_fn void co_keep_piece(struct blk_node *image, uint64_t offset, uint64_t length, const uint8_t *data)
{
    int ret = -ENOTSUP;

    if (buffer_is_zero(data, length))
        ret = blk_co_write_zeroes(image, offset, length, BLK_REQ_ABSENT_ONLY | BLK_REQ_NO_FALLBACK);
    if (ret < 0)
        blk_co_write(image, offset, data, length, BLK_REQ_ABSENT_ONLY);
}

/* Piece by piece, so that zeroes among data stay zeroes. */
static coroutine_fn void co_keep(struct blk_node *image, uint64_t offset, uint64_t length, const uint8_t *data,
                                 uint64_t unit)
{
    uint64_t step = MAX(unit, ZERO_UNIT);

    for (uint64_t done = 0; done < length; done += step)
        co_keep_piece(image, offset + done, MIN(step, length - done), data + done);
}

/* The range, and what makes it whole clusters, at most MAX_COPY bytes of it; *length says how much. */
static coroutine_fn int co_read_and_keep(struct blk_node *node, uint64_t offset, uint64_t *length,
                                         const struct iovec *iov, int iov_count, uint64_t done)
{
    struct blk_node *image = blk_node_below_filters(node->file);
    uint64_t unit = MAX(image->limits.zeroes_alignment, (uint64_t)BLK_SECTOR_SIZE);
    uint64_t start = align_down(offset, unit), end = align_up(offset + MIN(*length, MAX_COPY), unit);
    uint8_t *buffer;

    end = MIN(end, blk_node_size(image));
    *length = MIN(*length, end - offset);
    buffer = blk_buffer_alloc(image, end - start);
    int ret = buffer ? blk_co_read(node->file, start, buffer, end - start) : -ENOMEM;
    if (ret == 0) {
        iov_from_buffer(iov, iov_count, done, buffer + (offset - start), *length);
        co_keep(node->file, start, end - start, buffer, unit);
    }
    free(buffer);
    return ret;
}

static coroutine_fn int co_read_plain(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                      int iov_count, uint64_t done)
{
    AUTO_FREE struct iovec *part = malloc((size_t)iov_count * sizeof(*part));
    if (!part)
        return -ENOMEM;
    int count = iov_slice(iov, iov_count, done, length, part, iov_count);
    return blk_co_readv(node->file, offset, length, part, count);
}

static coroutine_fn int copy_on_read_co_read(struct blk_node *node, uint64_t offset, uint64_t length,
                                             const struct iovec *iov, int iov_count)
{
    int ret = 0;

    for (uint64_t done = 0, step; ret == 0 && done < length; done += step) {
        bool wanted;
        step = length - done;
        ret = co_wanted(node, offset + done, &step, &wanted);
        if (ret == 0 && wanted)
            ret = co_read_and_keep(node, offset + done, &step, iov, iov_count, done);
        else if (ret == 0)
            ret = co_read_plain(node, offset + done, step, iov, iov_count, done);
    }
    return ret;
}

static const struct blk_driver copy_on_read_driver = {
    .name = "copy-on-read",
    .flags = BLK_DRIVER_FILTER | BLK_DRIVER_GROWS,
    .state_size = sizeof(struct copy_on_read),
    .options = copy_on_read_options,
    .co_open = copy_on_read_co_open,
    .co_close = copy_on_read_co_close,
    .map = copy_on_read_map,
    .co_extent = copy_on_read_co_extent,
    .co_read = copy_on_read_co_read,
    .co_write = filter_co_write,
    .co_write_zeroes = filter_co_write_zeroes,
    .child_perm = copy_on_read_child_perm,
};
BLK_DRIVER(copy_on_read_driver)
