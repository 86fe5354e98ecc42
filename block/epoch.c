/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who may still look at what a node has taken out of use? Requests enter the graph at front ends and, those of drivers,
 * at nodes; each of these is an epoch domain (base/epoch.h). A mapping of a node can only be held by requests that came
 * in at the node or above it, so these domains are asked and no others: a request that hangs on another disk holds up
 * nothing here.
 *
 * Links change only while nothing is in flight above them. So it does not matter whether the domains above are those
 * of the time when the epoch was retired: one that has gone since had no request in flight any more, and requests of
 * one that has come since cannot have seen what was taken away before.
 */
#include "front_internal.h"
#include "graph.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/epoch.h>
#include <base/testpoint.h>
#include <stdlib.h>

/* With the links locked. */
static bool passed_above(const struct blk_node *node, uint64_t epoch)
{
    const struct blk_child *link;

    if (!epoch_passed(node->epoch, epoch))
        return false;
    list_for_each(link, &node->parents, in_node) {
        if (link->front ? !epoch_passed(link->front->epoch, epoch) : !passed_above(link->parent, epoch))
            return false;
    }
    return true;
}

bool blk_epoch_passed(struct blk_node *node, uint64_t epoch)
{
    blk_links_lock();
    bool passed = passed_above(node, epoch);
    blk_links_unlock();
    return passed;
}

/* With the links locked: a domain that has not let the epoch pass, with a reference, or NULL. */
static struct epoch_domain *late_domain(const struct blk_node *node, uint64_t epoch)
{
    const struct blk_child *link;
    struct epoch_domain *late = NULL;

    if (!epoch_passed(node->epoch, epoch))
        return epoch_domain_ref(node->epoch);
    list_for_each(link, &node->parents, in_node) {
        if (!link->front)
            late = late_domain(link->parent, epoch);
        else if (!epoch_passed(link->front->epoch, epoch))
            late = epoch_domain_ref(link->front->epoch);
        if (late)
            break;
    }
    return late;
}

struct sleeper {
    struct epoch_waiter waiter;
    struct co *co;
};

static void wake(struct epoch_waiter *waiter) { co_wake(container_of(waiter, struct sleeper, waiter)->co); }

coroutine_fn void blk_co_domain_wait(struct epoch_domain *domain, uint64_t epoch)
{
    struct sleeper sleeper = { .waiter.passed = wake, .co = co_self() };

    if (epoch_passed(domain, epoch))
        return;
    testpoint_co("epoch-wait");
    if (!epoch_wait(domain, epoch, &sleeper.waiter))
        co_yield();
}

coroutine_fn void blk_co_epoch_wait(struct blk_node *node, uint64_t epoch)
{
    for (;;) {
        blk_links_lock();
        struct epoch_domain *late = late_domain(node, epoch);
        blk_links_unlock();
        if (!late)
            return;
        blk_co_domain_wait(late, epoch);
        epoch_domain_unref(late);
    }
}
