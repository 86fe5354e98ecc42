/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw: the file's bytes are the disk's bytes, from `offset` on, `size` of them. A mapping is an addition.
 *
 * Where nobody said that the image is raw (it was probed and nothing else fitted), a guest could write another
 * format's header into its first sector and have the host follow it, to any file, at the next start. So there, writes
 * that touch the first sector take the slow path, one at a time, and are refused where a format would recognise the
 * sector that they make.
 */
#include <base/checked.h>
#include <base/compiler.h>
#include <block/image.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARDED_BYTES BLK_SECTOR_SIZE
/* Written as zeroes in a new image: something of the file is allocated then, and alignment can be tried out on it. */
#define FIRST_BLOCK 4096u

struct raw_state {
    uint64_t offset;
    bool fixed_size; /* `size` was given */
    bool guarded;
    struct co_mutex guard; /* held over check and write of the first sector */
};

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
static int raw_probe(const uint8_t *data, size_t length) { return 1; }

/* ---- opening ---- */

static uint64_t whole_sectors(uint64_t size)
{
    return align_up(size, BLK_SECTOR_SIZE); /* a file's size is below 2^63 */
}

static int apply_size(struct blk_node *node, uint64_t size, bool size_given, struct error **errp)
{
    struct raw_state *s = node->state;
    uint64_t file_size = blk_node_size(node->file);

    if (s->offset > file_size)
        return error_set(errp, -EINVAL,
                         "Offset (%" PRIu64 ") cannot be greater than size of the containing file (%" PRIu64 ")",
                         s->offset, file_size);
    if (size_given && file_size - s->offset < size)
        return error_set(errp, -EINVAL,
                         "The sum of offset (%" PRIu64 ") and size (%" PRIu64
                         ") has to be smaller or equal to the  actual size of the containing file (%" PRIu64 ")",
                         s->offset, size, file_size);
    if (size_given && size % BLK_SECTOR_SIZE)
        return error_set(errp, -EINVAL, "Specified size is not multiple of %u", BLK_SECTOR_SIZE);
    atomic_store_explicit(&node->size, size_given ? size : whole_sectors(file_size - s->offset), memory_order_relaxed);
    return 0;
}

static void warn_probed(const struct blk_node *node)
{
    fprintf(
        stderr,
        "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
        "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n"
        "         Specify the 'raw' format explicitly to remove the restrictions.\n",
        node->file->filename);
}

static coroutine_fn int raw_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct raw_state *s = node->state;
    uint64_t size = 0;
    int ret = opts_size(opts, raw_options, "offset", &s->offset, errp);

    if (ret < 0)
        return ret;
    ret = opts_size(opts, raw_options, "size", &size, errp);
    if (ret < 0)
        return ret;
    s->fixed_size = ret > 0;
    ret = blk_co_open_child(node, "file", opts, node->filename, flags, false, errp);
    if (ret == 0)
        ret = apply_size(node, size, s->fixed_size, errp);
    if (ret < 0)
        return ret;
    node->limits = node->file->limits;
    co_mutex_init(&s->guard);
    s->guarded = (flags & BLK_O_PROBED) && blk_node_writable(node);
    if (s->guarded)
        warn_probed(node);
    return 0;
}

static coroutine_fn int raw_co_close(struct blk_node *node)
{
    struct raw_state *s = node->state;

    co_mutex_finish(&s->guard);
    return 0;
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

    extent->length = length;
    if (unlikely(s->guarded) && op == BLK_OP_WRITE && unlikely(offset < GUARDED_BYTES)) {
        extent->kind = BLK_SLOW;
        extent->flags = 0;
        return;
    }
    extent->kind = BLK_DATA;
    extent->flags = BLK_EXTENT_RAW | BLK_EXTENT_RECURSE;
    extent->child = node->file;
    extent->child_offset = s->offset + offset;
}

struct best_probe {
    const uint8_t *data;
    int score;
};

