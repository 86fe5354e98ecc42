/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * convert: copies the content of one or more images into a new one, maybe of another format.
 *
 * This file reads the command line, opens the sources, makes and opens the target; convert_copy.c copies. The result
 * always reads as the source does: with -B, only what the source's chain has in common with that backing file is left
 * out.
 */
#include "command.h"
#include "convert.h"
#include "create_opts.h"
#include "progress.h"
#include "size_arg.h"
#include "snapshot_arg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { DEFAULT_WORKERS = 8, MAX_SPARSE = 16 << 20 };

struct convert_args {
    struct image_source source, target;
    const char *source_cache, *target_cache;
    const char *out_format, *out_filename;
    const char *backing, *backing_format;
    struct snapshot_arg snapshot; /* -l */
    char **in_filenames;
    int in_count;
    bool compress, copy_offload, bitmaps, skip_broken, quiet, skip_create, sparse_given, target_is_zero;
    struct create_opts create;
};

/* ---- sources ---- */

static coroutine_fn int co_open_sources(const struct convert_args *args, struct convert *c)
{
    c->sources = xcalloc((size_t)args->in_count, sizeof(*c->sources));
    for (int i = 0; i < args->in_count; i++) {
        struct convert_source *source = &c->sources[i];
        source->filename = args->in_filenames[i];
        source->front = image_co_open(source->filename, &args->source);
        if (!source->front)
            return -1;
        c->source_count++;
    }
    if (args->snapshot.any && args->in_count > 1) {
        error_report("No support for concatenating multiple snapshot");
        return -1;
    }
    if (snapshot_arg_co_show(&args->snapshot, c->sources[0].front) < 0)
        return -1;
    for (size_t i = 0; i < c->source_count; i++) {
        c->sources[i].start = c->total;
        c->sources[i].size = blk_front_size(c->sources[i].front);
        c->total += c->sources[i].size;
    }
    return 0;
}

/* ---- target ---- */

static int report_failure(struct error *error, const char *prefix, const char *format)
{
    if (prefix)
        error_prepend(&error, "%s: error while converting %s: ", prefix, format);
    error_report_free(error);
    return -1;
}

/* What -B and -o say about the backing file. */
static int check_backing_args(const struct convert_args *args)
{
    const char *backing = create_opts_get(&args->create, "backing_file");
    if (!backing)
        return 0;
    if (args->in_count > 1) {
        error_report("Having a backing file for the target makes no sense when concatenating multiple input images");
        return -1;
    }
    if (!create_opts_get(&args->create, "backing_fmt")) {
        error_report("Use of backing file requires explicit backing format");
        return -1;
    }
    return 0;
}

/* -c, before anything is made. */
static int check_compression(const struct convert_args *args)
{
    const char *preallocation = create_opts_get(&args->create, "preallocation");
    if (!args->create.format->co_write_compressed) {
        error_report("Compression not supported for this file format");
        return -1;
    }
    if (preallocation && strcmp(preallocation, "off") != 0) {
        error_report("Compression and preallocation not supported at the same time");
        return -1;
    }
    return 0;
}

/* The options of the target, before anything is made. */
static int resolve_target(struct convert_args *args, const struct convert *c)
{
    struct error *error = NULL;
    int ret = create_opts_resolve(&args->create, args->out_format, args->out_filename, &error);

    if (ret == 0) {
        AUTO_FREE char *size = xasprintf("%" PRIu64, c->total);
        opts_set(args->create.opts, "size", size);
        ret = create_opts_backing(&args->create, args->backing, args->backing_format, &error);
    }
    if (ret < 0)
        return report_failure(error, NULL, NULL);
    if (check_backing_args(args) < 0)
        return -1;
    return args->compress ? check_compression(args) : 0;
}

static int check_bitmap_args(const struct convert_args *args, const struct convert *c)
{
    if (!args->bitmaps)
        return 0;
    if (args->in_count > 1) {
        error_report("Copying bitmaps only possible with single source");
        return -1;
    }
    return convert_check_bitmaps(c, args->skip_broken);
}

static coroutine_fn int co_create_target(const struct convert_args *args, const struct convert *c)
{
    struct error *error = NULL;
    int ret = blk_co_create(args->out_format, args->out_filename, args->create.opts, c->total, &error);

    return ret < 0 ? report_failure(error, args->out_filename, args->out_format) : 0;
}

