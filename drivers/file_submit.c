/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One request on a file or device: an SQE on the caller's ring, or a worker where there is no ring or aio=threads. On
 * tmpfs a transfer is no more than a copy, but io_uring knows no way to it that surely does not wait and gives each one
 * to a kernel thread, which costs several times the copy. There a plain preadv() or pwritev() is the fast way.
 *
 * Reads and writes are one operation; what comes back short is continued from there, and a read past the end gives
 * zeroes. The other requests are file_steps.c's. Nothing here allocates.
 */
#include "file_io.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- completion ---- */

void file_grow(struct blk_node *node, uint64_t end)
{
    uint64_t size = blk_node_size(node);

    end = file_round_size(end);
    while (end > size &&
           !atomic_compare_exchange_weak_explicit(&node->size, &size, end, memory_order_relaxed, memory_order_relaxed))
        ;
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

/* A synchronous write: one that fails may have failed after the copy, in the sync. */
static bool is_synchronous(const struct blk_io *io)
{
    const struct file_state *s = file_of(io);

    return io->op == BLK_OP_WRITE && (s->dsync || ((io->flags & BLK_REQ_FUA) && !s->no_flush));
}

/* A transfer that was not all: 0 to go on from scratch[FILE_IO_DONE], 1 done, -errno failed. `result`: what the kernel
 * said */
static int after_piece(struct blk_io *io, int64_t result)
{
    struct file_state *s = file_of(io);

    if (result == -EINTR || result == -EAGAIN)
        return 0;
    if (result == -EIO && is_synchronous(io))
        file_sync_failed(s, -EIO);
    if (result < 0)
        return (int)result;
    io->scratch[FILE_IO_DONE] += (uint64_t)result;
    if (io->scratch[FILE_IO_DONE] >= io->length)
        return 1;
    if (io->op == BLK_OP_WRITE)
        return result == 0 ? -EIO : 0;
    /* With O_DIRECT only the end of the file breaks a block. */
    if (result == 0 || (s->direct && ((uint64_t)result & (io->node->limits.request_alignment - 1)))) {
        zero_rest(io, io->scratch[FILE_IO_DONE]);
        return 1;
    }
    return 0;
}

static inline int write_flags(const struct file_state *s, const struct blk_io *io)
{
    return io->op == BLK_OP_WRITE && unlikely(io->flags & BLK_REQ_FUA) && !s->dsync && !s->no_flush && !s->in_memory
               ? RWF_DSYNC
               : 0;
}

static inline void queue_one(struct blk_io *io, struct io_uring_sqe *sqe, int fd, void *base, size_t length,
                             uint64_t offset)
{
    /* The node's limits keep length and count within what the kernel takes. */
    if (io->op == BLK_OP_READ)
        io_uring_prep_read(sqe, fd, base, (unsigned)length, offset);
    else
        io_uring_prep_write(sqe, fd, base, (unsigned)length, offset);
}

static __attribute__((noinline)) void queue_vector(struct blk_io *io, struct io_uring_sqe *sqe, int fd)
{
    struct iovec piece;
    const struct iovec *iov;
    uint64_t offset = io->offset + io->scratch[FILE_IO_DONE];
    int count = rest_of(io, io->scratch[FILE_IO_DONE], &piece, &iov);

    if (count == 1)
        queue_one(io, sqe, fd, iov->iov_base, iov->iov_len, offset);
    else if (io->op == BLK_OP_READ)
        io_uring_prep_readv(sqe, fd, iov, (unsigned)count, offset);
    else
        io_uring_prep_writev(sqe, fd, iov, (unsigned)count, offset);
}

static inline void queue_transfer(struct blk_io *io)
{
    struct file_state *s = file_of(io);
    int slot = loop_fixed_file(io->loop, s->fd);
    int fd = slot >= 0 ? slot : s->fd;
    struct io_uring_sqe *sqe = loop_sqe(io->loop, &io->ring);

    if (likely(io->iov_count == 1)) {
        uint64_t done = io->scratch[FILE_IO_DONE];
        queue_one(io, sqe, fd, (char *)io->iov->iov_base + done, io->length - done, io->offset + done);
    } else {
        queue_vector(io, sqe, fd);
    }
    file_use_slot(sqe, slot)->rw_flags = write_flags(s, io);
}

static __attribute__((noinline)) void transfer_not_all(struct blk_io *io, int32_t result)
{
    int ret = after_piece(io, result);

    if (ret == 0)
        queue_transfer(io);
    else
        file_complete(io, ret < 0 ? ret : 0);
}

static void transfer_done(struct loop_io *ring, int32_t result)
{
    struct blk_io *io = container_of(ring, struct blk_io, ring);

    if (likely(result >= 0 && (uint64_t)result == io->length - io->scratch[FILE_IO_DONE]))
        file_complete(io, 0);
    else
        transfer_not_all(io, result);
}

/* ---- in a worker ---- */

static ssize_t transfer(struct blk_io *io)
{
    struct file_state *s = file_of(io);
    struct iovec piece;
    const struct iovec *iov;
    int count = rest_of(io, io->scratch[FILE_IO_DONE], &piece, &iov);
    off_t offset = (off_t)(io->offset + io->scratch[FILE_IO_DONE]);
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
    io->result = ret < 0 ? ret : 0;
}

static void transfer_worked(struct pool_work *work)
{
    struct blk_io *io = container_of(work, struct blk_io, work);

    file_complete(io, io->result);
}

/* ---- a copy ---- */

/* One buffer, all of it: what the plain calls do a little faster. */
static ssize_t copy_one(struct blk_io *io)
{
    struct file_state *s = file_of(io);
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
    bool one = io->iov_count == 1 && !write_flags(file_of(io), io);
    int ret = after_piece(io, one ? copy_one(io) : transfer(io));

    while (ret == 0)
        ret = after_piece(io, transfer(io));
    file_complete_later(io, ret < 0 ? ret : 0);
}

/* ---- the way in ---- */

static inline bool passes_end(const struct blk_io *io)
{
    return (io->op == BLK_OP_WRITE || io->op == BLK_OP_WRITE_ZEROES) &&
           unlikely(io->offset + io->length > atomic_load_explicit(&file_of(io)->grown, memory_order_relaxed));
}

void file_submit(struct blk_node *node, struct blk_io *io)
{
    io->scratch[FILE_IO_DONE] = 0;
    if (passes_end(io)) {
        file_ahead_of(io);
    } else if (unlikely(io->op != BLK_OP_READ && io->op != BLK_OP_WRITE)) {
        file_start_steps(io);
    } else if (file_is_copy(io)) {
        copy_now(io);
    } else if (file_uses_ring(io)) {
        io->ring.done = transfer_done;
        queue_transfer(io);
    } else {
        io->work.work = transfer_work;
        io->work.done = transfer_worked;
        pool_submit(&io->work);
    }
}
