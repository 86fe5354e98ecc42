/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * commit: writes what an image has over a backing file into that file, and then empties the image.
 *
 * What the chain shows stays as it is at every moment: the backing file has everything, durably, before the image gives
 * anything up.
 */
#include "command.h"
#include "image.h"
#include "progress.h"
#include "rate.h"
#include "size_arg.h"

#include <base/coroutine.h>
#include <base/crew.h>
#include <base/sync.h>
#include <block/change.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER = 2 << 20, WORKERS = 8, SPREAD_MIN = 8 << 20 };

struct commit_args {
    struct image_source source;
    const char *cache, *filename, *base;
    struct rate rate;
    enum progress_mode progress;
    bool drop, quiet;
};

/* The copying, on several loops. */
struct commit {
    struct blk_front *top, *base;
    uint64_t size;
    struct rate rate;
    struct co_mutex lock; /* all below, and the progress; held across look-ups */
    uint64_t next, done;
    int ret; /* the first error: nobody takes a piece afterwards */
};

struct piece {
    uint64_t offset, length;
    bool zero;
};

/* ---- copying ---- */

/* The next piece that the layers above the base have; of length 0 at the end. */
static coroutine_fn int co_look_up(struct commit *c, struct piece *piece)
{
    struct blk_status status;

    piece->length = 0;
    while (c->ret == 0 && c->next < c->size && piece->length == 0) {
        int ret = blk_co_status(blk_front_node(c->top), blk_front_node(c->base), c->next, c->size - c->next, &status);
        if (ret < 0)
            return ret;
        if (status.present || status.past_end) {
            *piece = (struct piece){ c->next, status.length, status.zero };
            if (!status.zero)
                piece->length = MIN(status.length, BUFFER - c->next % BUFFER);
        } else {
            c->done += status.length;
        }
        c->next += piece->length ? piece->length : status.length;
    }
    return 0;
}

static coroutine_fn int co_take(struct commit *c, struct piece *piece)
{
    co_mutex_lock(&c->lock);
    int ret = co_look_up(c, piece);
    co_mutex_unlock(&c->lock);
    return ret;
}

static coroutine_fn int co_copy_piece(struct commit *c, const struct piece *piece, uint8_t *buffer)
{
    int ret;

    if (piece->zero) {
        ret = blk_front_co_write_zeroes(c->base, piece->offset, piece->length, BLK_REQ_MAY_UNMAP);
    } else {
        ret = blk_front_co_read(c->top, piece->offset, buffer, piece->length);
        if (ret == 0)
            ret = blk_front_co_write(c->base, piece->offset, buffer, piece->length, 0);
    }
    co_mutex_lock(&c->lock);
    c->done += piece->length;
    progress_update(c->done, c->size);
    co_mutex_unlock(&c->lock);
    if (!piece->zero)
        co_rate_keep(&c->rate, piece->length);
    return ret;
}

static coroutine_fn int co_worker(void *arg, size_t number)
{
    (void)number;
    struct commit *c = arg;
    uint8_t *buffer = blk_buffer_alloc(blk_front_node(c->top), BUFFER);
    struct piece piece;
    int ret = buffer ? co_take(c, &piece) : -ENOMEM;

    while (ret == 0 && piece.length) {
        ret = co_copy_piece(c, &piece, buffer);
        if (ret == 0)
            ret = co_take(c, &piece);
    }
    co_mutex_lock(&c->lock);
    if (c->ret == 0)
        c->ret = ret;
    co_mutex_unlock(&c->lock);
    free(buffer);
    return ret;
}

/* The base is durable afterwards. */
static coroutine_fn int co_copy(struct commit *c, struct error **errp)
{
    int ret = 0;

    if (c->size > blk_front_size(c->base))
        ret = blk_front_co_truncate(c->base, c->size, false, "off", errp);
    if (ret < 0)
        return ret;
    co_mutex_init(&c->lock);
    /* A limited speed is one loop's to keep; and what is little is copied before others have begun. */
    if (c->rate.limit || c->size <= SPREAD_MIN)
        ret = co_crew(WORKERS, WORKERS, co_worker, c);
    else
        ret = co_crew_spread(WORKERS, WORKERS, co_worker, c);
    co_mutex_finish(&c->lock);
    if (ret == 0)
        ret = blk_front_co_flush(c->base);
    return ret < 0 ? error_set(errp, ret, "%s", strerror(-ret)) : 0;
}

/* ---- the base ---- */

/* Is that how somebody would call the backing file of `overlay`: as it stands there, or seen from its folder? */
static bool is_called(const struct blk_node *backing, struct blk_node *overlay, const char *name)
{
    if (strcmp(name, backing->filename) == 0)
        return true;
    AUTO_FREE char *path = *name ? blk_path_combine(blk_node_protocol(overlay)->filename, name) : NULL;
    return path && image_same_file(path, backing->filename);
}