/* Whether what is not written reads as zeroes: true of what we made, but for bare sectors of a block device. */
static bool reads_zero_when_new(const struct convert_args *args, struct blk_front *target)
{
    struct stat st;
    struct blk_node *protocol = blk_node_protocol(blk_front_node(target));
    if (args->skip_create)
        return args->target_is_zero;
    if (!protocol || stat(protocol->filename, &st) < 0 || !S_ISBLK(st.st_mode))
        return true;
    return opts_find(args->create.table, "cluster_size") && !create_opts_get(&args->create, "preallocation");
}

/* The node of the source's chain that the target's backing file stands for: the very same file if it is in the
 * chain, else the source's backing file, which then has the same content, so the user says. */
static struct blk_node *find_base(const struct convert *c, const char *backing)
{
    struct blk_node *first = blk_node_backing(blk_front_node(c->sources[0].front));
    for (struct blk_node *node = first; node; node = blk_node_backing(node)) {
        if (image_same_file(node->filename, backing))
            return node;
    }
    return first;
}

/* What the target's clusters mean for the copying. */
static coroutine_fn int co_set_clusters(const struct convert_args *args, struct convert *c)
{
    const struct blk_node *node = blk_node_below_filters(blk_front_node(c->target));
    struct blk_info info;
    if (args->compress && !node->driver->co_write_compressed) {
        error_report("Compression not supported for this file format");
        return -1;
    }
    struct error *error = NULL;
    if (blk_co_info(blk_front_node(c->target), &info, &error) < 0)
        return report_failure(error, NULL, NULL);
    if (args->compress)
        c->compress = info.cluster_size;
    if (args->compress && c->sparse)
        c->sparse = c->compress;
    /* Without clusters to allocate, an order is no one's gain. */
    if (!info.cluster_size)
        c->out_of_order = true;
    blk_info_finish(&info);
    return 0;
}

static coroutine_fn int co_open_target(struct convert_args *args, struct convert *c)
{
    c->target = image_co_open(args->out_filename, &args->target);
    if (!c->target)
        return -1;
    if (co_set_clusters(args, c) < 0)
        return -1;
    if (args->skip_create && blk_front_size(c->target) < c->total) {
        error_report("output file is smaller than input file");
        return -1;
    }
    struct blk_node *backing = blk_node_backing(blk_front_node(c->target));
    c->has_backing = backing != NULL;
    if (c->has_backing && args->target_is_zero) {
        error_report("Cannot use --target-is-zero when the destination image has a backing file");
        return -1;
    }
    c->target_zero = reads_zero_when_new(args, c->target);
    if (backing) {
        c->base_size = blk_node_size(backing);
        c->base = args->skip_create && !args->backing ? NULL : find_base(c, backing->filename);
    }
    return 0;
}

/* ---- command line ---- */

static bool sparse_arg(const char *text, uint64_t *out)
{
    if (!img_size_arg("buffer size for sparse output", text, 0, INT64_MAX, out))
        return false;
    if (*out % BLK_SECTOR_SIZE || *out > MAX_SPARSE) {
        error_report(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of %u up to %u. Select 0 to "
            "disable sparse detection (fully allocates output).",
            BLK_SECTOR_SIZE, (unsigned)MAX_SPARSE);
        return false;
    }
    return true;
}

static bool workers_arg(const char *text, unsigned *out)
{
    uint64_t value;
    if (!img_number_arg(text, CONVERT_MAX_WORKERS, &value) || value < 1) {
        error_report("Invalid number of coroutines. Allowed number of coroutines is between 1 and %d",
                     CONVERT_MAX_WORKERS);
        return false;
    }
    *out = (unsigned)value;
    return true;
}

enum {
    OPTION_TARGET_IMAGE_OPTS = IMAGE_OPT_OWN,
    OPTION_SALVAGE,
    OPTION_TARGET_IS_ZERO,
    OPTION_BITMAPS,
    OPTION_SKIP_BROKEN
};

/* Options that take a value which may be bad. false after reporting. */
static bool parse_value(int option, struct convert_args *args, struct convert *c)
{
    switch (option) {
    case 'S': args->sparse_given = true; return sparse_arg(optarg, &c->sparse);
    case 'l': return snapshot_arg_parse(&args->snapshot, optarg);
    case 'm': return workers_arg(optarg, &c->workers);
    case 'r': return img_size_arg("rate limit", optarg, 0, INT64_MAX, &c->rate.limit);
    case 'p': return progress_arg(optarg, &c->progress);
    case 'o': return create_opts_add(&args->create, optarg);
    case IMAGE_OPT_OBJECT: return image_object_arg(optarg);
    default: return false;
    }
}

