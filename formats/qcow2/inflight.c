/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Slow requests in flight, by guest cluster.
 *
 * Reads of compressed clusters and writes in place are registered as shared, allocations, zeroes and discards as
 * exclusive: an exclusive one overlaps no other. So an entry stays what it was for as long as a slow request works
 * with it, although the lock is not held. A request registers one range at a time and never waits for another
 * while it is registered. Who waits is woken by the end of the one request that is in its way, and by no other.
 */
#include "inflight.h"

coroutine_fn bool qcow2_co_inflight_begin(struct qcow2 *s, struct qcow2_inflight *mine)
{
    struct qcow2_inflight *other;

    list_for_each(other, &s->inflight, link) {
        if (other->first > mine->last || other->last < mine->first || (!other->exclusive && !mine->exclusive))
            continue;
        if (other->first > mine->first) {
            mine->last = other->first - 1;
            continue;
        }
        co_cond_wait(&other->ended, &s->lock);
        return false;
    }
    co_cond_init(&mine->ended);
    list_append(&s->inflight, &mine->link);
    return true;
}

void qcow2_inflight_end(struct qcow2 *s, struct qcow2_inflight *mine)
{
    list_remove(&mine->link);
    co_cond_broadcast(&mine->ended);
    co_cond_finish(&mine->ended);
}
