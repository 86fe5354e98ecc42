/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One request on a file or device: an SQE on the caller's ring, or a worker where there is no ring or aio=threads. On
 * tmpfs a transfer is no more than a copy, but io_uring knows no way to it that surely does not wait and gives each one to
 * a kernel thread, which costs several times the copy. There a plain preadv() or pwritev() is the fast way.
 *
 * Reads and writes are one operation; what comes back short is continued from there, and a read past the end gives
 * zeroes. Everything else is a list of steps (punch, zero, allocate, sync), one nibble each in scratch[STEPS], so
 * that a discard with FUA or a zeroing that grows the file needs no memory of its own. A step that the host turns out
 * not to support is remembered and the list is made anew without it; where no list is left the answer is -ENOTSUP,
 * and the core falls back. Nothing here allocates.
 */
#include "file.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* blk_io.scratch */
enum { DONE, STEPS, STEP, RESULT };

enum step { STEP_NONE, STEP_ZERO_RANGE, STEP_PUNCH, STEP_ALLOCATE, STEP_EXTEND, STEP_BLOCK_DISCARD, STEP_SYNC };

/* The kernel's own limit is 2 GiB less a page; the rest is continued. */
#define MAX_PIECE (1u << 30)
/* The longest copy, some ten microseconds, that the loop's other work waits for. */
#define MAX_COPY (128u << 10)
/* What is allocated at the end of a file that grows by a hole. */
#define EXTEND_BYTES 4096u

static inline struct file_state *state_of(const struct blk_io *io) { return io->node->state; }

static inline bool flag_on(atomic_bool *flag) { return atomic_load_explicit(flag, memory_order_relaxed); }

static inline bool uses_ring(struct blk_io *io)
{
    return likely(!state_of(io)->threads) && likely(loop_ring(io->loop) != NULL);
}

/* ---- completion ---- */

static __attribute__((noinline)) void grow(struct blk_node *node, uint64_t end)
{
    uint64_t size = blk_node_size(node);

    end = file_round_size(end);
    while (end > size &&
           !atomic_compare_exchange_weak_explicit(&node->size, &size, end, memory_order_relaxed, memory_order_relaxed))
        ;
}

static inline void complete(struct blk_io *io, int result)
{
    if (result == 0 && (io->op == BLK_OP_WRITE || io->op == BLK_OP_WRITE_ZEROES) &&
        unlikely(io->offset + io->length > blk_node_size(io->node)))
        grow(io->node, io->offset + io->length);
    io->done(io, result);
}

/* ---- reads and writes ---- */

/* What is left after `done` bytes: whole iovecs where `done` is at the start of one, else the rest of that one in
 * *piece. */
static int rest_of(const struct blk_io *io, uint64_t done, struct iovec *piece, const struct iovec **rest)
{
    int i = 0;

    while (done >= io->iov[i].iov_len)
        done -= io->iov[i++].iov_len;
    if (done == 0) {
        *rest = io->iov + i;
        return io->iov_count - i;
    }
    piece->iov_base = (char *)io->iov[i].iov_base + done;
    piece->iov_len = io->iov[i].iov_len - done;
    *rest = piece;
    return 1;
}

static void zero_rest(const struct blk_io *io, uint64_t done)
{
    for (int i = 0; i < io->iov_count; i++) {
        if (done < io->iov[i].iov_len) {
            memset((char *)io->iov[i].iov_base + done, 0, io->iov[i].iov_len - done);
            done = 0;
        } else {
            done -= io->iov[i].iov_len;
        }
    }
}

/* A transfer that was not all: 0 to go on from scratch[DONE], 1 done, -errno failed. `result`: what the kernel said */
static int after_piece(struct blk_io *io, int64_t result)
{
    struct file_state *s = state_of(io);

    if (result == -EINTR || result == -EAGAIN)
        return 0;
    if (result < 0)
        return (int)result;
    io->scratch[DONE] += (uint64_t)result;
    if (io->scratch[DONE] >= io->length)
        return 1;
    if (io->op == BLK_OP_WRITE)
        return result == 0 ? -EIO : 0;
    /* With O_DIRECT only the end of the file breaks a block. */
    if (result == 0 || (s->direct && ((uint64_t)result & (io->node->limits.request_alignment - 1)))) {
        zero_rest(io, io->scratch[DONE]);
        return 1;
    }
    return 0;
}

static inline int write_flags(const struct file_state *s, const struct blk_io *io)
{
    return io->op == BLK_OP_WRITE && unlikely(io->flags & BLK_REQ_FUA) && !s->dsync && !s->no_flush ? RWF_DSYNC : 0;
}

