/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* amend: other options for an image that is there. */
#include "command.h"
#include "create_opts.h"
#include "image.h"
#include "progress.h"

#include <base/opts.h>
#include <block/change.h>
#include <stdio.h>
#include <string.h>

enum { OPTION_FORCE = IMAGE_OPT_OWN };

struct amend_args {
    struct image_source source;
    struct create_opts options; /* -o; its tables are not used */
    const char *cache, *filename;
    enum progress_mode progress;
    bool quiet;
};

static int print_options(const char *format)
{
    const struct blk_driver *driver = blk_driver_find(format);

    if (!driver) {
        error_report("Unknown file format '%s'", format);
        return 1;
    }
    if (!driver->amend_options) {
        error_report("Format driver '%s' does not support option amendment", format);
        return 1;
    }
    printf("Amend options for '%s':\n", format);
    opts_print_help(driver->amend_options, stdout);
    return 0;
}

static int parse_options(const struct amend_args *args, const struct blk_driver *driver, struct opts *opts,
                         struct error **errp)
{
    int ret = opts_parse(opts, args->options.text, NULL, OPTS_LAST_WINS, errp);

    if (ret < 0)
        return ret;
    struct error *error = NULL;
    ret = opts_validate(opts, driver->amend_options, &error);
    if (ret == 0 || !driver->create_options || opts_validate(opts, driver->create_options, NULL) < 0) {
        error_propagate(errp, error);
        return ret;
    }
    error_set(errp, ret, "%s\nThis option is only supported for image creation", error_text(error));
    error_free(error);
    return ret;
}

static coroutine_fn int co_change(const struct amend_args *args, struct blk_node *node, struct error **errp)
{
    const struct blk_driver *driver = blk_node_below_filters(node)->driver;
    struct opts *opts = opts_new();
    int ret = parse_options(args, driver, opts, errp);

    progress_poll();
    if (ret == 0)
        ret = blk_co_amend(node, opts, errp);
    if (ret == 0)
        progress_complete();
    opts_free(opts);
    return ret;
}

static coroutine_fn int co_amend(struct blk_front *front, void *arg)
{
    const struct amend_args *args = arg;
    struct blk_node *image = blk_node_below_filters(blk_front_node(front));
    struct error *error = NULL;

    if (create_opts_want_help(&args->options))
        return print_options(image->driver->name);
    if (!image->driver->co_amend) {
        error_report("Format driver '%s' does not support option amendment", image->driver->name);
        return 1;
    }
    int ret = co_change(args, image, &error);
    progress_end();
    error_report_free(error);
    return ret < 0 ? 1 : 0;
}

static const struct img_option options[] = {
    IMAGE_CHANGE_OPTIONS,
    { 'o', "options", "CHANGES", "options of the format, key=value,...; 'help' lists them", true },
    { 't', "cache", "CACHE", "cache mode for the image", true },
    PROGRESS_OPTION,
    IMAGE_QUIET_OPTION,
    { OPTION_FORCE, "force", NULL, "let an image lose its last key; no format here has keys" },
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct amend_args *args)
{
    int option, status;

    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'o':
            if (!create_opts_add(&args->options, optarg))
                return 1;
            break;
        case 't': args->cache = optarg; break;
        case 'p':
            if (!progress_arg(optarg, &args->progress))
                return 1;
            break;
        case 'q': args->quiet = true; break;
        case OPTION_FORCE: break; /* for what loses a key's last copy: no format here has keys */
        default:
            status = image_source_arg(&args->source, "amend", option);
            if (status >= 0)
                return status;
        }
    }
    if (!args->options.text)
        return img_usage_error("Must specify options (-o)");
    if (args->source.format && create_opts_want_help(&args->options))
        return print_options(args->source.format);
    if (optind != argc - 1) {
        error_report("Expecting one image file name");
        return 1;
    }
    args->filename = argv[optind];
    return image_cache_arg(&args->source, "cache", args->cache) && image_source_valid(&args->source) ? -1 : 1;
}

static coroutine_fn int co_run_amend(int argc, char **argv)
{
    struct amend_args args = { .source = { .flags = BLK_O_RDWR | BLK_O_RESIZE }, .cache = "writeback" };
    int status = parse(argc, argv, &args);

    if (status < 0) {
        progress_start(args.quiet ? PROGRESS_OFF : args.progress, 1.0);
        status = image_co_with(args.filename, &args.source, co_amend, &args);
        progress_end();
    }
    create_opts_finish(&args.options);
    return status;
}

static struct img_command amend = {
    .name = "amend",
    .usage = "[--object OBJECT] [--image-opts] [-p] [-q] [-f FMT] [-t CACHE] [--force] -o OPTIONS FILE",
    .help =
        "Changes options of an image that it was created with. '-f FMT -o help' lists which. What it shows stays as\n"
        "it is, but for the size.",
    .options = options,
    .co_run = co_run_amend,
};
IMG_COMMAND(amend)
