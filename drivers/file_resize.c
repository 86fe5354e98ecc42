/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Creating files, and making them longer or shorter.
 *
 * An image that somebody uses is not touched, file or device: the locks of a writer are taken before the first byte
 * goes. A step that fails puts the old size back, or removes a file that was not there before. What may take long runs
 * in a worker.
 */
#include "file.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <block/image.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum prealloc { PREALLOC_OFF, PREALLOC_FALLOC, PREALLOC_FULL };
static const char *const prealloc_words[] = { "off", "falloc", "full", NULL };

const struct opt_desc file_create_options[] = {
    { .name = "size", .type = OPT_SIZE, .help = "Virtual disk size" },
    { .name = "nocow", .type = OPT_BOOL, .help = "Turn off copy-on-write (valid only on btrfs)" },
    { .name = "preallocation", .type = OPT_STRING, .help = "Preallocation mode (allowed values: off, falloc, full)" },
    { .name = "extent_size_hint", .type = OPT_SIZE, .help = "Extent size hint for the image file, 0 to disable" },
    { 0 },
};

const struct opt_desc host_device_create_options[] = {
    { .name = "size", .type = OPT_SIZE, .help = "Virtual disk size" },
    { .name = "preallocation", .type = OPT_STRING, .help = "Preallocation mode (allowed values: off)" },
    { 0 },
};

/* As XFS is told unless the user says something else: an image that grows by small writes is not torn into small
 * pieces. */
#define DEFAULT_EXTENT_SIZE_HINT (1024 * 1024)
#define FULL_CHUNK (1024 * 1024)

static int parse_prealloc(const char *word, enum prealloc *out, struct error **errp)
{
    for (int i = 0; prealloc_words[i]; i++) {
        if (strcmp(word, prealloc_words[i]) == 0) {
            *out = (enum prealloc)i;
            return 0;
        }
    }
    if (strcmp(word, "metadata") == 0)
        return error_set(errp, -ENOTSUP, "Unsupported preallocation mode: %s", word);
    return error_set(errp, -EINVAL, "invalid parameter value: %s", word);
}

/* ---- resizing: in a worker ---- */

struct resize {
    int fd;
    uint64_t size;
    enum prealloc prealloc;
    bool dsync;
    struct error *error;
};

static int write_zeroes_from(int fd, uint64_t offset, uint64_t end)
{
    uint8_t *zeroes;
    int ret = 0;

    if (posix_memalign((void **)&zeroes, 4096, FULL_CHUNK) != 0)
        return -ENOMEM;
    memset(zeroes, 0, FULL_CHUNK);
    while (ret == 0 && offset < end) {
        /* Ends of chunks at multiples of their size: whole pages to the page cache. */
        uint64_t length = MIN(FULL_CHUNK - offset % FULL_CHUNK, end - offset);
        ssize_t done = pwrite(fd, zeroes, (size_t)length, (off_t)offset);
        if (done > 0)
            offset += (uint64_t)done;
        else if (done == 0)
            ret = -EIO;
        else if (errno != EINTR && errno != EAGAIN)
            ret = -errno;
    }
    free(zeroes);
    return ret;
}

/* The node is drained: nobody else looks at the descriptor's flags meanwhile, and O_DIRECT would need an aligned
 * start. */
static int fill(int fd, uint64_t from, uint64_t size, struct error **errp)
{
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || ((flags & O_DIRECT) && fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0))
        return error_set_errno(errp, -errno, "Could not write zeros for preallocation");
    int ret = write_zeroes_from(fd, from, size);
    if (ret == 0 && fsync(fd) < 0)
        ret = -errno;
    if ((flags & O_DIRECT) && fcntl(fd, F_SETFL, flags) < 0 && ret == 0)
        ret = -errno;
    return ret < 0 ? error_set_errno(errp, ret, "Could not write zeros for preallocation") : 0;
}

static int resize_preallocated(const struct resize *resize, uint64_t old, struct error **errp)
{
    int ret;

    if (resize->size < old)
        return error_set(errp, -ENOTSUP, "Preallocation can't be used for shrinking files");
    if (resize->size == old)
        return 0;
    if (resize->prealloc == PREALLOC_FALLOC) {
        /* Where the file system cannot, this writes a byte into each block. */
        ret = -posix_fallocate(resize->fd, (off_t)old, (off_t)(resize->size - old));
        if (ret < 0)
            error_set_errno(errp, ret, "Could not preallocate new data");
    } else {
        ret = ftruncate(resize->fd, (off_t)resize->size) < 0 ? error_set_errno(errp, -errno, "Could not resize file")
                                                             : fill(resize->fd, old, resize->size, errp);
    }
    /* The error that is reported is the one that matters. */
    if (ret < 0 && ftruncate(resize->fd, (off_t)old) < 0)
        error_hint(errp, "the file could not be brought back to its old size of %llu bytes either",
                   (unsigned long long)old);
    return ret;
}

