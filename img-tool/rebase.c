/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * rebase: gives an image another backing file. What the image shows stays as it is: where the new backing file has
 * something else than the old one, the old content is written into the image first. -u only writes the name.
 */
#include "command.h"
#include "image.h"
#include "progress.h"

#include <base/coroutine.h>
#include <base/crew.h>
#include <base/sync.h>
#include <block/change.h>
#include <block/iov.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER = 2 << 20, GRAIN = 4096, WORKERS = 8, SPREAD_MIN = 8 << 20 };

struct rebase_args {
    struct image_source source, below; /* the image; backing files */
    const char *cache, *source_cache;
    const char *filename, *backing, *backing_format;
    enum progress_mode progress;
    bool unsafe, quiet;
};

/* The copying, on several loops. */
struct rebase {
    struct blk_front *top, *old, *new; /* of the backing files: NULL: none, which reads as zeroes */
    struct blk_node *common;           /* in the image's chain, and the new backing file too; NULL: none is */
    uint64_t size;
    struct co_mutex lock; /* all below, and the progress; held across look-ups */
    uint64_t next, done;
    int ret; /* the first error, which is reported */
};

struct piece {
    uint64_t offset, length;
};

/* Reports the first error. Lock held. */
static int fail(struct rebase *r, int ret, const char *what)
{
    if (r->ret == 0) {
        error_report("%s: %s", what, strerror(-ret));
        r->ret = ret;
    }
    return ret;
}

/* The same; lock not held. */
static coroutine_fn int co_fail(struct rebase *r, int ret, const char *what)
{
    co_mutex_lock(&r->lock);
    fail(r, ret, what);
    co_mutex_unlock(&r->lock);
    return ret;
}

/* ---- what has to be compared ---- */

/* Whether [offset, offset + *length) of a backing file reads as zeroes; *length is cut to what this is true of. */
static coroutine_fn int co_reads_zero(struct blk_front *front, uint64_t offset, uint64_t *length, bool *zero)
{
    struct blk_status status;
    uint64_t size = front ? blk_front_size(front) : 0;

    *zero = offset >= size;
    if (*zero)
        return 0;
    int ret = blk_co_status(blk_front_node(front), NULL, offset, MIN(*length, size - offset), &status);
    if (ret < 0)
        return ret;
    *length = status.length;
    *zero = status.zero;
    return 0;
}

/* Whether the image shows the same over either, for a look at the metadata; *length as above. */
static coroutine_fn int co_same(struct rebase *r, uint64_t offset, uint64_t *length, bool *same)
{
    struct blk_node *node = blk_front_node(r->top);
    struct blk_status status;
    bool old_zero = false, new_zero = false;
    int ret = blk_co_status(node, blk_node_backing(node), offset, *length, &status);

    if (ret < 0)
        return ret;
    *length = status.length;
    *same = status.present;
    if (*same)
        return 0;
    if (r->common) {
        ret = blk_co_status(node, r->common, offset, *length, &status);
        if (ret < 0)
            return ret;
        *length = status.length;
        *same = !status.present && !status.past_end;
        if (*same)
            return 0;
    }
    ret = co_reads_zero(r->old, offset, length, &old_zero);
    if (ret == 0 && old_zero)
        ret = co_reads_zero(r->new, offset, length, &new_zero);
    *same = old_zero && new_zero;
    return ret;
}

/* The next piece that has to be compared; of length 0 at the end. */
static coroutine_fn int co_take(struct rebase *r, struct piece *piece)
{
    int ret = 0;

    piece->length = 0;
    co_mutex_lock(&r->lock);
    while (r->ret == 0 && r->next < r->size) {
        uint64_t length = r->size - r->next;
        bool same;
        ret = co_same(r, r->next, &length, &same);
        if (ret < 0) {
            fail(r, ret, "error while reading image metadata");
            break;
        }
        piece->offset = r->next;
        if (!same)
            length = MIN(length, BUFFER - r->next % BUFFER);
        r->next += length;
        if (!same) {
            piece->length = length;
            break;
        }
        r->done += length;
        progress_update(r->done, r->size);
    }
    co_mutex_unlock(&r->lock);
    return ret;
}

/* ---- comparing and writing ---- */

/* What is past the end of the backing file reads as zeroes. */
static coroutine_fn int co_read(struct blk_front *front, const struct piece *piece, uint8_t *buffer)
{
    uint64_t size = front ? blk_front_size(front) : 0;
    uint64_t length = piece->offset < size ? MIN(piece->length, size - piece->offset) : 0;

    memset(buffer + length, 0, piece->length - length);
    return length ? blk_front_co_read(front, piece->offset, buffer, length) : 0;
}

