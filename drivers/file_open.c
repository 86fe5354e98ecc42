/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opening a file or device, and opening it anew.
 *
 * The cache mode is in how a file is open: O_DIRECT for cache.direct, O_DSYNC for writethrough and directsync. The file
 * is opened without waiting (a FIFO would), its kind is checked on the descriptor, and only then is it used.
 *
 * A reopen opens the same file once more, through the descriptor and not by a name that may belong to another by now,
 * and holds on the new descriptor what the old one holds: to the new one the old one's locks look like somebody else's,
 * so it takes them unasked, and all new ones have been checked on the old one. Then the two change places.
 */
#include "file.h"

#include <base/compiler.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
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

/* As with qemu-io, a reopen changes none of these by its word: flags do (BLK_O_AIO_THREADS, BLK_O_NO_LOCK). */
const struct opt_desc file_open_options[] = {
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

/* ---- descriptors ---- */

static int open_retry(const char *filename, int flags)
{
    int fd;

    do {
        fd = open(filename, flags);
    } while (fd < 0 && errno == EINTR);
    return fd < 0 ? -errno : fd;
}

/* Is it O_DIRECT alone that the file system does not like? */
static bool refuses_direct(const char *path, int flags)
{
    int fd = open_retry(path, flags & ~O_DIRECT);

    if (fd < 0)
        return false;
    close(fd);
    return true;
}

static int open_failed(const char *path, const char *filename, int flags, int err, struct error **errp)
{
    if (err == -EINVAL && (flags & O_DIRECT) && refuses_direct(path, flags)) {
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

/* Opens `path`, which messages call by its file name. *flags: the node's; without BLK_O_RDWR afterwards if that is all
 * there is and the caller does with it. */
static int open_image(struct file_state *s, const char *path, unsigned *open_flags, struct error **errp)
{
    int flags = O_CLOEXEC | O_NONBLOCK | (s->direct ? O_DIRECT : 0) | (s->dsync ? O_DSYNC : 0);
    int access = *open_flags & BLK_O_RDWR ? O_RDWR : O_RDONLY;
    int fd = open_retry(path, flags | access);
    bool read_only_device = fd >= 0 && access == O_RDWR && is_read_only_device(fd);

    if (read_only_device) {
        close(fd);
        fd = -EACCES;
    }
    if ((fd == -EACCES || fd == -EROFS || fd == -EPERM) && access == O_RDWR && (*open_flags & BLK_O_AUTO_RDONLY)) {
        int read_only = open_retry(path, flags | O_RDONLY);
        if (read_only >= 0) {
            *open_flags &= ~(unsigned)BLK_O_RDWR;
            fd = read_only;
        }
    }
    if (fd < 0 && read_only_device)
        return error_set_errno(errp, fd, "The device is not writable");
    if (fd < 0)
        return open_failed(path, s->filename, flags | access, fd, errp);
    s->fd = fd;
    return 0;
}

/* Requests may wait: O_NONBLOCK was for opening only. */
static int let_wait(struct file_state *s, struct error **errp)
{
    int flags = fcntl(s->fd, F_GETFL);

    if (flags < 0 || fcntl(s->fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
        return error_set_errno(errp, -errno, "Could not open '%s'", s->filename);
    return 0;
}

/* Is it of the kind that the driver is for? */
static int check_kind(struct blk_node *node, const char *filename, bool want_device, struct error **errp)
{
    struct file_state *s = node->state;
    struct stat st;
    struct statfs fs;

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
    return 0;
}

/* ---- options ---- */

static int read_options(const struct blk_node *node, struct file_state *s, struct opts *opts, unsigned flags,
                        int *locking, struct error **errp)
{
    const char *filename = NULL;
    int aio;
    int ret = opts_string(opts, file_open_options, "filename", &filename, errp);

    if (ret >= 0 && (!filename || !*filename))
        ret = error_set(errp, -EINVAL, "The '%s' block driver requires a file name", node->driver->name);
    if (ret >= 0)
        ret = opts_enum(opts, file_open_options, "aio", &aio, errp);
    if (ret >= 0)
        ret = opts_enum(opts, file_open_options, "locking", locking, errp);
    if (ret < 0)
        return ret;
    if (aio == AIO_NATIVE && !(flags & BLK_O_DIRECT))
        return error_set(errp, -EINVAL,
                         "aio=native was specified, but it requires cache.direct=on, which was not specified.");
    s->filename = xstrdup(filename);
    s->threads = aio == AIO_THREADS || (flags & BLK_O_AIO_THREADS);
    s->direct = flags & BLK_O_DIRECT;
    s->dsync = flags & BLK_O_DSYNC;
    s->no_flush = flags & BLK_O_NO_FLUSH;
    if (flags & BLK_O_NO_LOCK)
        *locking = LOCKING_OFF;
    return 0;
}

static int take_locking(struct file_state *s, int locking, struct error **errp)
{
    bool supported = file_lock_supported(s->fd);

    if (locking == LOCKING_ON && !supported)
        return error_set(errp, -ENOTSUP, "File locking is not supported by the host: use locking=off to open '%s'",
                         s->filename);
    s->locking = locking != LOCKING_OFF && supported;
    return 0;
}

/* ---- opening ---- */

int file_close_state(struct file_state *s)
{
    int ret = s->fd >= 0 && close(s->fd) < 0 && errno != EINTR ? -errno : 0;

    s->fd = -1;
    free(s->filename);
    s->filename = NULL;
    pthread_mutex_destroy(&s->ahead_lock);
    return ret;
}

int file_open(struct blk_node *node, struct opts *opts, bool want_device, struct error **errp)
{
    struct file_state *s = node->state;
    int locking;

    s->fd = -1;
    file_ahead_init(s);
    int ret = read_options(node, s, opts, node->open_flags, &locking, errp);
    if (ret == 0)
        ret = open_image(s, s->filename, &node->open_flags, errp);
    if (ret == 0)
        ret = check_kind(node, s->filename, want_device, errp);
    if (ret == 0)
        ret = let_wait(s, errp);
    if (ret == 0)
        ret = take_locking(s, locking, errp);
    if (ret == 0)
        ret = file_refresh_size(node, errp);
    if (ret == 0)
        ret = file_probe_limits(s, blk_node_size(node), &node->limits, errp);
    if (ret < 0)
        file_close_state(s);
    return ret;
}

/* ---- opening anew ---- */

static int open_again(const struct file_state *s, struct file_state *next, unsigned flags, struct error **errp)
{
    char path[32];
    struct stat old, new;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
    flags &= ~(unsigned)BLK_O_AUTO_RDONLY; /* the caller has decided */
    int ret = open_image(next, access(path, F_OK) == 0 ? path : s->filename, &flags, errp);
    if (ret < 0)
        return ret;
    if (fstat(s->fd, &old) < 0 || fstat(next->fd, &new) < 0)
        return error_set_errno(errp, -errno, "Could not stat file");
    if (old.st_dev != new.st_dev || old.st_ino != new.st_ino)
        return error_set(errp, -ESTALE, "Could not open '%s': it is another file now", s->filename);
    return let_wait(next, errp);
}

static int lock_again(const struct file_state *s, struct file_state *next, bool writable, struct error **errp)
{
    next->locks = s->locks;
    if (!next->locking)
        return 0;
    if (s->locking)
        return file_lock_copy(next->fd, &s->locks, errp);
    next->locks = (struct file_locks){ 0 };
    return file_lock_prepare(next->fd, s->filename, &next->locks, s->locks.next_perm,
                             BLK_PERM_ALL & ~s->locks.next_unshared, writable, errp);
}

coroutine_fn int file_co_reopen_prepare(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct file_state *s = node->state, *next = xcalloc(1, sizeof(*next));
    int locking;

    next->fd = -1;
    file_ahead_init(next);
    next->block_device = s->block_device;
    next->char_device = s->char_device;
    int ret = read_options(node, next, opts, flags, &locking, errp);
    if (ret == 0)
        ret = open_again(s, next, flags, errp);
    if (ret == 0)
        ret = take_locking(next, locking, errp);
    if (ret == 0)
        ret = lock_again(s, next, flags & BLK_O_RDWR, errp);
    if (ret == 0)
        ret = file_probe_limits(next, blk_node_size(node), &next->other_limits, errp);
    if (ret < 0) {
        file_close_state(next);
        free(next);
        return ret;
    }
    /* Who only reads cannot cut off anything later. */
    if (!(flags & BLK_O_RDWR))
        file_ahead_trim(node);
    s->next = next;
    return 0;
}

void file_reopen_switch(struct blk_node *node)
{
    struct file_state *s = node->state, *next = s->next;

    SWAP(s->fd, next->fd);
    SWAP(s->direct, next->direct);
    SWAP(s->dsync, next->dsync);
    SWAP(s->no_flush, next->no_flush);
    SWAP(s->threads, next->threads);
    SWAP(s->locking, next->locking);
    SWAP(s->locks, next->locks);
    SWAP(node->limits, next->other_limits);
    /* What was written until now was written without O_DSYNC, perhaps. */
    atomic_store_explicit(&s->dsync_settled, false, memory_order_relaxed);
}

coroutine_fn void file_co_reopen_clean(struct blk_node *node)
{
    struct file_state *s = node->state, *old = s->next;

    s->next = NULL;
    loop_fixed_file_drop(old->fd);
    if (old->locking)
        file_lock_drop(old->fd);
    file_close_state(old);
    free(old);
}
