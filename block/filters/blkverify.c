/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blkverify: every request goes to two images, a raw one that is known to be right and one under test; if they answer
 * differently, the program ends and says where. For tests of formats, as in QEMU: blkverify:RAW:TEST, or the children
 * `raw` and `test`.
 */
#include "filter.h"
#include "verify.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <block/image.h>
#include <block/iov.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { RAW, TEST };

struct blkverify {
    struct blk_node *children[2];
};

static const char *const prefixes[] = { "blkverify", NULL };

/* blkverify:RAW:TEST; neither is set if the node was opened by options alone. */
static int split_name(const struct blk_node *node, char **raw, const char **test, struct error **errp)
{
    const char *name = node->filename && strncmp(node->filename, "blkverify:", 10) == 0 ? node->filename + 10 : NULL;
    const char *colon = name ? strchr(name, ':') : NULL;

    if (name && !colon)
        return error_set(errp, -EINVAL, "blkverify requires raw copy and original image path");
    *raw = name ? xasprintf("%.*s", (int)(colon - name), name) : NULL;
    *test = name ? colon + 1 : NULL;
    return 0;
}

static coroutine_fn int blkverify_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct blkverify *s = node->state;
    AUTO_FREE char *raw = NULL;
    const char *test = NULL;
    int ret = split_name(node, &raw, &test, errp);

    if (ret == 0)
        ret = blk_co_open_child(node, "raw", opts, raw, flags, false, errp);
    if (ret == 0)
        ret = blk_co_open_child(node, "test", opts, test, flags, false, errp);
    if (ret < 0)
        return ret;
    s->children[RAW] = blk_node_child(node, "raw");
    node->file = s->children[TEST] = blk_node_child(node, "test");
    node->limits = node->file->limits;
    atomic_store(&node->size, blk_node_size(node->file));
    return 0;
}

/* ---- requests ---- */

__attribute__((format(printf, 2, 3), noreturn)) static void die(const struct verify_request *r, const char *fmt, ...)
{
    va_list args;

    fprintf(stderr, "blkverify: %s offset=%" PRIu64 " bytes=%" PRIu64 " ", r->op == BLK_OP_READ ? "read" : "write",
            r->offset, r->length);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    verify_end();
}

static coroutine_fn int co_both(struct blk_node *node, struct verify_request *r)
{
    struct blkverify *s = node->state;
    struct verify_child children[2] = { { .node = s->children[RAW] }, { .node = s->children[TEST] } };

    r->children = children;
    r->count = 2;
    int ret = verify_co_send(r);
    if (ret == 0 && children[RAW].ret != children[TEST].ret)
        die(r, "return value mismatch %d != %d", children[TEST].ret, children[RAW].ret);
    if (ret == 0)
        ret = children[TEST].ret;
    if (ret == 0 && r->op == BLK_OP_READ) {
        uint64_t at = verify_difference(children[RAW].buffer, children[TEST].buffer, r->length);
        if (at < r->length)
            die(r, "contents mismatch at offset %" PRIu64, r->offset + at);
        iov_from_buffer(r->iov, r->iov_count, 0, children[TEST].buffer, r->length);
    }
    verify_free_buffers(r);
    return ret;
}

static coroutine_fn int blkverify_co_read(struct blk_node *node, uint64_t offset, uint64_t length,
                                          const struct iovec *iov, int iov_count)
{
    struct verify_request r = {
        .op = BLK_OP_READ, .offset = offset, .length = length, .iov = iov, .iov_count = iov_count
    };

    return co_both(node, &r);
}

static coroutine_fn int blkverify_co_write(struct blk_node *node, uint64_t offset, uint64_t length,
                                           const struct iovec *iov, int iov_count, unsigned flags)
{
    struct verify_request r = {
        .op = BLK_OP_WRITE, .flags = flags, .offset = offset, .length = length, .iov = iov, .iov_count = iov_count
    };

    return co_both(node, &r);
}

static coroutine_fn int blkverify_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length,
                                                  unsigned flags)
{
    struct verify_request r = { .op = BLK_OP_WRITE_ZEROES, .flags = flags, .offset = offset, .length = length };

    return co_both(node, &r);
}

/* What a discarded part holds is nobody's to compare: it stays, in both. */
static coroutine_fn int blkverify_co_discard(struct blk_node *node, uint64_t offset, uint64_t length)
{
    (void)node;
    (void)offset;
    (void)length;
    return -ENOTSUP;
}

/* The raw copy is of no use after a crash. */
static coroutine_fn int blkverify_co_flush(struct blk_node *node)
{
    const struct blkverify *s = node->state;

    return blk_co_flush(s->children[TEST]);
}

static void blkverify_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                          struct blk_extent *extent)
{
    (void)node;
    (void)op;
    (void)flags;
    (void)offset;
    *extent = (struct blk_extent){ .kind = BLK_SLOW, .length = length };
}

static coroutine_fn int blkverify_co_extent(struct blk_node *node, uint64_t offset, uint64_t length,
                                            struct blk_extent *extent)
{
    blk_extent_pass(extent, node->file, offset, length);
    return 0;
}

static const struct blk_driver blkverify_driver = {
    .name = "blkverify",
    .flags = BLK_DRIVER_FILTER | BLK_DRIVER_GROWS,
    .state_size = sizeof(struct blkverify),
    .protocol_prefixes = prefixes,
    .name_prefix = "blkverify:",
    .child_role = "test",
    .co_open = blkverify_co_open,
    .map = blkverify_map,
    .co_extent = blkverify_co_extent,
    .co_read = blkverify_co_read,
    .co_write = blkverify_co_write,
    .co_write_zeroes = blkverify_co_write_zeroes,
    .co_discard = blkverify_co_discard,
    .co_flush = blkverify_co_flush,
    .child_changed = filter_follow_size,
};
BLK_DRIVER(blkverify_driver)
