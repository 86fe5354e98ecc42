/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Tracked ranges (block/tracked.h). An entry waits only for entries before it in the list, which is the order of
 * arrival: no circle can form. `tracking` counts the entries; the list and the condition are guarded by tracked_lock.
 */
#include <base/checked.h>
#include <base/epoch.h>
#include <block/tracked.h>

static bool earlier_overlaps(struct blk_node *node, const struct blk_tracked *mine)
{
    const struct blk_tracked *other;

    list_for_each(other, &node->tracked, link) {
        if (other == mine)
            return false;
        if (ranges_overlap(other->offset, other->length, mine->offset, mine->length))
            return true;
    }
    return false;
}

/* Returns the epoch after which no write is in flight that has not seen the list. */
static coroutine_fn uint64_t co_register(struct blk_node *node, struct blk_tracked *tracked, uint64_t offset,
                                         uint64_t length)
{
    tracked->offset = offset;
    tracked->length = length;
    pthread_mutex_lock(&node->tracked_lock);
    /* The first entry ends the epoch in which writes could still miss the list; later ones wait for the same one. */
    if (atomic_fetch_add(&node->tracking, 1u) == 0)
        node->tracking_epoch = epoch_retire();
    list_append(&node->tracked, &tracked->link);
    while (earlier_overlaps(node, tracked))
        co_cond_wait_pthread(&node->tracked_changed, &node->tracked_lock);
    uint64_t epoch = node->tracking_epoch;
    pthread_mutex_unlock(&node->tracked_lock);
    return epoch;
}

coroutine_fn void blk_co_tracked_rewrite(struct blk_node *node, struct blk_tracked *tracked, uint64_t offset,
                                         uint64_t length)
{
    blk_co_epoch_wait(node, co_register(node, tracked, offset, length));
}

coroutine_fn void blk_co_tracked_write(struct blk_node *node, struct blk_tracked *tracked, uint64_t offset,
                                       uint64_t length)
{
    co_register(node, tracked, offset, length);
}

void blk_tracked_end(struct blk_node *node, struct blk_tracked *tracked)
{
    pthread_mutex_lock(&node->tracked_lock);
    list_remove(&tracked->link);
    atomic_fetch_sub(&node->tracking, 1u);
    co_cond_broadcast(&node->tracked_changed);
    pthread_mutex_unlock(&node->tracked_lock);
}
