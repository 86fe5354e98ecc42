/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reopening a set of nodes, all or none.
 *
 *   1. The set, parents before children: children that a node opened itself follow it.
 *   2. Drain them all, and flush what is written.
 *   3. New backing children are linked beside the old ones. The new flags are in force for permissions: locks that are
 *      new are taken, old ones still held.
 *   4. Drivers prepare: the new state is made beside the old one. A format writes back what it must not keep.
 *   5. All switch. A driver's switch is its own inverse, so that this can be taken back.
 *   6. Formats begin with what the new flags allow: marks and repairs, under the locks of step 3.
 *   7. Old locks and old states go.
 * A failure in step 6 switches all back; one before that has changed nothing.
 */
#include "drain.h"
#include "front_internal.h"
#include "graph.h"
#include "links.h"
#include "open.h"

#include <base/compiler.h>
#include <block/change.h>
#include <block/image.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* What follows the parent: how an image is opened, not what it is. */
#define INHERITED (BLK_O_RDWR | BLK_O_DIRECT | BLK_O_DSYNC | BLK_O_NO_FLUSH)

struct item {
    struct blk_node *node;
    struct opts *opts; /* those of the open node, with what is given anew on top */
    struct opts *given;
    unsigned old_flags, flags;
    bool drained, prepared;
    bool other_backing; /* `backing` is given, and another than now */
    struct blk_node *backing;
    struct blk_backing_change backing_change;
    bool backing_begun;
};

struct set {
    struct item *items;
    size_t count;
};

/* ---- the set ---- */

static struct item *find(struct set *set, const struct blk_node *node)
{
    for (size_t i = 0; i < set->count; i++) {
        if (set->items[i].node == node)
            return &set->items[i];
    }
    return NULL;
}

static void put_option(const char *key, const char *value, void *arg)
{
    struct item *item = arg;

    opts_copy(item->opts, item->given, key);
}

/* "backing": the name of a node, or null. It goes from what is given to the item. */
static int take_backing(struct item *item, struct error **errp)
{
    struct blk_node *node = item->node;
    const char *name = opts_text(item->given, "backing");

    if (!name)
        return 0;
    json_t *value = opts_json_value(item->given, "backing");
    bool none = json_is_null(value);
    json_decref(value);
    struct blk_node *backing = none ? NULL : blk_node_find(name);
    if (!none && !backing)
        return error_set(errp, -ENODEV, "Cannot find device='%s' nor node-name='%s'", name, name);
    opts_free(opts_take_prefix(item->opts, "backing"));
    opts_copy(item->opts, item->given, "backing");
    opts_del(item->given, "backing");
    item->other_backing = backing != node->backing;
    item->backing = backing && item->other_backing ? blk_node_ref(backing) : NULL;
    return 0;
}

/* Only options that may change, unless they say what is so already. */
static int check_given(const struct item *item, struct error **errp)
{
    const struct opt_desc *tables[] = { item->node->driver->options, blk_node_options };
    const char *key;

    for (size_t i = 0; (key = opts_key(item->given, i)); i++) {
        const char *now = opts_text(item->node->options, key), *wanted = opts_text(item->given, key);
        const struct opt_desc *desc = tables[0] ? opts_find(tables[0], key) : NULL;
        if (!desc)
            desc = opts_find(tables[1], key);
        if ((now && strcmp(now, wanted) == 0) || (desc && (desc->flags & OPT_REOPEN)))
            continue;
        if (strcmp(key, "driver") == 0 && strcmp(wanted, item->node->driver->name) == 0)
            continue;
        if (strcmp(key, "node-name") == 0 && strcmp(wanted, item->node->name) == 0)
            continue;
        return error_set(errp, -EINVAL, "Cannot change the option '%s'", key);
    }
    return 0;
}

static int add(struct set *set, struct blk_node *node, const struct opts *given, unsigned base, struct error **errp)
{
    set->items = xrealloc(set->items, (set->count + 1) * sizeof(*set->items));
    struct item *item = &set->items[set->count++];

    *item = (struct item){ .node = blk_node_ref(node), .old_flags = node->open_flags, .flags = base };
    item->opts = opts_clone(node->options);
    item->given = given ? opts_clone(given) : opts_new();
    int ret = take_backing(item, errp);
    if (ret == 0)
        ret = check_given(item, errp);
    if (ret == 0)
        opts_each(item->given, put_option, item);
    return ret;
}

