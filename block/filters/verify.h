/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What blkverify and quorum share: the same request to several children at once, with a buffer for each. */
#pragma once

#include <block/node.h>

struct verify_child {
    struct blk_node *node;
    uint8_t *buffer; /* of a read */
    int ret;
};

struct verify_request {
    struct verify_child *children;
    size_t count;
    enum blk_op op;
    unsigned flags;
    uint64_t offset, length;
    const struct iovec *iov; /* of a write */
    int iov_count;
};

/* Sends it to all; each child's result is in its `ret`. Reads go to buffers that are made here. -ENOMEM, or 0. */
coroutine_fn int verify_co_send(struct verify_request *request);
void verify_free_buffers(struct verify_request *request);
/* Images differ that must not: what was said on standard error, and the end of the program, status 1. */
void verify_end(void) __attribute__((noreturn));
/* The offset of the first byte that differs; length if there is none. */
uint64_t verify_difference(const uint8_t *a, const uint8_t *b, uint64_t length);
