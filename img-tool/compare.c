/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * compare: do two images have the same content?
 *
 * Ranges that both images say are zero are not read; if one has data and the other zeroes, the data must be zeroes.
 * An image that ends early counts as zeroes from there on, unless -s (strict) is given.
 * Exit status: 0 same, 1 different, 2 an image could not be opened, 3 no block status, 4 no data.
 */
#include "command.h"
#include "image.h"
#include "progress.h"

#include <inttypes.h>
#include <stdlib.h>
#include <stdarg.h>
#include <string.h>

enum { SECTOR = BLK_SECTOR_SIZE, BUFFER = 2 << 20 };
enum { STATUS_SAME, STATUS_DIFFERENT, STATUS_NOT_OPEN, STATUS_NO_STATUS, STATUS_NO_DATA };

struct compare_args {
    struct image_source source[2];
    bool quiet, strict, progress;
    const char *filename[2];
};

struct comparison {
    const struct compare_args *args;
    struct blk_front *front[2];
    uint8_t *buffer[2];
    uint64_t total; /* for progress: the longer image's size */
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

static coroutine_fn int co_read(struct comparison *c, int which, uint64_t offset, uint64_t length)
{
    int ret = blk_front_co_read(c->front[which], offset, c->buffer[which], length);
    if (ret < 0)
        error_report("Error while reading offset %" PRIu64 " of %s: %s", offset, c->args->filename[which],
                     strerror(-ret));
    return ret < 0 ? STATUS_NO_DATA : STATUS_SAME;
}

static coroutine_fn int co_status(struct comparison *c, int which, uint64_t offset, struct blk_status *status)
{
    uint64_t length = blk_front_size(c->front[which]) - offset;
    int ret = blk_co_status(blk_front_node(c->front[which]), NULL, offset, length, status);
    if (ret < 0)
        error_report("Sector allocation test failed for %s", c->args->filename[which]);
    return ret < 0 ? STATUS_NO_STATUS : STATUS_SAME;
}

/* The offset of the first sector of a that differs from b (or, b NULL, is not all zeroes); length if there is
 * none. */
static uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t length)
{
    static const uint8_t zeroes[SECTOR];
    for (uint64_t at = 0; at < length; at += SECTOR) {
        size_t size = (size_t)MIN((uint64_t)SECTOR, length - at);
        if (memcmp(a + at, b ? b + at : zeroes, size) != 0)
            return at;
    }
    return length;
}

static int report_difference(struct comparison *c, uint64_t offset)
{
    print_unless_quiet(c, "Content mismatch at offset %" PRIu64 "!\n", offset);
    return STATUS_DIFFERENT;
}

/* `length` bytes (at most a buffer) of one image must read as zeroes. */
static coroutine_fn int co_expect_zeroes(struct comparison *c, int which, uint64_t offset, uint64_t length)
{
    int status = co_read(c, which, offset, length);
    if (status)
        return status;
    uint64_t at = first_difference(c->buffer[which], NULL, length);
    return at < length ? report_difference(c, offset + at) : STATUS_SAME;
}

static coroutine_fn int co_expect_same(struct comparison *c, uint64_t offset, uint64_t length)
{
    int status = co_read(c, 0, offset, length);
    if (!status)
        status = co_read(c, 1, offset, length);
    if (status)
        return status;
    uint64_t at = first_difference(c->buffer[0], c->buffer[1], length);
    return at < length ? report_difference(c, offset + at) : STATUS_SAME;
}

static bool reads_zero(const struct blk_status *status) { return status->zero || (!status->data && !status->present); }

/* Strictly: QEMU also tells an extent that reaches the image's end from one that does not. */
static bool same_status(const struct comparison *c, uint64_t offset, const struct blk_status *a,
                        const struct blk_status *b)
{
    bool a_ends = offset + a->length == blk_front_size(c->front[0]),
         b_ends = offset + b->length == blk_front_size(c->front[1]);
    return a->data == b->data && a->zero == b->zero && a->present == b->present && a_ends == b_ends;
}

