/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Permissions: what each parent does with a node (perm) and lets others do meanwhile (shared), as QEMU has them.
 *
 * Invariant P1: what one parent does, every other parent of the same node shares. A node passes on to each child what
 * it needs there: a filter the same as is asked of it, a format what its own metadata needs, a backing child only
 * reading. At a protocol node the sum becomes locks on the image (driver->perm_prepare), which carry the same rule to
 * other processes.
 *
 * A change is a transaction over any number of links and nodes (perm.h): the links say what shall be, what follows
 * below is computed, every node is checked, every lock that is new is taken while the old ones are still held; only
 * then are old ones given up. A step that fails puts everything back.
 *
 * A transaction is over before anybody else runs, but for a reopen's (blk_perm_keep()): what it has in hand nobody else
 * changes meanwhile. Opens wait for its end, front ends are refused, and what a parent that goes leaves behind is given
 * up by the reopen as it ends.
 */
#include "perm.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const perm_names[] = { "consistent read", "write", "write unchanged", "resize" };

static const char *perm_name(unsigned perm) { return perm_names[__builtin_ctz(perm)]; }

static void rules_by_role(struct blk_node *node, const char *role, unsigned perm, unsigned shared, unsigned *child_perm,
                          unsigned *child_shared)
{
    bool writable = blk_node_writable(node);

    if (strcmp(role, "backing") == 0) {
        *child_perm = perm & BLK_PERM_CONSISTENT_READ;
        *child_shared = BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE_UNCHANGED;
        if (shared & BLK_PERM_WRITE)
            *child_shared |= BLK_PERM_WRITE | BLK_PERM_RESIZE;
    } else if (node->driver->flags & BLK_DRIVER_FORMAT) {
        /* A format's metadata moves whenever it is writable, whatever its parents do at the moment. */
        *child_perm = BLK_PERM_CONSISTENT_READ;
        if (writable)
            *child_perm |= BLK_PERM_WRITE | BLK_PERM_RESIZE;
        *child_shared = BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE_UNCHANGED;
    } else {
        *child_perm = perm;
        *child_shared = shared;
    }
    if (node->open_flags & BLK_O_FORCE_SHARE)
        *child_shared = BLK_PERM_ALL;
}

/* ---- what a node's parents ask ---- */

static void sum_of_parents(const struct blk_node *node, unsigned *perm, unsigned *shared)
{
    const struct blk_child *child;

    *perm = 0;
    *shared = BLK_PERM_ALL;
    list_for_each(child, &node->parents, in_node) {
        *perm |= child->perm;
        *shared &= child->shared;
    }
}

static const char *user_name(const struct blk_child *child)
{
    return child->parent ? child->parent->name : "a front end";
}

/* Do all parents of the node get on with each other (P1)? */
static int check_node(const struct blk_node *node, struct error **errp)
{
    const struct blk_child *user, *other;
    unsigned perm, shared;

    sum_of_parents(node, &perm, &shared);
    if ((perm & (BLK_PERM_WRITE | BLK_PERM_RESIZE)) && !blk_node_writable(node))
        return error_set(errp, -EACCES, "Block node is read-only");
    list_for_each(user, &node->parents, in_node) {
        list_for_each(other, &node->parents, in_node) {
            unsigned refused = user == other ? 0 : user->perm & ~other->shared;
            if (refused)
                return error_set(errp, -EPERM, "Conflicts with use by %s as '%s', which does not allow '%s' on %s",
                                 user_name(other), other->role, perm_name(refused & -refused), node->name);
        }
    }
    return 0;
}

/* ---- the transaction that others wait for ---- */

static struct blk_perm_change *kept; /* prepared, and its owner yields; or NULL. Main loop */
static bool kept_too_much;           /* of its nodes somebody needs less since then */
static struct co_cond kept_ended;

__attribute__((constructor)) static void perm_init(void) { co_cond_init(&kept_ended); }

static bool is_kept(const struct blk_perm_change *change, const struct blk_node *node)
{
    for (size_t i = 0; kept && kept != change && i < kept->node_count; i++) {
        if (kept->nodes[i] == node)
            return true;
    }
    return false;
}

static bool is_kept_at_or_below(const struct blk_node *node)
{
    const struct blk_child *link;

    if (is_kept(NULL, node))
        return true;
    list_for_each(link, &node->children, in_parent) {
        if (is_kept_at_or_below(link->node))
            return true;
    }
    return false;
}

coroutine_fn void blk_co_perm_wait(const struct blk_node *node)
{
    while (is_kept_at_or_below(node))
        co_cond_wait(&kept_ended, NULL);
}

void blk_perm_keep(struct blk_perm_change *change) { kept = change; }

/* ---- the transaction ---- */

struct saved_link {
    struct blk_child *link;
    unsigned perm, shared;
};

void blk_perm_begin(struct blk_perm_change *change) { *change = (struct blk_perm_change){ 0 }; }