static void try_probe(const struct blk_driver *driver, void *arg)
{
    struct best_probe *best = arg;
    int score = driver->probe ? driver->probe(best->data, GUARDED_BYTES) : 0;

    best->score = MAX(best->score, score);
}

static void overlay(uint8_t *sector, uint64_t offset, const struct iovec *iov, int iov_count)
{
    for (int i = 0; i < iov_count && offset < GUARDED_BYTES; i++) {
        size_t length = MIN(iov[i].iov_len, (size_t)(GUARDED_BYTES - offset));
        memcpy(sector + offset, iov[i].iov_base, length);
        offset += length;
    }
}

/* Only with the guard. The first sector is checked as it would be after the write, and written as it was checked: the
 * guest may change its memory meanwhile. */
static coroutine_fn int co_write_guarded(struct blk_node *node, uint64_t offset, uint64_t length,
                                         const struct iovec *iov, int iov_count, unsigned flags)
{
    struct raw_state *s = node->state;
    uint8_t sector[GUARDED_BYTES] = { 0 };
    struct best_probe best = { .data = sector };
    int ret = 0;

    if (offset > 0 || length < GUARDED_BYTES)
        ret = blk_co_read(node->file, s->offset, sector, GUARDED_BYTES);
    if (ret < 0)
        return ret;
    overlay(sector, offset, iov, iov_count);
    blk_driver_each(try_probe, &best);
    if (best.score > raw_probe(sector, GUARDED_BYTES))
        return -EPERM;
    uint64_t first = MIN(length, GUARDED_BYTES - offset);
    ret = blk_co_write(node->file, s->offset + offset, sector + offset, first, flags);
    if (ret < 0 || first == length)
        return ret;

    AUTO_FREE struct iovec *rest = malloc((size_t)iov_count * sizeof(*rest));
    int count = 0;
    uint64_t skip = first;
    if (!rest)
        return -ENOMEM;
    for (int i = 0; i < iov_count; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        rest[count++] = (struct iovec){ (char *)iov[i].iov_base + skip, iov[i].iov_len - skip };
        skip = 0;
    }
    return blk_co_writev(node->file, s->offset + GUARDED_BYTES, length - first, rest, count, flags);
}

static coroutine_fn int raw_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                     int iov_count, unsigned flags)
{
    struct raw_state *s = node->state;

    if (offset >= GUARDED_BYTES)
        return blk_co_writev(node->file, s->offset + offset, length, iov, iov_count, flags);
    co_mutex_lock(&s->guard);
    int ret = co_write_guarded(node, offset, length, iov, iov_count, flags);
    co_mutex_unlock(&s->guard);
    return ret;
}

/* ---- size ---- */

static coroutine_fn int raw_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                        struct error **errp)
{
    struct raw_state *s = node->state;

    if (s->fixed_size)
        return error_set(errp, -ENOTSUP, "Cannot resize fixed-size raw disks");
    if (size > INT64_MAX - s->offset)
        return error_set(errp, -EINVAL, "Disk size too large for the chosen offset");
    int ret = blk_co_truncate(node->file, size + s->offset, exact, prealloc, errp);
    if (ret < 0)
        return ret;
    return apply_size(node, 0, false, errp);
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
        uint64_t length = create->file->driver->flags & BLK_DRIVER_GROWS ? FIRST_BLOCK : BLK_SECTOR_SIZE;
        ret = blk_co_write(create->file, 0, zeroes, MIN(create->size, length), 0);
        if (ret < 0)
            error_set_errno(errp, ret, "Could not write to '%s'", create->filename);
    }
    return ret;
}

static const struct blk_driver raw_driver = {
    .name = "raw",
    .flags = BLK_DRIVER_FORMAT,
    .state_size = sizeof(struct raw_state),
    .options = raw_options,
    .create_options = raw_create_options,
    .probe = raw_probe,
    .co_open = raw_co_open,
    .co_close = raw_co_close,
    .co_create = raw_co_create,
    .map = raw_map,
    .co_write = raw_co_write,
    .co_truncate = raw_co_truncate,
    .child_perm = raw_child_perm,
};

BLK_DRIVER(raw_driver)
