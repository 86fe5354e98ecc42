/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * info: describes an image, or each image of a backing chain.
 *
 * Only the image itself is opened, for its metadata; a backing image is opened by name if the chain is asked for,
 * each after the one above is closed. A name that comes twice ends the walk: the chain is a loop.
 */
#include "command.h"
#include "image.h"
#include "json_out.h"
#include "snapshot_list.h"

#include <base/size.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct info_args {
    struct image_report report;
    bool chain, limits;
};

/* One image, as far as it was read. */
struct info_image {
    const struct blk_driver *driver;
    char *filename;
    struct blk_info info;
    struct blk_limits limits;
};

/* ---- what requests to the image have to keep to ---- */

static void add_limit(json_t *object, const char *key, uint64_t value)
{
    if (value)
        json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* QEMU's names as far as it has them. What there is no limit of is left out. */
static json_t *limits_to_json(const struct blk_limits *limits)
{
    json_t *object = json_object();

    add_limit(object, "request-alignment", limits->request_alignment);
    add_limit(object, "max-discard", limits->max_discard);
    add_limit(object, "discard-alignment", limits->discard_alignment);
    add_limit(object, "max-write-zeroes", limits->max_zeroes);
    add_limit(object, "write-zeroes-alignment", limits->zeroes_alignment);
    add_limit(object, "min-transfer", limits->min_io);
    add_limit(object, "opt-transfer", limits->opt_io);
    add_limit(object, "max-transfer", limits->max_transfer);
    add_limit(object, "max-iov", limits->max_iov);
    add_limit(object, "min-mem-alignment", limits->memory_alignment);
    add_limit(object, "logical-block-size", limits->logical_block);
    add_limit(object, "physical-block-size", limits->physical_block);
    return object;
}

static void print_limits(const struct blk_limits *limits)
{
    json_t *object = limits_to_json(limits);

    printf("Block limits:\n");
    json_print_human(object, 4, stdout);
    json_decref(object);
}

/* ---- JSON: keys in the order in which QEMU has them ---- */

static json_t *to_json(const struct info_args *args, const struct info_image *image)
{
    const struct blk_info *info = &image->info;
    json_t *object = json_object();
    json_add_name(object, "backing-filename-format", info->backing_format);
    if (info->snapshots && json_array_size(info->snapshots))
        json_object_set(object, "snapshots", info->snapshots);
    json_object_set_new(object, "virtual-size", json_integer((json_int_t)info->virtual_size));
    json_add_name(object, "filename", image->filename);
    if (info->cluster_size)
        json_object_set_new(object, "cluster-size", json_integer((json_int_t)info->cluster_size));
    json_add_name(object, "format", image->driver->name);
    if (info->allocated_size >= 0)
        json_object_set_new(object, "actual-size", json_integer((json_int_t)info->allocated_size));
    if (info->format_specific)
        json_object_set(object, "format-specific", info->format_specific);
    json_add_name(object, "full-backing-filename", info->backing_file ? info->full_backing_file : NULL);
    if (info->encrypted)
        json_object_set_new(object, "encrypted", json_true());
    json_add_name(object, "backing-filename", info->backing_file);
    if (info->dirty_known)
        json_object_set_new(object, "dirty-flag", json_boolean(info->dirty));
    if (args->limits)
        json_object_set_new(object, "limits", limits_to_json(&image->limits));
    return object;
}

/* ---- for people ---- */

static void print_backing(const struct blk_info *info)
{
    if (!info->backing_file)
        return;
    printf("backing file: %s", info->backing_file);
    if (!info->full_backing_file)
        printf(" (cannot determine actual path)");
    else if (strcmp(info->backing_file, info->full_backing_file) != 0)
        printf(" (actual path: %s)", info->full_backing_file);
    printf("\n");
    if (info->backing_format)
        printf("backing file format: %s\n", info->backing_format);
}

static void print_human(const struct info_image *image)
{
    const struct blk_info *info = &image->info;
    char buf[32];
    printf("image: %s\nfile format: %s\nvirtual size: %s (%" PRIu64 " bytes)\n", image->filename, image->driver->name,
           size_format(info->virtual_size, buf, sizeof(buf)), info->virtual_size);
    if (info->allocated_size >= 0)
        printf("disk size: %s\n", size_format((uint64_t)info->allocated_size, buf, sizeof(buf)));
    else
        printf("disk size: unavailable\n");
    if (info->encrypted)
        printf("encrypted: yes\n");
    if (info->cluster_size)
        printf("cluster_size: %" PRIu64 "\n", info->cluster_size);
    if (info->dirty)
        printf("cleanly shut down: no\n");
    print_backing(info);
    snapshot_list_print(info->snapshots);
    const json_t *data = json_object_get(info->format_specific, "data");
    if (data && json_object_size(data)) {
        printf("Format specific information:\n");
        json_print_human(data, 4, stdout);
    }
}

/* ---- walking the chain ---- */

static void image_finish(struct info_image *image)
{
    free(image->filename);
    blk_info_finish(&image->info);
}

static coroutine_fn int co_read_image(struct blk_front *front, void *arg)
{
    struct info_image *image = arg;
    struct error *error = NULL;
    struct blk_node *node = blk_front_node(front);
    int ret = blk_co_info(node, &image->info, &error);
    image->driver = node->driver;
    image->limits = node->limits;
    image->filename = xstrdup(node->filename);
    if (ret < 0)
        error_report("Could not get information about '%s': %s", image->filename,
                     error ? error_text(error) : strerror(-ret));
    error_free(error);
    return ret < 0 ? 1 : 0;
}

static bool seen_before(const json_t *seen, const char *filename) { return json_object_get(seen, filename) != NULL; }

/* All images from the first to the end of the chain, or to an error, which prints nothing but itself. */
static coroutine_fn int co_walk(const struct info_args *args, struct info_image **images, size_t *count)
{
    struct image_source source = args->report.source;
    const char *filename = args->report.filename;
    json_t *seen = json_object();
    int ret = 0;
    while (filename) {
        if (seen_before(seen, filename)) {
            error_report("Backing file '%s' creates an infinite loop.", filename);
            ret = -1;
            break;
        }
        json_object_set_new_nocheck(seen, filename, json_true());
        *images = xrealloc(*images, (*count + 1) * sizeof(**images));
        struct info_image *image = &(*images)[*count];
        *image = (struct info_image){ 0 };
        ++*count;
        if (image_co_with(filename, &source, co_read_image, image) != 0) {
            ret = -1;
            break;
        }
        filename = args->chain && image->info.backing_file ? image->info.full_backing_file : NULL;
        source.image_opts = false;
        source.format = image->info.backing_format;
    }
    json_decref(seen);
    return ret;
}

static void print(const struct info_args *args, const struct info_image *images, size_t count)
{
    if (!args->report.json) {
        for (size_t i = 0; i < count; i++) {
            fputs(i ? "\n" : "", stdout);
            print_human(&images[i]);
            if (args->limits)
                print_limits(&images[i].limits);
        }
        return;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, to_json(args, &images[i]));
    json_print(args->chain ? list : json_array_get(list, 0), stdout);
    json_decref(list);
}

enum { OPTION_CHAIN = IMAGE_OPT_OWN, OPTION_LIMITS };

static const struct img_option options[] = {
    IMAGE_REPORT_OPTIONS,
    { OPTION_CHAIN, "backing-chain", NULL, "go on with the backing file, to the end of the chain" },
    { OPTION_LIMITS, "limits", NULL, "also alignments and sizes of requests that the image asks for", true },
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct info_args *args)
{
    int option, status;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case OPTION_CHAIN: args->chain = true; break;
        case OPTION_LIMITS: args->limits = true; break;
        default:
            status = image_report_arg(&args->report, "info", option);
            if (status >= 0)
                return status;
        }
    }
    if (!image_report_operand(&args->report, argc, argv))
        return 1;
    return image_source_valid(&args->report.source) ? -1 : 1;
}

static coroutine_fn int co_run_info(int argc, char **argv)
{
    struct info_args args = { .report.source.flags = BLK_O_NO_BACKING | BLK_O_NO_IO };
    int status = parse(argc, argv, &args);
    if (status >= 0)
        return status;
    struct info_image *images = NULL;
    size_t count = 0;
    status = co_walk(&args, &images, &count) < 0 ? 1 : 0;
    if (status == 0)
        print(&args, images, count);
    for (size_t i = 0; i < count; i++)
        image_finish(&images[i]);
    free(images);
    return status;
}

static struct img_command info = {
    .name = "info",
    .usage = "[--object OBJECT] [--image-opts] [-f FMT] [--output=FORMAT] [--backing-chain] [--limits] [-U] FILE",
    .help =
        "Describes an image: format, sizes, backing file, what is particular to the format. --backing-chain goes on "
        "with its\n"
        "backing file, and that one's, to the end.",
    .options = options,
    .co_run = co_run_info,
};
IMG_COMMAND(info)
