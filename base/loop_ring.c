/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The loop on io_uring: setting the ring up, handing out SQEs, the one io_uring_enter of an iteration, completions.
 *
 * An iteration runs all completions that the ring holds; what they queue goes out in the next iteration's enter, which
 * also waits, but for what is worth sending early (below). Where the kernel has DEFER_TASKRUN, completions appear only
 * inside an enter with GETEVENTS, so every enter that may wait has that flag, and an iteration without anything to
 * submit enters where the ring's flags ask for it.
 *
 * Invariant: every SQE handed out is seen by the kernel before the loop sleeps, and `done` is called once for each.
 */
#include "loop_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void ignore_result(struct loop_io *io, int32_t result) {}

/* Of cancels: their result tells nothing that the cancelled operation's own does not. */
static struct loop_io ignored = { .done = ignore_result };

unsigned loop_ring_age;

static int ring_setup(struct io_uring *ring, unsigned flags)
{
    struct io_uring_params params = { .flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
                                      .cq_entries = LOOP_CQ_ENTRIES };
    return io_uring_queue_init_params(LOOP_SQ_ENTRIES, ring, &params);
}

bool loop_ring_init(struct loop *loop)
{
    /* Newest kernel first: 6.1, 5.19, 5.11. SUBMIT_ALL: an SQE that fails does not hold up those behind it. */
    static const unsigned attempts[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    const char *refuse = getenv("VMM_NO_URING");
    if (refuse && strcmp(refuse, "0") != 0)
        return false;
    int ret = -EINVAL;
    for (size_t i = loop_ring_age; i < ARRAY_SIZE(attempts) && ret == -EINVAL; i++)
        ret = ring_setup(&loop->ring, attempts[i]);
    if (ret < 0)
        return false;
    /* Without these (before 5.11) waiting with a timeout costs an SQE and completions can be lost. */
    unsigned needed = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP;
    if ((loop->ring.features & needed) != needed) {
        io_uring_queue_exit(&loop->ring);
        return false;
    }
    /* SQ slot i is always SQE i; liburing versions differ in who writes that down. */
    for (unsigned i = 0; loop->ring.sq.array && i < loop->ring.sq.ring_entries; i++)
        loop->ring.sq.array[i] = i;
    if (io_uring_register_ring_fd(&loop->ring) == 1)
        loop->enter_flags = IORING_ENTER_REGISTERED_RING;
    return true;
}

void loop_ring_finish(struct loop *loop)
{
    io_uring_queue_exit(&loop->ring);
    free(loop->stash);
}

struct io_uring *loop_ring(struct loop *loop) { return loop->has_ring ? &loop->ring : NULL; }

unsigned loop_io_in_flight(const struct loop *loop) { return loop->in_flight; }

/* ---- entering the kernel ---- */

/* Publishes the SQEs that were handed out; returns how many the kernel has not taken yet. */
static unsigned flush_sq(struct io_uring *ring)
{
    struct io_uring_sq *sq = &ring->sq;
    if (sq->sqe_head != sq->sqe_tail) {
        sq->sqe_head = sq->sqe_tail;
        io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
    }
    return sq->sqe_tail - IO_URING_READ_ONCE(*sq->khead);
}

static bool enter_wanted(const struct io_uring *ring)
{
    return IO_URING_READ_ONCE(*ring->sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* One io_uring_enter. Returns what the kernel took, or a negative errno that passes by itself. */
static int enter(struct loop *loop, unsigned to_submit, uint64_t deadline)
{
    unsigned flags = IORING_ENTER_GETEVENTS | loop->enter_flags;
    unsigned min_complete = deadline != LOOP_NO_WAIT;
    struct __kernel_timespec ts;
    struct io_uring_getevents_arg arg = { .ts = (uintptr_t)&ts };
    void *argp = NULL;
    size_t arg_size = _NSIG / 8;
    if (min_complete && deadline != LOOP_FOREVER) {
        uint64_t now = loop_now_ns();
        uint64_t left = deadline > now ? deadline - now : 0;
        ts.tv_sec = (int64_t)(left / 1000000000);
        ts.tv_nsec = (int64_t)(left % 1000000000);
        flags |= IORING_ENTER_EXT_ARG;
        argp = &arg;
        arg_size = sizeof(arg);
    }
    int ret = io_uring_enter2((unsigned)loop->ring.enter_ring_fd, to_submit, min_complete, flags, argp, arg_size);
    loop->stats.enters++;
    if (ret >= 0) {
        loop->stats.submitted += (unsigned)ret;
        return ret;
    }
    if (ret == -ETIME || ret == -EINTR || ret == -EAGAIN || ret == -EBUSY || ret == -ENOMEM)
        return ret;
    fprintf(stderr, "io_uring_enter: %s\n", strerror(-ret)); /* a bug in this file: nothing to go on with */
    abort();
}

/* Moves the completions that the ring holds aside, so that a kernel that refuses to submit while completions overflow
 * goes on. Their callbacks run in the next iteration, never inside the call that found the queue full. */
void loop_ring_stash(struct loop *loop)
{
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    size_t room = loop->stash_count + io_uring_cq_ready(&loop->ring);
    if (room > loop->stash_room) {
        loop->stash = xrealloc(loop->stash, room * sizeof(*loop->stash));
        loop->stash_room = room;
    }
    io_uring_for_each_cqe(&loop->ring, head, cqe)
    {
        if (loop->stash_count == loop->stash_room)
            break;
        memcpy(&loop->stash[loop->stash_count++], cqe, sizeof(*cqe));
        count++;
    }
    io_uring_cq_advance(&loop->ring, count);
}

static __attribute__((noinline)) struct io_uring_sqe *sqe_after_submit(struct loop *loop)
{
    struct io_uring_sqe *sqe;
    enter(loop, flush_sq(&loop->ring), LOOP_NO_WAIT);
    while (!(sqe = io_uring_get_sqe(&loop->ring))) {
        /* The kernel took none: it is out of memory for now, or has completions to deliver first. */
        loop_ring_stash(loop);
        nanosleep(&(struct timespec){ .tv_nsec = 100000 }, NULL);
        enter(loop, flush_sq(&loop->ring), LOOP_NO_WAIT);
    }
    return sqe;
}

/* ---- early submission ---- */

/*
 * Completions come in bursts, and a device that has just finished a burst has little left to do. So while the answers
 * to a burst are being queued, each few go out at once, and the device works on. Requests that follow each other on the
 * disk are the exception: the kernel merges those of one enter into few large ones, which is worth more, up to a size
 * at which the device's speed no longer depends on it. Merged any further they would also complete as one, and the
 * device would have nothing to do until all are answered.
 */
enum { EARLY_COUNT = 4, MERGE_REACH = 1 << 20, MERGE_ENOUGH = 128 << 10, LARGE = 64 << 10 };

static inline const struct io_uring_sqe *last_sqe(const struct loop *loop, unsigned back)
{
    const struct io_uring_sq *sq = &loop->ring.sq;
    return &sq->sqes[(sq->sqe_tail - 1 - back) & sq->ring_mask];
}

/* A few that are small, or two that are large. The length of a vector is not known here. */
static inline bool may_go_early(const struct loop *loop, unsigned queued)
{
    return queued >= EARLY_COUNT || (queued > 1 && last_sqe(loop, 0)->len >= LARGE);
}

static __attribute__((noinline)) void submit_early(struct loop *loop, unsigned queued)
{
    const struct io_uring_sqe *last = last_sqe(loop, 0), *before = last_sqe(loop, 1),
                              *first = last_sqe(loop, queued - 1);
    bool follows = last->fd == before->fd && last->opcode == before->opcode && last->off - before->off <= MERGE_REACH;
    if (follows && last->off + last->len - first->off < MERGE_ENOUGH)
        return;
    /* What the kernel does not take now stays for the iteration's enter. */
    int ret = io_uring_enter((unsigned)loop->ring.enter_ring_fd, flush_sq(&loop->ring), 0, loop->enter_flags, NULL);
    loop->stats.enters++;
    loop->stats.submitted += ret > 0 ? (unsigned)ret : 0;
}

/* ---- SQEs ---- */

struct io_uring_sqe *loop_sqe(struct loop *loop, struct loop_io *io)
{
    unsigned queued = loop->ring.sq.sqe_tail - loop->ring.sq.sqe_head;
    if (unlikely(may_go_early(loop, queued)))
        submit_early(loop, queued);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);
    if (unlikely(!sqe))
        sqe = sqe_after_submit(loop);
    sqe->user_data = (uintptr_t)io;
    loop->in_flight++;
    return sqe;
}

struct io_uring_sqe *loop_ring_sqe_internal(struct loop *loop, struct loop_io *io)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);
    if (unlikely(!sqe))
        sqe = sqe_after_submit(loop);
    sqe->user_data = (uintptr_t)io | LOOP_IO_INTERNAL;
    return sqe;
}

