/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Growing a file ahead of its writers. A write that makes a file longer costs the host two to three times one that does
 * not: its size changes under the inode's lock, alone. So, if the format asked for it, the file is made longer by a
 * hole of many megabytes before a write would pass its end, and the hole is cut off when the node is closed or its user
 * stops writing. If the filter preallocate asked for it, that is no hole, but space that the host has allocated.
 *
 * node->size is the frontier, the end of what was written: nobody here sees what is past it. Only who minds no
 * longer file asks, for others do see it, and it stays after a crash.
 *
 * A1: while we grow, no write that ends past `grown` is in flight: it waits until the file is longer. So growing, which
 *     sets a size, never cuts off what another write has just added.
 * A2: what is cut off was added here, nobody has changed the file's size since, and it lies past the frontier while no
 *     write is in flight.
 */
#include "file_io.h"

#include <base/checked.h>
#include <base/testpoint.h>
#include <errno.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* An eighth of the file, within these. */
#define AHEAD_MIN (UINT64_C(16) << 20)
#define AHEAD_MAX (UINT64_C(256) << 20)
#define AHEAD_UNIT (UINT64_C(1) << 20)

static void set_grown(struct file_state *s, uint64_t end)
{
    atomic_store_explicit(&s->grown, end, memory_order_relaxed);
}

static uint64_t useful_length(uint64_t end)
{
    uint64_t ahead = MIN(end / 8, AHEAD_MAX);

    return align_up(end + MAX(ahead, AHEAD_MIN), AHEAD_UNIT);
}

static uint64_t asked_length(const struct blk_ahead *how, uint64_t end)
{
    uint64_t length = how->size > INT64_MAX - end ? INT64_MAX : end + how->size;
    uint64_t rest = how->align ? length % how->align : 0, missing = rest ? how->align - rest : 0;

    return missing > INT64_MAX - length ? length : length + missing;
}

/* How long the file shall be for a write that ends at `end`, at most INT64_MAX; shorter than that if the host allows no
 * more. */
static uint64_t wanted_length(const struct file_state *s, uint64_t end)
{
    uint64_t wanted = s->how.allocate ? asked_length(&s->how, end) : useful_length(end);
    struct rlimit limit;

    /* Past this limit the calls that make it longer would also send a signal. */
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        wanted = MIN(wanted, (uint64_t)limit.rlim_cur);
    return MIN(wanted, (uint64_t)INT64_MAX);
}

static bool set_length(int fd, uint64_t length)
{
    int ret;

    do {
        ret = ftruncate(fd, (off_t)length);
    } while (ret < 0 && errno == EINTR);
    return ret == 0;
}

static bool allocate(int fd, uint64_t from, uint64_t to)
{
    int ret;

    do {
        ret = fallocate(fd, 0, (off_t)from, (off_t)(to - from));
    } while (ret < 0 && errno == EINTR);
    return ret == 0;
}

/* From `old` to `length`. What a failed allocation has added is cut off later, as all else is. */
static bool make_longer(struct file_state *s, uint64_t old, uint64_t length)
{
    bool done = s->how.allocate ? allocate(s->fd, old, length) : set_length(s->fd, length);
    struct stat st;

    if (done)
        s->ahead_end = length;
    else if (fstat(s->fd, &st) == 0 && (uint64_t)st.st_size > old)
        s->ahead_end = (uint64_t)st.st_size;
    return done;
}

/* Returns the new `grown`; UINT64_MAX gives up: then each write makes the file longer by itself, or gets the error. */
static uint64_t grow(struct file_state *s, uint64_t end)
{
    uint64_t wanted = wanted_length(s, end);
    struct stat st;

    testpoint("file-ahead-grow");
    if (wanted < end || fstat(s->fd, &st) < 0)
        return UINT64_MAX;
    if ((uint64_t)st.st_size >= wanted)
        return (uint64_t)st.st_size;
    return make_longer(s, (uint64_t)st.st_size, wanted) ? wanted : UINT64_MAX;
}

static void resume(struct loop_post *post)
{
    struct blk_io *io = container_of(post, struct blk_io, work.post);

    file_submit(io->node, io);
}

static void grow_work(struct pool_work *work)
{
    struct blk_io *io = container_of(work, struct blk_io, work);
    struct file_state *s = file_of(io);
    uint64_t grown = grow(s, io->offset + io->length);

    pthread_mutex_lock(&s->ahead_lock);
    set_grown(s, grown);
    s->growing = false;
    struct pool_work *waiting = s->waiting;
    s->waiting = NULL;
    s->waiting_end = &s->waiting;
    pthread_mutex_unlock(&s->ahead_lock);
    while (waiting) {
        struct blk_io *next = container_of(waiting, struct blk_io, work);
        waiting = waiting->next;
        next->work.post.fn = resume;
        loop_post(next->loop, &next->work.post);
    }
}

static void grow_done(struct pool_work *work)
{
    struct blk_io *io = container_of(work, struct blk_io, work);

    file_submit(io->node, io);
}

void file_ahead_of(struct blk_io *io)
{
    struct file_state *s = file_of(io);
    uint64_t end = io->offset + io->length;

    testpoint("file-ahead-asked");
    pthread_mutex_lock(&s->ahead_lock);
    /* It was asked without the lock: somebody else may have grown the file since, or given up (A1). */
    if (!s->growing && end <= atomic_load_explicit(&s->grown, memory_order_relaxed)) {
        pthread_mutex_unlock(&s->ahead_lock);
        file_submit(io->node, io);
        return;
    }
    bool first = !s->growing;
    s->growing = true;
    if (!first) {
        io->work.next = NULL;
        *s->waiting_end = &io->work;
        s->waiting_end = &io->work.next;
    }
    pthread_mutex_unlock(&s->ahead_lock);
    if (first) {
        io->work.work = grow_work;
        io->work.done = grow_done;
        pool_submit(&io->work);
    }
}

void file_ahead_init(struct file_state *s)
{
    pthread_mutex_init(&s->ahead_lock, NULL);
    s->waiting = NULL;
    s->waiting_end = &s->waiting;
    s->ahead = s->growing = false;
    s->ahead_end = 0;
    set_grown(s, UINT64_MAX);
}

void file_ahead_trim(struct blk_node *node)
{
    struct file_state *s = node->state;
    uint64_t frontier = blk_node_size(node);
    struct stat st;

    /* A file that stays longer is a nuisance, no error. */
    if (s->ahead_end > frontier && fstat(s->fd, &st) == 0 && (uint64_t)st.st_size == s->ahead_end)
        (void)set_length(s->fd, frontier);
    s->ahead_end = 0;
    set_grown(s, s->ahead ? frontier : UINT64_MAX);
}

void file_grow_ahead(struct blk_node *node, const struct blk_ahead *how)
{
    struct file_state *s = node->state;

    /* In memory a hole gains nothing. */
    s->ahead = how && (how->allocate || !s->in_memory);
    if (!s->ahead) {
        file_ahead_trim(node);
        return;
    }
    /* The next write past the frontier makes it as long as is asked for now; what is longer already is used up. */
    s->how = *how;
    set_grown(s, blk_node_size(node));
}