static struct blk_node *find_base(const struct commit_args *args, struct blk_node *top)
{
    struct blk_node *backing = blk_node_backing(top);

    if (!backing && !args->base) {
        error_report("Image does not have a backing file");
        return NULL;
    }
    for (struct blk_node *overlay = top; args->base && backing && !is_called(backing, overlay, args->base);) {
        overlay = backing;
        backing = blk_node_backing(overlay);
    }
    if (!backing)
        error_report("Did not find '%s' in the backing chain of '%s'", args->base, args->filename);
    return backing;
}

/* Backing files are open for reading until now. */
static coroutine_fn struct blk_front *co_open_base(struct blk_node *base, bool write_cache)
{
    const struct blk_reopen writable = { .node = base, .set = BLK_O_RDWR | BLK_O_UNMAP };
    struct error *error = NULL;
    struct blk_front *front = NULL;

    if (blk_co_reopen(&writable, 1, &error) == 0)
        front = blk_front_new("", base, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE | BLK_PERM_RESIZE, BLK_PERM_ALL,
                              &error);
    if (front && !write_cache)
        blk_front_set_write_cache(front, false);
    if (!front)
        error_report_free(error);
    return front;
}

/* ---- the command ---- */

static coroutine_fn int co_copy_and_empty(const struct commit_args *args, struct commit *c)
{
    struct blk_node *top = blk_front_node(c->top);
    struct error *error = NULL;

    if (co_copy(c, &error) < 0) {
        error_prepend(&error, "Block job failed: ");
    } else if (!args->drop && blk_co_make_empty(top, &error) < 0) {
        error_prepend(&error, "Failed to empty %s: ", top->filename);
    } else {
        progress_complete();
        return 0;
    }
    error_report_free(error);
    return -1;
}

static coroutine_fn int co_commit(struct blk_front *front, void *arg)
{
    struct commit_args *args = arg;
    struct commit c = { .top = front, .size = blk_front_size(front), .rate = args->rate };
    struct blk_node *base = find_base(args, blk_front_node(front));

    if (!base)
        return 1;
    progress_poll();
    c.base = co_open_base(base, !args->source.no_write_cache);
    int ret = c.base ? co_copy_and_empty(args, &c) : -1;
    if (image_co_close(c.base) < 0)
        ret = -1;
    return ret < 0 ? 1 : 0;
}

static const struct img_option options[] = {
    IMAGE_CHANGE_OPTIONS,
    { 't', "cache", "CACHE", "cache mode for what is written", true },
    { 'b', "base", "FILE", "the backing file to write into, further down the chain; implies -d", true },
    { 'd', "drop", NULL, "leave the image as it is instead of emptying it", true },
    { 'r', "rate-limit", "RATE", "bytes a second", true },
    PROGRESS_OPTION,
    IMAGE_QUIET_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct commit_args *args)
{
    int option, status;

    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 't': args->cache = optarg; break;
        case 'b':
            args->base = optarg;
            args->drop = true; /* the layers between would show something else over it */
            break;
        case 'd': args->drop = true; break;
        case 'p':
            if (!progress_arg(optarg, &args->progress))
                return 1;
            break;
        case 'q': args->quiet = true; break;
        case 'r':
            if (!img_size_arg("rate limit", optarg, 0, INT64_MAX, &args->rate.limit))
                return 1;
            break;
        default:
            status = image_source_arg(&args->source, "commit", option);
            if (status >= 0)
                return status;
        }
    }
    args->filename = image_operand(argc, argv);
    if (!args->filename)
        return 1;
    return image_cache_arg(&args->source, "cache", args->cache) && image_source_valid(&args->source) ? -1 : 1;
}

static coroutine_fn int co_run_commit(int argc, char **argv)
{
    struct commit_args args = { .source = { .flags = BLK_O_RDWR | BLK_O_UNMAP }, .cache = "writeback" };
    int status = parse(argc, argv, &args);

    if (status >= 0)
        return status;
    progress_start(args.quiet ? PROGRESS_OFF : args.progress, 1.0);
    status = image_co_with(args.filename, &args.source, co_commit, &args);
    progress_end();
    if (status == 0 && !args.quiet)
        puts("Image committed.");
    return status;
}

static struct img_command commit = {
    .name = "commit",
    .usage = "[--object OBJECT] [--image-opts] [-q] [-f FMT] [-t CACHE] [-b BASE] [-r RATE_LIMIT] [-d] [-p] FILE",
    .help =
        "Writes what an image has over its backing file, or over the BASE below, into that, and empties the image.\n"
        "-d, which -b implies, leaves it as it is.",
    .options = options,
    .co_run = co_run_commit,
};
IMG_COMMAND(commit)
