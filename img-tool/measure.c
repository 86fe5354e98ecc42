/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* measure: how large a new image would be, of a size or with another one's content. */
#include "command.h"
#include "create_opts.h"
#include "image.h"
#include "json_out.h"
#include "size_arg.h"
#include "snapshot_arg.h"

#include <inttypes.h>
#include <stdio.h>

enum { OPTION_SIZE = IMAGE_OPT_OWN };

struct measure_args {
    struct image_report report;
    struct snapshot_arg snapshot;
    struct create_opts create;
    const char *out_format;
    bool have_size;
    uint64_t size;
};

static void print_human(const struct blk_measure *measure)
{
    printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n", measure->required,
           measure->fully_allocated);
    if (measure->has_bitmaps)
        printf("bitmaps size: %" PRIu64 "\n", measure->bitmaps);
}

static void print_json(const struct blk_measure *measure)
{
    json_t *object = json_object();

    if (measure->has_bitmaps)
        json_object_set_new(object, "bitmaps", json_integer((json_int_t)measure->bitmaps));
    json_object_set_new(object, "required", json_integer((json_int_t)measure->required));
    json_object_set_new(object, "fully-allocated", json_integer((json_int_t)measure->fully_allocated));
    json_print(object, stdout);
    json_decref(object);
}

static coroutine_fn int co_measure(struct measure_args *args, struct blk_front *source)
{
    struct blk_measure measure;
    struct error *error = NULL;

    /* Its protocol's options are taken too: a plain file's. */
    if (create_opts_resolve(&args->create, args->out_format, "file", &error) < 0) {
        bool options = args->create.table;
        error_report_free(error);
        if (options)
            error_report("Invalid options for file format '%s'", args->out_format);
        return 1;
    }
    if (blk_co_measure(args->create.format, args->create.opts, args->size, source ? blk_front_node(source) : NULL,
                       &measure, &error) < 0) {
        error_report_free(error);
        return 1;
    }
    if (args->report.json)
        print_json(&measure);
    else
        print_human(&measure);
    return 0;
}

static coroutine_fn int co_measure_image(struct blk_front *source, void *arg)
{
    struct measure_args *args = arg;

    return snapshot_arg_co_show(&args->snapshot, source) < 0 ? 1 : co_measure(args, source);
}

/* ---- command line ---- */

static int fail(const char *words)
{
    error_report("%s", words);
    return 1;
}

/* What is left of argv, and what goes together. -1 to go on, else the exit status. */
static int parse_operands(int argc, char **argv, struct measure_args *args)
{
    struct image_report *report = &args->report;
    bool of_image = report->source.image_opts || report->source.format || snapshot_arg_given(&args->snapshot);

    if (argc - optind > 1)
        return fail("At most one filename argument is allowed.");
    if (argc - optind == 1)
        report->filename = argv[optind];
    if (!report->filename && of_image)
        return fail("--image-opts, -f, and -l require a filename argument.");
    if (!report->filename && !args->have_size)
        return fail("Either --size N or one filename must be specified.");
    if (report->filename && args->have_size)
        return fail("--size N cannot be used together with a filename.");
    if (!image_source_valid(&report->source))
        return 1;
    return -1;
}

static const struct img_option options[] = {
    IMAGE_CHANGE_OPTIONS,
    IMAGE_OUTPUT_OPTION,
    IMAGE_FORCE_SHARE_OPTION,
    { 'O', "output-format", "FMT", "format of the new image (raw)", true },
    { 'O', "target-format", "FMT", NULL, true },
    { 'o', "options", "OPTIONS", "options of the format, key=value,...; 'help' lists them", true },
    { OPTION_SIZE, "size", "SIZE", "of a disk of that size instead of an image" },
    { 'l', "snapshot", "SNAPSHOT", "of what this internal snapshot kept", true },
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct measure_args *args)
{
    int option, status;

    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'l':
            if (!snapshot_arg_parse(&args->snapshot, optarg))
                return 1;
            break;
        case 'o':
            if (!create_opts_add(&args->create, optarg))
                return 1;
            break;
        case 'O': args->out_format = optarg; break;
        case OPTION_SIZE:
            if (!img_size_arg("image size", optarg, 0, INT64_MAX, &args->size))
                return 1;
            args->have_size = true;
            break;
        default:
            status = image_report_arg(&args->report, "measure", option);
            if (status >= 0)
                return status;
        }
    }
    return image_report_output(&args->report) ? parse_operands(argc, argv, args) : 1;
}

static coroutine_fn int co_run_measure(int argc, char **argv)
{
    struct measure_args args = { .out_format = "raw" };
    int status = parse(argc, argv, &args);

    if (status < 0 && args.report.filename)
        status = image_co_with(args.report.filename, &args.report.source, co_measure_image, &args);
    else if (status < 0)
        status = co_measure(&args, NULL);
    snapshot_arg_finish(&args.snapshot);
    create_opts_finish(&args.create);
    return status;
}

static struct img_command measure = {
    .name = "measure",
    .usage = "[--output=OFMT] [-O OUTPUT_FMT] [-o OPTIONS] [--size N | [--object OBJECT] [--image-opts] [-f FMT] "
             "[-l SNAPSHOT] [-U] FILE]",
    .help = "Tells how large a new image of OUTPUT_FMT would be: for a disk of N bytes, or for the content of FILE.",
    .options = options,
    .co_run = co_run_measure,
};
IMG_COMMAND(measure)