static const struct img_option options[] = {
    IMG_HELP_OPTION,
    IMAGE_OBJECT_OPTION,
    { IMAGE_OPT_IMAGE_OPTS, "source-image-opts", NULL, "source operands are key=value,... of a block node", true },
    { IMAGE_OPT_IMAGE_OPTS, "image-opts", NULL, NULL },
    { OPTION_TARGET_IMAGE_OPTS, "target-image-opts", NULL, "the target is key=value,... of a block node" },
    { 'f', "source-format", "FMT", "format of the sources; without it the content decides", true },
    { 'f', "format", "FMT", NULL, true },
    { 'O', "target-format", "FMT", "format of the target (raw)", true },
    { 'O', "output-format", "FMT", NULL, true },
    { 'o', "options", "OPTIONS", "options of the target's format, key=value,...; 'help' lists them", true },
    { 'o', "target-format-options", "OPTIONS", NULL, true },
    { 'B', "backing", "FILE", "backing file of the target, which lacks what that file has", true },
    { 'b', NULL, "FILE", NULL },
    { 'F', "backing-format", "FMT", "the backing file's format", true },
    { 'l', "snapshot", "SNAPSHOT", "copy what this internal snapshot kept", true },
    { 't', "target-cache", "CACHE", "cache mode for the target", true },
    { 't', "cache", "CACHE", NULL, true },
    { 'T', "source-cache", "CACHE", "cache mode for the sources", true },
    { 'n', "no-create", NULL, "write into a target that is there", true },
    { OPTION_TARGET_IS_ZERO, "target-is-zero", NULL, "that target reads as zeroes" },
    { 'S', "sparse-size", "SIZE", "runs of so many zeroes are left out (4k); 0 writes all", true },
    { 'c', "compress", NULL, "compress", true },
    { 'C', "copy-range", NULL, "let the host copy", true },
    { 'm', "parallel", "COROUTINES", "so many reads and writes at a time (8)", true },
    { 'W', "out-of-order", NULL, "write in any order", true },
    { 'W', "oob", NULL, NULL, true },
    { 'r', "rate-limit", "RATE", "bytes a second", true },
    { OPTION_SALVAGE, "salvage", NULL, "go on if a part of the source cannot be read" },
    { OPTION_BITMAPS, "bitmaps", NULL, "copy dirty bitmaps, too" },
    { OPTION_SKIP_BROKEN, "skip-broken-bitmaps", NULL, "but for those that are not consistent" },
    PROGRESS_OPTION,
    IMAGE_QUIET_OPTION,
    IMAGE_FORCE_SHARE_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct convert_args *args, struct convert *c)
{
    int option;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'f': args->source.format = optarg; break;
        case 'O': args->out_format = optarg; break;
        case 'b':
        case 'B': args->backing = optarg; break;
        case 'F': args->backing_format = optarg; break;
        case 'C': args->copy_offload = true; break;
        case 'c': args->compress = true; break;
        case 'q': args->quiet = true; break;
        case 't': args->target_cache = optarg; break;
        case 'T': args->source_cache = optarg; break;
        case 'n': args->skip_create = true; break;
        case 'W': c->out_of_order = true; break;
        case 'U': args->source.force_share = true; break;
        case IMAGE_OPT_IMAGE_OPTS: args->source.image_opts = true; break;
        case OPTION_TARGET_IMAGE_OPTS: args->target.image_opts = true; break;
        case OPTION_SALVAGE: c->salvage = true; break;
        case OPTION_TARGET_IS_ZERO: args->target_is_zero = true; break;
        case OPTION_BITMAPS: args->bitmaps = true; break;
        case OPTION_SKIP_BROKEN: args->skip_broken = true; break;
        case IMG_OPT_HELP: return img_command_help("convert");
        case IMG_OPT_BAD: return 1;
        default:
            if (!parse_value(option, args, c))
                return 1;
        }
    }
    args->in_filenames = argv + optind;
    args->in_count = argc - optind - 1;
    args->out_filename = args->in_count >= 0 ? argv[argc - 1] : NULL;
    return -1;
}

static int refuse(const char *text)
{
    error_report("%s", text);
    return 1;
}

