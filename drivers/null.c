/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * null-co and null-aio: a disk that forgets. Writes are acknowledged, reads leave the buffer as it was (or zero it,
 * with read-zeroes=on), after latency-ns. For measuring what the layers above cost. The two are one here; QEMU has
 * both names.
 */
#include <base/compiler.h>
#include <block/image.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

struct null_state {
    const char *filename; /* while it is opened */
    uint64_t size, latency_ns;
    bool read_zeroes;
};

static const struct opt_desc null_options[] = {
    { .name = "filename",
      .type = OPT_STRING,
      .help = "null-co:// or null-aio://",
      .at = OPT_AT(struct null_state, filename) },
    { .name = "size",
      .type = OPT_SIZE,
      .flags = OPT_CONTENT,
      .def = "1G",
      .help = "size of the null block",
      .at = OPT_AT(struct null_state, size) },
    { .name = "latency-ns",
      .type = OPT_NUMBER,
      .def = "0",
      .help = "nanoseconds (approximated) to wait before completing request",
      .at = OPT_AT(struct null_state, latency_ns) },
    { .name = "read-zeroes",
      .type = OPT_BOOL,
      .flags = OPT_CONTENT,
      .def = "off",
      .help = "return zeroes when read",
      .at = OPT_AT(struct null_state, read_zeroes) },
    { 0 },
};

_Static_assert(sizeof(struct loop_timer) <= sizeof(((struct blk_io *)0)->scratch),
               "the timer of a request lives in its scratch");

static int parse_name(const char *filename, const char *only, struct opts *opts, struct error **errp)
{
    if (strcmp(filename, only) != 0)
        return error_set(errp, -EINVAL, "The only allowed filename for this driver is '%s'", only);
    return 0;
}

static int null_co_parse_filename(const char *filename, struct opts *opts, struct error **errp)
{
    return parse_name(filename, "null-co://", opts, errp);
}

static int null_aio_parse_filename(const char *filename, struct opts *opts, struct error **errp)
{
    return parse_name(filename, "null-aio://", opts, errp);
}

static coroutine_fn int null_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct null_state *s = node->state;
    int ret = opts_read(opts, null_options, s, errp);

    if (ret < 0)
        return ret;
    if (s->latency_ns > INT64_MAX)
        return error_set(errp, -EINVAL, "latency-ns is invalid");
    uint64_t size = (s->size + BLK_SECTOR_SIZE - 1) & ~(uint64_t)(BLK_SECTOR_SIZE - 1);
    atomic_store_explicit(&node->size, size, memory_order_relaxed);
    node->limits = (struct blk_limits){
        .request_alignment = 1, .memory_alignment = 1, .max_iov = IOV_MAX, .discard_alignment = 1, .zeroes_alignment = 1
    };
    return 0;
}

static void timer_over(struct loop_timer *timer)
{
    struct blk_io *io = container_of((uint64_t(*)[ARRAY_SIZE(((struct blk_io *)0)->scratch)])(void *)timer,
                                     struct blk_io, scratch);

    io->done(io, 0);
}

static void null_submit(struct blk_node *node, struct blk_io *io)
{
    struct null_state *s = node->state;

    if (io->op == BLK_OP_READ && s->read_zeroes) {
        for (int i = 0; i < io->iov_count; i++)
            memset(io->iov[i].iov_base, 0, io->iov[i].iov_len);
    }
    if (s->latency_ns) {
        struct loop_timer *timer = (struct loop_timer *)(void *)io->scratch;
        *timer = (struct loop_timer){ .fn = timer_over };
        loop_timer_arm(io->loop, timer, loop_now_ns() + s->latency_ns);
    } else {
        blk_io_complete(io, 0);
    }
}

static coroutine_fn int null_co_extent(struct blk_node *node, uint64_t offset, uint64_t length,
                                       struct blk_extent *extent)
{
    struct null_state *s = node->state;

    *extent = (struct blk_extent){ .kind = s->read_zeroes ? BLK_ZERO : BLK_DATA,
                                   .length = length,
                                   .child_offset = offset };
    if (s->read_zeroes)
        extent->flags = BLK_EXTENT_ALLOCATED | BLK_EXTENT_OFFSET_VALID;
    if (offset + length >= blk_node_size(node))
        extent->flags |= BLK_EXTENT_EOF;
    return 0;
}

static coroutine_fn int64_t null_co_allocated_size(struct blk_node *node) { return 0; }

static const char *const null_co_prefixes[] = { "null-co", NULL };
static const char *const null_aio_prefixes[] = { "null-aio", NULL };

#define NULL_DRIVER(id, text) \
    static const struct blk_driver id##_driver = { \
        .name = text, \
        .flags = BLK_DRIVER_PROTOCOL, \
        .state_size = sizeof(struct null_state), \
        .options = null_options, \
        .protocol_prefixes = id##_prefixes, \
        .name_prefix = text "://", \
        .parse_filename = id##_parse_filename, \
        .co_open = null_co_open, \
        .submit = null_submit, \
        .co_extent = null_co_extent, \
        .co_allocated_size = null_co_allocated_size, \
    }; \
    BLK_DRIVER(id##_driver)

NULL_DRIVER(null_co, "null-co")
NULL_DRIVER(null_aio, "null-aio")
