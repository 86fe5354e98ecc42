/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blkdebug: a filter that lets I/O fail, late, short, or on a device with other limits, as rules say.
 *
 * Options as in QEMU: config, inject-error.N, set-state.N, align, max-transfer, opt-/max-write-zero, opt-/max-discard.
 * Ours are after=N (the N-th matching I/O from now is the first to fail), delay-ns, and short (half of a write lands
 * first). Events: blkdebug_rules.c. Requests stop at breakpoints: blkdebug_break.c.
 *
 * Invariant: where there is no rule and no limit the node maps to its child and costs nothing. Else every request
 * passes a rule check exactly once for each piece that goes to the child.
 */
#include "blkdebug_break.h"
#include "blkdebug_rules.h"
#include "filter.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <block/blkdebug.h>
#include <block/image.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct blkdebug {
    atomic_uint_fast64_t requests;
    bool limited;
    uint64_t align, max_transfer, opt_zeroes, max_zeroes, opt_discard, max_discard; /* 0: none */
    struct co_rwlock rewrite; /* with align: held for writing by read-modify-write, for reading by other writes */
    struct blkdebug_rules rules;
    struct blkdebug_breaks breaks;
};

static const struct opt_desc blkdebug_options[] = {
    { .name = "config", .type = OPT_STRING, .flags = OPT_CONTENT, .help = "Path to the configuration file" },
    { .name = "align", .type = OPT_SIZE, .flags = OPT_CONTENT, .def = "0", .help = "Required alignment in bytes" },
    { .name = "max-transfer",
      .type = OPT_SIZE,
      .flags = OPT_CONTENT,
      .def = "0",
      .help = "Maximum transfer size in bytes" },
    { .name = "opt-write-zero",
      .type = OPT_SIZE,
      .flags = OPT_CONTENT,
      .def = "0",
      .help = "Optimum write zero alignment in bytes" },
    { .name = "max-write-zero",
      .type = OPT_SIZE,
      .flags = OPT_CONTENT,
      .def = "0",
      .help = "Maximum write zero size in bytes" },
    { .name = "opt-discard",
      .type = OPT_SIZE,
      .flags = OPT_CONTENT,
      .def = "0",
      .help = "Optimum discard alignment in bytes" },
    { .name = "max-discard",
      .type = OPT_SIZE,
      .flags = OPT_CONTENT,
      .def = "0",
      .help = "Maximum discard size in bytes" },
    { 0 },
};

/* ---- options ---- */

static int read_limit(struct blkdebug *s, struct opts *opts, const char *key, uint64_t unit, uint64_t *out,
                      struct error **errp)
{
    int ret = opts_size(opts, blkdebug_options, key, out, errp);

    if (ret <= 0)
        return ret;
    if (*out > INT_MAX || *out % unit || (out == &s->align && !is_power_of_two(*out)))
        return error_set(errp, -EINVAL, "Cannot meet constraints with %s %" PRIu64, key, *out);
    s->limited = s->limited || *out;
    return 0;
}

static int read_limits(struct blkdebug *s, struct opts *opts, struct error **errp)
{
    int ret = read_limit(s, opts, "align", 1, &s->align, errp);
    uint64_t unit = MAX(s->align, (uint64_t)1);

    if (ret == 0)
        ret = read_limit(s, opts, "max-transfer", unit, &s->max_transfer, errp);
    if (ret == 0)
        ret = read_limit(s, opts, "opt-write-zero", unit, &s->opt_zeroes, errp);
    if (ret == 0)
        ret = read_limit(s, opts, "max-write-zero", MAX(unit, s->opt_zeroes), &s->max_zeroes, errp);
    if (ret == 0)
        ret = read_limit(s, opts, "opt-discard", unit, &s->opt_discard, errp);
    if (ret == 0)
        ret = read_limit(s, opts, "max-discard", MAX(unit, s->opt_discard), &s->max_discard, errp);
    return ret;
}

/* ---- rules ---- */

static coroutine_fn void blkdebug_co_event(struct blk_node *node, enum blk_event event)
{
    struct blkdebug *s = node->state;

    blkdebug_rules_event(&s->rules, event);
    blkdebug_breaks_co_reach(&s->breaks, event);
}

