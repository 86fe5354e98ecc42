/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * compare: do two images have the same content?
 *
 * Several parts are compared at a time, on a loop a processor (claims.h). Ranges that both images say are zero are not
 * read; if one has data and the other zeroes, the data must be zeroes. An image that ends early counts as zeroes from
 * there on, unless -s (strict) is given. Exit status: 0 same, 1 different, 2 an image could not be opened, 3 no block
 * status, 4 no data.
 */
#include "claims.h"
#include "command.h"
#include "image.h"
#include "progress.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/crew.h>
#include <block/iov.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <stdarg.h>
#include <string.h>

enum { SECTOR = BLK_SECTOR_SIZE, WORKERS = 8, SPREAD_MIN = 4 * CLAIM_UNIT };
enum { STATUS_SAME, STATUS_DIFFERENT, STATUS_NOT_OPEN, STATUS_NO_STATUS, STATUS_NO_DATA };

struct compare_args {
    struct image_source source[2];
    bool quiet, strict;
    enum progress_mode progress;
    const char *filename[2];
};

/* Why the images are not the same, or it is not known. */
struct finding {
    uint64_t offset; /* UINT64_MAX: nothing was found */
    int status;      /* STATUS_* */
    int which;       /* the image that could not be read */
    int error;
    bool allocation; /* -s: it is not the content that differs */
};

/* Claims are taken in order, and each is gone through to its end or to what is found in it; so what is told in the end
 * is the first thing that there was to find, wherever others have come to. */
struct comparison {
    const struct compare_args *args;
    struct blk_front *front[2];
    uint64_t size[2];
    uint64_t common, total; /* the shorter and the longer image's size */
    struct claims claims;   /* of what is compared now */
    pthread_mutex_t lock;   /* all below; held for a few instructions */
    uint64_t done;          /* for progress */
    struct finding found;
};

struct part {
    uint64_t offset, length;
    bool zero[2]; /* it is all zeroes in this image, by its block status */
};

__attribute__((format(printf, 2, 3))) static void print_unless_quiet(const struct comparison *c, const char *fmt, ...)
{
    va_list list;
    if (c->args->quiet)
        return;
    va_start(list, fmt);
    vprintf(fmt, list);
    va_end(list);
}

/* ---- parts ---- */

/* Nobody needs what comes behind it. */
static void note(struct comparison *c, const struct finding *finding)
{
    pthread_mutex_lock(&c->lock);
    if (finding->offset < c->found.offset)
        c->found = *finding;
    pthread_mutex_unlock(&c->lock);
    claims_stop(&c->claims);
}

static void count(struct comparison *c, uint64_t length)
{
    pthread_mutex_lock(&c->lock);
    c->done += length;
    progress_update(c->done, c->total);
    pthread_mutex_unlock(&c->lock);
}

static bool reads_zero(const struct blk_status *status) { return status->zero || (!status->data && !status->present); }

/* Strictly: QEMU also tells an extent that reaches the image's end from one that does not. */
static bool same_status(const struct comparison *c, uint64_t offset, const struct blk_status *a,
                        const struct blk_status *b)
{
    bool a_ends = offset + a->length == c->size[0], b_ends = offset + b->length == c->size[1];
    return a->data == b->data && a->zero == b->zero && a->present == b->present && a->offset_valid == b->offset_valid &&
           a_ends == b_ends;
}

/* Block status of both images; past its end an image is zeroes. -1: something was found. */
static coroutine_fn int co_look_up(struct comparison *c, uint64_t offset, struct blk_status *status)
{
    for (int i = 0; i < 2; i++) {
        status[i] = (struct blk_status){ .zero = true, .length = c->total - offset };
        if (offset >= c->size[i])
            continue;
        int ret = blk_co_status(blk_front_node(c->front[i]), NULL, offset, c->size[i] - offset, &status[i]);
        if (ret < 0) {
            note(c, &(struct finding){ .offset = offset, .status = STATUS_NO_STATUS, .which = i, .error = ret });
            return -1;
        }
    }
    if (c->args->strict && offset < c->common && !same_status(c, offset, &status[0], &status[1])) {
        note(c, &(struct finding){ .offset = offset, .status = STATUS_DIFFERENT, .allocation = true });
        return -1;
    }
    return 0;
}

