/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The drivers `file` (regular files) and `host_device` (block and character devices): options, opening, closing.
 *
 * A node is one open file description for its whole life. The cache mode is in how it is opened: O_DIRECT for
 * cache.direct, O_DSYNC for writethrough and directsync. The file is opened without waiting (a FIFO would), its kind
 * is checked on the descriptor, and only then is it used.
 */
#include "file.h"

#include <base/compiler.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { AIO_THREADS, AIO_NATIVE, AIO_IO_URING };
enum { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };

static const char *const aio_words[] = { "threads", "native", "io_uring", NULL };
static const char *const locking_words[] = { "auto", "on", "off", NULL };

static const struct opt_desc open_options[] = {
    { .name = "filename", .type = OPT_STRING, .flags = OPT_CONTENT, .help = "File name of the image" },
    { .name = "aio",
      .type = OPT_ENUM,
      .def = "io_uring",
      .values = aio_words,
      .flags = OPT_TERSE,
      .help = "host AIO implementation (threads, native, io_uring); native is done by io_uring too" },
    { .name = "locking",
      .type = OPT_ENUM,
      .def = "auto",
      .values = locking_words,
      .flags = OPT_TERSE,
      .help = "file locking mode (on/off/auto, default: auto)" },
    { 0 },
};

/* ---- names ---- */

static int strip_prefix(const char *filename, const char *prefix, struct opts *opts)
{
    size_t length = strlen(prefix);

    opts_set(opts, "filename", strncmp(filename, prefix, length) == 0 ? filename + length : filename);
    return 0;
}

static int file_parse_filename(const char *filename, struct opts *opts, struct error **errp)
{
    return strip_prefix(filename, "file:", opts);
}

static int host_device_parse_filename(const char *filename, struct opts *opts, struct error **errp)
{
    return strip_prefix(filename, "host_device:", opts);
}

/* Whatever no other driver knows better is a file name, also one that does not exist yet. */
static int file_probe_path(const char *path) { return 10; }

static int host_device_probe_path(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode)) ? 100 : 0;
}

static int file_remove(const char *filename)
{
    const char *path = strncmp(filename, "file:", 5) == 0 ? filename + 5 : filename;

    return unlink(path) < 0 ? -errno : 0;
}

/* ---- opening ---- */

