/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One request to a node beside the test, which goes on meanwhile: the first sector, or a flush. */
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

    b->ret = b->op == BLK_OP_READ    ? blk_co_read(b->node, 0, b->data, sizeof(b->data))
             : b->op == BLK_OP_WRITE ? blk_co_write(b->node, 0, b->data, sizeof(b->data), 0)
                                     : blk_co_flush(b->node);
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
