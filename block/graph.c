/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The graph: nodes, the links between them, reference counts, names.
 *
 * A link (struct blk_child) owns a reference on the node below. Links change on the main loop only, and below a node that
 * serves requests only while it is drained, so requests walk `file` and `backing` without a lock.
 */
#include "graph.h"

#include <base/compiler.h>
#include <block/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u

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
    list_init(&node->children);
    list_init(&node->parents);
    list_init(&node->tracked);
    pthread_mutex_init(&node->tracked_lock, NULL);
    co_cond_init(&node->tracked_changed);
    list_append(&nodes, &node->in_graph);
    return node;
}

void blk_node_free(struct blk_node *node)
{
    list_remove(&node->in_graph);
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
    list_append(&node->parents, &child->in_node);
    if (parent) {
        list_append(&parent->children, &child->in_parent);
        set_shortcut(parent, role, node);
    }
    return child;
}

struct blk_node *blk_child_detach(struct blk_child *child)
{
    struct blk_node *node = child->node;

    list_remove(&child->in_node);
    list_remove(&child->in_parent);
    if (child->parent)
        set_shortcut(child->parent, child->role, NULL);
    free(child->role);
    free(child);
    blk_perm_refresh(node);
    return node;
}

struct blk_node *blk_node_find(const char *name)
{
    struct blk_node *node;

    list_for_each(node, &nodes, in_graph) {
        if (strcmp(node->name, name) == 0)
            return node;
    }
    return NULL;
}

struct blk_node *blk_node_ref(struct blk_node *node)
{
    node->references++;
    return node;
}

coroutine_fn int blk_co_node_unref(struct blk_node *node)
{
    if (!node || --node->references > 0)
        return 0;

    int ret = node->driver->co_close ? node->driver->co_close(node) : 0;
    while (!list_empty(&node->children)) {
        struct blk_child *child = list_last(&node->children, struct blk_child, in_parent);
        int child_ret = blk_co_node_unref(blk_child_detach(child));
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

void blk_node_each(void (*fn)(struct blk_node *node, void *arg), void *arg)
{
    struct blk_node *node, *next;

    list_for_each_safe(node, next, &nodes, in_graph)
        fn(node, arg);
}

struct blk_node *blk_node_protocol(struct blk_node *node)
{
    while (node && !(node->driver->flags & BLK_DRIVER_PROTOCOL))
        node = node->file;
    return node;
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
