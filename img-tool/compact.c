/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * compact: makes an image's file as short as what is in use in it. qemu-img has nothing like it: there the way is to
 * convert into a new file, which needs room for both.
 */
#include "command.h"
#include "image.h"
#include "json_out.h"
#include "progress.h"

#include <block/change.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

struct compact_args {
    struct image_report report;
    const char *cache;
    enum progress_mode progress;
    bool quiet, find_zeroes;
};

static void report_progress(struct blk_compact *compact, uint64_t done, uint64_t total)
{
    (void)compact;
    progress_update(done < total ? done : total, total);
}

static void add(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void print_json(const struct blk_compact *compact, const struct compact_args *args, const char *format)
{
    json_t *object = json_object();

    add(object, "image-end-offset-before", compact->end_before);
    add(object, "image-end-offset", compact->end_after);
    add(object, "moved-bytes", compact->moved);
    add(object, "zero-clusters", compact->dropped);
    add(object, "leaks-fixed", compact->leaks);
    json_add_name(object, "filename", args->report.filename);
    json_object_set_new(object, "format", json_string(format));
    json_print(object, stdout);
    json_decref(object);
}

static void print_human(const struct blk_compact *compact)
{
    printf("Image end offset: %" PRIu64 " (it was %" PRIu64 ")\n", compact->end_after, compact->end_before);
    printf("%" PRIu64 " bytes moved, %" PRIu64 " clusters of zeroes and %" PRIu64 " leaked clusters given up.\n",
           compact->moved, compact->dropped, compact->leaks);
}

static coroutine_fn int co_compact(struct blk_front *front, void *arg)
{
    const struct compact_args *args = arg;
    struct blk_node *node = blk_front_node(front);
    struct blk_compact compact = { .find_zeroes = args->find_zeroes, .progress = report_progress };
    struct error *error = NULL;

    progress_start(args->quiet ? PROGRESS_OFF : args->progress, 1.0);
    int ret = blk_co_compact(node, &compact, &error);
    if (ret == 0)
        progress_complete();
    progress_end();
    if (ret < 0) {
        error_report_free(error);
        return 1;
    }
    if (args->report.json && !args->quiet)
        print_json(&compact, args, blk_node_below_filters(node)->driver->name);
    else if (!args->quiet)
        print_human(&compact);
    return 0;
}

static const struct img_option options[] = {
    IMAGE_REPORT_OPTIONS,
    { 't', "cache", "CACHE", "cache mode for the image" },
    { 'z', "detect-zeroes", NULL, "read all data, and give up what is zero bytes" },
    PROGRESS_OPTION,
    IMAGE_QUIET_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct compact_args *args)
{
    int option, status;

    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 't': args->cache = optarg; break;
        case 'p':
            if (!progress_arg(optarg, &args->progress))
                return 1;
            break;
        case 'q': args->quiet = true; break;
        case 'z': args->find_zeroes = true; break;
        default:
            status = image_report_arg(&args->report, "compact", option);
            if (status >= 0)
                return status;
        }
    }
    if (!image_report_operand(&args->report, argc, argv) ||
        !image_cache_arg(&args->report.source, "cache", args->cache))
        return 1;
    return image_source_valid(&args->report.source) ? -1 : 1;
}

static coroutine_fn int co_run_compact(int argc, char **argv)
{
    struct compact_args args = { .report.source.flags = BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, .cache = "writeback" };
    int status = parse(argc, argv, &args);

    return status < 0 ? image_co_with(args.report.filename, &args.report.source, co_compact, &args) : status;
}

static struct img_command compact = {
    .name = "compact",
    .usage = "[--object OBJECT] [--image-opts] [-p] [-q] [-f FMT] [-t CACHE] [--output=FORMAT] [-z] FILE",
    .help =
        "Makes an image's file as short as what is in use in it, in place: leaked clusters and those that only stand "
        "for\n"
        "zeroes are given up, and what lies behind is moved down. -z reads all data, and gives up what is zero bytes.\n"
        "A power cut at any moment loses nothing.",
    .options = options,
    .co_run = co_run_compact,
};
IMG_COMMAND(compact)
