/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * create: makes a new image, maybe on top of a backing image.
 *
 * The backing image is opened before anything is made (unless -u), so that a mistyped name is reported at once; if no
 * size is given the new image gets its size. Its format has to be named: probing what a guest may have written is
 * unsafe.
 */
#include "command.h"
#include "create_opts.h"
#include "image.h"
#include "size_arg.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct create_args {
    const char *format, *filename;
    const char *backing, *backing_format;
    bool quiet, unsafe, have_size;
    uint64_t size;
    struct create_opts create;
};

/* Looks at the backing image: its size and, if none was named, its format (only to say what it would be). */
static coroutine_fn int co_look_at_backing(const struct create_args *args, const char *name, const char *format,
                                           uint64_t *size, char **found_format, struct error **errp)
{
    char *path = blk_path_combine(args->filename, name);
    struct opts *opts = opts_new();
    if (format)
        opts_set(opts, "driver", format);
    struct blk_node *node = blk_co_open(path, opts, BLK_O_FORCE_SHARE | BLK_O_NO_IO, errp);
    opts_free(opts);
    free(path);
    if (!node)
        return -EINVAL;
    *size = blk_node_size(node);
    *found_format = xstrdup(node->driver->name);
    blk_co_node_unref(node);
    return 0;
}

static coroutine_fn int co_check_backing(struct create_args *args, struct error **errp)
{
    const char *name = create_opts_get(&args->create, "backing_file");
    const char *format = create_opts_get(&args->create, "backing_fmt");
    uint64_t size = 0;
    AUTO_FREE char *found = NULL;
    if (!name)
        return 0;
    if (!*name)
        return error_set(errp, -EINVAL, "Expected backing file name, got empty string");
    if (!strcmp(name, args->filename))
        return error_set(errp, -EINVAL, "Error: Trying to create an image with the same filename as the backing file");
    if (!args->unsafe) {
        struct error *error = NULL;
        if (co_look_at_backing(args, name, format, &size, &found, &error) < 0) {
            error_set(errp, -EINVAL, "%s\nCould not open backing image.", error_text(error));
            error_free(error);
            return -EINVAL;
        }
    }
    if (!format && found)
        return error_set(errp, -EINVAL, "Backing file specified without backing format\nDetected format of %s.", found);
    if (!format)
        return error_set(errp, -EINVAL, "Backing file specified without backing format");
    if (!args->have_size && !args->unsafe) {
        args->have_size = true;
        args->size = size;
    }
    return 0;
}

/* Fills in args->create and the size. */
static coroutine_fn int co_prepare(struct create_args *args, struct error **errp)
{
    int ret = create_opts_resolve(&args->create, args->format, args->filename, errp);
    if (ret < 0)
        return ret;
    const char *size = create_opts_get(&args->create, "size");
    if (size && args->have_size)
        return error_set(errp, -EINVAL, "The image size must be specified only once");
    if (size) {
        ret = opts_size(args->create.opts, args->create.table, "size", &args->size, errp);
        args->have_size = ret > 0;
    }
    if (ret >= 0)
        ret = create_opts_backing(&args->create, args->backing, args->backing_format, errp);
    if (ret >= 0)
        ret = co_check_backing(args, errp);
    if (ret < 0)
        return ret;
    if (!args->have_size)
        return error_set(errp, -EINVAL, "Image creation needs a size parameter");
    AUTO_FREE char *text = xasprintf("%" PRIu64, args->size);
    opts_set(args->create.opts, "size", text);
    return 0;
}

static coroutine_fn int co_create(struct create_args *args, struct error **errp)
{
    int ret = co_prepare(args, errp);
    if (ret < 0)
        return ret;
    if (!args->quiet) {
        printf("Formatting '%s', fmt=%s", args->filename, args->format);
        create_opts_print(&args->create);
        printf("\n");
        fflush(stdout);
    }
    struct error *error = NULL;
    ret = blk_co_create(args->format, args->filename, args->create.opts, args->size, &error);
    if (ret == -EFBIG) {
        bool clusters = opts_find(args->create.table, "cluster_size");
        error_set(errp, ret, "The image size is too large for file format '%s'%s", args->format,
                  clusters ? " (try using a larger cluster size)" : "");
        error_free(error);
    } else {
        error_propagate(errp, error);
    }
    return ret;
}

/* What is left of argv: the file name and the size. -1 to go on, else the exit status. */
static int parse_operands(int argc, char **argv, struct create_args *args)
{
    args->filename = optind < argc ? argv[optind++] : NULL;
    if (create_opts_want_help(&args->create))
        return create_opts_help(args->format, args->filename);
    if (!args->filename)
        return img_usage_error("Expecting image file name");
    if (optind < argc) {
        if (!img_size_arg("image size", argv[optind++], 0, INT64_MAX, &args->size))
            return 1;
        args->have_size = true;
    }
    if (optind < argc)
        return img_usage_error("Unexpected argument: %s", argv[optind]);
    return -1;
}

static const struct img_option options[] = {
    IMG_HELP_OPTION,
    IMAGE_OBJECT_OPTION,
    { 'f', "format", "FMT", "format of the image (raw)", true },
    { 'o', "options", "OPTIONS", "options of the format, key=value,...; 'help' lists them", true },
    { 'b', "backing", "FILE", "backing file", true },
    { 'F', "backing-format", "FMT", "the backing file's format", true },
    { 'u', "backing-unsafe", NULL, "do not look at the backing file", true },
    IMAGE_QUIET_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct create_args *args)
{
    int option;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'F': args->backing_format = optarg; break;
        case 'b': args->backing = optarg; break;
        case 'f': args->format = optarg; break;
        case 'q': args->quiet = true; break;
        case 'u': args->unsafe = true; break;
        case 'o':
            if (!create_opts_add(&args->create, optarg))
                return 1;
            break;
        case IMAGE_OPT_OBJECT:
            if (!image_object_arg(optarg))
                return 1;
            break;
        case IMG_OPT_HELP: return img_command_help("create");
        default: return 1;
        }
    }
    return parse_operands(argc, argv, args);
}

static coroutine_fn int co_run_create(int argc, char **argv)
{
    struct create_args args = { .format = "raw" };
    int status = parse(argc, argv, &args);
    if (status < 0) {
        struct error *error = NULL;
        status = co_create(&args, &error) < 0 ? 1 : 0;
        error_prepend(&error, "%s: ", args.filename);
        error_report_free(error);
    }
    create_opts_finish(&args.create);
    return status;
}

static struct img_command create = {
    .name = "create",
    .usage = "[--object OBJECT] [-q] [-f FMT] [-b BACKING_FILE [-F BACKING_FMT]] [-u] [-o OPTIONS] FILE [SIZE]",
    .help = "Makes an image. With -b it starts as a copy of another one that must not change any more, and takes its "
            "size from it\n"
            "if SIZE is left out; -u does not look at that file. '-f FMT -o help' lists what OPTIONS there are.",
    .options = options,
    .co_run = co_run_create,
};
IMG_COMMAND(create)