static int do_resize(void *arg)
{
    struct resize *resize = arg;
    struct stat st;
    int ret = 0;

    if (resize->size > INT64_MAX)
        return error_set_errno(&resize->error, -EFBIG, "Could not resize file");
    if (fstat(resize->fd, &st) < 0)
        return error_set_errno(&resize->error, -errno, "Could not stat file");
    if (resize->prealloc != PREALLOC_OFF)
        ret = resize_preallocated(resize, (uint64_t)st.st_size, &resize->error);
    else if (ftruncate(resize->fd, (off_t)resize->size) < 0)
        ret = error_set_errno(&resize->error, -errno, "Could not resize file");
    /* O_DSYNC is about write(). */
    if (ret == 0 && resize->dsync && fdatasync(resize->fd) < 0)
        ret = error_set_errno(&resize->error, -errno, "Could not flush the new size");
    return ret;
}

static coroutine_fn int co_resize(struct resize *resize, struct error **errp)
{
    int ret = pool_co_run(do_resize, resize);

    error_propagate(errp, resize->error);
    return ret;
}

static int check_device_resize(struct blk_node *node, uint64_t size, bool exact, enum prealloc prealloc,
                               struct error **errp)
{
    if (prealloc != PREALLOC_OFF)
        return error_set(errp, -ENOTSUP, "Unsupported preallocation mode '%s'", prealloc_words[prealloc]);
    int ret = file_refresh_size(node, errp);
    if (ret < 0)
        return ret;
    if (exact && size != blk_node_size(node))
        return error_set(errp, -ENOTSUP, "Cannot resize device files");
    if (size > blk_node_size(node))
        return error_set(errp, -EINVAL, "Cannot grow device files");
    return 0;
}

coroutine_fn int file_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                  struct error **errp)
{
    struct file_state *s = node->state;
    struct resize resize = { .fd = s->fd, .size = size, .dsync = s->dsync && !s->no_flush };
    int ret = parse_prealloc(prealloc ? prealloc : "off", &resize.prealloc, errp);

    if (ret < 0)
        return ret;
    if (s->block_device || s->char_device)
        return check_device_resize(node, size, exact, resize.prealloc, errp);
    if (!exact && size <= blk_node_size(node) && resize.prealloc == PREALLOC_OFF)
        return 0;
    file_ahead_trim(node);
    ret = co_resize(&resize, errp);
    struct error *ignored = NULL;
    if (file_refresh_size(node, ret < 0 ? &ignored : errp) < 0 && ret == 0)
        ret = -EIO;
    error_free(ignored);
    file_ahead_trim(node); /* there is nothing to cut off; growing goes on from the new size */
    return ret;
}

/* ---- creating ---- */

struct make {
    uint64_t size;
    uint64_t extent_size_hint;
    bool nocow;
    enum prealloc prealloc;
};

static int read_create_options(struct blk_create *create, struct make *make, struct error **errp)
{
    struct opts *opts = create->options ? opts_clone(create->options) : opts_new();
    const char *word = "off";
    int ret = 0;

    make->size = create->size;
    make->extent_size_hint = DEFAULT_EXTENT_SIZE_HINT;
    /* Of an empty file for a format, preallocation is the format's business, and has more words there. */
    if (create->size)
        ret = opts_string(opts, file_create_options, "preallocation", &word, errp);
    if (ret >= 0)
        ret = parse_prealloc(word, &make->prealloc, errp);
    if (ret >= 0)
        ret = opts_size(opts, file_create_options, "extent_size_hint", &make->extent_size_hint, errp);
    if (ret >= 0)
        ret = opts_bool(opts, file_create_options, "nocow", &make->nocow, errp);
    if (ret >= 0 && make->extent_size_hint > UINT32_MAX)
        ret = error_set(errp, -EINVAL, "Extent size hint is too large");
    opts_free(opts);
    return ret < 0 ? ret : 0;
}

/* *created: the file was not there. */
static int open_new(const char *path, bool *created, struct error **errp)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

    *created = fd >= 0;
    if (fd < 0 && errno == EEXIST)
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644); /* O_CREAT for a symbolic link that leads to nothing yet */
    return fd < 0 ? error_set_errno(errp, -errno, "Could not create '%s'", path) : fd;
}