/* What an I/O that arrives is an event of. */
static coroutine_fn void co_arrive(struct blk_node *node, enum blkdebug_type type)
{
    if (type == BLKDEBUG_READ && !blk_event_is_told(node))
        blkdebug_co_event(node, BLK_EVENT_READ_AIO);
    if (type == BLKDEBUG_WRITE && !blk_event_is_told(node))
        blkdebug_co_event(node, BLK_EVENT_WRITE_AIO);
    if (type == BLKDEBUG_WRITE)
        blkdebug_co_event(node, BLK_EVENT_PWRITEV);
    if (type == BLKDEBUG_WRITE_ZEROES)
        blkdebug_co_event(node, BLK_EVENT_PWRITEV_ZERO);
    if (type == BLKDEBUG_FLUSH)
        blkdebug_co_event(node, BLK_EVENT_FLUSH_TO_DISK);
}

/* Waits as told; 0 or what to fail with. */
static coroutine_fn int co_judge(struct blk_node *node, enum blkdebug_type type, uint64_t offset, uint64_t length,
                                 bool *cut)
{
    struct blkdebug *s = node->state;

    if (type != BLKDEBUG_BLOCK_STATUS)
        atomic_fetch_add_explicit(&s->requests, 1, memory_order_relaxed);
    co_arrive(node, type);
    struct blkdebug_verdict verdict = blkdebug_rules_judge(&s->rules, type, offset, length);
    if (verdict.delay_ns)
        co_sleep_ns(verdict.delay_ns);
    if (cut)
        *cut = verdict.cut;
    return -verdict.error;
}

uint64_t blkdebug_requests(const struct blk_node *node)
{
    struct blkdebug *s = node->state;

    return atomic_load_explicit(&s->requests, memory_order_relaxed);
}

int blkdebug_inject(struct blk_node *node, const char *text, struct error **errp)
{
    struct blkdebug *s = node->state;
    struct opts *opts = opts_new();
    int ret = opts_parse(opts, text, NULL, 0, errp);

    if (ret == 0)
        ret = blkdebug_rules_add(&s->rules, opts, errp);
    opts_free(opts);
    return ret;
}

void blkdebug_clear(struct blk_node *node)
{
    struct blkdebug *s = node->state;

    blkdebug_rules_clear(&s->rules);
}

/* ---- opening ---- */

/* blkdebug:CONFIG:IMAGE, or the option. *image: NULL if the node was not named like that. */
static int read_config(const struct blk_node *node, struct opts *opts, const char **image, struct error **errp)
{
    AUTO_FREE char *config = opts_take(opts, "config");

    *image = NULL;
    if (node->filename && strncmp(node->filename, "blkdebug:", 9) == 0) {
        const char *name = node->filename + 9, *colon = strchr(name, ':');
        if (!colon)
            return error_set(errp, -EINVAL, "blkdebug requires both config file and image path");
        *image = colon + 1;
        if (colon > name) {
            free(config);
            config = xasprintf("%.*s", (int)(colon - name), name);
        }
    }
    return config ? blkdebug_config_read(config, opts, errp) : 0;
}

static coroutine_fn int blkdebug_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct blkdebug *s = node->state;
    const char *image;

    co_rwlock_init(&s->rewrite);
    blkdebug_rules_init(&s->rules);
    blkdebug_breaks_init(&s->breaks);
    atomic_fetch_add(&blk_event_listeners, 1);
    int ret = read_config(node, opts, &image, errp);
    if (ret == 0)
        ret = blkdebug_rules_read(&s->rules, opts, errp);
    if (ret == 0)
        ret = read_limits(s, opts, errp);
    if (ret == 0)
        ret = blk_co_open_child(node, "image", opts, image, flags, false, errp);
    if (ret < 0) {
        node->driver->co_close(node);
        return ret;
    }
    node->file = list_last(&node->children, struct blk_child, in_parent)->node;
    node->limits = node->file->limits;
    node->limits.request_alignment = MAX(node->limits.request_alignment, (uint32_t)s->align);
    atomic_store(&node->size, blk_node_size(node->file));
    return 0;
}

static coroutine_fn int blkdebug_co_close(struct blk_node *node)
{
    struct blkdebug *s = node->state;

    atomic_fetch_sub(&blk_event_listeners, 1);
    blkdebug_breaks_finish(&s->breaks);
    blkdebug_rules_finish(&s->rules);
    co_rwlock_finish(&s->rewrite);
    return 0;
}

/* ---- breakpoints ---- */

/* The nearest one at or below the node, or NULL. */
static struct blkdebug *find(const struct blk_node *node)
{
    while (node && node->driver->co_event != blkdebug_co_event)
        node = node->file;
    return node ? node->state : NULL;
}

int blkdebug_break(struct blk_node *node, const char *event, const char *tag)
{
    struct blkdebug *s = find(node);

    if (!s)
        return -ENOTSUP;
    for (unsigned i = 0; blk_event_words[i]; i++) {
        if (strcmp(blk_event_words[i], event) == 0) {
            atomic_store(&s->rules.any, true);
            blkdebug_breaks_set(&s->breaks, i, tag);
            return 0;
        }
    }
    return -ENOENT;
}