/* A child that the node opened itself, from its own options or by the image's word. */
static int follow(struct set *set, const struct item *parent, struct error **errp)
{
    struct blk_node *node = parent->node;
    unsigned changed = (parent->flags ^ parent->old_flags) & INHERITED, flags = parent->flags;
    struct blk_child *link;

    list_for_each(link, &node->children, in_parent) {
        unsigned wanted = blk_child_flags(link->role, flags), old = link->node->open_flags;
        if (!link->follows || find(set, link->node) || ((wanted ^ old) & changed) == 0)
            continue;
        unsigned base = (old & ~changed) | (wanted & changed);
        struct opts *own = opts_clone(link->node->options);
        int ret = blk_take_flags(own, &base, errp); /* its own words count more than its parent's */
        opts_free(own);
        if (ret == 0)
            ret = add(set, link->node, NULL, base, errp);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* What is written from now on has no image below whose format was guessed, as if it had been opened so. */
static int refuse_guessed(const struct set *set, struct error **errp)
{
    for (size_t i = 0; i < set->count; i++) {
        const struct item *item = &set->items[i];
        const struct blk_node *below = item->other_backing ? item->backing : item->node->backing;
        if (!(item->flags & BLK_O_RDWR) || (item->old_flags & BLK_O_RDWR))
            continue;
        while (below) {
            if (below->open_flags & BLK_O_PROBED)
                return blk_refuse_guess(below->filename, errp);
            below = below->driver->flags & BLK_DRIVER_FILTER ? below->file : below->backing;
        }
    }
    return 0;
}

static int collect(struct set *set, const struct blk_reopen *wanted, size_t count, struct error **errp)
{
    int ret = 0;

    for (size_t i = 0; i < count && ret == 0; i++) {
        unsigned base = (wanted[i].node->open_flags & ~wanted[i].clear) | wanted[i].set;
        if (find(set, wanted[i].node))
            return error_set(errp, -EINVAL, "Node '%s' is given twice", wanted[i].node->name);
        ret = add(set, wanted[i].node, wanted[i].opts, base, errp);
        if (ret == 0)
            ret = blk_take_flags(set->items[set->count - 1].given, &set->items[set->count - 1].flags, errp);
    }
    for (size_t i = 0; i < set->count && ret == 0; i++) {
        struct item parent = set->items[i]; /* the array moves */
        ret = follow(set, &parent, errp);
    }
    return ret == 0 ? refuse_guessed(set, errp) : ret;
}

static coroutine_fn void co_free_set(struct set *set)
{
    for (size_t i = set->count; i > 0; i--) {
        struct item *item = &set->items[i - 1];
        if (item->drained)
            blk_drain_end(item->node);
        opts_free(item->opts);
        opts_free(item->given);
        blk_co_node_unref(item->backing);
        blk_co_node_unref(item->node);
    }
    free(set->items);
}

/* ---- steps ---- */

static coroutine_fn int co_quiesce(struct set *set, struct error **errp)
{
    for (size_t i = 0; i < set->count; i++) {
        blk_co_drain_begin(set->items[i].node);
        set->items[i].drained = true;
    }
    for (size_t i = 0; i < set->count; i++) {
        struct blk_node *node = set->items[i].node;
        int ret = blk_node_writable(node) ? blk_co_flush(node) : 0;
        if (ret < 0)
            return error_set_errno(errp, ret, "Could not flush '%s'", node->name);
    }
    return 0;
}

/* New links to backing children, beside the old ones. */
static int begin_backing(struct set *set, struct error **errp)
{
    int ret = 0;

    for (size_t i = 0; i < set->count && ret == 0; i++) {
        struct item *item = &set->items[i];
        if (!item->other_backing)
            continue;
        ret = blk_backing_begin(&item->backing_change, item->node, item->backing, errp);
        item->backing_begun = ret == 0;
    }
    return ret;
}

static coroutine_fn void co_end_backing(struct set *set, bool ok)
{
    for (size_t i = 0; i < set->count; i++) {
        struct item *item = &set->items[i];
        if (item->backing_begun && ok) {
            int ret = blk_co_backing_commit(&item->backing_change);
            if (ret < 0) /* too late to take the reopen back */
                warn_report("the former backing node of '%s' lost data as it was closed: %s", item->node->name,
                            strerror(-ret));
        } else if (item->backing_begun)
            blk_co_backing_abort(&item->backing_change);
    }
}

static void use_flags(struct set *set, bool new)
{
    for (size_t i = 0; i < set->count; i++)
        set->items[i].node->open_flags = new ? set->items[i].flags : set->items[i].old_flags;
}

static coroutine_fn int co_prepare(struct set *set, struct error **errp)
{
    for (size_t i = 0; i < set->count; i++) {
        struct item *item = &set->items[i];
        const struct blk_driver *driver = item->node->driver;
        if (driver->co_reopen_prepare) {
            int ret = driver->co_reopen_prepare(item->node, item->opts, item->flags, errp);
            if (ret < 0)
                return ret;
        } else if (opts_unused(item->given)) {
            return error_set(errp, -ENOTSUP, "Cannot change the option '%s'", opts_unused(item->given));
        }
        item->prepared = true;
    }
    return 0;
}

static void switch_all(struct set *set)
{
    for (size_t i = set->count; i > 0; i--) {
        struct item *item = &set->items[i - 1];
        if (item->node->driver->reopen_switch)
            item->node->driver->reopen_switch(item->node);
    }
    for (size_t i = set->count; i > 0; i--)
        blk_node_report_size(set->items[i - 1].node); /* limits may be others */
}

static coroutine_fn int co_begin(struct set *set, struct error **errp)
{
    for (size_t i = set->count; i > 0; i--) {
        struct item *item = &set->items[i - 1];
        const struct blk_driver *driver = item->node->driver;
        int ret = driver->co_reopen_begin ? driver->co_reopen_begin(item->node, item->old_flags, errp) : 0;
        if (ret < 0)
            return ret;
    }
    return 0;
}

static coroutine_fn void co_clean(struct set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        struct item *item = &set->items[i];
        if (item->prepared && item->node->driver->co_reopen_clean)
            item->node->driver->co_reopen_clean(item->node);
    }
}

static void tell_fronts(const struct set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        struct blk_node *node = set->items[i].node;
        struct blk_child *link;
        list_for_each(link, &node->parents, in_node) {
            if (link->front)
                link->front->open_flags = node->open_flags;
        }
    }
}