static inline struct io_uring_sqe *use_file(struct io_uring_sqe *sqe, int slot)
{
    if (likely(slot >= 0))
        sqe->flags |= IOSQE_FIXED_FILE;
    return sqe;
}

static inline void queue_one(struct blk_io *io, struct io_uring_sqe *sqe, int fd, void *base, size_t length,
                             uint64_t offset)
{
    unsigned bytes = length < MAX_PIECE ? (unsigned)length : MAX_PIECE;

    if (io->op == BLK_OP_READ)
        io_uring_prep_read(sqe, fd, base, bytes, offset);
    else
        io_uring_prep_write(sqe, fd, base, bytes, offset);
}

static __attribute__((noinline)) void queue_vector(struct blk_io *io, struct io_uring_sqe *sqe, int fd)
{
    struct iovec piece;
    const struct iovec *iov;
    uint64_t offset = io->offset + io->scratch[DONE];
    int count = MIN(rest_of(io, io->scratch[DONE], &piece, &iov), IOV_MAX);

    if (count == 1)
        queue_one(io, sqe, fd, iov->iov_base, iov->iov_len, offset);
    else if (io->op == BLK_OP_READ)
        io_uring_prep_readv(sqe, fd, iov, (unsigned)count, offset);
    else
        io_uring_prep_writev(sqe, fd, iov, (unsigned)count, offset);
}

static inline void queue_transfer(struct blk_io *io)
{
    struct file_state *s = state_of(io);
    int slot = loop_fixed_file(io->loop, s->fd);
    int fd = slot >= 0 ? slot : s->fd;
    struct io_uring_sqe *sqe = loop_sqe(io->loop, &io->ring);

    if (likely(io->iov_count == 1)) {
        uint64_t done = io->scratch[DONE];
        queue_one(io, sqe, fd, (char *)io->iov->iov_base + done, io->length - done, io->offset + done);
    } else {
        queue_vector(io, sqe, fd);
    }
    use_file(sqe, slot)->rw_flags = write_flags(s, io);
}

static __attribute__((noinline)) void transfer_not_all(struct blk_io *io, int32_t result)
{
    int ret = after_piece(io, result);

    if (ret == 0)
        queue_transfer(io);
    else
        complete(io, ret < 0 ? ret : 0);
}

static void transfer_done(struct loop_io *ring, int32_t result)
{
    struct blk_io *io = container_of(ring, struct blk_io, ring);

    if (likely(result >= 0 && (uint64_t)result == io->length - io->scratch[DONE]))
        complete(io, 0);
    else
        transfer_not_all(io, result);
}

/* ---- steps ---- */

static uint64_t then(uint64_t steps, enum step next)
{
    unsigned at = 0;

    while ((steps >> at) & 15)
        at += 4;
    return steps | (uint64_t)next << at;
}

/* How to write zeroes, with what the host is not known not to support. 0: not at all. */
static uint64_t plan_zeroes(struct blk_io *io)
{
    struct file_state *s = state_of(io);
    bool grows = io->offset + io->length > blk_node_size(io->node);

    /* The kernel zeroes whole blocks of a device only. */
    if (s->block_device && !is_aligned(io->offset | io->length, io->node->limits.zeroes_alignment))
        return 0;
    /* On a device this one fails where it would mean writing buffers; what is there of a file's size stays. */
    if ((io->flags & BLK_REQ_MAY_UNMAP) && !flag_on(&s->no_punch) && !(grows && flag_on(&s->no_allocate)))
        return grows ? then(STEP_PUNCH, STEP_EXTEND) : STEP_PUNCH;
    if (s->block_device && (io->flags & BLK_REQ_NO_FALLBACK))
        return 0;
    if (!flag_on(&s->no_zero_range))
        return STEP_ZERO_RANGE;
    if (!s->block_device && !flag_on(&s->no_punch) && !flag_on(&s->no_allocate))
        return then(STEP_PUNCH, STEP_ALLOCATE);
    return 0;
}

