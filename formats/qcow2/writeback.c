/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Writing many pieces of metadata: copied together under the lock, then written without it, sorted, neighbours in one
 * write, a few writes at a time. All of a set is issued before anything that depends on it, and nothing says in which
 * order it lands, unless it is written in order.
 */
#include "writeback.h"

#include <base/crew.h>
#include <string.h>

/* Writes of one set at a time, and the longest one. */
#define WORKERS 8u
#define MAX_WRITE (1u << 20)

int qcow2_writeback_add(struct qcow2_writeback *wb, uint64_t offset, const void *source, uint32_t length)
{
    if (wb->count == wb->capacity) {
        size_t capacity = wb->capacity ? wb->capacity * 2 : 32;
        struct qcow2_piece *pieces = realloc(wb->pieces, capacity * sizeof(*pieces));
        if (!pieces)
            return -ENOMEM;
        wb->pieces = pieces;
        wb->capacity = capacity;
    }
    wb->pieces[wb->count++] = (struct qcow2_piece){ offset, source, length };
    wb->bytes += length;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct qcow2_piece *x = a, *y = b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int qcow2_writeback_copy(struct qcow2_writeback *wb, struct blk_node *file)
{
    uint64_t at = 0;

    if (wb->count == 0)
        return 0;
    qsort(wb->pieces, wb->count, sizeof(*wb->pieces), by_offset);
    wb->buffer = blk_buffer_alloc(file, wb->bytes);
    if (!wb->buffer)
        return -ENOMEM;
    for (size_t i = 0; i < wb->count; i++) {
        memcpy(wb->buffer + at, wb->pieces[i].source, wb->pieces[i].length);
        wb->pieces[i].source = wb->buffer + at;
        at += wb->pieces[i].length;
    }
    return 0;
}

/* Neighbours in the file are neighbours in the buffer. */
static void merge(struct qcow2_writeback *wb)
{
    size_t last = 0;

    for (size_t i = 1; i < wb->count; i++) {
        struct qcow2_piece *p = &wb->pieces[last];
        if (p->offset + p->length == wb->pieces[i].offset && p->length + wb->pieces[i].length <= MAX_WRITE)
            p->length += wb->pieces[i].length;
        else
            wb->pieces[++last] = wb->pieces[i];
    }
    wb->count = last + 1;
}

struct writing {
    const struct qcow2_writeback *wb;
    struct blk_node *file;
};

static coroutine_fn int co_write_one(void *arg, size_t index)
{
    const struct writing *writing = arg;
    const struct qcow2_piece *p = &writing->wb->pieces[index];

    return blk_co_write(writing->file, p->offset, p->source, p->length, 0);
}

coroutine_fn int qcow2_co_writeback_write(struct qcow2_writeback *wb, struct blk_node *file)
{
    struct writing writing = { wb, file };

    if (wb->count == 0)
        return 0;
    merge(wb);
    return co_crew(wb->count, WORKERS, co_write_one, &writing);
}

coroutine_fn int qcow2_co_writeback_write_in_order(const struct qcow2_writeback *wb, struct blk_node *file)
{
    int ret = 0;

    for (size_t i = 0; i < wb->count && ret == 0; i++) {
        const struct qcow2_piece *p = &wb->pieces[i];
        if (i > 0)
            ret = blk_co_flush(file);
        if (ret == 0)
            ret = blk_co_write(file, p->offset, p->source, p->length, 0);
    }
    return ret;
}

void qcow2_writeback_finish(struct qcow2_writeback *wb)
{
    free(wb->pieces);
    free(wb->buffer);
    *wb = (struct qcow2_writeback){ 0 };
}