/* What does not go together. -1 to go on, else the exit status. */
static int check_args(struct convert_args *args, const struct convert *c)
{
    if (!args->out_format && !args->target.image_opts)
        args->out_format = "raw";
    args->target.format = args->out_format;
    if (args->skip_broken && !args->bitmaps)
        return refuse("Use of --skip-broken-bitmaps requires --bitmaps");
    if (args->create.text && args->skip_create)
        return refuse("-o has no effect when skipping image creation");
    if (create_opts_want_help(&args->create))
        return create_opts_help(args->out_format ? args->out_format : "raw", args->out_filename);
    if (!image_source_valid(&args->source) || !image_source_valid(&args->target))
        return 1;
    if (args->target.image_opts && !args->skip_create)
        return refuse("--target-image-opts requires use of -n flag");
    if (args->copy_offload && args->compress)
        return refuse("Cannot enable copy offloading when -c is used");
    if (args->copy_offload && args->sparse_given)
        return refuse("Cannot enable copy offloading when -S is used");
    if (args->copy_offload && c->salvage)
        return refuse("Cannot use copy offloading in salvaging mode");
    if (args->target_is_zero && !args->skip_create)
        return refuse("--target-is-zero requires use of -n flag");
    if (args->in_count < 1)
        return refuse("Must specify image file name");
    return -1;
}

static int cache_args(struct convert_args *args)
{
    return image_cache_arg(&args->source, "source cache", args->source_cache) &&
                   image_cache_arg(&args->target, "cache", args->target_cache)
               ? -1
               : 1;
}

/* ---- running ---- */

static coroutine_fn int co_convert(struct convert_args *args, struct convert *c)
{
    if (co_open_sources(args, c) < 0)
        return 1;
    if (args->target_is_zero && args->backing)
        return refuse("Cannot use --target-is-zero when the destination image has a backing file");
    if (!args->skip_create && resolve_target(args, c) < 0)
        return 1;
    if (check_bitmap_args(args, c) < 0)
        return 1;
    if (!args->skip_create && co_create_target(args, c) < 0)
        return 1;
    if (co_open_target(args, c) < 0)
        return 1;
    if (args->bitmaps && convert_check_target_bitmaps(c) < 0)
        return 1;
    int ret = convert_co_copy(c);
    if (ret == 0)
        progress_complete();
    if (ret == 0 && args->bitmaps)
        ret = convert_co_bitmaps(c);
    return ret < 0 ? 1 : 0;
}

static coroutine_fn int co_run_convert(int argc, char **argv)
{
    struct convert_args args = { .source = { .no_share = true },
                                 .target = { .flags = BLK_O_RDWR | BLK_O_UNMAP },
                                 .source_cache = "writeback",
                                 .target_cache = "unsafe" };
    struct convert c = { .sparse = 4096, .workers = DEFAULT_WORKERS };
    int status = parse(argc, argv, &args, &c);
    if (status < 0)
        status = check_args(&args, &c);
    if (status < 0)
        status = cache_args(&args);
    if (status < 0) {
        c.progress = args.quiet ? PROGRESS_OFF : c.progress;
        progress_start(c.progress, 1.0);
        status = co_convert(&args, &c);
        progress_end();
    }
    if (image_co_close(c.target) < 0)
        status = 1;
    for (size_t i = 0; i < c.source_count; i++)
        image_co_close(c.sources[i].front);
    free(c.sources);
    create_opts_finish(&args.create);
    snapshot_arg_finish(&args.snapshot);
    return status;
}

static struct img_command convert = {
    .name = "convert",
    .usage =
        "[--object OBJECT] [--image-opts] [--target-image-opts] [--target-is-zero] [--bitmaps [--skip-broken-bitmaps]] "
        "[-U] [-C] [-c] [-p] "
        "[-q] [-n] [-f FMT] [-t CACHE] [-T CACHE] [-O FMT] [-B BACKING_FILE -F BACKING_FMT] [-o OPTIONS] "
        "[-l SNAPSHOT] [-S SIZE] [-r RATE] [-m COROUTINES] [-W] [--salvage] FILE... OUTPUT_FILE",
    .help =
        "Copies images, one after the other, into a new one. -n writes into one that is there. Runs of zeroes of -S "
        "bytes (4k) are\n"
        "left out; -S 0 writes them. -m reads and writes in parallel (8), -W in any order. -B leaves out what that "
        "file has.\n"
        "-l copies what an internal snapshot kept. -c compresses. --bitmaps copies dirty bitmaps.\n"
        "-r limits the speed in bytes a second; --salvage goes on when a part of the source cannot be read.",
    .options = options,
    .co_run = co_run_convert,
};
IMG_COMMAND(convert)