int blkdebug_has_stopped(struct blk_node *node, const char *tag)
{
    struct blkdebug *s = find(node);

    return s ? blkdebug_breaks_has_stopped(&s->breaks, tag) : -ENOTSUP;
}

int blkdebug_resume(struct blk_node *node, const char *tag)
{
    struct blkdebug *s = find(node);

    if (!s)
        return -ENOTSUP;
    return blkdebug_breaks_resume(&s->breaks, tag) ? 0 : -ENOENT;
}

int blkdebug_remove_break(struct blk_node *node, const char *tag)
{
    struct blkdebug *s = find(node);

    if (!s)
        return -ENOTSUP;
    return blkdebug_breaks_remove(&s->breaks, tag) ? 0 : -ENOENT;
}

/* ---- requests ---- */

static void blkdebug_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                         struct blk_extent *extent)
{
    struct blkdebug *s = node->state;

    if (s->limited || atomic_load_explicit(&s->rules.any, memory_order_relaxed) ||
        filter_grows(node, op, offset, length)) {
        extent->kind = BLK_SLOW;
        extent->flags = 0;
        extent->length = length;
        return;
    }
    blk_extent_pass(extent, node->file, offset, length);
}

static coroutine_fn int blkdebug_co_extent(struct blk_node *node, uint64_t offset, uint64_t length,
                                           struct blk_extent *extent)
{
    blk_extent_pass(extent, node->file, offset, length);
    return co_judge(node, BLKDEBUG_BLOCK_STATUS, offset, length, NULL);
}

/* One piece that keeps to the limits; the buffer is the whole of it. */
static coroutine_fn int co_read_piece(struct blk_node *node, uint64_t offset, char *buffer, uint64_t length)
{
    int ret = co_judge(node, BLKDEBUG_READ, offset, length, NULL);

    return ret < 0 ? ret : blk_co_read(node->file, offset, buffer, length);
}

static coroutine_fn int co_write_piece(struct blk_node *node, uint64_t offset, const char *buffer, uint64_t length,
                                       unsigned flags)
{
    bool cut;
    int ret = co_judge(node, BLKDEBUG_WRITE, offset, length, &cut);

    if (ret < 0 && cut && length > BLK_SECTOR_SIZE) {
        uint64_t half = align_down(length / 2, BLK_SECTOR_SIZE);
        blk_co_write(node->file, offset, buffer, MAX(half, (uint64_t)BLK_SECTOR_SIZE), flags);
    }
    if (ret == 0)
        ret = blk_co_write(node->file, offset, buffer, length, flags);
    blkdebug_co_event(node, BLK_EVENT_PWRITEV_DONE);
    return ret;
}

static void copy_iov(const struct iovec *iov, int iov_count, char *buffer, bool to_buffer)
{
    for (int i = 0; i < iov_count; i++) {
        if (to_buffer)
            memcpy(buffer, iov[i].iov_base, iov[i].iov_len);
        else
            memcpy(iov[i].iov_base, buffer, iov[i].iov_len);
        buffer += iov[i].iov_len;
    }
}

/* The aligned blocks around [offset, offset + length), in a buffer. This node is for tests: it copies everything. */
struct blocks {
    uint64_t offset, length;
    uint64_t head;
    char *buffer;
};

static int blocks_init(struct blk_node *node, uint64_t offset, uint64_t length, struct blocks *b)
{
    struct blkdebug *s = node->state;
    uint64_t align = MAX(s->align, (uint64_t)1);

    b->offset = align_down(offset, align);
    b->head = offset - b->offset;
    b->length = align_up(b->head + length, align);
    b->buffer = blk_buffer_alloc(node, b->length);
    return b->buffer ? 0 : -ENOMEM;
}

static coroutine_fn int co_transfer(struct blk_node *node, const struct blocks *b, bool write, unsigned flags)
{
    struct blkdebug *s = node->state;
    uint64_t max = s->max_transfer ? s->max_transfer : b->length;
    int ret = 0;

    for (uint64_t done = 0; done < b->length && ret == 0;) {
        uint64_t length = MIN(max, b->length - done);
        ret = write ? co_write_piece(node, b->offset + done, b->buffer + done, length, flags)
                    : co_read_piece(node, b->offset + done, b->buffer + done, length);
        done += length;
    }
    return ret;
}

