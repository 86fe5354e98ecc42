/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blkdebug: a filter that lets I/O fail, late, short, or on a device with other limits, as rules say.
 *
 * Options as in QEMU: inject-error.N, set-state.N, align, max-transfer, opt-/max-write-zero, opt-/max-discard. Its
 * events are those that the node itself sees (an I/O that arrives); `none`, or no event, is any of them. Ours are
 * after=N (the N-th matching I/O from now is the first to fail), delay-ns, and short (half of a write lands first).
 *
 * Invariant: where there is no rule and no limit the node maps to its child and costs nothing. Else every request
 * passes a rule check exactly once for each piece that goes to the child.
 */
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

/* Also the bit numbers of rule.types. */
enum { TYPE_READ, TYPE_WRITE, TYPE_WRITE_ZEROES, TYPE_DISCARD, TYPE_FLUSH, TYPE_BLOCK_STATUS };
static const char *const type_words[] = { "read", "write", "write-zeroes", "discard", "flush", "block-status", NULL };
#define TYPES_BY_DEFAULT ((1u << TYPE_BLOCK_STATUS) - 1)

enum { EVENT_NONE, EVENT_READ_AIO, EVENT_WRITE_AIO, EVENT_PWRITEV, EVENT_PWRITEV_ZERO, EVENT_FLUSH_TO_DISK };
static const char *const event_words[] = { "none", "read_aio", "write_aio", "pwritev", "pwritev_zero", "flush_to_disk", NULL };

struct rule {
    struct list link;
    unsigned types;
    int event;
    int error;         /* positive; 0: only a delay */
    bool any_sector;
    uint64_t sector;
    bool once, cut;
    uint64_t state;    /* 0: any */
    uint64_t left;     /* matching I/Os to let pass */
    uint64_t delay_ns;
};

struct transition {
    struct list link;
    int event;
    uint64_t state, new_state; /* state 0: from any */
};

struct blkdebug {
    atomic_bool active; /* there are rules or limits: nothing is mapped */
    atomic_uint_fast64_t requests;
    bool limited;
    uint64_t align, max_transfer, opt_zeroes, max_zeroes, opt_discard, max_discard; /* 0: none */
    struct co_rwlock rewrite; /* with align: held for writing by read-modify-write, for reading by other writes */

    pthread_mutex_t lock; /* protects all below */
    struct list rules, transitions;
    uint64_t state;
};

static const struct opt_desc rule_options[] = {
    { .name = "event", .type = OPT_ENUM, .def = "none", .values = event_words, .help = "trigger event" },
    { .name = "iotype", .type = OPT_ENUM, .values = type_words, .help = "type of I/O to fail (default: all but block-status)" },
    { .name = "errno", .type = OPT_NUMBER, .def = "5", .help = "error number; 0 for none" },
    { .name = "sector", .type = OPT_NUMBER, .help = "only I/O that touches this 512-byte sector" },
    { .name = "once", .type = OPT_BOOL, .def = "off", .help = "fail one I/O only" },
    { .name = "immediately", .type = OPT_BOOL, .def = "off", .help = "accepted; errors come as soon as they can" },
    { .name = "state", .type = OPT_NUMBER, .def = "0", .help = "only in this state (0: any)" },
    { .name = "after", .type = OPT_NUMBER, .def = "1", .help = "start with the N-th matching I/O" },
    { .name = "delay-ns", .type = OPT_NUMBER, .def = "0", .help = "wait before the I/O" },
    { .name = "short", .type = OPT_BOOL, .def = "off", .help = "write the first half before failing" },
    { 0 },
};

static const struct opt_desc transition_options[] = {
    { .name = "event", .type = OPT_ENUM, .values = event_words, .help = "trigger event" },
    { .name = "state", .type = OPT_NUMBER, .def = "0", .help = "only in this state (0: any)" },
    { .name = "new_state", .type = OPT_NUMBER, .help = "state to go to" },
    { 0 },
};