/* Makes scratch[STEPS]. 1: there are some; 0: nothing to do; -errno. */
static int plan(struct blk_io *io)
{
    struct file_state *s = state_of(io);
    uint64_t steps = 0;
    bool sync = io->flags & BLK_REQ_FUA;

    if (io->op == BLK_OP_FLUSH) {
        int failed = atomic_load_explicit(&s->flush_error, memory_order_relaxed);
        if (failed && !s->no_flush)
            return failed;
        sync = !s->dsync || !flag_on(&s->dsync_settled);
    } else if (io->op == BLK_OP_DISCARD) {
        if (s->block_device)
            steps = flag_on(&s->no_block_discard) ? 0 : STEP_BLOCK_DISCARD;
        else
            steps = flag_on(&s->no_punch) ? 0 : STEP_PUNCH;
        if (!steps)
            return -ENOTSUP;
    } else {
        steps = plan_zeroes(io);
        if (!steps)
            return -ENOTSUP;
        sync |= s->dsync; /* O_DSYNC is about write(), not about fallocate() */
    }
    if (sync && !s->no_flush)
        steps = then(steps, STEP_SYNC);
    io->scratch[STEPS] = steps;
    return steps != 0;
}

static bool unsupported(int result) { return result == -EOPNOTSUPP || result == -ENOSYS || result == -ENOTTY; }

/* Remembers that the host cannot do this. False where that may not be (a flush). */
static bool remember_unsupported(struct file_state *s, enum step step)
{
    atomic_bool *flag = step == STEP_ZERO_RANGE      ? &s->no_zero_range
                        : step == STEP_PUNCH         ? &s->no_punch
                        : step == STEP_BLOCK_DISCARD ? &s->no_block_discard
                        : step == STEP_SYNC          ? NULL
                                                     : &s->no_allocate;
    if (flag)
        atomic_store_explicit(flag, true, memory_order_relaxed);
    return flag;
}

static int synced(struct file_state *s, int result)
{
    int none = 0;

    /* /dev/null and its like have nothing to sync. */
    if (s->char_device && (result == -EINVAL || result == -EROFS))
        result = 0;
    if (result < 0 && !s->direct)
        atomic_compare_exchange_strong_explicit(&s->flush_error, &none, result, memory_order_relaxed,
                                                memory_order_relaxed);
    if (result == 0 && s->dsync)
        atomic_store_explicit(&s->dsync_settled, true, memory_order_relaxed);
    return result;
}

static void fallocate_range(const struct blk_io *io, enum step step, int *mode, uint64_t *offset, uint64_t *length)
{
    *mode = step == STEP_PUNCH        ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
            : step == STEP_ZERO_RANGE ? FALLOC_FL_ZERO_RANGE
                                      : 0;
    *offset = io->offset;
    *length = io->length;
    /* Makes the file as long as the range without giving the hole its space back. Never shortens it, as ftruncate()
     * could where another request grows it at the same time. */
    if (step == STEP_EXTEND && io->length > EXTEND_BYTES) {
        *offset += io->length - EXTEND_BYTES;
        *length = EXTEND_BYTES;
    }
}

static int run_step(struct blk_io *io, enum step step)
{
    struct file_state *s = state_of(io);
    uint64_t offset, length;
    int mode, ret;

    if (step == STEP_SYNC) {
        ret = fdatasync(s->fd);
    } else if (step == STEP_BLOCK_DISCARD) {
        uint64_t range[2] = { io->offset, io->length };
        ret = ioctl(s->fd, BLKDISCARD, range);
    } else {
        fallocate_range(io, step, &mode, &offset, &length);
        ret = fallocate(s->fd, mode, (off_t)offset, (off_t)length);
    }
    return ret < 0 ? -errno : 0;
}

static void queue_step(struct blk_io *io);

static void start_steps(struct blk_io *io);

static void step_over(struct blk_io *io, int result)
{
    struct file_state *s = state_of(io);
    enum step step = (enum step)io->scratch[STEP];

    if (result == -EINTR || result == -EAGAIN) {
        queue_step(io);
        return;
    }
    if (step == STEP_SYNC)
        result = synced(s, result);
    if (unsupported(result) && remember_unsupported(s, step)) {
        start_steps(io);
    } else if (result < 0 || !io->scratch[STEPS]) {
        complete(io, result < 0 ? result : 0);
    } else {
        io->scratch[STEP] = io->scratch[STEPS] & 15;
        io->scratch[STEPS] >>= 4;
        queue_step(io);
    }
}

static void step_done(struct loop_io *ring, int32_t result)
{
    step_over(container_of(ring, struct blk_io, ring), result);
}

static void step_work(struct pool_work *work)
{
    struct blk_io *io = container_of(work, struct blk_io, work);

    io->scratch[RESULT] = (uint64_t)(int64_t)run_step(io, (enum step)io->scratch[STEP]);
}

static void step_worked(struct pool_work *work)
{
    struct blk_io *io = container_of(work, struct blk_io, work);

    step_over(io, (int)(int64_t)io->scratch[RESULT]);
}

