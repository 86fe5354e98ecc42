/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A protocol node in memory for tests (memory_node.h). */
#include "memory_node.h"

#include <assert.h>
#include <base/checked.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct opt_desc memory_options[] = {
    { .name = "size", .type = OPT_SIZE, .def = "1M", .help = "size" },
    { .name = "max-size", .type = OPT_SIZE, .help = "how far it grows" },
    { .name = "align", .type = OPT_SIZE, .def = "1", .help = "alignment of offsets and lengths" },
    { .name = "mem-align", .type = OPT_SIZE, .def = "1", .help = "alignment of memory" },
    { .name = "latency-ns", .type = OPT_NUMBER, .def = "0", .help = "time that a request takes" },
    { 0 },
};

static coroutine_fn int memory_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct memory_node *m = node->state;
    uint64_t align = 1, mem_align = 1;

    (void)flags;
    m->max_size = INT64_MAX;
    if (opts_size(opts, memory_options, "size", &m->capacity, errp) < 0 ||
        opts_size(opts, memory_options, "max-size", &m->max_size, errp) < 0 ||
        opts_size(opts, memory_options, "align", &align, errp) < 0 ||
        opts_size(opts, memory_options, "mem-align", &mem_align, errp) < 0 ||
        opts_number(opts, memory_options, "latency-ns", &m->latency_ns, errp) < 0)
        return -EINVAL;
    pthread_mutex_init(&m->lock, NULL);
    m->data = xcalloc(1, m->capacity + 1);
    node->limits.request_alignment = (uint32_t)align;
    node->limits.memory_alignment = (uint32_t)mem_align;
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

static void memory_submit(struct blk_node *node, struct blk_io *io)
{
    struct memory_node *m = node->state;
    uint64_t length = 0;

    assert(io->loop == loop_current());
    assert(is_aligned(io->offset | io->length, node->limits.request_alignment));
    for (int i = 0; i < io->iov_count; i++) {
        assert(is_aligned((uintptr_t)io->iov[i].iov_base | io->iov[i].iov_len, node->limits.memory_alignment));
        length += io->iov[i].iov_len;
    }
    assert(io->op > BLK_OP_WRITE || length == io->length);
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