/* The next part of the claim, which ends with it if others are not too far already. */
static coroutine_fn int co_next_part(struct comparison *c, struct claim *claim, uint64_t offset, struct part *part)
{
    struct blk_status status[2];

    if (co_look_up(c, offset, status) < 0)
        return -1;
    *part = (struct part){ .offset = offset, .length = MIN(status[0].length, status[1].length) };
    for (int i = 0; i < 2; i++)
        part->zero[i] = reads_zero(&status[i]);
    if (!part->zero[0] || !part->zero[1])
        part->length = MIN(part->length, (uint64_t)CLAIM_UNIT);
    claims_fit(&c->claims, claim, MIN(offset + part->length, c->claims.end));
    part->length = MIN(part->length, claim->end - offset);
    return 0;
}

/* ---- content ---- */

/* The offset of the first sector of a that differs from b (or, b NULL, is not all zeroes); length if there is
 * none. */
static uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t length)
{
    static const uint8_t zeroes[SECTOR];
    if (b ? memcmp(a, b, length) == 0 : buffer_is_zero(a, length))
        return length;
    for (uint64_t at = 0; at < length; at += SECTOR) {
        size_t size = (size_t)MIN((uint64_t)SECTOR, length - at);
        if (memcmp(a + at, b ? b + at : zeroes, size) != 0)
            return at;
    }
    return length;
}

/* The images' data; zeroes need not be read. -1: something was found. */
static coroutine_fn int co_compare_part(struct comparison *c, const struct part *part, uint8_t *const *buffer)
{
    if (part->zero[0] && part->zero[1])
        return 0;
    for (int i = 0; i < 2; i++) {
        int ret = part->zero[i] ? 0 : blk_front_co_read(c->front[i], part->offset, buffer[i], part->length);
        if (ret < 0) {
            note(c, &(struct finding){ .offset = part->offset, .status = STATUS_NO_DATA, .which = i, .error = ret });
            return -1;
        }
    }
    const uint8_t *data = part->zero[0] ? buffer[1] : buffer[0];
    bool both = !part->zero[0] && !part->zero[1];
    uint64_t at = first_difference(data, both ? buffer[1] : NULL, part->length);
    if (at == part->length)
        return 0;
    note(c, &(struct finding){ .offset = part->offset + at, .status = STATUS_DIFFERENT });
    return -1;
}

static coroutine_fn int co_compare_claim(struct comparison *c, struct claim *claim, uint8_t *const *buffer)
{
    struct part part;

    for (uint64_t offset = claim->offset; offset < claim->end; offset += part.length) {
        if (co_next_part(c, claim, offset, &part) < 0 || co_compare_part(c, &part, buffer) < 0)
            return -1;
        count(c, part.length);
    }
    return 0;
}

static coroutine_fn int co_worker(void *arg, size_t number)
{
    struct comparison *c = arg;
    struct claim claim;
    uint8_t *buffer[2];
    int ret;

    (void)number;
    for (int i = 0; i < 2; i++)
        buffer[i] = blk_buffer_alloc(blk_front_node(c->front[i]), CLAIM_UNIT);
    ret = buffer[0] && buffer[1] ? 0 : -ENOMEM;
    while (ret == 0 && claims_take(&c->claims, &claim) && co_compare_claim(c, &claim, buffer) == 0)
        ;
    free(buffer[0]);
    free(buffer[1]);
    return ret;
}

/* What is little is compared before others have begun. */
static coroutine_fn int co_compare_range(struct comparison *c, uint64_t offset, uint64_t end)
{
    claims_init(&c->claims, offset, end);
    if (end - offset <= SPREAD_MIN)
        return co_crew(1, 1, co_worker, c);
    return co_crew_spread(WORKERS, WORKERS, co_worker, c);
}

/* ---- the result ---- */

static int tell(const struct comparison *c)
{
    const struct finding *found = &c->found;
    const char *name = c->args->filename[found->which];

    if (found->offset == UINT64_MAX)
        print_unless_quiet(c, "Images are identical.\n");
    else if (found->status == STATUS_NO_STATUS)
        error_report("Sector allocation test failed for %s", name);
    else if (found->status == STATUS_NO_DATA)
        error_report("Error while reading offset %" PRIu64 " of %s: %s", found->offset, name, strerror(-found->error));
    else if (found->allocation)
        print_unless_quiet(c, "Strict mode: Offset %" PRIu64 " block status mismatch!\n", found->offset);
    else
        print_unless_quiet(c, "Content mismatch at offset %" PRIu64 "!\n", found->offset);
    return found->status;
}

