/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * map: where each part of an image's content is, through its whole backing chain.
 *
 * Extents that say the same and follow each other are one line. Human output lists what can be read from a file at an
 * offset; JSON lists everything.
 */
#include "command.h"
#include "image.h"
#include "size_arg.h"

#include <inttypes.h>
#include <string.h>

struct map_args {
    struct image_report report;
    uint64_t start, length;
};

/* A line of output: what follows each other and is in the same state. */
struct stretch {
    uint64_t start;
    struct blk_status status;
};

static const char *truth(bool value) { return value ? "true" : "false"; }

/* -1 if there is no offset that a person could be shown. */
static int print_human(const struct stretch *stretch)
{
    const struct blk_status *status = &stretch->status;
    if (status->data && !status->offset_valid) {
        error_report("File contains external, encrypted or compressed clusters.");
        return -1;
    }
    if (status->data && !status->zero)
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", stretch->start, status->length, status->offset,
               status->file ? status->file->filename : "");
    return 0;
}

static void print_json(const struct stretch *stretch, bool last)
{
    const struct blk_status *status = &stretch->status;
    printf("{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
           ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
           stretch->start, status->length, status->depth, truth(status->present), truth(status->zero),
           truth(status->data));
    if (status->offset_valid)
        printf(", \"offset\": %" PRIu64, status->offset);
    fputs(last ? "}]\n" : "},\n", stdout);
}

static int print(const struct map_args *args, const struct stretch *stretch, bool last)
{
    if (!args->report.json)
        return print_human(stretch);
    print_json(stretch, last);
    return 0;
}

static bool continues(const struct stretch *stretch, const struct blk_status *next)
{
    const struct blk_status *status = &stretch->status;
    return status->data == next->data && status->zero == next->zero && status->depth == next->depth &&
           status->present == next->present && status->offset_valid == next->offset_valid &&
           status->file == next->file && (!next->offset_valid || status->offset + status->length == next->offset);
}

static coroutine_fn int co_map(struct blk_front *front, void *arg)
{
    const struct map_args *args = arg;
    struct stretch last = { .start = args->start };
    uint64_t size = blk_front_size(front), offset = args->start;
    uint64_t end = args->length < size && args->start < size - args->length ? args->start + args->length : size;

    fputs(args->report.json ? "[" : "Offset          Length          Mapped to       File\n", stdout);
    while (offset < end) {
        struct blk_status status;
        int ret = blk_co_status(blk_front_node(front), NULL, offset, end - offset, &status);
        if (ret < 0) {
            error_report("Could not read file metadata: %s", strerror(-ret));
            return 1;
        }
        offset += status.length;
        if (last.status.length && continues(&last, &status)) {
            last.status.length += status.length;
            continue;
        }
        if (last.status.length && print(args, &last, false) < 0)
            return 1;
        last = (struct stretch){ .start = offset - status.length, .status = status };
    }
    /* QEMU ends the list with an entry even if there is nothing to map. */
    return print(args, &last, true) < 0 ? 1 : 0;
}

static const struct img_option options[] = {
    IMAGE_REPORT_OPTIONS,
    { 's', "start-offset", "OFFSET", "begin there" },
    { 'l', "max-length", "LENGTH", "end after so many bytes" },
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct map_args *args)
{
    int option, status;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 's':
            if (!img_size_arg("start offset", optarg, 0, INT64_MAX, &args->start))
                return 1;
            break;
        case 'l':
            if (!img_size_arg("max length", optarg, 0, INT64_MAX, &args->length))
                return 1;
            break;
        default:
            status = image_report_arg(&args->report, "map", option);
            if (status >= 0)
                return status;
        }
    }
    if (!image_report_operand(&args->report, argc, argv))
        return 1;
    return image_source_valid(&args->report.source) ? -1 : 1;
}

static coroutine_fn int co_run_map(int argc, char **argv)
{
    struct map_args args = { .length = INT64_MAX };
    int status = parse(argc, argv, &args);
    return status < 0 ? image_co_with(args.report.filename, &args.report.source, co_map, &args) : status;
}

static struct img_command map = {
    .name = "map",
    .usage =
        "[--object OBJECT] [--image-opts] [-f FMT] [--start-offset=OFFSET] [--max-length=LENGTH] [--output=FORMAT] "
        "[-U] FILE",
    .help = "Shows where each part of the content is: in which file of the backing chain, at which offset.",
    .options = options,
    .co_run = co_run_map,
};
IMG_COMMAND(map)