/* Both are advice, and of an empty file: a file system that does not know them is as good. */
static void advise(int fd, const struct make *make)
{
    struct fsxattr attr;
    int flags;

    if (make->nocow && ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && !(flags & FS_NOCOW_FL)) {
        flags |= FS_NOCOW_FL;
        (void)!ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
    if (make->extent_size_hint && ioctl(fd, FS_IOC_FSGETXATTR, &attr) == 0) {
        attr.fsx_xflags |= FS_XFLAG_EXTSIZE;
        attr.fsx_extsize = (uint32_t)make->extent_size_hint;
        (void)!ioctl(fd, FS_IOC_FSSETXATTR, &attr);
    }
}

static coroutine_fn int co_make(int fd, const char *path, const struct make *make, struct error **errp)
{
    struct resize resize = { .fd = fd, .size = make->size, .prealloc = make->prealloc };
    struct file_locks locks = { 0 };
    struct stat st;

    if (fstat(fd, &st) < 0)
        return error_set_errno(errp, -errno, "Could not stat file");
    if (!S_ISREG(st.st_mode))
        return error_set(errp, -EINVAL, "'file' driver requires '%s' to be a regular file", path);
    if (file_lock_supported(fd)) {
        int ret = file_lock_prepare(fd, path, &locks, BLK_PERM_WRITE | BLK_PERM_RESIZE, BLK_PERM_ALL & ~BLK_PERM_RESIZE,
                                    true, errp);
        if (ret < 0)
            return ret;
    }
    if (ftruncate(fd, 0) < 0)
        return error_set_errno(errp, -errno, "Could not create '%s'", path);
    advise(fd, make);
    return co_resize(&resize, errp);
}

coroutine_fn int file_co_create(struct blk_create *create, struct error **errp)
{
    const char *path = strncmp(create->filename, "file:", 5) == 0 ? create->filename + 5 : create->filename;
    struct make make = { 0 };
    bool created;
    int ret = read_create_options(create, &make, errp);

    if (ret < 0)
        return ret;
    int fd = open_new(path, &created, errp);
    if (fd < 0)
        return fd;
    ret = co_make(fd, path, &make, errp);
    file_lock_drop(fd);
    if (close(fd) < 0 && errno != EINTR && ret == 0)
        ret = error_set_errno(errp, -errno, "Could not create '%s'", path);
    if (ret < 0 && created)
        unlink(path);
    return ret;
}

/* A device is there already, and QEMU says of it that it cannot be made. */
static int open_device(const char *path, struct error **errp)
{
    struct file_locks locks = { 0 };
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    int ret = fd < 0 ? error_set_errno(errp, -errno, "Could not open '%s'", path) : 0;

    if (ret == 0 && file_lock_supported(fd))
        ret = file_lock_prepare(fd, path, &locks, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE | BLK_PERM_RESIZE,
                                BLK_PERM_ALL, true, errp);
    if (ret == 0)
        return fd;
    error_prepend(errp,
                  "Protocol driver 'host_device' does not support image creation, and opening the image failed: ");
    if (fd >= 0)
        close(fd);
    return ret;
}

/* Its size counts. If no format does so later (size 0 here), its first sector is cleared, so that nothing probes what
 * was on it. */
static int make_device(int fd, uint64_t size, struct error **errp)
{
    static const uint8_t zeroes[BLK_SECTOR_SIZE];
    uint64_t device_size = 0;

    if (size && (ioctl(fd, BLKGETSIZE64, &device_size) < 0 || size > device_size))
        return error_set(errp, -ENOSPC, "Cannot grow device files");
    if (size >= sizeof(zeroes) && pwrite(fd, zeroes, sizeof(zeroes), 0) != (ssize_t)sizeof(zeroes))
        return error_set_errno(errp, -EIO, "Could not clear the new image's first sector");
    return 0;
}

coroutine_fn int host_device_co_create(struct blk_create *create, struct error **errp)
{
    const char *prefix = "host_device:";
    const char *path = strncmp(create->filename, prefix, strlen(prefix)) == 0 ? create->filename + strlen(prefix)
                                                                              : create->filename;
    const char *prealloc = create->size && create->options ? opts_text(create->options, "preallocation") : NULL;

    if (prealloc && strcmp(prealloc, "off") != 0)
        return error_set(errp, -ENOTSUP, "Unsupported preallocation mode '%s'", prealloc);
    int fd = open_device(path, errp);
    if (fd < 0)
        return fd;
    int ret = make_device(fd, create->size, errp);
    file_lock_drop(fd);
    if (close(fd) < 0 && errno != EINTR && ret == 0)
        ret = error_set_errno(errp, -errno, "Could not create '%s'", path);
    return ret;
}