static coroutine_fn int co_compare(struct comparison *c)
{
    for (int i = 0; i < 2; i++)
        c->size[i] = blk_front_size(c->front[i]);
    c->common = MIN(c->size[0], c->size[1]);
    c->total = MAX(c->size[0], c->size[1]);
    c->found.offset = UINT64_MAX;
    progress_start(c->args->progress, 2.0);
    if (c->args->strict && c->size[0] != c->size[1]) {
        print_unless_quiet(c, "Strict mode: Image size mismatch!\n");
        return STATUS_DIFFERENT;
    }
    pthread_mutex_init(&c->lock, NULL);
    int ret = co_compare_range(c, 0, c->common);
    if (ret == 0 && c->found.offset == UINT64_MAX && c->size[0] != c->size[1]) {
        print_unless_quiet(c, "Warning: Image size mismatch!\n");
        ret = co_compare_range(c, c->common, c->total);
    }
    pthread_mutex_destroy(&c->lock);
    if (ret < 0) {
        error_report("Out of memory");
        return STATUS_NO_DATA;
    }
    return tell(c);
}

static const struct img_option options[] = {
    IMAGE_COMMON_OPTIONS,
    { 'f', "a-format", "FMT", "format of the first image", true },
    { 'f', "format", "FMT", NULL, true },
    { 'F', "b-format", "FMT", "format of the second image", true },
    { 'T', "source-cache", "CACHE", "cache mode for what is only read", true },
    { 'T', "cache", "CACHE", NULL, true },
    { 's', "strict", NULL, "sizes and allocation must be the same, too", true },
    PROGRESS_OPTION,
    IMAGE_QUIET_OPTION,
    IMAGE_FORCE_SHARE_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct compare_args *args)
{
    const char *cache = "writeback";
    int option, status;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'F': args->source[1].format = optarg; break;
        case 'T': cache = optarg; break;
        case 'p':
            if (!progress_arg(optarg, &args->progress))
                return STATUS_NOT_OPEN;
            break;
        case 'q': args->quiet = true; break;
        case 's': args->strict = true; break;
        default:
            status = image_source_arg(&args->source[0], "compare", option);
            if (status >= 0)
                return option == IMAGE_OPT_OBJECT ? STATUS_NOT_OPEN : status;
        }
    }
    if (optind != argc - 2)
        return img_usage_error("Expecting two image file names");
    if (args->quiet)
        args->progress = PROGRESS_OFF;
    args->source[1].force_share = args->source[0].force_share;
    args->source[1].image_opts = args->source[0].image_opts;
    for (int i = 0; i < 2; i++) {
        args->filename[i] = argv[optind + i];
        if (!image_cache_arg(&args->source[i], "source cache", cache))
            return STATUS_NOT_OPEN;
    }
    return -1;
}

static coroutine_fn int co_run_compare(int argc, char **argv)
{
    struct compare_args args = { 0 };
    int status = parse(argc, argv, &args);
    if (status >= 0)
        return status;
    struct comparison c = { .args = &args };
    status = STATUS_NOT_OPEN;
    for (int i = 0; i < 2; i++) {
        c.front[i] = image_source_valid(&args.source[i]) ? image_co_open(args.filename[i], &args.source[i]) : NULL;
        if (!c.front[i])
            goto out;
    }
    status = co_compare(&c);
    progress_end();
out:
    for (int i = 0; i < 2; i++)
        image_co_close(c.front[i]);
    return status;
}

static struct img_command compare = {
    .name = "compare",
    .usage = "[--object OBJECT] [--image-opts] [-f FMT] [-F FMT] [-T CACHE] [-p] [-q] [-s] [-U] FILE1 FILE2",
    .help = "Compares the content of two images of any formats. -s also asks for the same size and allocation. Exit "
            "status: 0 same,\n"
            "1 different, 2 an image could not be opened, 3 or 4 it could not be read.",
    .options = options,
    .co_run = co_run_compare,
};
IMG_COMMAND(compare)
