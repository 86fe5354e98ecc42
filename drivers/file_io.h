/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the two kinds of requests on a file share: transfers (file_submit.c) and the rest (file_steps.c). */
#pragma once

#include "file.h"

#include <base/compiler.h>
#include <liburing.h>

/* blk_io.scratch */
enum { FILE_IO_DONE, FILE_IO_STEPS, FILE_IO_STEP };

static inline struct file_state *file_of(const struct blk_io *io) { return io->node->state; }

static inline bool file_uses_ring(struct blk_io *io)
{
    return likely(!file_of(io)->threads) && likely(loop_ring(io->loop) != NULL);
}

/* The longest copy, some hundred microseconds, that the loop's other work waits for: io_uring would have a kernel
 * thread do it, and one at a time for each file. */
#define FILE_MAX_COPY (2u << 20)

/* In memory: a call at once costs less than handing it to another thread. */
static inline bool file_is_copy(const struct blk_io *io)
{
    const struct file_state *s = file_of(io);

    return unlikely(s->in_memory) && !s->threads && io->length <= FILE_MAX_COPY;
}

/* A file by its slot in the loop's table of registered ones; slot < 0: it has none. */
static inline struct io_uring_sqe *file_use_slot(struct io_uring_sqe *sqe, int slot)
{
    if (likely(slot >= 0))
        sqe->flags |= IOSQE_FIXED_FILE;
    return sqe;
}

void file_grow(struct blk_node *node, uint64_t end);

/* What has become of a request counts before the core hears of it. */
static inline void file_settle(struct blk_io *io, int result)
{
    if (result == 0 && (io->op == BLK_OP_WRITE || io->op == BLK_OP_WRITE_ZEROES) &&
        unlikely(io->offset + io->length > blk_node_size(io->node)))
        file_grow(io->node, io->offset + io->length);
}

/* The request is done. Not from inside submit: there, file_complete_later(). */
static inline void file_complete(struct blk_io *io, int result)
{
    file_settle(io, result);
    io->done(io, result);
}

/* `done` is never called from inside submit. */
static inline void file_complete_later(struct blk_io *io, int result)
{
    file_settle(io, result);
    blk_io_complete(io, result);
}

/* A sync failed with -errno, be it that of a flush or of a write that is synchronous by itself: the kernel reports what
 * it could not write back only once for each open file, so with the page cache no flush succeeds any more. */
void file_sync_failed(struct file_state *s, int error);

/* Makes the file longer before a change that ends past `grown`, and then submits it. */
void file_ahead_of(struct blk_io *io);

/* FLUSH, DISCARD, WRITE_ZEROES. */
void file_start_steps(struct blk_io *io);
