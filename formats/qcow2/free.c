/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The way of a cluster from "in use" to "free".
 *
 * 1. Its entry goes from memory: it is in s->freed, its refcount unchanged, so nobody can get it.
 * 2. A commit has made the entry's removal durable: it is in limbo, with an epoch.
 * 3. Every request that could have mapped it has ended: the host may punch it out, then its refcount goes down.
 * Only then can it be allocated. A refcount on disk that is still too high after a power cut is a leak, never harm.
 */
#include "qcow2.h"

void qcow2_freed_add(struct qcow2_freed *freed, uint64_t cluster, uint64_t count, bool discard)
{
    struct qcow2_extent *last = freed->count ? &freed->extents[freed->count - 1] : NULL;

    if (last && last->discard == discard && last->cluster + last->count == cluster &&
        last->count + count <= UINT32_MAX) {
        last->count += (uint32_t)count;
        return;
    }
    if (freed->count == freed->capacity) {
        freed->capacity = freed->capacity ? freed->capacity * 2 : 16;
        freed->extents = xrealloc(freed->extents, freed->capacity * sizeof(*freed->extents));
    }
    freed->extents[freed->count++] = (struct qcow2_extent){ cluster, (uint32_t)count, discard };
}

void qcow2_free_entry(struct qcow2 *s, uint64_t entry, bool discard)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK, length = s->cluster_size;

    switch (qcow2_kind(entry)) {
    case QCOW2_UNALLOCATED:
    case QCOW2_ZERO_PLAIN: return;
    case QCOW2_IS_COMPRESSED: qcow2_compressed_place(s->cluster_bits, entry, &offset, &length); break;
    default: break;
    }
    uint64_t first = offset >> s->cluster_bits, last = (offset + length - 1) >> s->cluster_bits;
    qcow2_freed_add(&s->freed, first, last - first + 1, discard);
    qcow2_note_dirty(s);
}

/* Lowers one refcount; a cluster that is to be punched out first goes to `punch` and keeps its last reference. */
static coroutine_fn int co_release_one(struct qcow2 *s, uint64_t cluster, bool discard, struct qcow2_freed *punch)
{
    uint64_t count = 0;
    int ret = qcow2_co_refcount(s, cluster, &count);

    if (ret < 0 || count == 0)
        return ret;
    if (count == 1 && discard) {
        qcow2_freed_add(punch, cluster, 1, true);
        return 0;
    }
    return qcow2_co_refcount_change(s, cluster, count - 1);
}

/* A block of refcounts in the table on disk may be freed data no longer: forget what the sets say about the cluster. */
static coroutine_fn int co_release(struct qcow2 *s, const struct qcow2_freed *freed)
{
    struct qcow2_freed punch = { 0 };
    int result = 0;

    for (size_t i = 0; i < freed->count; i++) {
        const struct qcow2_extent *e = &freed->extents[i];
        for (uint64_t j = 0; j < e->count; j++) {
            int ret = co_release_one(s, e->cluster + j, e->discard && s->discard_to_host, &punch);
            if (ret < 0 && result == 0)
                result = ret;
        }
    }
    if (punch.count) {
        co_mutex_unlock(&s->lock);
        for (size_t i = 0; i < punch.count; i++)
            blk_co_discard(s->node->file, punch.extents[i].cluster << s->cluster_bits,
                           (uint64_t)punch.extents[i].count << s->cluster_bits); /* a courtesy: failing does no harm */
        co_mutex_lock(&s->lock);
    }
    for (size_t i = 0; i < punch.count; i++) {
        for (uint64_t j = 0; j < punch.extents[i].count; j++)
            qcow2_co_refcount_change(s, punch.extents[i].cluster + j, 0);
    }
    free(punch.extents);
    return result;
}

coroutine_fn void qcow2_co_reap(struct qcow2 *s, bool wait)
{
    if (list_empty(&s->limbo) && !(wait && s->reaping))
        return;
    while (s->reaping) {
        if (!wait)
            return;
        co_cond_wait(&s->commit_done, &s->lock);
    }
    s->reaping = true;
    while (!list_empty(&s->limbo)) {
        struct qcow2_limbo *limbo = list_first(&s->limbo, struct qcow2_limbo, link);
        if (!epoch_passed(limbo->epoch)) {
            if (!wait)
                break;
            co_mutex_unlock(&s->lock);
            epoch_co_wait(limbo->epoch);
            co_mutex_lock(&s->lock);
        }
        list_remove(&limbo->link);
        int ret = co_release(s, &limbo->freed);
        if (ret < 0 && s->reap_error == 0)
            s->reap_error = ret;
        free(limbo->freed.extents);
        free(limbo);
    }
    s->reaping = false;
    co_cond_broadcast(&s->commit_done);
}