/* The length of the run at `at` whose grains all differ, or are all the same. */
static uint64_t run_at(const uint8_t *old, const uint8_t *new, uint64_t at, uint64_t length, bool *differs)
{
    uint64_t end = at;

    while (end < length) {
        uint64_t grain = MIN((uint64_t)GRAIN, length - end);
        bool other = memcmp(old + end, new + end, grain) != 0;
        if (end == at)
            *differs = other;
        else if (other != *differs)
            break;
        end += grain;
    }
    return end - at;
}

static coroutine_fn int co_write_differences(struct rebase *r, const struct piece *piece, const uint8_t *old,
                                             const uint8_t *new)
{
    int ret = 0;

    for (uint64_t at = 0, run; at < piece->length && ret == 0; at += run) {
        bool differs = false;
        run = run_at(old, new, at, piece->length, &differs);
        if (!differs)
            continue;
        if (buffer_is_zero(old + at, run))
            ret = blk_front_co_write_zeroes(r->top, piece->offset + at, run, 0);
        else
            ret = blk_front_co_write(r->top, piece->offset + at, old + at, run, 0);
    }
    return ret < 0 ? co_fail(r, ret, "Error while writing to COW image") : 0;
}

static coroutine_fn int co_compare(struct rebase *r, const struct piece *piece, uint8_t *old, uint8_t *new)
{
    int ret = co_read(r->old, piece, old);

    if (ret < 0)
        return co_fail(r, ret, "error while reading from old backing file");
    ret = co_read(r->new, piece, new);
    if (ret < 0)
        return co_fail(r, ret, "error while reading from new backing file");
    ret = co_write_differences(r, piece, old, new);
    co_mutex_lock(&r->lock);
    r->done += piece->length;
    progress_update(r->done, r->size);
    co_mutex_unlock(&r->lock);
    return ret;
}

static coroutine_fn int co_worker(void *arg, size_t number)
{
    (void)number;
    struct rebase *r = arg;
    uint8_t *buffers = blk_buffer_alloc(blk_front_node(r->top), 2 * BUFFER);
    struct piece piece;
    int ret = buffers ? co_take(r, &piece) : co_fail(r, -ENOMEM, "buffers");

    while (ret == 0 && piece.length) {
        ret = co_compare(r, &piece, buffers, buffers + BUFFER);
        if (ret == 0)
            ret = co_take(r, &piece);
    }
    free(buffers);
    return ret;
}

static coroutine_fn int co_copy(struct rebase *r)
{
    co_mutex_init(&r->lock);
    if (r->size <= SPREAD_MIN) /* compared before others have begun */
        co_crew(WORKERS, WORKERS, co_worker, r);
    else
        co_crew_spread(WORKERS, WORKERS, co_worker, r);
    co_mutex_finish(&r->lock);
    return r->ret;
}

/* ---- the backing files ---- */

/* A front end of the image's own backing child. */
static int open_old(struct rebase *r)
{
    struct blk_node *backing = blk_node_backing(blk_front_node(r->top));
    struct error *error = NULL;

    if (!backing)
        return 0;
    r->old = blk_front_new("", backing, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, &error);
    if (r->old)
        return 0;
    error_prepend(&error, "Could not open old backing file '%s': ", backing->filename);
    error_report_free(error);
    return -1;
}

static coroutine_fn int co_open_new(const struct rebase_args *args, struct rebase *r)
{
    struct blk_node *node = blk_front_node(r->top);
    struct image_source source = args->below;
    struct error *error = NULL;

    if (!args->backing || !*args->backing)
        return 0;
    AUTO_FREE char *path = blk_path_combine(blk_node_protocol(node)->filename, args->backing);
    source.format = args->backing_format;
    r->new = image_co_try_open(path, &source, NULL, &error);
    if (!r->new) {
        error_prepend(&error, "Could not open new backing file '%s': ", args->backing);
        error_report_free(error);
        return -1;
    }
    for (r->common = blk_node_backing(node); r->common; r->common = blk_node_backing(r->common)) {
        /* Named to be of another format, the same file shows something else. */
        if (image_same_file(r->common->filename, blk_front_node(r->new)->filename) &&
            r->common->driver == blk_front_node(r->new)->driver)
            break;
    }
    return 0;
}