static void keep_options(struct set *set)
{
    for (size_t i = 0; i < set->count; i++) {
        struct item *item = &set->items[i];
        struct opts *old = item->node->options;
        item->node->options = item->opts;
        item->opts = old;
        blk_node_name_file(item->node);
    }
}

/* Steps 4 to 6: on failure all is as it was, but for the flags and the permissions. */
static coroutine_fn int co_change_drivers(struct set *set, struct error **errp)
{
    use_flags(set, false);
    int ret = co_prepare(set, errp);
    if (ret == 0) {
        use_flags(set, true);
        switch_all(set);
        ret = co_begin(set, errp);
        if (ret < 0) {
            use_flags(set, false);
            switch_all(set);
        }
    }
    co_clean(set);
    return ret;
}

static coroutine_fn int co_reopen(struct set *set, struct error **errp)
{
    struct blk_perm_change change;
    int ret = co_quiesce(set, errp);

    if (ret == 0)
        ret = begin_backing(set, errp);
    if (ret < 0) {
        co_end_backing(set, false);
        return ret;
    }
    use_flags(set, true);
    blk_perm_begin(&change);
    for (size_t i = 0; i < set->count; i++)
        blk_perm_node(&change, set->items[i].node);
    ret = blk_perm_prepare(&change, errp);
    if (ret == 0) {
        blk_perm_keep(&change);
        ret = co_change_drivers(set, errp);
        if (ret == 0)
            blk_perm_commit(&change);
        else
            blk_perm_abort(&change);
    }
    if (ret == 0) {
        keep_options(set);
        tell_fronts(set);
    } else {
        use_flags(set, false);
    }
    co_end_backing(set, ret == 0);
    return ret;
}

coroutine_fn int blk_co_reopen(const struct blk_reopen *items, size_t count, struct error **errp)
{
    struct set set = { 0 };

    blk_co_changes_lock();
    int ret = collect(&set, items, count, errp);
    if (ret == 0)
        ret = co_reopen(&set, errp);
    co_free_set(&set);
    blk_changes_unlock();
    return ret;
}
