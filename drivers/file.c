/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The drivers `file` (regular files) and `host_device` (block and character devices): names, permissions, tables. How a
 * file is opened and reopened: file_open.c.
 */
#include "file.h"

#include <block/image.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- names ---- */

static int strip_prefix(const char *filename, const char *prefix, struct opts *opts)
{
    size_t length = strlen(prefix);
    AUTO_FREE char *path = blk_path_as_file(strncmp(filename, prefix, length) == 0 ? filename + length : filename);

    opts_set(opts, "filename", path);
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

/* ---- opening and closing ---- */

static coroutine_fn int file_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    return file_open(node, opts, false, errp);
}

static coroutine_fn int host_device_co_open(struct blk_node *node, struct opts *opts, unsigned flags,
                                            struct error **errp)
{
    return file_open(node, opts, true, errp);
}

static coroutine_fn int file_co_close(struct blk_node *node)
{
    struct file_state *s = node->state;

    if (s->fd < 0)
        return 0;
    file_ahead_trim(node);
    loop_fixed_file_drop(s->fd);
    /* A ring may let go of its reference to the file a little later, and the locks live as long as the file does. */
    file_lock_drop(s->fd);
    return file_close_state(s);
}

static int file_perm_prepare(struct blk_node *node, unsigned perm, unsigned shared, struct error **errp)
{
    struct file_state *s = node->state;

    return file_lock_prepare(file_lock_fd(s), s->filename, &s->locks, perm, shared, blk_node_writable(node), errp);
}

static void file_perm_commit(struct blk_node *node)
{
    struct file_state *s = node->state;

    /* Before others may write: they may have made the file their own. */
    if (!(s->locks.next_perm & BLK_PERM_RESIZE))
        file_ahead_trim(node);
    file_lock_commit(file_lock_fd(s), &s->locks);
}

static void file_perm_abort(struct blk_node *node)
{
    struct file_state *s = node->state;

    file_lock_abort(file_lock_fd(s), &s->locks);
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
    .options = file_open_options,
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
    .grow_ahead = file_grow_ahead,
    .co_reopen_prepare = file_co_reopen_prepare,
    .reopen_switch = file_reopen_switch,
    .co_reopen_clean = file_co_reopen_clean,
    .perm_prepare = file_perm_prepare,
    .perm_commit = file_perm_commit,
    .perm_abort = file_perm_abort,
};

static const struct blk_driver host_device_driver = {
    .name = "host_device",
    .flags = BLK_DRIVER_PROTOCOL,
    .state_size = sizeof(struct file_state),
    .options = file_open_options,
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
    .co_reopen_prepare = file_co_reopen_prepare,
    .reopen_switch = file_reopen_switch,
    .co_reopen_clean = file_co_reopen_clean,
    .perm_prepare = file_perm_prepare,
    .perm_commit = file_perm_commit,
    .perm_abort = file_perm_abort,
};

BLK_DRIVER(file_driver)
BLK_DRIVER(host_device_driver)