static coroutine_fn int co_change_name(const struct rebase_args *args, struct rebase *r)
{
    struct error *error = NULL;
    bool none = !args->backing || !*args->backing;

    progress_complete();
    if (!none && !args->backing_format)
        error_set(&error, -EINVAL, "backing format must be specified");
    else if (blk_co_change_backing(blk_front_node(r->top), none ? NULL : args->backing,
                                   none ? NULL : args->backing_format, &error) == 0)
        return 0;
    error_prepend(&error, "Could not change the backing file to '%s': ", args->backing ? args->backing : "(null)");
    error_report_free(error);
    return -1;
}

static coroutine_fn int co_rebase(struct blk_front *front, void *arg)
{
    struct rebase_args *args = arg;
    struct rebase r = { .top = front, .size = blk_front_size(front) };
    int ret = 0;

    if (!args->unsafe)
        ret = open_old(&r) == 0 ? co_open_new(args, &r) : -1;
    /* Nothing is copied for a name that will be refused. */
    if (ret == 0 && !args->unsafe && (!args->backing || !*args->backing || args->backing_format))
        ret = co_copy(&r);
    if (ret == 0)
        ret = co_change_name(args, &r);
    image_co_close(r.old);
    image_co_close(r.new);
    return ret < 0 ? 1 : 0;
}

/* ---- command line ---- */

static bool cache_args(struct rebase_args *args)
{
    return image_cache_arg(&args->source, "cache", args->cache) &&
           image_cache_arg(&args->below, "source cache", args->source_cache);
}

static const struct img_option options[] = {
    IMAGE_CHANGE_OPTIONS,
    { 'b', "backing", "FILE", "the new backing file; '' for none", true },
    { 'F', "backing-format", "FMT", "the backing file's format", true },
    { 'u', "backing-unsafe", NULL, "write the name only", true },
    { 't', "cache", "CACHE", "cache mode for the image", true },
    { 'T', "source-cache", "CACHE", "cache mode for the backing files", true },
    { 'T', "backing-cache", "CACHE", NULL, true },
    PROGRESS_OPTION,
    IMAGE_QUIET_OPTION,
    IMAGE_FORCE_SHARE_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct rebase_args *args)
{
    int option, status;

    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'b': args->backing = optarg; break;
        case 'F': args->backing_format = optarg; break;
        case 'u': args->unsafe = true; break;
        case 'p':
            if (!progress_arg(optarg, &args->progress))
                return 1;
            break;
        case 'q': args->quiet = true; break;
        case 't': args->cache = optarg; break;
        case 'T': args->source_cache = optarg; break;
        default:
            status = image_source_arg(&args->source, "rebase", option);
            if (status >= 0)
                return status;
        }
    }
    args->filename = image_operand(argc, argv);
    if (!args->filename)
        return 1;
    if (!args->unsafe && !args->backing)
        return img_usage_error("Must specify backing file (-b) or use unsafe mode (-u)");
    return image_source_valid(&args->source) && cache_args(args) ? -1 : 1;
}

static coroutine_fn int co_open_and_rebase(struct rebase_args *args)
{
    if (args->backing_format && !blk_driver_find(args->backing_format)) {
        error_report("Invalid format name: '%s'", args->backing_format);
        return 1;
    }
    return image_co_with(args->filename, &args->source, co_rebase, args);
}

static coroutine_fn int co_run_rebase(int argc, char **argv)
{
    struct rebase_args args = { .source = { .flags = BLK_O_RDWR | BLK_O_UNMAP },
                                .cache = "writeback",
                                .source_cache = "writeback" };
    int status = parse(argc, argv, &args);

    if (status >= 0)
        return status;
    /* As in qemu-img: of the new backing file alone. */
    SWAP(args.below.force_share, args.source.force_share);
    if (args.unsafe)
        args.source.flags |= BLK_O_NO_BACKING;
    progress_start(args.quiet ? PROGRESS_OFF : args.progress, 1.0);
    status = co_open_and_rebase(&args);
    progress_end();
    return status;
}

static struct img_command rebase = {
    .name = "rebase",
    .usage = "[--object OBJECT] [--image-opts] [-U] [-q] [-f FMT] [-t CACHE] [-T CACHE] [-p] [-u] -b BACKING_FILE "
             "[-F BACKING_FMT] FILE",
    .help =
        "Gives an image another backing file, or with -b '' none. What the image shows stays as it is: what the new "
        "backing file\n"
        "lacks is copied into it. -u writes only the name, for a backing file that was moved or renamed.",
    .options = options,
    .co_run = co_run_rebase,
};
IMG_COMMAND(rebase)
