/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The graph: nodes, the links between them, reference counts, names.
 *
 * A link (struct blk_child) owns a reference on the node below. Links change on the main loop only, and below a node
 * that serves requests only while it is drained, so requests walk `file` and `backing` without a lock.
 */
#include "drain.h"
#include "front_internal.h"
#include "graph.h"
#include "perm.h"

#include <base/compiler.h>
#include <base/epoch.h>
#include <assert.h>
#include <block/bitmap.h>
#include <block/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u

/* Guards the lists of parents against those who walk up them on other loops (epoch.c). A leaf, held for a few
 * instructions. */
static pthread_mutex_t links_lock = PTHREAD_MUTEX_INITIALIZER;

void blk_links_lock(void) { pthread_mutex_lock(&links_lock); }
void blk_links_unlock(void) { pthread_mutex_unlock(&links_lock); }

static struct list nodes = { &nodes, &nodes };
static unsigned next_number;

struct blk_node *blk_node_new(const struct blk_driver *driver, const char *name, unsigned flags)
{
    struct blk_node *node = xcalloc(1, sizeof(*node));

    node->driver = driver;
    node->state = driver->state_size ? xcalloc(1, driver->state_size) : NULL;
    node->name = name ? xstrdup(name) : xasprintf("#block%03u", next_number++);
    node->open_flags = flags;
    node->references = 1;
    node->limits.request_alignment = 1;
    node->limits.memory_alignment = 1;
    node->loop = loop_current();
    node->epoch = epoch_domain_new();
    list_init(&node->children);
    list_init(&node->parents);
    list_init(&node->tracked);
    list_init(&node->bitmaps);
    pthread_mutex_init(&node->tracked_lock, NULL);
    co_cond_init(&node->tracked_changed);
    list_append(&nodes, &node->in_graph);
    return node;
}

void blk_node_free(struct blk_node *node)
{
    blk_drain_forget_node(node);
    blk_bitmaps_free(node);
    list_remove(&node->in_graph);
    epoch_domain_unref(node->epoch);
    co_cond_finish(&node->tracked_changed);
    pthread_mutex_destroy(&node->tracked_lock);
    opts_free(node->options);
    free(node->filename);
    free(node->name);
    free(node->state);
    free(node);
}

static void set_shortcut(struct blk_node *parent, const char *role, struct blk_node *node)
{
    if (strcmp(role, "file") == 0)
        parent->file = node;
    else if (strcmp(role, "backing") == 0)
        parent->backing = node;
    else if (strcmp(role, "data-file") == 0)
        parent->data = node;
}

struct blk_child *blk_child_attach(struct blk_node *parent, struct blk_front *front, const char *role,
                                   struct blk_node *node)
{
    struct blk_child *child = xcalloc(1, sizeof(*child));

    child->node = node;
    child->parent = parent;
    child->front = front;
    child->role = xstrdup(role);
    child->shared = BLK_PERM_ALL;
    list_init(&child->in_parent);
    blk_links_lock();
    list_append(&node->parents, &child->in_node);
    blk_links_unlock();
    if (parent) {
        list_append(&parent->children, &child->in_parent);
        set_shortcut(parent, role, node);
    }
    blk_drain_link_added(child);
    return child;
}

struct blk_node *blk_child_detach(struct blk_child *child)
{
    struct blk_node *node = child->node;

    blk_links_lock();
    list_remove(&child->in_node);
    blk_links_unlock();
    list_remove(&child->in_parent);
    if (child->parent)
        set_shortcut(child->parent, child->role, NULL);
    free(child->role);
    free(child);
    blk_perm_refresh(node);
    return node;
}

void blk_filter_follow(struct blk_node *node)
{
    node->limits = node->file->limits;
    atomic_store(&node->size, blk_node_size(node->file));
}

/* Returns whether the node takes anything from its child. */
static bool follow_child(struct blk_node *node)
{
    if (node->driver->child_changed)
        node->driver->child_changed(node);
    else if (node->driver->flags & BLK_DRIVER_FILTER)
        blk_filter_follow(node);
    else
        return false;
    return true;
}

void blk_node_report_size(struct blk_node *node)
{
    struct blk_child *link;

    list_for_each(link, &node->parents, in_node) {
        if (link->front) {
            front_report_size(link->front);
        } else if (link->parent->opened && follow_child(link->parent)) {
            blk_node_report_size(link->parent);
        }
    }
}

static struct blk_node *find(const char *name, bool half_open)
{
    struct blk_node *node;

    list_for_each(node, &nodes, in_graph) {
        if (strcmp(node->name, name) == 0 && !node->closing && (node->opened || half_open))
            return node;
    }
    return NULL;
}

struct blk_node *blk_node_find(const char *name) { return find(name, false); }
bool blk_node_name_taken(const char *name) { return find(name, true); }

struct blk_node *blk_node_ref(struct blk_node *node)
{
    assert(!node->closing);
    node->references++;
    return node;
}

coroutine_fn int blk_co_node_unref(struct blk_node *node)
{
    if (!node || --node->references > 0)
        return 0;

    blk_co_drain_node_closes(node);
    int ret = node->driver->co_close ? node->driver->co_close(node) : 0;
    while (!list_empty(&node->children)) {
        struct blk_child *child = list_last(&node->children, struct blk_child, in_parent);
        node->closing_child = blk_child_detach(child);
        int child_ret = blk_co_node_unref(node->closing_child);
        node->closing_child = NULL;
        if (ret == 0)
            ret = child_ret;
    }
    blk_node_free(node);
    return ret;
}

struct blk_node *blk_node_child(const struct blk_node *node, const char *role)
{
    const struct blk_child *child;

    list_for_each(child, &node->children, in_parent) {
        if (strcmp(child->role, role) == 0)
            return child->node;
    }
    return NULL;
}

bool blk_node_grows(const struct blk_node *node)
{
    while (node && (node->driver->flags & BLK_DRIVER_GROWS) && (!node->driver->grows || node->driver->grows(node))) {
        if (node->driver->flags & BLK_DRIVER_PROTOCOL)
            return true;
        node = node->file;
    }
    return false;
}

struct blk_node *blk_node_protocol(struct blk_node *node)
{
    while (node && !(node->driver->flags & BLK_DRIVER_PROTOCOL))
        node = node->file;
    return node;
}

struct blk_node *blk_node_below_filters(struct blk_node *node)
{
    while (node && (node->driver->flags & BLK_DRIVER_FILTER))
        node = node->file;
    return node;
}

struct blk_node *blk_node_backing(struct blk_node *node)
{
    node = blk_node_below_filters(node);
    return node ? node->backing : NULL;
}

/* A buffer of whole pages starts with a page: a 4 KiB request across two pages is two segments to the host's disk, and
 * costs it up to a fifth of its speed. */
void *blk_buffer_alloc(const struct blk_node *node, uint64_t size)
{
    size_t alignment = size >= PAGE ? PAGE : sizeof(void *);

    for (; node; node = node->file) {
        alignment = MAX(alignment, (size_t)node->limits.memory_alignment);
        alignment = MAX(alignment, (size_t)node->limits.request_alignment);
    }
    if (size > SIZE_MAX - alignment)
        return NULL;
    return aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
}

void blk_node_cancel(struct blk_node *node, bool for_good)
{
    const struct blk_child *link;

    if (node->driver->cancel)
        node->driver->cancel(node, for_good);
    list_for_each(link, &node->children, in_parent)
        blk_node_cancel(link->node, for_good);
    if (node->closing_child)
        blk_node_cancel(node->closing_child, for_good);
}