void loop_io_cancel(struct loop *loop, struct loop_io *io)
{
    io_uring_prep_cancel64(loop_ring_sqe_internal(loop, &ignored), (uintptr_t)io, 0);
}

void loop_ring_cancel_internal(struct loop *loop, struct loop_io *io)
{
    io_uring_prep_cancel64(loop_ring_sqe_internal(loop, &ignored), (uintptr_t)io | LOOP_IO_INTERNAL, 0);
}

/* ---- completions ---- */

static inline void complete(struct loop *loop, uint64_t user_data, int32_t result)
{
    struct loop_io *io = (struct loop_io *)(uintptr_t)(user_data & ~(uint64_t)LOOP_IO_INTERNAL);
    loop->in_flight -= !(user_data & LOOP_IO_INTERNAL);
    io->done(io, result);
}

static __attribute__((noinline)) void run_stash(struct loop *loop)
{
    /* Callbacks may stash more. */
    struct io_uring_cqe *stash = loop->stash;
    size_t count = loop->stash_count;
    loop->stash = NULL;
    loop->stash_count = loop->stash_room = 0;
    for (size_t i = 0; i < count; i++)
        complete(loop, stash[i].user_data, stash[i].res);
    loop->stats.completed += count;
    free(stash);
}

/* Runs the completions that are there now; those that arrive meanwhile wait for the next iteration, so timers and posts
 * get their turn. The head moves before each callback: a callback that finds the queue full may stash what is left. */