static void finish(struct blk_perm_change *change)
{
    struct blk_perm_change ended = *change;
    bool refresh = kept == change && kept_too_much;

    if (kept == change) {
        kept = NULL;
        kept_too_much = false;
        co_cond_broadcast(&kept_ended);
    }
    blk_perm_begin(change);
    for (size_t i = 0; i < ended.node_count && refresh; i++)
        blk_perm_refresh(ended.nodes[i]);
    free(ended.links);
    free(ended.nodes);
}

/* The same link may be saved several times: the oldest is put back last. */
static void save_link(struct blk_perm_change *change, struct blk_child *link)
{
    change->links = xrealloc(change->links, (change->link_count + 1) * sizeof(*change->links));
    change->links[change->link_count++] = (struct saved_link){ link, link->perm, link->shared };
}

static void add_node(struct blk_perm_change *change, struct blk_node *node)
{
    for (size_t i = 0; i < change->node_count; i++) {
        if (change->nodes[i] == node)
            return;
    }
    change->nodes = xrealloc(change->nodes, (change->node_count + 1) * sizeof(struct blk_node *));
    change->nodes[change->node_count++] = node;
}

/* What is below follows from what the node's parents ask now. A node that is reached by several ways is computed each
 * time; the last time all its parents' links are right. */
void blk_perm_node(struct blk_perm_change *change, struct blk_node *node)
{
    unsigned perm, shared;
    struct blk_child *link;

    add_node(change, node);
    sum_of_parents(node, &perm, &shared);
    list_for_each(link, &node->children, in_parent) {
        unsigned child_perm, child_shared;

        if (node->driver->child_perm)
            node->driver->child_perm(node, link->role, perm, shared, &child_perm, &child_shared);
        else
            rules_by_role(node, link->role, perm, shared, &child_perm, &child_shared);
        blk_perm_link(change, link, child_perm, child_shared);
    }
}

void blk_perm_link(struct blk_perm_change *change, struct blk_child *link, unsigned perm, unsigned shared)
{
    save_link(change, link);
    link->perm = perm;
    link->shared = shared;
    blk_perm_node(change, link->node);
}

static int prepare_node(struct blk_node *node, struct error **errp)
{
    unsigned perm, shared;

    if (!node->driver->perm_prepare)
        return 0;
    sum_of_parents(node, &perm, &shared);
    return node->driver->perm_prepare(node, perm | node->pinned, shared & ~node->pinned, errp);
}

int blk_perm_prepare(struct blk_perm_change *change, struct error **errp)
{
    int ret = 0;

    for (size_t i = 0; i < change->node_count && ret == 0; i++) {
        if (is_kept(change, change->nodes[i]))
            ret = error_set(errp, -EBUSY, "Node '%s' is being reopened", change->nodes[i]->name);
        else
            ret = check_node(change->nodes[i], errp);
    }
    for (size_t i = 0; i < change->node_count && ret == 0; i++) {
        ret = prepare_node(change->nodes[i], errp);
        change->prepared += ret == 0;
    }
    if (ret < 0)
        blk_perm_abort(change);
    return ret;
}

void blk_perm_commit(struct blk_perm_change *change)
{
    for (size_t i = 0; i < change->prepared; i++) {
        if (change->nodes[i]->driver->perm_commit)
            change->nodes[i]->driver->perm_commit(change->nodes[i]);
    }
    finish(change);
}

void blk_perm_abort(struct blk_perm_change *change)
{
    while (change->link_count > 0) {
        struct saved_link *saved = &change->links[--change->link_count];
        saved->link->perm = saved->perm;
        saved->link->shared = saved->shared;
    }
    while (change->prepared > 0) {
        struct blk_node *node = change->nodes[--change->prepared];
        if (node->driver->perm_abort)
            node->driver->perm_abort(node);
    }
    finish(change);
}

/* ---- whole changes ---- */

static int run(struct blk_perm_change *change, struct error **errp)
{
    int ret = blk_perm_prepare(change, errp);

    if (ret == 0)
        blk_perm_commit(change);
    return ret;
}

int blk_perm_set_child(struct blk_child *child, unsigned perm, unsigned shared, struct error **errp)
{
    struct blk_perm_change change;

    blk_perm_begin(&change);
    blk_perm_link(&change, child, perm, shared);
    return run(&change, errp);
}

int blk_perm_attach(struct blk_child *child, struct error **errp)
{
    struct blk_node *parent = child->parent;
    struct blk_perm_change change;

    blk_perm_begin(&change);
    blk_perm_node(&change, parent);
    return run(&change, errp);
}

void blk_perm_refresh(struct blk_node *node)
{
    struct blk_perm_change change;

    blk_perm_begin(&change);
    blk_perm_node(&change, node);
    if (run(&change, NULL) == -EBUSY)
        kept_too_much = true; /* it is done when that change ends */
}

int blk_perm_pin(struct blk_node *node, unsigned pinned, struct error **errp)
{
    unsigned old = node->pinned;
    struct blk_perm_change change;

    blk_perm_begin(&change);
    node->pinned = pinned;
    blk_perm_node(&change, node);
    int ret = run(&change, errp);
    if (ret < 0)
        node->pinned = old;
    return ret;
}
