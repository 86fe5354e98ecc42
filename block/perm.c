/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Permissions: what each parent does with a node (perm) and lets others do meanwhile (shared), as QEMU has them.
 *
 * Invariant: what one parent does, every other parent of the same node shares. A node passes on to each child what it
 * needs there: a filter the same as is asked of it, a format what its own metadata needs, a backing child only reading. At
 * a protocol node the sum becomes locks on the image (driver->set_perm), which carry the same rule to other processes.
 */
#include "graph.h"

#include <base/compiler.h>
#include <errno.h>
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

/* Does `child`, as it now stands, get on with the node's other parents? */
static int check_conflicts(const struct blk_child *child, struct error **errp)
{
    const struct blk_child *other;

    list_for_each(other, &child->node->parents, in_node) {
        if (other == child)
            continue;
        unsigned refused = child->perm & ~other->shared;
        if (refused)
            return error_set(errp, -EPERM, "Conflicts with use by %s as '%s', which does not allow '%s' on %s",
                             user_name(other), other->role, perm_name(refused & -refused), child->node->name);
        refused = other->perm & ~child->shared;
        if (refused)
            return error_set(errp, -EPERM, "Conflicts with use by %s as '%s', which uses '%s' on %s", user_name(other),
                             other->role, perm_name(refused & -refused), child->node->name);
    }
    return 0;
}

/* Brings the locks and all children of `node` in line with what its parents now ask. */
static int refresh(struct blk_node *node, struct error **errp)
{
    unsigned perm, shared;
    struct blk_child *child;

    sum_of_parents(node, &perm, &shared);
    if (node->driver->set_perm) {
        int ret = node->driver->set_perm(node, perm, shared, errp);
        if (ret < 0)
            return ret;
    }
    list_for_each(child, &node->children, in_parent) {
        unsigned child_perm, child_shared;

        if (node->driver->child_perm)
            node->driver->child_perm(node, child->role, perm, shared, &child_perm, &child_shared);
        else
            rules_by_role(node, child->role, perm, shared, &child_perm, &child_shared);
        int ret = blk_perm_set_child(child, child_perm, child_shared, errp);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int blk_perm_set_child(struct blk_child *child, unsigned perm, unsigned shared, struct error **errp)
{
    unsigned old_perm = child->perm, old_shared = child->shared;

    child->perm = perm;
    child->shared = shared;
    int ret = check_conflicts(child, errp);
    if (ret == 0)
        ret = refresh(child->node, errp);
    if (ret < 0) {
        child->perm = old_perm;
        child->shared = old_shared;
        refresh(child->node, NULL); /* back to what was granted before: cannot conflict */
    }
    return ret;
}

void blk_perm_refresh(struct blk_node *node) { refresh(node, NULL); }
