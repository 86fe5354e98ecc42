/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * reopen: the image is closed and opened anew with what it was opened with before, changed as asked.
 *
 * What cannot change in an open image (its file, its driver, all but what OPT_REOPEN marks) is refused before that.
 */
#include "io.h"

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

/* ---- what may change ---- */

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

static bool may_change(const struct blk_node *node, const char *key)
{
    const struct opt_desc *desc = node->driver->options ? opts_find(node->driver->options, key) : NULL;

    if (!desc)
        desc = opts_find(blk_node_options, key);
    return desc && (desc->flags & OPT_REOPEN);
}

struct check {
    struct blk_node *top;
    struct error *error; /* the first */
};

static void check_option(const char *whole_key, const char *value, void *arg)
{
    struct check *check = arg;
    struct blk_node *node = check->top;
    const char *key = find_node(&node, whole_key);

    if (may_change(node, key))
        return;
    const char *now = strcmp(key, "node-name") == 0 ? node->name : opts_text(node->options, key);
    if (!now || strcmp(now, value) != 0)
        error_set(&check->error, -EINVAL, "Cannot change the option '%s'", key);
}

static int check_options(struct io_session *session, const struct reopen_args *args, struct error **errp)
{
    struct check check = { .top = blk_front_node(session->front) };
    bool cache_options = false;

    for (size_t i = 0; i < ARRAY_SIZE(cache_keys); i++)
        cache_options = cache_options || opts_has(args->options, cache_keys[i]);
    if (args->access && opts_has(args->options, "read-only"))
        return error_set(errp, -EINVAL, "Cannot set both -r/-w and 'read-only'");
    if (args->cache && cache_options)
        return error_set(errp, -EINVAL, "Cannot set both -c and the cache options");
    opts_each(args->options, check_option, &check);
    int ret = check.error ? -EINVAL : 0;
    error_propagate(errp, check.error);
    return ret;
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

static void merge_option(const char *key, const char *value, void *arg) { opts_set(arg, key, value); }

/* What the image was opened with, without what -r, -w and -c replace, and with the new options. */
static struct opts *merged_options(const struct io_session *session, const struct reopen_args *args)
{
    struct opts *options = opts_clone(session->options);

    if (args->access)
        opts_del(options, "read-only");
    for (size_t i = 0; args->cache && i < ARRAY_SIZE(cache_keys); i++)
        opts_del(options, cache_keys[i]);
    opts_each(args->options, merge_option, options);
    return options;
}

static coroutine_fn int co_run_reopen(struct io_session *session, int argc, char **argv)
{
    struct reopen_args args = { .source = session->source, .options = opts_new() };
    struct error *error = NULL;
    int ret = parse(argc, argv, &args);

    if (ret == 0)
        ret = check_options(session, &args, &error);
    if (ret == 0)
        ret = io_co_reopen(session, &args.source, merged_options(session, &args), &error);
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
