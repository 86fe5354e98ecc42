/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One request to a node beside the test, which goes on meanwhile: to the first sector, or a flush. */
#pragma once

#include <base/coroutine.h>
#include <block/image.h>
#include <string.h>

struct beside {
    struct blk_node *node;
    enum blk_op op;
    uint8_t data[512]; /* written, or read; 0xee before */
    int ret;
    bool done;
};

static inline coroutine_fn void beside_co(void *arg)
{
    struct beside *b = arg;

    switch (b->op) {
    case BLK_OP_READ: b->ret = blk_co_read(b->node, 0, b->data, sizeof(b->data)); break;
    case BLK_OP_WRITE: b->ret = blk_co_write(b->node, 0, b->data, sizeof(b->data), 0); break;
    case BLK_OP_WRITE_ZEROES: b->ret = blk_co_write_zeroes(b->node, 0, sizeof(b->data), 0); break;
    case BLK_OP_DISCARD: b->ret = blk_co_discard(b->node, 0, sizeof(b->data)); break;
    default: b->ret = blk_co_flush(b->node);
    }
    b->done = true;
}

static inline void beside_start(struct beside *b, struct blk_node *node, enum blk_op op)
{
    *b = (struct beside){ .node = node, .op = op };
    memset(b->data, 0xee, sizeof(b->data));
    co_start(beside_co, b);
}

static inline coroutine_fn int beside_co_result(struct beside *b)
{
    while (!b->done)
        co_sleep_ns(100000);
    return b->ret;
}