static void queue_step(struct blk_io *io)
{
    struct file_state *s = state_of(io);
    enum step step = (enum step)io->scratch[STEP];
    uint64_t offset, length;
    int mode;

    if (step == STEP_BLOCK_DISCARD || !uses_ring(io)) {
        io->work.work = step_work;
        io->work.done = step_worked;
        pool_submit(&io->work);
        return;
    }
    int slot = loop_fixed_file(io->loop, s->fd);
    int fd = slot >= 0 ? slot : s->fd;
    io->ring.done = step_done;
    struct io_uring_sqe *sqe = loop_sqe(io->loop, &io->ring);
    if (step == STEP_SYNC) {
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    } else {
        fallocate_range(io, step, &mode, &offset, &length);
        io_uring_prep_fallocate(sqe, fd, mode, (off_t)offset, (off_t)length);
    }
    use_file(sqe, slot);
}

static void task_done(struct loop_task *task)
{
    struct blk_io *io = container_of(task, struct blk_io, task);

    complete(io, (int)(int64_t)io->scratch[RESULT]);
}

/* `done` is never called from inside submit. */
static void complete_later(struct blk_io *io, int result)
{
    io->scratch[RESULT] = (uint64_t)(int64_t)result;
    io->task.fn = task_done;
    loop_defer(io->loop, &io->task);
}

static void start_steps(struct blk_io *io)
{
    int ret = plan(io);

    if (ret <= 0) {
        complete_later(io, ret);
        return;
    }
    io->scratch[STEP] = io->scratch[STEPS] & 15;
    io->scratch[STEPS] >>= 4;
    queue_step(io);
}

/* ---- in a worker ---- */

static ssize_t transfer(struct blk_io *io)
{
    struct file_state *s = state_of(io);
    struct iovec piece;
    const struct iovec *iov;
    int count = MIN(rest_of(io, io->scratch[DONE], &piece, &iov), IOV_MAX);
    off_t offset = (off_t)(io->offset + io->scratch[DONE]);
    ssize_t ret;

    if (io->op == BLK_OP_READ)
        ret = preadv2(s->fd, iov, count, offset, 0);
    else
        ret = pwritev2(s->fd, iov, count, offset, write_flags(s, io));
    return ret < 0 ? -errno : ret;
}

static void transfer_work(struct pool_work *work)
{
    struct blk_io *io = container_of(work, struct blk_io, work);
    int ret;

    do {
        ret = after_piece(io, transfer(io));
    } while (ret == 0);
    io->scratch[RESULT] = (uint64_t)(int64_t)(ret < 0 ? ret : 0);
}

static void transfer_worked(struct pool_work *work)
{
    struct blk_io *io = container_of(work, struct blk_io, work);

    complete(io, (int)(int64_t)io->scratch[RESULT]);
}

/* ---- a copy ---- */

/* One buffer, all of it: what the plain calls do a little faster. */
static ssize_t copy_one(struct blk_io *io)
{
    struct file_state *s = state_of(io);
    ssize_t ret;

    if (io->op == BLK_OP_READ)
        ret = pread(s->fd, io->iov->iov_base, io->length, (off_t)io->offset);
    else
        ret = pwrite(s->fd, io->iov->iov_base, io->length, (off_t)io->offset);
    return ret < 0 ? -errno : ret;
}

/* Swapped-out pages are the exception that makes the loop wait. */
static __attribute__((noinline)) void copy_now(struct blk_io *io)
{
    bool one = io->iov_count == 1 && !write_flags(state_of(io), io);
    int ret = after_piece(io, one ? copy_one(io) : transfer(io));

    while (ret == 0)
        ret = after_piece(io, transfer(io));
    complete_later(io, ret < 0 ? ret : 0);
}

static inline bool copies(const struct blk_io *io)
{
    const struct file_state *s = state_of(io);

    return unlikely(s->in_memory) && !s->threads && io->length <= MAX_COPY;
}

/* ---- the way in ---- */

void file_submit(struct blk_node *node, struct blk_io *io)
{
    io->scratch[DONE] = 0;
    if (unlikely(io->op != BLK_OP_READ && io->op != BLK_OP_WRITE)) {
        start_steps(io);
    } else if (copies(io)) {
        copy_now(io);
    } else if (uses_ring(io)) {
        io->ring.done = transfer_done;
        queue_transfer(io);
    } else {
        io->work.work = transfer_work;
        io->work.done = transfer_worked;
        pool_submit(&io->work);
    }
}
