/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Creating images: the protocol makes the file, the format writes its layout into it. What a failed step leaves behind
 * is removed, where this call made it.
 */
#include "open.h"
#include "perm.h"

#include <base/compiler.h>
#include <block/image.h>
#include <block/module.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

bool blk_is_preallocation(const char *word)
{
    return !strcmp(word, "off") || !strcmp(word, "metadata") || !strcmp(word, "falloc") || !strcmp(word, "full");
}

struct key_check {
    const struct blk_driver *format, *protocol;
    struct error **errp;
    int ret;
};

static void check_key(const char *key, const char *value, void *arg)
{
    struct key_check *check = arg;

    (void)value;
    if (check->ret == 0 && !opts_find(check->format->create_options, key) &&
        !(check->protocol->create_options && opts_find(check->protocol->create_options, key)))
        check->ret = error_set(check->errp, -EINVAL, "Invalid parameter '%s'", key);
}

/* The file, open for writing by the layout. */
static coroutine_fn struct blk_node *co_make_file(const struct blk_driver *protocol, const char *filename,
                                                  const struct opts *options, struct error **errp)
{
    struct blk_create create = { .filename = filename, .options = options, .size = 0 };

    if (!protocol->co_create) {
        error_set(errp, -ENOTSUP, "Protocol driver '%s' does not support image creation", protocol->name);
        return NULL;
    }
    if (protocol->co_create(&create, errp) < 0)
        return NULL;
    struct blk_node *file = blk_co_open_node(filename, NULL, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, true, NULL, errp);
    /* Until the image is whole nobody else opens it for writing, and nobody's image is overwritten. */
    if (file && blk_perm_pin(file, BLK_PERM_WRITE | BLK_PERM_RESIZE, errp) < 0) {
        blk_co_node_unref(file);
        return NULL;
    }
    return file;
}

coroutine_fn int blk_co_create(const char *format, const char *filename, const struct opts *options, uint64_t size,
                               struct error **errp)
{
    const struct blk_driver *driver = blk_module_load(format, NULL, errp) < 0 ? NULL : blk_driver_find(format);
    const struct blk_driver *protocol;
    struct stat before;

    if (!driver && errp && *errp)
        return -EINVAL;
    if (!driver)
        return error_set(errp, -EINVAL, "Unknown file format '%s'", format);
    if (!driver->co_create)
        return error_set(errp, -ENOTSUP, "Format driver '%s' does not support image creation", format);
    protocol = blk_protocol_for(filename, errp);
    if (!protocol)
        return -EINVAL;
    struct key_check check = { .format = driver, .protocol = protocol, .errp = errp };
    if (options)
        opts_each(options, check_key, &check);
    if (check.ret < 0)
        return check.ret;

    bool existed = stat(filename, &before) == 0;
    struct blk_create create = { .filename = filename, .options = options, .size = size };
    int ret = driver->create_check ? driver->create_check(&create, errp) : 0;
    if (ret < 0)
        return ret;
    if (driver->flags & BLK_DRIVER_PROTOCOL)
        return driver->co_create(&create, errp);
    create.file = co_make_file(protocol, filename, options, errp);
    ret = create.file ? driver->co_create(&create, errp) : -EIO;
    int close_ret = blk_co_node_unref(create.file);
    if (ret == 0 && close_ret < 0)
        ret = error_set_errno(errp, close_ret, "Could not write '%s'", filename);
    if (ret < 0 && !existed && protocol->remove)
        protocol->remove(filename);
    return ret;
}

coroutine_fn int blk_co_measure(const struct blk_driver *driver, const struct opts *options, uint64_t size,
                                struct blk_node *source, struct blk_measure *measure, struct error **errp)
{
    *measure = (struct blk_measure){ 0 };
    if (!driver->co_measure)
        return error_set(errp, -ENOTSUP, "Block driver '%s' does not support size measurement", driver->name);
    return driver->co_measure(options, source ? blk_node_size(source) : size, source, measure, errp);
}
