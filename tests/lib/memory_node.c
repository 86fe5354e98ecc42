/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A protocol node in memory for tests (memory_node.h). */
#include "memory_node.h"

#include <assert.h>
#include <base/checked.h>
#include <base/coroutine.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct opt_desc memory_options[] = {
    { .name = "size", .type = OPT_SIZE, .def = "1M", .help = "size" },
    { .name = "max-size", .type = OPT_SIZE, .help = "how far it grows" },
    { .name = "align", .type = OPT_SIZE, .def = "1", .help = "alignment of offsets and lengths" },
    { .name = "mem-align", .type = OPT_SIZE, .def = "1", .help = "alignment of memory" },
    { .name = "max-iov", .type = OPT_NUMBER, .def = "0", .help = "limits of one request; 0: none" },
    { .name = "max-transfer", .type = OPT_SIZE, .def = "0" },
    { .name = "max-discard", .type = OPT_SIZE, .def = "0" },
    { .name = "discard-align", .type = OPT_SIZE, .def = "1" },
    { .name = "max-zeroes", .type = OPT_SIZE, .def = "0" },
    { .name = "zeroes-align", .type = OPT_SIZE, .def = "1" },
    { .name = "latency-ns", .type = OPT_NUMBER, .def = "0", .help = "time that a request takes" },
    { 0 },
};

static int take_limits(struct blk_limits *limits, struct opts *opts, struct error **errp)
{
    uint64_t align = 1, mem_align = 1, max_iov = 0;

    if (opts_size(opts, memory_options, "align", &align, errp) < 0 ||
        opts_size(opts, memory_options, "mem-align", &mem_align, errp) < 0 ||
        opts_number(opts, memory_options, "max-iov", &max_iov, errp) < 0 ||
        opts_size(opts, memory_options, "max-transfer", &limits->max_transfer, errp) < 0 ||
        opts_size(opts, memory_options, "max-discard", &limits->max_discard, errp) < 0 ||
        opts_size(opts, memory_options, "discard-align", &limits->discard_alignment, errp) < 0 ||
        opts_size(opts, memory_options, "max-zeroes", &limits->max_zeroes, errp) < 0 ||
        opts_size(opts, memory_options, "zeroes-align", &limits->zeroes_alignment, errp) < 0)
        return -EINVAL;
    limits->request_alignment = (uint32_t)align;
    limits->memory_alignment = (uint32_t)mem_align;
    limits->max_iov = (uint32_t)max_iov;
    return 0;
}

static coroutine_fn int memory_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct memory_node *m = node->state;

    (void)flags;
    m->max_size = INT64_MAX;
    if (opts_size(opts, memory_options, "size", &m->capacity, errp) < 0 ||
        opts_size(opts, memory_options, "max-size", &m->max_size, errp) < 0 ||
        take_limits(&node->limits, opts, errp) < 0 ||
        opts_number(opts, memory_options, "latency-ns", &m->latency_ns, errp) < 0)
        return -EINVAL;
    pthread_mutex_init(&m->lock, NULL);
    list_init(&m->hold.kept);
    m->data = xcalloc(1, m->capacity + 1);
    atomic_store(&node->size, m->capacity);
    return 0;
}

static coroutine_fn int memory_co_close(struct blk_node *node)
{
    struct memory_node *m = node->state;

    free(m->data);
    pthread_mutex_destroy(&m->lock);
    return 0;
}

/* Lock held. 0, or what the request ends with. */
static int next_fault(struct memory_node *m)
{
    struct memory_faults *f = &m->faults;

    f->requests++;
    if (f->fail_at == 0 || f->requests < f->fail_at || (f->requests > f->fail_at && !f->for_good))
        return 0;
    f->failed = true;
    return f->with;
}

static void grow(struct blk_node *node, struct memory_node *m, uint64_t end)
{
    if (end > m->capacity) {
        m->data = xrealloc(m->data, end + 1);
        memset(m->data + m->capacity, 0, end - m->capacity);
        m->capacity = end;
    }
    if (end > blk_node_size(node))
        atomic_store(&node->size, end);
}

