/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes of a graph while requests run (change.h). Each goes through the same steps:
 *
 *   1. its turn: one change at a time;
 *   2. drain what is changed: nobody is on the way through the links that move;
 *   3. move the links in memory;
 *   4. permissions, as one transaction over all nodes that are concerned; if that fails, move the links back;
 *   5. parents take over size and limits, front ends hear of it;
 *   6. the drained sections end, and what waited goes the new way.
 */
#include "drain.h"
#include "front_internal.h"
#include "graph.h"
#include "links.h"

#include <base/compiler.h>
#include <block/change.h>
#include <block/image.h>
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- turns ---- */

static struct co_mutex changes;

__attribute__((constructor)) static void changes_init(void) { co_mutex_init(&changes); }

coroutine_fn void blk_co_changes_lock(void) { co_mutex_lock(&changes); }
void blk_changes_unlock(void) { co_mutex_unlock(&changes); }

/* ---- links ---- */

bool blk_is_at_or_below(const struct blk_node *node, const struct blk_node *below)
{
    const struct blk_child *link;

    if (node == below)
        return true;
    list_for_each(link, &node->children, in_parent) {
        if (blk_is_at_or_below(link->node, below))
            return true;
    }
    return false;
}

void blk_link_move(struct blk_child *link, struct blk_node *to)
{
    struct blk_node *from = link->node;

    blk_links_lock();
    list_remove(&link->in_node);
    list_append(&to->parents, &link->in_node);
    blk_links_unlock();
    link->node = to;
    to->references++;
    assert(from->references > 1); /* the caller has one */
    from->references--;
    if (link->front) {
        link->front->node = to;
        link->front->open_flags = to->open_flags;
    } else if (strcmp(link->role, "backing") == 0) {
        link->parent->backing = to;
    } else if (strcmp(link->role, "data-file") == 0) {
        link->parent->data = to;
    } else if (link->parent->file == from) {
        link->parent->file = to;
    }
    blk_drain_link_added(link);
}

void blk_node_report_change(struct blk_node *node)
{
    struct blk_child *link;

    list_for_each(link, &node->parents, in_node) {
        if (link->front)
            front_report_medium(link->front);
    }
    blk_node_report_size(node);
}

/* ---- replace ---- */

struct moves {
    struct blk_child **links;
    size_t count;
};

/* Those of the parents of `from` that are to get `to`. */
static int collect(struct moves *moves, struct blk_node *from, struct blk_node *to, struct error **errp)
{
    struct blk_child *link;
    size_t room = 0;

    list_for_each(link, &from->parents, in_node)
        room++;
    moves->links = xcalloc(room + 1, sizeof(struct blk_child *));
    moves->count = 0;
    list_for_each(link, &from->parents, in_node) {
        if (link->parent && blk_is_at_or_below(to, link->parent))
            continue; /* it would be above itself */
        if (link->parent && blk_node_size(to) < blk_node_size(from))
            return error_set(errp, -EINVAL, "Node '%s' is smaller than '%s', which it would replace below '%s'",
                             to->name, from->name, link->parent->name);
        moves->links[moves->count++] = link;
    }
    return 0;
}

static int move_and_lock(const struct moves *moves, struct blk_node *from, struct blk_node *to, struct error **errp)
{
    struct blk_perm_change change;

    for (size_t i = 0; i < moves->count; i++)
        blk_link_move(moves->links[i], to);
    blk_perm_begin(&change);
    blk_perm_node(&change, from);
    blk_perm_node(&change, to);
    int ret = blk_perm_prepare(&change, errp);
    if (ret == 0) {
        blk_perm_commit(&change);
        return 0;
    }
    for (size_t i = moves->count; i > 0; i--)
        blk_link_move(moves->links[i - 1], from);
    return ret;
}

/* A filter takes its child's size when it is opened; the child may have grown since then. Drained. */
static void take_over_size(struct blk_node *to, const struct blk_node *from)
{
    if (to->file == from && to->driver->child_changed)
        to->driver->child_changed(to);
}

/* With the turn. */
static coroutine_fn int co_replace(struct blk_node *from, struct blk_node *to, struct error **errp)
{
    struct moves moves = { 0 };

    blk_co_drain_begin(from);
    blk_co_drain_begin(to);
    take_over_size(to, from);
    int ret = collect(&moves, from, to, errp);
    if (ret == 0)
        ret = move_and_lock(&moves, from, to, errp);
    free(moves.links);
    if (ret == 0)
        blk_node_report_change(to);
    blk_drain_end(to);
    blk_drain_end(from);
    return ret;
}

