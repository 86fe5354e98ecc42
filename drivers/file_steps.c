/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Requests on a file or device that move no data: a list of steps (punch, zero, allocate, sync), one nibble each in
 * blk_io.scratch, so that a discard with FUA or a zeroing that grows the file needs no memory of its own. A step that
 * the host turns out not to support is remembered and the list is made anew without it; where no list is left the
 * answer is -ENOTSUP, and the core falls back. Nothing here allocates.
 *
 * On tmpfs a short step is made here and now, as transfers are (file_submit.c).
 */
#include "file_io.h"

#include <base/checked.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum step { STEP_NONE, STEP_ZERO_RANGE, STEP_PUNCH, STEP_ALLOCATE, STEP_EXTEND, STEP_BLOCK_DISCARD, STEP_SYNC };

/* What is allocated at the end of a file that grows by a hole. */
#define EXTEND_BYTES 4096u

static inline bool flag_on(atomic_bool *flag) { return atomic_load_explicit(flag, memory_order_relaxed); }

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
    struct file_state *s = file_of(io);
    bool grows = io->offset + io->length > blk_node_size(io->node) &&
                 atomic_load_explicit(&s->grown, memory_order_relaxed) == UINT64_MAX;

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

/* Makes scratch[FILE_IO_STEPS]. 1: there are some; 0: nothing to do; -errno. */
static int plan(struct blk_io *io)
{
    struct file_state *s = file_of(io);
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
    /* In memory there is nothing to sync, and the kernel's fdatasync() cannot fail. */
    if (sync && !s->no_flush && !s->in_memory)
        steps = then(steps, STEP_SYNC);
    io->scratch[FILE_IO_STEPS] = steps;
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

void file_sync_failed(struct file_state *s, int error)
{
    int none = 0;

    if (!s->direct)
        atomic_compare_exchange_strong_explicit(&s->flush_error, &none, error, memory_order_relaxed,
                                                memory_order_relaxed);
}

static int synced(struct file_state *s, int result)
{
    /* /dev/null and its like have nothing to sync. */
    if (s->char_device && (result == -EINVAL || result == -EROFS))
        result = 0;
    if (result < 0)
        file_sync_failed(s, result);
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
    struct file_state *s = file_of(io);
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

static void step_over(struct blk_io *io, int result)
{
    struct file_state *s = file_of(io);
    enum step step = (enum step)io->scratch[FILE_IO_STEP];

    if (result == -EINTR || result == -EAGAIN) {
        queue_step(io);
        return;
    }
    if (step == STEP_SYNC)
        result = synced(s, result);
    if (unsupported(result) && remember_unsupported(s, step)) {
        file_start_steps(io);
    } else if (result < 0 || !io->scratch[FILE_IO_STEPS]) {
        file_complete(io, result < 0 ? result : 0);
    } else {
        io->scratch[FILE_IO_STEP] = io->scratch[FILE_IO_STEPS] & 15;
        io->scratch[FILE_IO_STEPS] >>= 4;
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

    io->result = run_step(io, (enum step)io->scratch[FILE_IO_STEP]);
}

static void step_worked(struct pool_work *work)
{
    struct blk_io *io = container_of(work, struct blk_io, work);

    step_over(io, io->result);
}

static void step_deferred(struct loop_task *task)
{
    struct blk_io *io = container_of(task, struct blk_io, task);

    step_over(io, io->result);
}

static void queue_step(struct blk_io *io)
{
    struct file_state *s = file_of(io);
    enum step step = (enum step)io->scratch[FILE_IO_STEP];
    uint64_t offset, length;
    int mode;

    if (file_is_copy(io)) {
        io->result = run_step(io, step);
        io->task.fn = step_deferred;
        loop_defer(io->loop, &io->task);
        return;
    }
    if (step == STEP_BLOCK_DISCARD || !file_uses_ring(io)) {
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
    file_use_slot(sqe, slot);
}

void file_start_steps(struct blk_io *io)
{
    int ret = plan(io);

    if (ret <= 0) {
        file_complete_later(io, ret);
        return;
    }
    io->scratch[FILE_IO_STEP] = io->scratch[FILE_IO_STEPS] & 15;
    io->scratch[FILE_IO_STEPS] >>= 4;
    queue_step(io);
}