static bool run_completions(struct loop *loop)
{
    struct io_uring_cq *cq = &loop->ring.cq;
    bool ran = false;
    if (unlikely(loop->stash_count)) {
        run_stash(loop);
        ran = true;
    }
    unsigned tail = io_uring_smp_load_acquire(cq->ktail);
    unsigned head;
    while ((int)(tail - (head = *cq->khead)) > 0) {
        const struct io_uring_cqe *cqe = &cq->cqes[head & cq->ring_mask];
        uint64_t user_data = cqe->user_data;
        int32_t result = cqe->res;
        io_uring_smp_store_release(cq->khead, head + 1);
        loop->stats.completed++;
        complete(loop, user_data, result);
        ran = true;
    }
    return ran;
}

/* ---- adaptive polling ---- */

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool something_happened(struct loop *loop)
{
    return io_uring_cq_ready(&loop->ring) || enter_wanted(&loop->ring) || loop_posts_waiting(loop);
}

static bool poll_before_sleep(struct loop *loop, uint64_t deadline, uint64_t start)
{
    uint64_t end = MIN(start + loop->poll_ns, deadline);
    do {
        if (something_happened(loop))
            return true;
        for (unsigned i = 0; i < 16; i++)
            cpu_relax();
    } while (loop_now_ns() < end);
    return something_happened(loop);
}

/* Polling pays where the wait was shorter than the bound: then poll longer, up to the bound. Where nothing came for
 * longer than that, poll half as long, down to not at all. */
static void adapt_poll(struct loop *loop, uint64_t waited_ns, uint64_t max_ns)
{
    const uint64_t first_ns = 4000;
    if (waited_ns > max_ns)
        loop->poll_ns = loop->poll_ns / 2 >= first_ns ? loop->poll_ns / 2 : 0;
    else if (waited_ns > loop->poll_ns)
        loop->poll_ns = MAX(loop->poll_ns * 2, first_ns);
    loop->poll_ns = MIN(loop->poll_ns, max_ns);
}

/* ---- the iteration ---- */

static void sleep_in_kernel(struct loop *loop, uint64_t deadline, struct loop_post **taken)
{
    unsigned to_submit = flush_sq(&loop->ring);
    if (loop_posts_sleep(loop)) {
        enter(loop, to_submit, deadline);
        loop_posts_awake(loop, taken);
    } else if (to_submit || enter_wanted(&loop->ring)) {
        enter(loop, to_submit, LOOP_NO_WAIT);
    }
}

bool loop_ring_iterate(struct loop *loop, uint64_t deadline, struct loop_post **taken)
{
    struct io_uring *ring = &loop->ring;
    uint64_t max_ns = atomic_load_explicit(&loop->poll_max_ns, memory_order_relaxed);
    bool wait = deadline != LOOP_NO_WAIT && !io_uring_cq_ready(ring);
    if (wait && likely(!max_ns)) {
        sleep_in_kernel(loop, deadline, taken);
    } else {
        unsigned to_submit = flush_sq(ring);
        if (to_submit || enter_wanted(ring))
            enter(loop, to_submit, LOOP_NO_WAIT);
        if (wait && !io_uring_cq_ready(ring)) {
            uint64_t start = loop_now_ns();
            if (!poll_before_sleep(loop, deadline, start))
                sleep_in_kernel(loop, deadline, taken);
            else if (enter_wanted(ring))
                enter(loop, 0, LOOP_NO_WAIT);
            adapt_poll(loop, loop_now_ns() - start, max_ns);
        }
    }
    return run_completions(loop);
}
