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
    struct image_source source;
    bool json;
    const char *filename;
    uint64_t start, length;
};

struct map_entry {
    uint64_t start;
    struct blk_status status;
};

static const char *truth(bool value) { return value ? "true" : "false"; }

/* -1 where a person cannot be told an offset. */
static int print_human(const struct map_entry *entry)
{
    const struct blk_status *status = &entry->status;
    if (status->data && !status->offset_valid) {
        error_report("File contains external, encrypted or compressed clusters.");
        return -1;
    }
    if (status->data && !status->zero)
        printf("%#-16" PRIx64 "%#-16" PRIx64 "%#-16" PRIx64 "%s\n", entry->start, status->length, status->offset,
               status->file ? status->file->filename : "");
    return 0;
}

static void print_json(const struct map_entry *entry, bool last)
{
    const struct blk_status *status = &entry->status;
    printf(
        "{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
        entry->start, status->length, status->depth, truth(status->present), truth(status->zero), truth(status->data));
    if (status->offset_valid)
        printf(", \"offset\": %" PRIu64, status->offset);
    fputs(last ? "}]\n" : "},\n", stdout);
}

static int print(const struct map_args *args, const struct map_entry *entry, bool last)
{
    if (!args->json)
        return print_human(entry);
    print_json(entry, last);
    return 0;
}

static bool continues(const struct map_entry *a, const struct blk_status *b)
{
    return a->status.data == b->data && a->status.zero == b->zero && a->status.depth == b->depth &&
           a->status.present == b->present && a->status.offset_valid == b->offset_valid && a->status.file == b->file &&
           (!b->offset_valid || a->status.offset + a->status.length == b->offset);
}

static coroutine_fn int co_map(struct blk_front *front, const struct map_args *args)
{
    struct map_entry current = { .start = args->start };
    uint64_t size = blk_front_size(front), offset = args->start;
    uint64_t end = args->length < size && args->start < size - args->length ? args->start + args->length : size;
    bool have = false;

    fputs(args->json ? "[" : "Offset          Length          Mapped to       File\n", stdout);
    while (offset < end) {
        struct blk_status status;
        int ret = blk_co_status(blk_front_node(front), NULL, offset, end - offset, &status);
        if (ret < 0) {
            error_report("Could not read file metadata: %s", strerror(-ret));
            return 1;
        }
        if (have && continues(&current, &status)) {
            current.status.length += status.length;
        } else {
            if (have && print(args, &current, false) < 0)
                return 1;
            current = (struct map_entry){ .start = offset, .status = status };
            have = true;
        }
        offset += status.length;
    }
    /* QEMU ends the list with an entry even where there is nothing to map. */
    return print(args, &current, true) < 0 ? 1 : 0;
}

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct map_args *args)
{
    enum { OPTION_OUTPUT = IMAGE_OPT_OWN };
    static const struct option options[] = {
        IMAGE_LONG_OPTIONS,
        { "format", required_argument, NULL, 'f' },
        { "output", required_argument, NULL, OPTION_OUTPUT },
        { "force-share", no_argument, NULL, 'U' },
        { "start-offset", required_argument, NULL, 's' },
        { "max-length", required_argument, NULL, 'l' },
        { NULL, 0, NULL, 0 },
    };
    const char *output = NULL;
    int option, status;
    while ((option = img_getopt(argc, argv, ":f:s:l:hU", options)) != -1) {
        switch (option) {
        case OPTION_OUTPUT: output = optarg; break;
        case 's':
            if (!img_size_arg("start offset", optarg, 0, INT64_MAX, &args->start))
                return 1;
            break;
        case 'l':
            if (!img_size_arg("max length", optarg, 0, INT64_MAX, &args->length))
                return 1;
            break;
        default:
            status = image_source_arg(&args->source, "map", option);
            if (status >= 0)
                return status;
        }
    }
    args->filename = image_operand(argc, argv);
    if (!args->filename)
        return 1;
    if (output && !image_output_arg(output, &args->json))
        return 1;
    return image_source_valid(&args->source) ? -1 : 1;
}

static coroutine_fn int co_run_map(int argc, char **argv)
{
    struct map_args args = { .length = INT64_MAX };
    int status = parse(argc, argv, &args);
    if (status >= 0)
        return status;
    struct blk_front *front = image_co_open(args.filename, &args.source);
    if (!front)
        return 1;
    status = co_map(front, &args);
    return image_co_close(front) < 0 ? 1 : status;
}

static struct img_command map = {
    .name = "map",
    .usage =
        "[--object OBJECT] [--image-opts] [-f FMT] [--start-offset=OFFSET] [--max-length=LENGTH] [--output=FORMAT] "
        "[-U] FILE",
    .help = "Shows where each part of the content is: in which file of the backing chain, at which offset.",
    .co_run = co_run_map,
};
IMG_COMMAND(map)