static const struct opt_desc blkdebug_options[] = {
    { .name = "align", .type = OPT_SIZE, .def = "0", .help = "Required alignment in bytes" },
    { .name = "max-transfer", .type = OPT_SIZE, .def = "0", .help = "Maximum transfer size in bytes" },
    { .name = "opt-write-zero", .type = OPT_SIZE, .def = "0", .help = "Optimum write zero alignment in bytes" },
    { .name = "max-write-zero", .type = OPT_SIZE, .def = "0", .help = "Maximum write zero size in bytes" },
    { .name = "opt-discard", .type = OPT_SIZE, .def = "0", .help = "Optimum discard alignment in bytes" },
    { .name = "max-discard", .type = OPT_SIZE, .def = "0", .help = "Maximum discard size in bytes" },
    { 0 },
};

/* ---- options ---- */

static int read_rule(struct opts *opts, struct rule *rule, struct error **errp)
{
    int type = 0;
    uint64_t error = 0;
    int ret = opts_enum(opts, rule_options, "iotype", &type, errp);

    rule->types = ret > 0 ? 1u << type : TYPES_BY_DEFAULT;
    if (ret >= 0)
        ret = opts_enum(opts, rule_options, "event", &rule->event, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "errno", &error, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "sector", &rule->sector, errp);
    rule->any_sector = ret == 0;
    if (ret >= 0)
        ret = opts_bool(opts, rule_options, "once", &rule->once, errp);
    if (ret >= 0)
        ret = opts_bool(opts, rule_options, "short", &rule->cut, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "state", &rule->state, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "after", &rule->left, errp);
    if (ret >= 0)
        ret = opts_number(opts, rule_options, "delay-ns", &rule->delay_ns, errp);
    if (ret >= 0)
        ret = opts_validate(opts, rule_options, errp);
    if (ret < 0)
        return ret;
    if (error > 4095)
        return error_set(errp, -EINVAL, "Parameter 'errno' expects a number below 4096");
    if (rule->left == 0)
        return error_set(errp, -EINVAL, "Parameter 'after' counts from 1");
    rule->error = (int)error;
    rule->left--;
    return 0;
}

static int add_rule(struct blkdebug *s, struct opts *opts, struct error **errp)
{
    struct rule *rule = xcalloc(1, sizeof(*rule));
    int ret = read_rule(opts, rule, errp);

    if (ret < 0) {
        free(rule);
        return ret;
    }
    pthread_mutex_lock(&s->lock);
    list_append(&s->rules, &rule->link);
    pthread_mutex_unlock(&s->lock);
    atomic_store(&s->active, true);
    return 0;
}

static int add_transition(struct blkdebug *s, struct opts *opts, struct error **errp)
{
    struct transition *t = xcalloc(1, sizeof(*t));
    int given = opts_enum(opts, transition_options, "event", &t->event, errp);
    int ret = given;

    if (given == 0)
        ret = error_set(errp, -EINVAL, "Missing event name for rule");
    if (ret >= 0)
        ret = opts_number(opts, transition_options, "state", &t->state, errp);
    if (ret >= 0)
        ret = opts_number(opts, transition_options, "new_state", &t->new_state, errp);
    if (ret == 0)
        ret = error_set(errp, -EINVAL, "Parameter 'new_state' is missing");
    if (ret >= 0)
        ret = opts_validate(opts, transition_options, errp);
    if (ret < 0) {
        free(t);
        return ret;
    }
    list_append(&s->transitions, &t->link);
    atomic_store(&s->active, true);
    return 0;
}

/* PREFIX.0.…, PREFIX.1.…, as far as they go. */
static int read_list(struct blkdebug *s, struct opts *opts, const char *prefix,
                     int (*add)(struct blkdebug *s, struct opts *opts, struct error **errp), struct error **errp)
{
    int ret = 0;

    for (unsigned i = 0; ret == 0; i++) {
        AUTO_FREE char *key = xasprintf("%s.%u", prefix, i);
        if (!opts_has_prefix(opts, key))
            break;
        struct opts *one = opts_take_prefix(opts, key);
        ret = add(s, one, errp);
        opts_free(one);
    }
    return ret;
}

static int read_limit(struct blkdebug *s, struct opts *opts, const char *key, uint64_t unit, uint64_t *out, struct error **errp)
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

