/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the two kinds of requests on a file share: transfers (file_submit.c) and the rest (file_steps.c). */
#pragma once

#include "file.h"

#include <base/compiler.h>
#include <liburing.h>

/* blk_io.scratch */
enum { FILE_IO_DONE, FILE_IO_STEPS, FILE_IO_STEP, FILE_IO_RESULT };

static inline struct file_state *file_of(const struct blk_io *io) { return io->node->state; }

static inline bool file_uses_ring(struct blk_io *io)
{
    return likely(!file_of(io)->threads) && likely(loop_ring(io->loop) != NULL);
}

/* A file by its slot in the loop's table of registered ones; slot < 0: it has none. */
static inline struct io_uring_sqe *file_use_slot(struct io_uring_sqe *sqe, int slot)
{
    if (likely(slot >= 0))
        sqe->flags |= IOSQE_FIXED_FILE;
    return sqe;
}

void file_grow(struct blk_node *node, uint64_t end);

/* The request is done. Not from inside submit: there, file_complete_later(). */
static inline void file_complete(struct blk_io *io, int result)
{
    if (result == 0 && (io->op == BLK_OP_WRITE || io->op == BLK_OP_WRITE_ZEROES) &&
        unlikely(io->offset + io->length > blk_node_size(io->node)))
        file_grow(io->node, io->offset + io->length);
    io->done(io, result);
}

void file_complete_later(struct blk_io *io, int result);

/* FLUSH, DISCARD, WRITE_ZEROES. */
void file_start_steps(struct blk_io *io);