static void transfer(struct memory_node *m, struct blk_io *io)
{
    uint64_t at = io->offset;

    for (int i = 0; i < io->iov_count; i++) {
        const struct iovec *v = &io->iov[i];
        if (io->op == BLK_OP_WRITE) {
            memcpy(m->data + at, v->iov_base, v->iov_len);
        } else {
            size_t inside = at >= m->capacity ? 0 : MIN(v->iov_len, (size_t)(m->capacity - at));
            memcpy(v->iov_base, m->data + at, inside);
            memset((char *)v->iov_base + inside, 0, v->iov_len - inside);
        }
        at += v->iov_len;
    }
}

/* Lock held. */
static int perform_locked(struct blk_node *node, struct memory_node *m, struct blk_io *io)
{
    uint64_t end = io->offset + io->length;
    bool puts = io->op == BLK_OP_WRITE || io->op == BLK_OP_WRITE_ZEROES;
    int ret = next_fault(m);

    if (ret < 0)
        return ret;
    if (puts && (end < io->offset || end > m->max_size))
        return -ENOSPC;
    if (puts)
        grow(node, m, end);
    switch (io->op) {
    case BLK_OP_READ:
        m->reads++;
        transfer(m, io);
        break;
    case BLK_OP_WRITE:
        m->writes++;
        m->fua += io->flags & BLK_REQ_FUA ? 1u : 0u;
        transfer(m, io);
        break;
    case BLK_OP_FLUSH: m->flushes++; break;
    case BLK_OP_WRITE_ZEROES:
        m->zeroes++;
        memset(m->data + io->offset, 0, io->length);
        break;
    case BLK_OP_DISCARD: m->discards++; break;
    default: break;
    }
    return 0;
}

static int perform(struct blk_io *io)
{
    struct memory_node *m = io->node->state;

    pthread_mutex_lock(&m->lock);
    int ret = perform_locked(io->node, m, io);
    pthread_mutex_unlock(&m->lock);
    return ret;
}

/* The operation takes effect when it completes, so that tests see what comes in between. */
static void complete_task(struct loop_task *task)
{
    struct blk_io *io = container_of(task, struct blk_io, task);

    io->done(io, perform(io));
}

struct timed {
    struct loop_timer timer;
    struct blk_io *io;
};

static void complete_timer(struct loop_timer *timer)
{
    struct timed *timed = container_of(timer, struct timed, timer);
    struct blk_io *io = timed->io;

    free(timed);
    io->done(io, perform(io));
}

/* ---- no answer for now ---- */

struct kept {
    struct list link;
    struct loop_post post;
    struct blk_io *io;
};

static bool keep(struct memory_node *m, struct blk_io *io)
{
    struct memory_hold *hold = &m->hold;

    pthread_mutex_lock(&m->lock);
    bool held = (hold->ops & (1u << io->op)) &&
                (io->op == BLK_OP_FLUSH || ranges_overlap(hold->offset, hold->length, io->offset, io->length));
    if (held) {
        struct kept *kept = xcalloc(1, sizeof(*kept));
        kept->io = io;
        list_append(&hold->kept, &kept->link);
        hold->count++;
    }
    pthread_mutex_unlock(&m->lock);
    return held;
}

static void complete_kept(struct loop_post *post)
{
    struct kept *kept = container_of(post, struct kept, post);
    struct blk_io *io = kept->io;

    free(kept);
    io->done(io, perform(io));
}

void memory_node_hold(struct blk_node *node, unsigned ops, uint64_t offset, uint64_t length)
{
    struct memory_node *m = memory_node(node);

    pthread_mutex_lock(&m->lock);
    m->hold.ops = ops;
    m->hold.offset = offset;
    m->hold.length = length;
    pthread_mutex_unlock(&m->lock);
}

unsigned memory_node_held(struct blk_node *node)
{
    struct memory_node *m = memory_node(node);

    pthread_mutex_lock(&m->lock);
    unsigned count = m->hold.count;
    pthread_mutex_unlock(&m->lock);
    return count;
}