struct request {
    unsigned type;
    uint64_t offset, length;
};

struct verdict {
    int error; /* positive, or 0 */
    uint64_t delay_ns;
    bool cut;
};

static bool event_is(int event, unsigned type)
{
    switch (event) {
    case EVENT_READ_AIO:
        return type == TYPE_READ;
    case EVENT_WRITE_AIO:
    case EVENT_PWRITEV:
        return type == TYPE_WRITE;
    case EVENT_PWRITEV_ZERO:
        return type == TYPE_WRITE_ZEROES;
    case EVENT_FLUSH_TO_DISK:
        return type == TYPE_FLUSH;
    default:
        return true;
    }
}

static bool rule_matches(const struct blkdebug *s, const struct rule *rule, const struct request *r)
{
    if (!(rule->types & 1u << r->type) || !event_is(rule->event, r->type))
        return false;
    if (rule->state && rule->state != s->state)
        return false;
    if (rule->any_sector)
        return true;
    return rule->sector >= r->offset / BLK_SECTOR_SIZE && rule->sector < div_round_up(r->offset + r->length, BLK_SECTOR_SIZE);
}

static void next_state(struct blkdebug *s, unsigned type)
{
    uint64_t old = s->state;
    const struct transition *t;

    list_for_each(t, &s->transitions, link) {
        if (t->event != EVENT_NONE && event_is(t->event, type) && (!t->state || t->state == old))
            s->state = t->new_state;
    }
}

/* The first rule that does something decides. */
static struct verdict judge(struct blkdebug *s, const struct request *r)
{
    struct verdict verdict = { 0 };
    struct rule *rule, *next;

    if (r->type != TYPE_BLOCK_STATUS)
        atomic_fetch_add_explicit(&s->requests, 1, memory_order_relaxed);
    pthread_mutex_lock(&s->lock);
    next_state(s, r->type);
    list_for_each_safe(rule, next, &s->rules, link) {
        if (!rule_matches(s, rule, r))
            continue;
        if (rule->left > 0) {
            rule->left--;
            continue;
        }
        verdict = (struct verdict){ rule->error, rule->delay_ns, rule->cut };
        if (rule->once) {
            list_remove(&rule->link);
            free(rule);
        }
        break;
    }
    pthread_mutex_unlock(&s->lock);
    return verdict;
}

/* Waits as told; 0 or what to fail with. */
static coroutine_fn int co_judge(struct blkdebug *s, unsigned type, uint64_t offset, uint64_t length, bool *cut)
{
    struct request request = { type, offset, length };
    struct verdict verdict = judge(s, &request);

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
    struct opts *opts = opts_new();
    int ret = opts_parse(opts, text, NULL, false, errp);

    if (ret == 0)
        ret = add_rule(node->state, opts, errp);
    opts_free(opts);
    return ret;
}