/* The part that both images have, [0, end). */
static coroutine_fn int co_compare_common(struct comparison *c, uint64_t end)
{
    for (uint64_t offset = 0, length; offset < end; offset += length) {
        struct blk_status a, b;
        int status = co_status(c, 0, offset, &a);
        if (!status)
            status = co_status(c, 1, offset, &b);
        if (status)
            return status;
        length = MIN(a.length, b.length);
        length = MIN(length, end - offset);
        if (c->args->strict && !same_status(c, offset, &a, &b)) {
            print_unless_quiet(c, "Strict mode: Offset %" PRIu64 " block status mismatch!\n", offset);
            return STATUS_DIFFERENT;
        }
        if (!reads_zero(&a) || !reads_zero(&b)) {
            length = MIN(length, (uint64_t)BUFFER);
            if (!reads_zero(&a) && !reads_zero(&b))
                status = co_expect_same(c, offset, length);
            else
                status = co_expect_zeroes(c, reads_zero(&a) ? 1 : 0, offset, length);
        }
        if (status)
            return status;
        progress_update(offset + length, c->total);
    }
    return STATUS_SAME;
}

/* What the longer image has beyond the end of the other. */
static coroutine_fn int co_compare_rest(struct comparison *c, int which, uint64_t offset)
{
    print_unless_quiet(c, "Warning: Image size mismatch!\n");
    for (uint64_t length; offset < c->total; offset += length) {
        struct blk_status status;
        int ret = co_status(c, which, offset, &status);
        if (ret)
            return ret;
        length = status.length;
        if (!reads_zero(&status)) {
            length = MIN(length, (uint64_t)BUFFER);
            ret = co_expect_zeroes(c, which, offset, length);
            if (ret)
                return ret;
        }
        progress_update(offset + length, c->total);
    }
    return STATUS_SAME;
}

static coroutine_fn int co_compare(struct comparison *c)
{
    uint64_t size[2] = { blk_front_size(c->front[0]), blk_front_size(c->front[1]) };
    c->total = MAX(size[0], size[1]);
    progress_start(c->args->progress, 2.0);
    if (c->args->strict && size[0] != size[1]) {
        print_unless_quiet(c, "Strict mode: Image size mismatch!\n");
        return STATUS_DIFFERENT;
    }
    int status = co_compare_common(c, MIN(size[0], size[1]));
    if (!status && size[0] != size[1])
        status = co_compare_rest(c, size[0] > size[1] ? 0 : 1, MIN(size[0], size[1]));
    if (!status)
        print_unless_quiet(c, "Images are identical.\n");
    return status;
}

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct compare_args *args)
{
    static const struct option options[] = {
        IMAGE_LONG_OPTIONS,
        { "force-share", no_argument, NULL, 'U' },
        { NULL, 0, NULL, 0 },
    };
    const char *cache = "writeback";
    int option, status;
    while ((option = img_getopt(argc, argv, ":hf:F:T:pqsU", options)) != -1) {
        switch (option) {
        case 'F': args->source[1].format = optarg; break;
        case 'T': cache = optarg; break;
        case 'p': args->progress = true; break;
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
    args->progress = args->progress && !args->quiet;
    args->source[1].force_share = args->source[0].force_share;
    args->source[1].image_opts = args->source[0].image_opts;
    for (int i = 0; i < 2; i++) {
        args->filename[i] = argv[optind + i];
        if (!image_cache_arg(&args->source[i], "source cache", cache))
            return STATUS_NOT_OPEN;
        if (!image_source_valid(&args->source[i]))
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
        c.front[i] = image_co_open(args.filename[i], &args.source[i]);
        if (!c.front[i])
            goto out;
        c.buffer[i] = blk_buffer_alloc(blk_front_node(c.front[i]), BUFFER);
        if (!c.buffer[i]) {
            error_report("Out of memory");
            goto out;
        }
    }
    status = co_compare(&c);
    progress_end();
out:
    for (int i = 0; i < 2; i++) {
        free(c.buffer[i]);
        image_co_close(c.front[i]);
    }
    return status;
}

static struct img_command compare = {
    .name = "compare",
    .usage = "[--object OBJECT] [--image-opts] [-f FMT] [-F FMT] [-T CACHE] [-p] [-q] [-s] [-U] FILE1 FILE2",
    .help = "Compares the content of two images of any formats. -s also asks for the same size and allocation. Exit "
            "status: 0 same,\n"
            "1 different, 2 an image could not be opened, 3 or 4 it could not be read.",
    .co_run = co_run_compare,
};
IMG_COMMAND(compare)
