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
#include "refcount.h"

#include <base/crew.h>

/* Copies at a time, and the longest one. */
#define WORKERS 8u
#define MAX_COPY (UINT64_C(1) << 20)
/* So much in a batch is enough: a flush costs little beside it, and there is memory for the tables. */
#define MUCH_COPIED (UINT64_C(256) << 20)
#define MUCH_REWRITTEN (UINT64_C(16) << 20)
#define MUCH_FREED 65536u

/* ---- filling one ---- */

/* The list, with room for one more; NULL: there is no memory. */
static void *with_room(void *list, size_t count, size_t *capacity, size_t size)
{
    size_t wanted = *capacity ? *capacity * 2 : 64;

    if (count < *capacity)
        return list;
    list = realloc(list, wanted * size);
    if (list)
        *capacity = wanted;
    return list;
}

int qcow2_batch_copy(struct qcow2_batch *batch, uint64_t from, uint64_t to, uint64_t length)
{
    struct qcow2_copy *last = batch->copy_count ? &batch->copies[batch->copy_count - 1] : NULL;

    batch->copied += length;
    if (last && last->from + last->length == from && last->to + last->length == to &&
        last->length + length <= MAX_COPY) {
        last->length += length;
        return 0;
    }
    struct qcow2_copy *copies = with_room(batch->copies, batch->copy_count, &batch->copy_capacity, sizeof(*copies));
    if (!copies)
        return -ENOMEM;
    batch->copies = copies;
    copies[batch->copy_count++] = (struct qcow2_copy){ from, to, length };
    return 0;
}

int qcow2_batch_rewrite(struct qcow2_batch *batch, uint64_t offset, void *data, uint64_t length)
{
    struct qcow2_rewrite *rewrites = with_room(batch->rewrites, batch->rewrite_count, &batch->rewrite_capacity,
                                               sizeof(*rewrites));

    if (!rewrites) {
        free(data);
        return -ENOMEM;
    }
    batch->rewrites = rewrites;
    rewrites[batch->rewrite_count++] = (struct qcow2_rewrite){ offset, length, data };
    batch->rewritten += length;
    return 0;
}

int qcow2_batch_free(struct qcow2_batch *batch, uint64_t cluster, uint64_t count, uint64_t times)
{
    struct qcow2_release *last = batch->release_count ? &batch->releases[batch->release_count - 1] : NULL;

    if (last && last->times == times && last->cluster + last->count == cluster) {
        last->count += count;
        return 0;
    }
    struct qcow2_release *releases = with_room(batch->releases, batch->release_count, &batch->release_capacity,
                                               sizeof(*releases));
    if (!releases)
        return -ENOMEM;
    batch->releases = releases;
    releases[batch->release_count++] = (struct qcow2_release){ cluster, count, times };
    return 0;
}

void qcow2_batch_finish(struct qcow2_batch *batch)
{
    for (size_t i = 0; i < batch->rewrite_count; i++)
        free(batch->rewrites[i].data);
    free(batch->rewrites);
    free(batch->copies);
    free(batch->releases);
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

/* All references but one. There may be a great many of them, so they go at once. Lock held. */
static coroutine_fn int co_lower(struct qcow2 *s, uint64_t cluster, uint64_t by)
{
    uint64_t count = 0;
    int ret = qcow2_co_refcount(s, cluster, &count);

    return ret == 0 && count ? qcow2_co_refcount_change(s, cluster, count - MIN(by, count - 1)) : ret;
}

static coroutine_fn int co_release_all(struct qcow2 *s, const struct qcow2_batch *batch)
{
    int ret = 0;

    co_mutex_lock(&s->lock);
    for (size_t i = 0; i < batch->release_count && ret == 0; i++) {
        const struct qcow2_release *r = &batch->releases[i];
        for (uint64_t j = 0; j < r->count && r->times > 1 && ret == 0; j++)
            ret = co_lower(s, r->cluster + j, r->times - 1);
        if (r->times)
            qcow2_free_clusters(s, r->cluster, r->count, QCOW2_FREED_BY_OTHER);
    }
    co_mutex_unlock(&s->lock);
    return ret;
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
        ret = blk_co_flush(s->node->file); /* W5 */
    if (ret == 0)
        ret = co_release_all(s, batch);
    if (ret == 0)
        ret = qcow2_co_settle(s);
    qcow2_batch_finish(batch);
    return ret;
}

bool qcow2_batch_is_large(const struct qcow2_batch *batch)
{
    return batch->copied >= MUCH_COPIED || batch->rewritten >= MUCH_REWRITTEN || batch->release_count >= MUCH_FREED;
}