coroutine_fn int blk_co_replace(struct blk_node *from, struct blk_node *to, struct error **errp)
{
    blk_co_changes_lock();
    int ret = from == to ? 0 : co_replace(from, to, errp);
    blk_changes_unlock();
    return ret;
}

/* ---- filters ---- */

coroutine_fn struct blk_node *blk_co_insert_filter(struct blk_node *below, const struct opts *opts, struct error **errp)
{
    struct opts *own = opts_clone(opts);
    const char *name = opts_text(own, "driver");
    const struct blk_driver *driver = name ? blk_driver_find(name) : NULL;
    struct blk_node *filter = NULL;

    if (!driver || !(driver->flags & BLK_DRIVER_FILTER)) {
        error_set(errp, -EINVAL, "'%s' is not a filter driver", name ? name : "");
    } else {
        opts_set(own, driver->child_role ? driver->child_role : "file", below->name);
        filter = blk_co_open(NULL, own, below->open_flags & ~(unsigned)BLK_O_PROBED, errp);
    }
    opts_free(own);
    if (filter && blk_co_replace(below, filter, errp) < 0) {
        blk_co_node_unref(filter);
        filter = NULL;
    }
    return filter;
}

coroutine_fn struct blk_node *blk_co_copy_on_read(struct blk_node *node, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "copy-on-read");
    struct blk_node *filter = blk_co_insert_filter(node, opts, errp);
    opts_free(opts);
    blk_co_node_unref(node);
    return filter;
}

coroutine_fn int blk_co_remove_filter(struct blk_node *filter, struct error **errp)
{
    if (!(filter->driver->flags & BLK_DRIVER_FILTER))
        return error_set(errp, -EINVAL, "Node '%s' is not a filter", filter->name);
    blk_co_changes_lock();
    blk_co_drain_begin(filter);
    /* What it keeps to itself until a flush goes down first; nothing comes after it any more. */
    int ret = blk_node_writable(filter) ? blk_co_flush(filter) : 0;
    if (ret < 0)
        error_set_errno(errp, ret, "Could not flush '%s'", filter->name);
    else
        ret = co_replace(filter, filter->file, errp);
    blk_drain_end(filter);
    blk_changes_unlock();
    return ret;
}

/* ---- backing ---- */

static struct blk_child *link_by_role(struct blk_node *node, const char *role)
{
    struct blk_child *link;

    list_for_each(link, &node->children, in_parent) {
        if (strcmp(link->role, role) == 0)
            return link;
    }
    return NULL;
}

int blk_backing_begin(struct blk_backing_change *change, struct blk_node *node, struct blk_node *backing,
                      struct error **errp)
{
    *change = (struct blk_backing_change){ .node = node };
    if (!(node->driver->flags & BLK_DRIVER_BACKING))
        return error_set(errp, -ENOTSUP, "Driver '%s' of node '%s' does not support backing files", node->driver->name,
                         node->name);
    if (backing && blk_is_at_or_below(backing, node))
        return error_set(errp, -ELOOP, "Making '%s' a backing child of '%s' would create a cycle", backing->name,
                         node->name);
    change->old = link_by_role(node, "backing");
    if (backing)
        change->new = blk_child_attach(node, NULL, "backing", blk_node_ref(backing));
    return 0;
}

static struct blk_node *detach(struct blk_backing_change *change, struct blk_child *gone, struct blk_child *stays)
{
    struct blk_node *node = gone ? blk_child_detach(gone) : NULL;

    change->node->backing = stays ? stays->node : NULL;
    return node;
}

coroutine_fn int blk_co_backing_commit(struct blk_backing_change *change)
{
    return blk_co_node_unref(detach(change, change->old, change->new));
}

coroutine_fn void blk_co_backing_abort(struct blk_backing_change *change)
{
    blk_co_node_unref(detach(change, change->new, change->old));
}

static coroutine_fn int co_set_backing(struct blk_node *node, struct blk_node *backing, struct error **errp)
{
    struct blk_backing_change change;
    int ret = blk_backing_begin(&change, node, backing, errp);

    if (ret == 0 && change.new) {
        ret = blk_perm_attach(change.new, errp);
        if (ret < 0)
            blk_co_backing_abort(&change);
    }
    return ret == 0 ? blk_co_backing_commit(&change) : ret;
}

coroutine_fn int blk_co_set_backing(struct blk_node *node, struct blk_node *backing, struct error **errp)
{
    blk_co_changes_lock();
    blk_co_drain_begin(node);
    int ret = co_set_backing(node, backing, errp);
    blk_drain_end(node);
    blk_changes_unlock();
    return ret;
}