void blkdebug_clear(struct blk_node *node)
{
    struct blkdebug *s = node->state;
    struct rule *rule, *next;

    pthread_mutex_lock(&s->lock);
    list_for_each_safe(rule, next, &s->rules, link) {
        list_remove(&rule->link);
        free(rule);
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- opening ---- */

/* blkdebug:CONFIG:IMAGE; only an empty CONFIG. NULL where the node was not named like that. */
static int image_name(const struct blk_node *node, const char **image, struct error **errp)
{
    *image = NULL;
    if (!node->filename || strncmp(node->filename, "blkdebug:", 9) != 0)
        return 0;
    if (node->filename[9] != ':')
        return error_set(errp, -ENOTSUP, "blkdebug: configuration files are not supported, give the rules as options");
    *image = node->filename + 10;
    return 0;
}

static coroutine_fn int blkdebug_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct blkdebug *s = node->state;
    const char *image;

    pthread_mutex_init(&s->lock, NULL);
    co_rwlock_init(&s->rewrite);
    list_init(&s->rules);
    list_init(&s->transitions);
    s->state = 1;
    int ret = image_name(node, &image, errp);
    if (ret == 0)
        ret = read_list(s, opts, "inject-error", add_rule, errp);
    if (ret == 0)
        ret = read_list(s, opts, "set-state", add_transition, errp);
    if (ret == 0)
        ret = read_limits(s, opts, errp);
    if (ret == 0)
        ret = blk_co_open_child(node, "image", opts, image, flags, false, errp);
    if (ret < 0) {
        node->driver->co_close(node);
        return ret;
    }
    node->file = list_last(&node->children, struct blk_child, in_parent)->node;
    if (s->limited)
        atomic_store(&s->active, true);
    node->limits = node->file->limits;
    node->limits.request_alignment = MAX(node->limits.request_alignment, (uint32_t)s->align);
    atomic_store(&node->size, blk_node_size(node->file));
    return 0;
}

static coroutine_fn int blkdebug_co_close(struct blk_node *node)
{
    struct blkdebug *s = node->state;
    struct transition *t, *next;

    blkdebug_clear(node);
    list_for_each_safe(t, next, &s->transitions, link) {
        list_remove(&t->link);
        free(t);
    }
    co_rwlock_finish(&s->rewrite);
    pthread_mutex_destroy(&s->lock);
    return 0;
}

/* ---- requests ---- */

static void blkdebug_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                         struct blk_extent *extent)
{
    struct blkdebug *s = node->state;

    if (atomic_load_explicit(&s->active, memory_order_relaxed) || filter_grows(node, op, offset, length)) {
        extent->kind = BLK_SLOW;
        extent->flags = 0;
        extent->length = length;
        return;
    }
    filter_map_to_child(node, offset, length, extent);
}

static coroutine_fn int blkdebug_co_extent(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent)
{
    filter_map_to_child(node, offset, length, extent);
    return co_judge(node->state, TYPE_BLOCK_STATUS, offset, length, NULL);
}

/* One piece that keeps to the limits; the buffer is the whole of it. */
static coroutine_fn int co_read_piece(struct blk_node *node, uint64_t offset, char *buffer, uint64_t length)
{
    int ret = co_judge(node->state, TYPE_READ, offset, length, NULL);

    return ret < 0 ? ret : blk_co_read(node->file, offset, buffer, length);
}

static coroutine_fn int co_write_piece(struct blk_node *node, uint64_t offset, const char *buffer, uint64_t length, unsigned flags)
{
    bool cut;
    int ret = co_judge(node->state, TYPE_WRITE, offset, length, &cut);

    if (ret < 0 && cut && length > BLK_SECTOR_SIZE) {
        uint64_t half = align_down(length / 2, BLK_SECTOR_SIZE);
        blk_co_write(node->file, offset, buffer, MAX(half, (uint64_t)BLK_SECTOR_SIZE), flags);
    }
    return ret < 0 ? ret : blk_co_write(node->file, offset, buffer, length, flags);
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

static coroutine_fn int blkdebug_co_read(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov, int iov_count)
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

static coroutine_fn int blkdebug_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                          int iov_count, unsigned flags)
{
    struct blkdebug *s = node->state;
    struct blocks b;
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

static coroutine_fn int blkdebug_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct blkdebug *s = node->state;
    uint64_t unit = unit_of(s->align, s->opt_zeroes);
    uint64_t max = s->max_zeroes ? s->max_zeroes : length;
    int ret = 0;

    if (offset % unit || length % unit)
        return -ENOTSUP;
    for (uint64_t done = 0; done < length && ret == 0; done += max) {
        uint64_t piece = MIN(max, length - done);
        ret = co_judge(s, TYPE_WRITE_ZEROES, offset + done, piece, NULL);
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
        ret = co_judge(s, TYPE_DISCARD, start, piece, NULL);
        if (ret == 0)
            ret = blk_co_discard(node->file, start, piece);
    }
    return ret;
}

static coroutine_fn int blkdebug_co_flush(struct blk_node *node)
{
    int ret = co_judge(node->state, TYPE_FLUSH, 0, 0, NULL);

    return ret < 0 ? ret : blk_co_flush(node->file);
}

static coroutine_fn int blkdebug_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc, struct error **errp)
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
};

BLK_DRIVER(blkdebug_driver)
