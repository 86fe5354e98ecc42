/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * reopen: the open image, and the nodes below it, get other flags and options, all of them or none (block/change.h).
 */
#include "io.h"

#include <block/change.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const cache_keys[] = { "cache.direct", "cache.no-flush", "cache.writeback" };

struct reopen_args {
    struct image_source source;
    struct opts *options; /* -o */
    bool access, cache;   /* -r or -w, -c were given */
};

/* ---- which node an option is for ---- */

struct set {
    struct blk_reopen *items;
    size_t count;
    struct blk_node *top;
    bool write_cache;
};

/* Down to the node that a key with the roles of children in front is for. Returns what is left of the key. */
static const char *find_node(struct blk_node **node, const char *key)
{
    const struct blk_child *child;

again:
    list_for_each(child, &(*node)->children, in_parent) {
        size_t length = strlen(child->role);
        if (strncmp(key, child->role, length) == 0 && key[length] == '.') {
            *node = child->node;
            key += length + 1;
            goto again;
        }
    }
    return key;
}

static struct opts *options_of(struct set *set, struct blk_node *node)
{
    for (size_t i = 0; i < set->count; i++) {
        if (set->items[i].node == node)
            return (struct opts *)(uintptr_t)set->items[i].opts;
    }
    set->items = xrealloc(set->items, (set->count + 1) * sizeof(*set->items));
    set->items[set->count] = (struct blk_reopen){ .node = node, .opts = opts_new() };
    return (struct opts *)(uintptr_t)set->items[set->count++].opts;
}

static void add_option(const char *whole_key, const char *value, void *arg)
{
    struct set *set = arg;
    struct blk_node *node = set->top;
    const char *key = find_node(&node, whole_key);

    /* The front end's, and so no option of a node. */
    if (node == set->top && strcmp(key, "cache.writeback") == 0 && set->write_cache == (strcmp(value, "on") == 0))
        return;
    opts_set(options_of(set, node), key, value);
}

static int check_options(const struct reopen_args *args, struct error **errp)
{
    bool cache_options = false;

    for (size_t i = 0; i < ARRAY_SIZE(cache_keys); i++)
        cache_options = cache_options || opts_has(args->options, cache_keys[i]);
    if (args->access && opts_has(args->options, "read-only"))
        return error_set(errp, -EINVAL, "Cannot set both -r/-w and 'read-only'");
    if (args->cache && cache_options)
        return error_set(errp, -EINVAL, "Cannot set both -c and the cache options");
    return 0;
}

/* ---- the command ---- */

/* 0 to go on. */
static int parse(int argc, char **argv, struct reopen_args *args)
{
    int option;

    while ((option = getopt(argc, argv, "c:o:rw")) != -1) {
        bool good = true;
        switch (option) {
        case 'c':
            args->cache = true;
            good = io_cache_arg(&args->source, optarg);
            break;
        case 'o': good = io_options_arg(args->options, optarg); break;
        case 'r':
        case 'w':
            good = !args->access;
            if (args->access)
                error_report("Only one -r/-w option may be given");
            args->access = true;
            args->source.flags = (args->source.flags & ~(unsigned)BLK_O_RDWR) | (option == 'w' ? BLK_O_RDWR : 0u);
            break;
        default: return io_usage("reopen");
        }
        if (!good)
            return -EINVAL;
    }
    return optind == argc ? 0 : io_usage("reopen");
}

/* Whoever writes asks for it, and an image that is to be read-only has no writer. */
static int set_perm(struct io_session *session, bool writes, struct error **errp)
{
    unsigned perm = BLK_PERM_CONSISTENT_READ | (writes ? BLK_PERM_WRITE : 0u);

    return blk_front_set_perm(session->front, perm, BLK_PERM_ALL, errp);
}

coroutine_fn int io_co_reopen(struct io_session *session, const struct image_source *source, const struct opts *options,
                              struct error **errp)
{
    struct set set = { .top = blk_front_node(session->front), .write_cache = blk_front_write_cache(session->front) };
    bool was_writable = blk_front_writable(session->front), read_only = false;

    options_of(&set, set.top);
    opts_each(options, add_option, &set);
    set.items[0].set = source->flags & ~session->source.flags;
    set.items[0].clear = session->source.flags & ~source->flags;
    opts_bool((struct opts *)(uintptr_t)set.items[0].opts, blk_node_options, "read-only", &read_only, NULL);
    io_co_wait_for_aio(session);
    int ret = was_writable && (read_only || !(source->flags & BLK_O_RDWR)) ? set_perm(session, false, errp) : 0;
    if (ret == 0)
        ret = blk_co_reopen(set.items, set.count, errp);
    bool writes = blk_front_writable(session->front);
    if (ret == 0 && writes != was_writable)
        ret = set_perm(session, writes, errp);
    else if (ret < 0 && was_writable)
        set_perm(session, true, NULL); /* as before: nobody can have come between */
    for (size_t i = 0; i < set.count; i++)
        opts_free((struct opts *)(uintptr_t)set.items[i].opts);
    free(set.items);
    return ret;
}

/* What -o changed has no flag in the arguments. The next reopen begins from what is so. */
static void keep_flags(struct io_session *session, unsigned flags)
{
    const unsigned options = BLK_O_RDWR | BLK_O_DIRECT | BLK_O_NO_FLUSH;
    unsigned now = blk_front_node(session->front)->open_flags;

    session->source.flags = (flags & ~options) | (now & options);
}

static coroutine_fn int co_run_reopen(struct io_session *session, int argc, char **argv)
{
    struct reopen_args args = { .source = session->source, .options = opts_new() };
    struct error *error = NULL;
    int ret = parse(argc, argv, &args);

    if (ret == 0)
        ret = check_options(&args, &error);
    if (ret == 0)
        ret = io_co_reopen(session, &args.source, args.options, &error);
    if (ret == 0) {
        keep_flags(session, args.source.flags);
        if (args.cache)
            blk_front_set_write_cache(session->front, !args.source.no_write_cache);
    }
    error_report_free(error);
    opts_free(args.options);
    return ret;
}

static struct io_command reopen_command = {
    .name = "reopen",
    .max_args = -1,
    .args = "[(-r|-w)] [-c cache] [-o options]",
    .summary = "reopens an image with new options",
    .help = " -r  read-only   -w  for writing   -c  another cache mode   -o  options, as for open\n",
    .co_run = co_run_reopen,
};
IO_COMMAND(reopen_command)