static int open_retry(const char *filename, int flags)
{
    int fd;

    do {
        fd = open(filename, flags);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

/* Is it O_DIRECT alone that the file system does not like? */
static bool refuses_direct(const char *filename, int flags)
{
    int fd = open_retry(filename, flags & ~O_DIRECT);

    if (fd < 0)
        return false;
    close(fd);
    return true;
}

static int open_failed(const char *filename, int flags, int err, struct error **errp)
{
    if (err == -EINVAL && (flags & O_DIRECT) && refuses_direct(filename, flags)) {
        error_set(errp, err, "Could not open '%s': filesystem does not support O_DIRECT", filename);
        error_hint(errp, "cache modes that work there: writeback, writethrough, unsafe");
        return err;
    }
    return error_set_errno(errp, err, "Could not open '%s'", filename);
}

/* A read-only device can be opened for writing; only the writes fail. */
static bool is_read_only_device(int fd)
{
    int read_only = 0;

    return ioctl(fd, BLKROGET, &read_only) == 0 && read_only;
}

static int open_image(struct blk_node *node, const char *filename, struct error **errp)
{
    struct file_state *s = node->state;
    int flags = O_CLOEXEC | O_NONBLOCK | (s->direct ? O_DIRECT : 0) | (s->dsync ? O_DSYNC : 0);
    int access = blk_node_writable(node) ? O_RDWR : O_RDONLY;
    int fd = open_retry(filename, flags | access);
    bool read_only_device = fd >= 0 && access == O_RDWR && is_read_only_device(fd);

    if (read_only_device) {
        close(fd);
        fd = -EACCES;
    }
    if ((fd == -EACCES || fd == -EROFS || fd == -EPERM) && access == O_RDWR && (node->open_flags & BLK_O_AUTO_RDONLY)) {
        int read_only = open_retry(filename, flags | O_RDONLY);
        if (read_only >= 0) {
            node->open_flags &= ~(unsigned)BLK_O_RDWR;
            fd = read_only;
        }
    }
    if (fd < 0 && read_only_device)
        return error_set_errno(errp, fd, "The device is not writable");
    if (fd < 0)
        return open_failed(filename, flags | access, fd, errp);
    s->fd = fd;
    return 0;
}

/* Is it of the kind that the driver is for? Then requests may wait: O_NONBLOCK was for opening only. */
static int check_kind(struct blk_node *node, const char *filename, bool want_device, struct error **errp)
{
    struct file_state *s = node->state;
    struct stat st;
    struct statfs fs;
    int flags;

    if (fstat(s->fd, &st) < 0)
        return error_set_errno(errp, -errno, "Could not stat file");
    if (want_device && !S_ISBLK(st.st_mode) && !S_ISCHR(st.st_mode))
        return error_set(errp, -EINVAL, "'%s' driver requires '%s' to be either a character or block device",
                         node->driver->name, filename);
    if (!want_device && !S_ISREG(st.st_mode))
        return error_set(errp, -EINVAL, "'%s' driver requires '%s' to be a regular file", node->driver->name, filename);
    s->block_device = S_ISBLK(st.st_mode);
    s->char_device = S_ISCHR(st.st_mode);
    s->in_memory = S_ISREG(st.st_mode) && fstatfs(s->fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
    flags = fcntl(s->fd, F_GETFL);
    if (flags < 0 || fcntl(s->fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return error_set_errno(errp, -errno, "Could not open '%s'", filename);
    return 0;
}

static int read_options(struct blk_node *node, struct opts *opts, const char **filename, int *locking,
                        struct error **errp)
{
    struct file_state *s = node->state;
    int aio, ret;

    *filename = NULL;
    ret = opts_string(opts, open_options, "filename", filename, errp);
    if (ret >= 0 && (!*filename || !**filename))
        ret = error_set(errp, -EINVAL, "The '%s' block driver requires a file name", node->driver->name);
    if (ret >= 0)
        ret = opts_enum(opts, open_options, "aio", &aio, errp);
    if (ret >= 0)
        ret = opts_enum(opts, open_options, "locking", locking, errp);
    if (ret < 0)
        return ret;
    if (aio == AIO_NATIVE && !(node->open_flags & BLK_O_DIRECT))
        return error_set(errp, -EINVAL,
                         "aio=native was specified, but it requires cache.direct=on, which was not specified.");
    s->threads = aio == AIO_THREADS || (node->open_flags & BLK_O_AIO_THREADS);
    if (node->open_flags & BLK_O_NO_LOCK)
        *locking = LOCKING_OFF;
    return 0;
}

static int release(struct file_state *s)
{
    int ret = s->fd >= 0 && close(s->fd) < 0 && errno != EINTR ? -errno : 0;

    s->fd = -1;
    free(s->filename);
    s->filename = NULL;
    return ret;
}

static int open_common(struct blk_node *node, struct opts *opts, bool want_device, struct error **errp)
{
    struct file_state *s = node->state;
    const char *filename;
    int locking;

    s->fd = -1;
    int ret = read_options(node, opts, &filename, &locking, errp);
    if (ret < 0)
        return ret;
    s->filename = xstrdup(filename);
    s->direct = node->open_flags & BLK_O_DIRECT;
    s->dsync = node->open_flags & BLK_O_DSYNC;
    s->no_flush = node->open_flags & BLK_O_NO_FLUSH;
    ret = open_image(node, s->filename, errp);
    if (ret == 0)
        ret = check_kind(node, s->filename, want_device, errp);
    if (ret == 0 && locking == LOCKING_ON && !file_lock_supported(s->fd))
        ret = error_set(errp, -ENOTSUP, "File locking is not supported by the host: use locking=off to open '%s'",
                        s->filename);
    if (ret == 0) {
        s->locking = locking != LOCKING_OFF && file_lock_supported(s->fd);
        ret = file_refresh_size(node, errp);
    }
    if (ret == 0)
        ret = file_probe_limits(node, errp);
    if (ret < 0)
        release(s);
    return ret;
}

static coroutine_fn int file_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    return open_common(node, opts, false, errp);
}

static coroutine_fn int host_device_co_open(struct blk_node *node, struct opts *opts, unsigned flags,
                                            struct error **errp)
{
    return open_common(node, opts, true, errp);
}

static coroutine_fn int file_co_close(struct blk_node *node)
{
    struct file_state *s = node->state;

    if (s->fd < 0)
        return 0;
    loop_fixed_file_drop(s->fd);
    /* A ring may let go of its reference to the file a little later, and the locks live as long as the file does. */
    file_lock_drop(s->fd);
    return release(s);
}

static int file_set_perm(struct blk_node *node, unsigned perm, unsigned shared, struct error **errp)
{
    struct file_state *s = node->state;

    if (!s->locking)
        return 0;
    return file_lock_change(s->fd, s->filename, perm, shared, blk_node_writable(node), &s->locked, &s->locked_unshared,
                            errp);
}

static coroutine_fn int64_t file_co_allocated_size(struct blk_node *node)
{
    struct file_state *s = node->state;
    struct stat st;

    if (fstat(s->fd, &st) < 0)
        return -errno;
    return (int64_t)st.st_blocks * 512;
}

static const char *const file_prefixes[] = { "file", NULL };
static const char *const host_device_prefixes[] = { "host_device", NULL };

static const struct blk_driver file_driver = {
    .name = "file",
    .flags = BLK_DRIVER_PROTOCOL | BLK_DRIVER_GROWS,
    .state_size = sizeof(struct file_state),
    .options = open_options,
    .create_options = file_create_options,
    .protocol_prefixes = file_prefixes,
    .probe_path = file_probe_path,
    .remove = file_remove,
    .parse_filename = file_parse_filename,
    .co_open = file_co_open,
    .co_close = file_co_close,
    .co_create = file_co_create,
    .submit = file_submit,
    .co_extent = file_co_extent,
    .co_truncate = file_co_truncate,
    .co_allocated_size = file_co_allocated_size,
    .set_perm = file_set_perm,
};

static const struct blk_driver host_device_driver = {
    .name = "host_device",
    .flags = BLK_DRIVER_PROTOCOL,
    .state_size = sizeof(struct file_state),
    .options = open_options,
    .create_options = host_device_create_options,
    .protocol_prefixes = host_device_prefixes,
    .probe_path = host_device_probe_path,
    .parse_filename = host_device_parse_filename,
    .co_open = host_device_co_open,
    .co_close = file_co_close,
    .co_create = host_device_co_create,
    .submit = file_submit,
    .co_truncate = file_co_truncate,
    .co_allocated_size = file_co_allocated_size,
    .set_perm = file_set_perm,
};

BLK_DRIVER(file_driver)
BLK_DRIVER(host_device_driver)
