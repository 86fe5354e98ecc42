/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Draining: nothing in flight through a node, and nothing new until the section's end.
 *
 * Requests enter the graph at front ends, and drivers may have work of their own (a timer's commit, a reconnect). So a
 * node is quiet when every front end above it is, and its own driver and every one above it. A section records whom it
 * holds: each is held first, then waited for; the end releases exactly those, whatever came or went in between.
 *
 * Invariants:
 * D1 A front end's gate counts the sections that hold it, a node's `drained` those that hold its driver.
 * D2 Who comes above a drained node by a new link is held by the section from then on; who goes is forgotten by it. So
 *    at any time a section holds all that is above its node, and points at nothing that is gone.
 * D3 While a section waits it keeps a reference on whom it waits for, and looks at its list anew after each wait.
 * D4 What a node writes back when it is closed comes before a section or after it: the close waits for the sections
 *    that hold the node, and a section for a close that has begun. A close that waits is quiet, so neither waits for
 *    the other.
 *
 * The mapped requests of a front end are waited for by its epoch, the slow ones by their count.
 */
#include "drain.h"
#include "front_internal.h"
#include "links.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/epoch.h>
#include <base/testpoint.h>
#include <block/image.h>
#include <assert.h>
#include <stdlib.h>

struct section {
    struct list link;      /* sections, newest last */
    struct blk_node *node; /* the drainer keeps it open */
    struct co *owner;
    struct list holds; /* struct hold */
};

struct hold {
    struct list in_section;
    struct blk_front *front; /* or, NULL here, */
    struct blk_node *node;   /* whose driver is held */
    bool settled;            /* has been waited for */
};

static struct list sections = { &sections, &sections }; /* main loop */
static struct co_cond changed;                          /* a section has ended, or a node is gone; main loop */

__attribute__((constructor)) static void drain_init(void) { co_cond_init(&changed); }

static bool is_held(const struct blk_front *front) { return atomic_load(&front->gate) & FRONT_HELD; }

/* ---- the slow request's side ---- */

coroutine_fn void front_co_enter_slow(struct blk_front *front)
{
    testpoint_co("block-slow-enter");
    atomic_fetch_add(&front->slow_in_flight, 1u);
    testpoint_co("block-slow-counted");
    if (likely(!is_held(front)))
        return;
    pthread_mutex_lock(&front->drain_lock);
    front->queued++;
    do {
        if (atomic_fetch_sub(&front->slow_in_flight, 1u) == 1)
            co_cond_broadcast(&front->settled);
        while (is_held(front))
            co_cond_wait_pthread(&front->released, &front->drain_lock);
        atomic_fetch_add(&front->slow_in_flight, 1u);
    } while (is_held(front));
    front->queued--;
    pthread_mutex_unlock(&front->drain_lock);
}

void front_leave_slow(struct blk_front *front)
{
    /* Under the lock, so that who waits for the last one does not free the front end between the count and the
     * signal. */
    pthread_mutex_lock(&front->drain_lock);
    if (atomic_fetch_sub(&front->slow_in_flight, 1u) == 1)
        co_cond_broadcast(&front->settled);
    pthread_mutex_unlock(&front->drain_lock);
}

coroutine_fn void blk_co_front_settle(struct blk_front *front)
{
    blk_co_domain_wait(front->epoch, epoch_retire());
    pthread_mutex_lock(&front->drain_lock);
    while (atomic_load(&front->slow_in_flight) != 0)
        co_cond_wait_pthread(&front->settled, &front->drain_lock);
    pthread_mutex_unlock(&front->drain_lock);
}

bool blk_front_busy(struct blk_front *front)
{
    pthread_mutex_lock(&front->drain_lock);
    bool slow = atomic_load(&front->slow_in_flight) != 0 || front->queued;
    pthread_mutex_unlock(&front->drain_lock);
    return slow || !epoch_passed(front->epoch, epoch_retire());
}

coroutine_fn void front_co_wait_for_all(struct blk_front *front)
{
    blk_co_domain_wait(front->epoch, epoch_retire());
    pthread_mutex_lock(&front->drain_lock);
    while (atomic_load(&front->slow_in_flight) != 0 || front->queued)
        co_cond_wait_pthread(&front->settled, &front->drain_lock);
    pthread_mutex_unlock(&front->drain_lock);
}

/* ---- one hold ---- */

static void take_hold(struct section *section, struct blk_front *front, struct blk_node *node)
{
    struct hold *hold;

    list_for_each(hold, &section->holds, in_section) {
        if (hold->front == front && hold->node == node)
            return; /* reached by two ways */
    }
    hold = xcalloc(1, sizeof(*hold));
    hold->front = front;
    hold->node = node;
    list_append(&section->holds, &hold->in_section);
    if (front) {
        if ((atomic_fetch_add(&front->gate, 1u) & FRONT_HELD) == 0)
            front_report_drained(front, true);
    } else if (node->drained++ == 0 && node->opened && node->driver->drain_begin) {
        node->driver->drain_begin(node);
    }
}

static void drop_hold(struct hold *hold)
{
    struct blk_front *front = hold->front;
    struct blk_node *node = hold->node;

    list_remove(&hold->in_section);
    free(hold);
    if (front) {
        pthread_mutex_lock(&front->drain_lock);
        bool free_again = (atomic_fetch_sub(&front->gate, 1u) & FRONT_HELD) == 1;
        if (free_again)
            co_cond_broadcast(&front->released);
        pthread_mutex_unlock(&front->drain_lock);
        if (free_again)
            front_report_drained(front, false);
    } else if (--node->drained == 0 && node->opened && node->driver->drain_end) {
        node->driver->drain_end(node);
    }
}

static void hold_above(struct section *section, struct blk_node *node)
{
    struct blk_child *link;

    take_hold(section, NULL, node);
    list_for_each(link, &node->parents, in_node) {
        if (link->front)
            take_hold(section, link->front, NULL);
        else
            hold_above(section, link->parent);
    }
}

/* ---- changes of the graph inside sections ---- */

void blk_drain_link_added(const struct blk_child *link)
{
    struct section *section;

    list_for_each(section, &sections, link) {
        if (!blk_is_at_or_below(link->node, section->node))
            continue;
        if (link->front)
            take_hold(section, link->front, NULL);
        else
            hold_above(section, link->parent);
    }
}

static void forget(struct blk_front *front, struct blk_node *node)
{
    struct section *section;
    struct hold *hold, *next;

    list_for_each(section, &sections, link) {
        list_for_each_safe(hold, next, &section->holds, in_section) {
            if (hold->front == front && hold->node == node)
                drop_hold(hold);
        }
    }
}

void blk_drain_forget_front(struct blk_front *front) { forget(front, NULL); }

void blk_drain_forget_node(struct blk_node *node)
{
    forget(NULL, node);
    co_cond_broadcast(&changed);
}

static bool held_by_others(const struct blk_node *node)
{
    const struct section *section;
    const struct hold *hold;

    list_for_each(section, &sections, link) {
        list_for_each(hold, &section->holds, in_section) {
            if (hold->node == node && section->owner != co_self())
                return true;
        }
    }
    return false;
}

coroutine_fn void blk_co_drain_node_closes(struct blk_node *node)
{
    node->closing = BLK_CLOSE_WAITS;
    while (blk_node_writable(node) && held_by_others(node)) /* D4; one that is read-only writes nothing */
        co_cond_wait(&changed, NULL);
    node->closing = BLK_CLOSES;
    forget(NULL, node);
    node->opened = false;
}

void blk_drain_node_opened(struct blk_node *node)
{
    node->opened = true;
    if (node->drained && node->driver->drain_begin)
        node->driver->drain_begin(node);
}

bool blk_drain_is_ours(const struct blk_front *front)
{
    const struct section *section;
    const struct hold *hold;

    list_for_each(section, &sections, link) {
        list_for_each(hold, &section->holds, in_section) {
            if (hold->front == front && section->owner != co_self())
                return false;
        }
    }
    return is_held(front);
}

/* ---- the drainer's side ---- */

static coroutine_fn void co_settle(struct hold *hold)
{
    struct blk_front *front = hold->front;
    struct blk_node *node = hold->node;

    if (node && node->closing == BLK_CLOSES) {
        co_cond_wait(&changed, NULL); /* D4: when it is gone the hold is forgotten */
        return;
    }
    hold->settled = true;
    if (front) {
        front_ref(front); /* D3 */
        blk_co_front_settle(front);
        front_unref(front);
    } else if (node->opened && node->driver->co_drain_settle) {
        bool stays = node->closing == BLK_STAYS;
        if (stays)
            blk_node_ref(node);
        if (stays || blk_node_writable(node)) /* else its close does not wait for us, and there is nothing to settle */
            node->driver->co_drain_settle(node);
        if (stays)
            blk_co_node_unref(node);
    }
}

static struct hold *first_unsettled(const struct section *section)
{
    struct hold *hold;

    list_for_each(hold, &section->holds, in_section) {
        if (!hold->settled)
            return hold;
    }
    return NULL;
}

coroutine_fn void blk_co_drain_begin(struct blk_node *node)
{
    struct section *section = xcalloc(1, sizeof(*section));
    struct hold *hold;

    section->node = node;
    section->owner = co_self();
    list_init(&section->holds);
    list_append(&sections, &section->link);
    hold_above(section, node);
    testpoint_co("block-drain-held");
    while ((hold = first_unsettled(section)))
        co_settle(hold);
}

/* The newest section of this node that the caller has begun ends first. Another's may be in the middle of its wait. */
static struct section *newest_of(const struct blk_node *node)
{
    for (struct list *at = sections.prev; at != &sections; at = at->prev) {
        struct section *section = list_entry(at, struct section, link);
        if (section->node == node && section->owner == co_self())
            return section;
    }
    return NULL;
}

void blk_drain_end(struct blk_node *node)
{
    struct section *section = newest_of(node);

    assert(section);
    list_remove(&section->link);
    /* Drivers before front ends: what comes in finds them at work again. */
    for (int fronts = 0; fronts < 2; fronts++) {
        struct hold *hold, *next;
        list_for_each_safe(hold, next, &section->holds, in_section) {
            if ((hold->front != NULL) == fronts)
                drop_hold(hold);
        }
    }
    free(section);
    co_cond_broadcast(&changed);
}
