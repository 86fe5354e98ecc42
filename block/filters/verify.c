/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One request to several children. */
#include "verify.h"

#include <base/crew.h>
#include <block/image.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static coroutine_fn int co_send_to(const struct verify_request *r, const struct verify_child *child)
{
    switch (r->op) {
    case BLK_OP_READ: return blk_co_read(child->node, r->offset, child->buffer, r->length);
    case BLK_OP_WRITE: return blk_co_writev(child->node, r->offset, r->length, r->iov, r->iov_count, r->flags);
    case BLK_OP_WRITE_ZEROES: return blk_co_write_zeroes(child->node, r->offset, r->length, r->flags);
    case BLK_OP_DISCARD: return blk_co_discard(child->node, r->offset, r->length);
    default: return blk_co_flush(child->node);
    }
}

/* Returns no error, so that all are asked. */
static coroutine_fn int co_send_one(void *arg, size_t index)
{
    struct verify_request *r = arg;

    r->children[index].ret = co_send_to(r, &r->children[index]);
    return 0;
}

coroutine_fn int verify_co_send(struct verify_request *r)
{
    for (size_t i = 0; i < r->count && r->op == BLK_OP_READ; i++) {
        r->children[i].buffer = blk_buffer_alloc(r->children[i].node, r->length);
        if (!r->children[i].buffer)
            return -ENOMEM;
    }
    return co_crew(r->count, (unsigned)r->count, co_send_one, r);
}

void verify_free_buffers(struct verify_request *r)
{
    for (size_t i = 0; i < r->count; i++) {
        free(r->children[i].buffer);
        r->children[i].buffer = NULL;
    }
}

void verify_end(void)
{
    fputc('\n', stderr);
    fflush(NULL);
    _exit(1);
}

uint64_t verify_difference(const uint8_t *a, const uint8_t *b, uint64_t length)
{
    uint64_t at = 0;

    while (at < length && a[at] == b[at])
        at++;
    return at;
}