static coroutine_fn int blkdebug_co_read(struct blk_node *node, uint64_t offset, uint64_t length,
                                         const struct iovec *iov, int iov_count)
{
    struct blocks b;
    int ret = blocks_init(node, offset, length, &b);

    if (ret == 0)
        ret = co_transfer(node, &b, false, 0);
    if (ret == 0)
        copy_iov(iov, iov_count, b.buffer + b.head, false);
    free(b.buffer);
    return ret;
}

static coroutine_fn int blkdebug_co_write(struct blk_node *node, uint64_t offset, uint64_t length,
                                          const struct iovec *iov, int iov_count, unsigned flags)
{
    struct blkdebug *s = node->state;
    struct blocks b;
    if (flags & BLK_REQ_ABSENT_ONLY)
        return -ENOTSUP; /* it writes whole blocks, with what it read before */
    int ret = blocks_init(node, offset, length, &b);
    bool rewrite = ret == 0 && b.length != length;

    if (ret < 0)
        return ret;
    if (rewrite) {
        co_rwlock_write(&s->rewrite);
        ret = co_transfer(node, &b, false, 0);
    } else {
        co_rwlock_read(&s->rewrite);
    }
    if (ret == 0) {
        copy_iov(iov, iov_count, b.buffer + b.head, true);
        ret = co_transfer(node, &b, true, flags);
    }
    filter_grow(node);
    co_rwlock_unlock(&s->rewrite);
    free(b.buffer);
    return ret;
}

static uint64_t unit_of(uint64_t align, uint64_t optimum)
{
    uint64_t unit = MAX(align, optimum);

    return unit ? unit : 1;
}

static coroutine_fn int blkdebug_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length,
                                                 unsigned flags)
{
    struct blkdebug *s = node->state;
    uint64_t unit = unit_of(s->align, s->opt_zeroes);
    uint64_t max = s->max_zeroes ? s->max_zeroes : length;
    int ret = 0;

    if (offset % unit || length % unit)
        return -ENOTSUP;
    for (uint64_t done = 0; done < length && ret == 0; done += max) {
        uint64_t piece = MIN(max, length - done);
        ret = co_judge(node, BLKDEBUG_WRITE_ZEROES, offset + done, piece, NULL);
        if (ret == 0)
            ret = blk_co_write_zeroes(node->file, offset + done, piece, flags);
    }
    filter_grow(node);
    return ret;
}

static coroutine_fn int blkdebug_co_discard(struct blk_node *node, uint64_t offset, uint64_t length)
{
    struct blkdebug *s = node->state;
    uint64_t unit = unit_of(s->align, s->opt_discard);
    uint64_t start = div_round_up(offset, unit) * unit, end = (offset + length) / unit * unit;
    uint64_t max = s->max_discard ? s->max_discard : length;
    int ret = 0;

    for (; start < end && ret == 0; start += MIN(max, end - start)) {
        uint64_t piece = MIN(max, end - start);
        ret = co_judge(node, BLKDEBUG_DISCARD, start, piece, NULL);
        if (ret == 0)
            ret = blk_co_discard(node->file, start, piece);
    }
    return ret;
}

static coroutine_fn int blkdebug_co_flush(struct blk_node *node)
{
    int ret = co_judge(node, BLKDEBUG_FLUSH, 0, 0, NULL);

    return ret < 0 ? ret : blk_co_flush(node->file);
}

static coroutine_fn int blkdebug_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                             struct error **errp)
{
    int ret = blk_co_truncate(node->file, size, exact, prealloc, errp);

    if (ret == 0)
        atomic_store(&node->size, blk_node_size(node->file));
    return ret;
}

static const char *const blkdebug_prefixes[] = { "blkdebug", NULL };

static const struct blk_driver blkdebug_driver = {
    .name = "blkdebug",
    .flags = BLK_DRIVER_FILTER | BLK_DRIVER_GROWS,
    .state_size = sizeof(struct blkdebug),
    .options = blkdebug_options,
    .protocol_prefixes = blkdebug_prefixes,
    .name_prefix = "blkdebug::",
    .child_role = "image",
    .co_open = blkdebug_co_open,
    .co_close = blkdebug_co_close,
    .map = blkdebug_map,
    .co_extent = blkdebug_co_extent,
    .co_read = blkdebug_co_read,
    .co_write = blkdebug_co_write,
    .co_write_zeroes = blkdebug_co_write_zeroes,
    .co_discard = blkdebug_co_discard,
    .co_flush = blkdebug_co_flush,
    .co_truncate = blkdebug_co_truncate,
    .co_event = blkdebug_co_event,
    .child_changed = filter_follow_size,
};

BLK_DRIVER(blkdebug_driver)
