/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The one order in which tables are changed behind the caches: what has another place is copied there; the copy and its
 * refcount are durable before a table names it (W2, W3), and the table is durable before the old place loses its
 * refcount (W5).
 */
#include "batch.h"

#include "commit.h"
#include "dirty.h"
#include "overlap.h"

#include <base/crew.h>

/* Copies at a time, and the longest one. */
#define WORKERS 8u
#define MAX_COPY (UINT64_C(1) << 20)
/* So much in a batch is enough: a flush costs little beside it, and there is memory for the tables. */
#define MUCH_COPIED (UINT64_C(256) << 20)
#define MUCH_REWRITTEN (UINT64_C(16) << 20)
#define MUCH_FREED 65536u

/* ---- filling one ---- */

int qcow2_batch_copy(struct qcow2_batch *batch, uint64_t from, uint64_t to, uint64_t length)
{
    struct qcow2_copy *last = batch->copy_count ? &batch->copies[batch->copy_count - 1] : NULL;

    batch->copied += length;
    if (last && last->from + last->length == from && last->to + last->length == to &&
        last->length + length <= MAX_COPY) {
        last->length += length;
        return 0;
    }
    if (batch->copy_count == batch->copy_capacity) {
        size_t capacity = batch->copy_capacity ? batch->copy_capacity * 2 : 64;
        struct qcow2_copy *copies = realloc(batch->copies, capacity * sizeof(*copies));
        if (!copies)
            return -ENOMEM;
        batch->copies = copies;
        batch->copy_capacity = capacity;
    }
    batch->copies[batch->copy_count++] = (struct qcow2_copy){ from, to, length };
    return 0;
}

int qcow2_batch_rewrite(struct qcow2_batch *batch, uint64_t offset, void *data, uint64_t length)
{
    if (batch->rewrite_count == batch->rewrite_capacity) {
        size_t capacity = batch->rewrite_capacity ? batch->rewrite_capacity * 2 : 64;
        struct qcow2_rewrite *rewrites = realloc(batch->rewrites, capacity * sizeof(*rewrites));
        if (!rewrites) {
            free(data);
            return -ENOMEM;
        }
        batch->rewrites = rewrites;
        batch->rewrite_capacity = capacity;
    }
    batch->rewrites[batch->rewrite_count++] = (struct qcow2_rewrite){ offset, length, data };
    batch->rewritten += length;
    return 0;
}

void qcow2_batch_free(struct qcow2_batch *batch, uint64_t cluster, uint64_t count, uint64_t times)
{
    for (uint64_t i = 0; i < times; i++)
        qcow2_freed_add(&batch->freed, cluster, count, QCOW2_FREED_BY_OTHER);
}

void qcow2_batch_finish(struct qcow2_batch *batch)
{
    for (size_t i = 0; i < batch->rewrite_count; i++)
        free(batch->rewrites[i].data);
    free(batch->rewrites);
    free(batch->copies);
    free(batch->freed.extents);
    *batch = (struct qcow2_batch){ 0 };
}

/* ---- running it ---- */

struct run {
    struct qcow2 *s;
    struct qcow2_batch *batch;
};

static coroutine_fn int co_copy_one(void *arg, size_t index)
{
    const struct run *run = arg;
    const struct qcow2_copy *copy = &run->batch->copies[index];
    struct blk_node *file = run->s->node->file;
    AUTO_FREE uint8_t *buffer = blk_buffer_alloc(file, copy->length);
    int ret = buffer ? blk_co_read(file, copy->from, buffer, copy->length) : -ENOMEM;

    return ret < 0 ? ret : blk_co_write(file, copy->to, buffer, copy->length, 0);
}

/* The table lies where it is read from, and over nothing else. */
static coroutine_fn int co_rewrite_one(void *arg, size_t index)
{
    const struct run *run = arg;
    const struct qcow2_rewrite *r = &run->batch->rewrites[index];
    struct qcow2 *s = run->s;

    co_mutex_lock(&s->lock);
    int ret = qcow2_co_check_overlap(s, r->offset, r->length,
                                     QCOW2_REGION_L2 | QCOW2_REGION_INACTIVE_L2 | QCOW2_REGION_INACTIVE_L1);
    co_mutex_unlock(&s->lock);
    return ret < 0 ? ret : blk_co_write(s->node->file, r->offset, r->data, r->length, 0);
}

static coroutine_fn void co_free_all(struct qcow2 *s, const struct qcow2_freed *freed)
{
    co_mutex_lock(&s->lock);
    for (size_t i = 0; i < freed->count; i++)
        qcow2_free_clusters(s, freed->extents[i].cluster, freed->extents[i].count, freed->extents[i].by);
    co_mutex_unlock(&s->lock);
}

coroutine_fn int qcow2_co_batch_run(struct qcow2 *s, struct qcow2_batch *batch)
{
    struct run run = { s, batch };
    int ret = co_crew(batch->copy_count, WORKERS, co_copy_one, &run);

    if (ret == 0)
        ret = qcow2_co_commit(s);
    if (ret == 0)
        ret = co_crew(batch->rewrite_count, WORKERS, co_rewrite_one, &run);
    if (ret == 0)
        co_free_all(s, &batch->freed);
    if (ret == 0)
        ret = qcow2_co_settle(s); /* its first commit makes the tables durable, and only then are clusters freed (W5) */
    qcow2_batch_finish(batch);
    return ret;
}

bool qcow2_batch_is_large(const struct qcow2_batch *batch)
{
    return batch->copied >= MUCH_COPIED || batch->rewritten >= MUCH_REWRITTEN || batch->freed.count >= MUCH_FREED;
}