coroutine_fn void memory_node_co_wait_held(struct blk_node *node, unsigned count)
{
    while (memory_node_held(node) < count)
        co_sleep_ns(100000);
}

void memory_node_release(struct blk_node *node)
{
    struct memory_node *m = memory_node(node);

    pthread_mutex_lock(&m->lock);
    m->hold.ops = 0;
    m->hold.count = 0;
    while (!list_empty(&m->hold.kept)) {
        struct kept *kept = list_first(&m->hold.kept, struct kept, link);
        list_remove(&kept->link);
        kept->post.fn = complete_kept;
        loop_post(kept->io->loop, &kept->post);
    }
    pthread_mutex_unlock(&m->lock);
}

/* ---- requests ---- */

/* What the node has asked for. */
static void check_limits(const struct blk_limits *limits, const struct blk_io *io)
{
    uint64_t length = 0, max = limits->max_transfer, align = limits->request_alignment;

    for (int i = 0; i < io->iov_count; i++) {
        assert(is_aligned((uintptr_t)io->iov[i].iov_base | io->iov[i].iov_len, limits->memory_alignment));
        length += io->iov[i].iov_len;
    }
    if (io->op <= BLK_OP_WRITE) {
        assert(length == io->length);
        assert(!limits->max_iov || (uint32_t)io->iov_count <= limits->max_iov);
    } else if (io->op == BLK_OP_DISCARD) {
        max = limits->max_discard;
        align = MAX(align, limits->discard_alignment);
    } else if (io->op == BLK_OP_WRITE_ZEROES) {
        max = limits->max_zeroes;
        align = MAX(align, limits->zeroes_alignment);
    }
    assert(is_aligned(io->offset | io->length, align));
    assert(!max || io->length <= max);
}

static void memory_submit(struct blk_node *node, struct blk_io *io)
{
    struct memory_node *m = node->state;

    assert(io->loop == loop_current());
    check_limits(&node->limits, io);
    if (keep(m, io))
        return;
    if (m->latency_ns) {
        struct timed *timed = xcalloc(1, sizeof(*timed));
        timed->io = io;
        timed->timer.fn = complete_timer;
        loop_timer_arm(io->loop, &timed->timer, loop_now_ns() + m->latency_ns);
    } else {
        io->task.fn = complete_task;
        loop_defer(io->loop, &io->task);
    }
}

static coroutine_fn int memory_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                           struct error **errp)
{
    struct memory_node *m = node->state;

    (void)exact, (void)prealloc;
    pthread_mutex_lock(&m->lock);
    int ret = size > m->max_size ? -ENOSPC : next_fault(m);
    if (ret == 0) {
        grow(node, m, size);
        m->capacity = size;
        atomic_store(&node->size, size);
    }
    pthread_mutex_unlock(&m->lock);
    return ret < 0 ? error_set_errno(errp, ret, "Could not resize") : 0;
}

static const struct blk_driver memory_driver = {
    .name = "memory",
    .flags = BLK_DRIVER_PROTOCOL | BLK_DRIVER_GROWS,
    .state_size = sizeof(struct memory_node),
    .options = memory_options,
    .co_open = memory_co_open,
    .co_close = memory_co_close,
    .submit = memory_submit,
    .co_truncate = memory_co_truncate,
};
BLK_DRIVER(memory_driver)

struct memory_node *memory_node(struct blk_node *node)
{
    assert(node->driver == &memory_driver);
    return node->state;
}

void memory_node_fill(struct blk_node *node, const void *content, uint64_t length)
{
    struct memory_node *m = memory_node(node);

    if (m->capacity < length)
        m->data = xrealloc(m->data, length + 1);
    memcpy(m->data, content, length);
    if (m->capacity > length)
        memset(m->data + length, 0, m->capacity - length);
    m->capacity = length;
    atomic_store(&node->size, length);
}

void memory_node_fail(struct blk_node *node, struct memory_faults faults)
{
    struct memory_node *m = memory_node(node);

    pthread_mutex_lock(&m->lock);
    m->faults = faults;
    pthread_mutex_unlock(&m->lock);
}
