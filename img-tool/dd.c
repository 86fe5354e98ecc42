/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dd: copies a range of one image into a new one, with operands as dd(1) has them. The output is made anew, as large as
 * what is copied; bs= only says what count= and skip= count in, data moves in larger pieces.
 */
#include "command.h"
#include "create_opts.h"
#include "image.h"
#include "size_arg.h"

#include <base/checked.h>

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER = 2 << 20 };

struct dd_args {
    struct image_source source;
    const char *out_format;
    const char *in, *out;
    uint64_t block, count, skip;
    bool have_count;
};

/* ---- copying ---- */

static coroutine_fn struct blk_front *co_make_target(const struct dd_args *args, uint64_t size)
{
    struct error *error = NULL;
    struct opts *opts = opts_new();
    AUTO_FREE char *text = xasprintf("%" PRIu64, size);
    opts_set(opts, "size", text);
    int ret = blk_co_create(args->out_format, args->out, opts, size, &error);
    opts_free(opts);
    if (ret < 0) {
        error_prepend(&error, "%s: error while creating output image: ", args->out);
        error_report_free(error);
        return NULL;
    }
    struct image_source target = { .format = args->out_format, .flags = BLK_O_RDWR | BLK_O_RESIZE };
    return image_co_open(args->out, &target);
}

static coroutine_fn int co_copy(struct blk_front *in, struct blk_front *out, uint64_t offset, uint64_t size)
{
    uint8_t *buffer = blk_buffer_alloc(blk_front_node(out), BUFFER);
    if (!buffer) {
        error_report("Out of memory");
        return 1;
    }
    int ret = 0;
    for (uint64_t at = 0, length; at < size; at += length) {
        length = MIN(size - at, (uint64_t)BUFFER);
        ret = blk_front_co_read(in, offset + at, buffer, length);
        if (ret < 0) {
            error_report("error while reading from input image file: %s", strerror(-ret));
            break;
        }
        ret = blk_front_co_write(out, at, buffer, length, 0);
        if (ret < 0) {
            error_report("error while writing to output image file: %s", strerror(-ret));
            break;
        }
    }
    free(buffer);
    return ret < 0 ? 1 : 0;
}

/* The range to copy. As in qemu-img, count= counts from the start, before skip= is taken off, and a skip beyond that
 * end is complained of, but makes an empty output. */
static void find_range(const struct dd_args *args, uint64_t size, uint64_t *offset, uint64_t *length)
{
    uint64_t end = size, wanted;
    if (args->have_count && checked_mul(args->count, args->block, &wanted) && wanted < size)
        end = wanted;
    if (!checked_mul(args->skip, args->block, offset) || *offset > end) {
        error_report("%s: cannot skip to specified offset", args->in);
        *offset = end = 0;
    }
    *length = end - *offset;
}

static coroutine_fn int co_dd(const struct dd_args *args)
{
    struct blk_front *in = image_co_open(args->in, &args->source);
    if (!in)
        return 1;
    uint64_t offset, length;
    find_range(args, blk_front_size(in), &offset, &length);
    struct blk_front *out = co_make_target(args, length);
    int status = out ? co_copy(in, out, offset, length) : 1;
    if (image_co_close(out) < 0)
        status = 1;
    image_co_close(in);
    return status;
}

/* ---- command line ---- */

static bool parse_operand(struct dd_args *args, const char *operand)
{
    size_t name = strcspn(operand, "=");
    const char *value = operand[name] ? operand + name + 1 : NULL;
    if (value && name == 2 && !strncmp(operand, "if", 2)) {
        args->in = value;
    } else if (value && name == 2 && !strncmp(operand, "of", 2)) {
        args->out = value;
    } else if (value && name == 2 && !strncmp(operand, "bs", 2)) {
        return img_size_arg("bs", value, 1, INT_MAX, &args->block);
    } else if (value && name == 5 && !strncmp(operand, "count", 5)) {
        args->have_count = true;
        return img_size_arg("count", value, 0, INT64_MAX, &args->count);
    } else if (value && name == 4 && !strncmp(operand, "skip", 4)) {
        return img_size_arg("skip", value, 0, INT64_MAX, &args->skip);
    } else {
        error_report("unrecognized operand %.*s", (int)name, operand);
        return false;
    }
    return true;
}

static const struct img_option options[] = {
    IMAGE_CHANGE_OPTIONS,
    { 'O', "output-format", "FMT", "format of the new image (raw)", true },
    IMAGE_FORCE_SHARE_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct dd_args *args)
{
    int option, status;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'O': args->out_format = optarg; break;
        default:
            status = image_source_arg(&args->source, "dd", option);
            if (status >= 0)
                return status;
        }
    }
    for (; optind < argc; optind++) {
        if (!parse_operand(args, argv[optind]))
            return 1;
    }
    if (!args->in || !args->out) {
        error_report("Must specify both input and output files");
        return 1;
    }
    if (!blk_driver_find(args->out_format)) {
        error_report("Unknown file format");
        return 1;
    }
    return image_source_valid(&args->source) ? -1 : 1;
}

static coroutine_fn int co_run_dd(int argc, char **argv)
{
    struct dd_args args = { .out_format = "raw", .block = 512 };
    int status = parse(argc, argv, &args);
    return status < 0 ? co_dd(&args) : status;
}

static struct img_command dd = {
    .name = "dd",
    .usage = "[--image-opts] [-U] [-f FMT] [-O FMT] [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=FILE of=FILE",
    .help = "Copies a part of an image into a new one: at most `count` blocks of `bs` bytes (512), less `skip` at the "
            "start.",
    .options = options,
    .co_run = co_run_dd,
};
IMG_COMMAND(dd)
