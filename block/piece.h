/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Private to block/: one piece of a coroutine's request at a protocol node: alignment, bounce buffers,
 * read-modify-write. The functions without `tracked` in their name are called inside the epoch in which *t was walked.
 */
#pragma once

#include "walk.h"

/* A part of a request's buffers, as an array of its own where it is not the whole. */
struct iov_view {
    const struct iovec *iov;
    int count;
    struct iovec local[16];
    struct iovec *allocated;
};
/* 0 or -ENOMEM. iov_view_finish() in either case. */
int iov_view_init(struct iov_view *view, const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length);
void iov_view_finish(struct iov_view *view);

/* Shorten t->length to what one submission can do: what follows an unaligned head, a limit of the node. */
void piece_limit_write(struct blk_target *t);
void piece_limit_zeroes(struct blk_target *t);
/* The aligned part of a discard: moves t inside, leaves *length as what is dealt with. False: nothing is left of it. */
bool piece_limit_discard(struct blk_target *t, uint64_t *length);

/* Aligned, and no rewriter is active on the node. */
bool piece_is_plain(const struct blk_target *t);

coroutine_fn int piece_co_submit(const struct blk_target *t, enum blk_op op, unsigned flags, const struct iovec *iov,
                                 int iov_count);
/* Reads a piece into iov from `done` on; any alignment. May shorten t->length. */
coroutine_fn int piece_co_read(struct blk_target *t, const struct iovec *iov, int iov_count, uint64_t done);
/* Writes an aligned piece. May shorten t->length where memory has to be bounced: then it loops itself. */
coroutine_fn int piece_co_write(const struct blk_target *t, const struct iovec *iov, int iov_count, uint64_t done,
                                unsigned flags);

/* How to walk to the same piece again. */
struct piece_again {
    struct blk_node *top;
    enum blk_op op;
    unsigned flags;
    uint64_t offset;
};
/* A write, or whole blocks of zeroes, that is not plain: outside any epoch. Takes the tracked range, walks again, and
 * writes where the target is still the same; *length is 0 where it is not (repeat the request). */
coroutine_fn int piece_co_write_tracked(const struct piece_again *again, const struct blk_target *t, uint64_t *length,
                                        const struct iovec *iov, int iov_count, uint64_t done);
