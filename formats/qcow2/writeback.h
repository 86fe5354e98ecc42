/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* writeback.c: a set of pieces to write, copied at once, written in parallel. */
#pragma once

#include "state.h"

struct qcow2_writeback {
    struct qcow2_piece {
        uint64_t offset;
        const void *source;
        uint32_t length;
    } * pieces;
    size_t count, capacity;
    uint64_t bytes;
    uint8_t *buffer;
};
int qcow2_writeback_add(struct qcow2_writeback *wb, uint64_t offset, const void *source, uint32_t length);
int qcow2_writeback_copy(struct qcow2_writeback *wb, struct blk_node *file); /* sorts, copies from the sources */
coroutine_fn int qcow2_co_writeback_write(struct qcow2_writeback *wb, struct blk_node *file);
/* By offset, a flush between one piece and the next; none after the last. */
coroutine_fn int qcow2_co_writeback_write_in_order(const struct qcow2_writeback *wb, struct blk_node *file);
void qcow2_writeback_finish(struct qcow2_writeback *wb);
