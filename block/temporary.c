/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Temporary snapshots: an image of which nothing stays (block/image.h). */
#include <base/compiler.h>
#include <base/error.h>
#include <block/image.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* An empty file of our own, whose name the caller frees. */
static char *make_file(struct error **errp)
{
    const char *folder = getenv("TMPDIR");
    char *path = xasprintf("%s/vmm.XXXXXX", folder && *folder ? folder : "/var/tmp");
    int fd = mkstemp(path);

    if (fd < 0) {
        error_set_errno(errp, -errno, "Could not get temporary filename");
        free(path);
        return NULL;
    }
    close(fd);
    return path;
}

static coroutine_fn struct blk_node *co_open_over(const char *path, const char *format, const struct blk_node *below,
                                                  struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", format);
    opts_set(opts, "file.driver", "file");
    opts_set(opts, "file.filename", path);
    opts_set(opts, "backing", below->name);
    /* Nothing of it outlives this program, so nothing has to be durable. */
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_UNMAP | BLK_O_NO_FLUSH, errp);
    opts_free(opts);
    return node;
}

static coroutine_fn struct blk_node *co_put_over(struct blk_node *below, const char *format, struct error **errp)
{
    AUTO_FREE char *path = make_file(errp);
    struct blk_node *node = NULL;

    if (!path)
        return NULL;
    if (blk_co_create(format, path, NULL, blk_node_size(below), errp) == 0)
        node = co_open_over(path, format, below, errp);
    unlink(path); /* it lives as long as it is open */
    if (!node)
        error_prepend(errp, "Could not open temporary file: ");
    return node;
}

coroutine_fn struct blk_node *blk_co_open_temporary(const char *filename, struct opts *opts, unsigned flags,
                                                    const char *format, struct error **errp)
{
    bool read_only = false;

    if (opts_bool(opts, blk_node_options, "read-only", &read_only, errp) < 0)
        return NULL;
    opts_set_bool(opts, "read-only", true);
    struct blk_node *node = blk_co_open(filename, opts, flags & ~(unsigned)(BLK_O_RDWR | BLK_O_RESIZE), errp);
    if (!node || read_only || !(flags & BLK_O_RDWR))
        return node;
    struct blk_node *top = co_put_over(node, format, errp);
    blk_co_node_unref(node); /* the one on top has it */
    return top;
}
