/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opening the images that a sub-command works on. A front end is the only holder of its node: closing it closes the
 * image, and an error in that is reported, because it may mean that data was lost.
 */
#include "image.h"

#include "command.h"

#include <errno.h>
#include <objects/object.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

bool image_cache_mode(struct image_source *source, const char *mode)
{
    bool write_cache = true;
    if (blk_cache_mode_parse(mode, &source->flags, &write_cache) < 0)
        return false;
    source->no_write_cache = !write_cache;
    return true;
}

bool image_cache_arg(struct image_source *source, const char *what, const char *mode)
{
    if (image_cache_mode(source, mode))
        return true;
    error_report("Invalid %s option: %s", what, mode);
    return false;
}

static void add_option(const char *key, const char *value, void *arg) { opts_set(arg, key, value); }

static coroutine_fn struct blk_node *co_open_node(const char *name, const struct image_source *source,
                                                  const struct opts *options, struct error **errp)
{
    const char *filename = source->image_opts ? NULL : name;
    struct blk_node *node = NULL;
    struct opts *opts = opts_new();
    if (options)
        opts_each(options, add_option, opts);
    if (source->format)
        opts_set(opts, "driver", source->format);
    if (source->force_share)
        opts_set_bool(opts, "force-share", true);
    int ret = source->image_opts ? opts_parse(opts, name, "file", OPTS_LAST_WINS | OPTS_WARN_SHORT, errp) : 0;
    if (ret == 0 && source->temporary)
        node = blk_co_open_temporary(filename, opts, source->flags, "qcow2", errp);
    else if (ret == 0)
        node = blk_co_open(filename, opts, source->flags, errp);
    opts_free(opts);
    return node && source->copy_on_read ? blk_co_copy_on_read(node, errp) : node;
}

coroutine_fn struct blk_front *image_co_try_open(const char *name, const struct image_source *source,
                                                 const struct opts *options, struct error **errp)
{
    struct blk_node *node = co_open_node(name, source, options, errp);
    if (!node)
        return NULL;
    if ((source->flags & BLK_O_RDWR) && !blk_node_writable(node)) { /* the options say read-only=on */
        error_set(errp, -EACCES, "Block node is read-only");
        blk_co_node_unref(node);
        return NULL;
    }
    unsigned perm = BLK_PERM_CONSISTENT_READ;
    unsigned shared = source->no_share ? BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE_UNCHANGED : BLK_PERM_ALL;
    if (source->flags & BLK_O_NO_IO)
        perm = 0;
    if (source->flags & BLK_O_RDWR)
        perm |= BLK_PERM_WRITE;
    if (source->flags & BLK_O_RESIZE)
        perm |= BLK_PERM_RESIZE;
    if (source->force_share)
        shared = BLK_PERM_ALL;
    struct blk_front *front = blk_front_new("", node, perm, shared, errp);
    blk_co_node_unref(node); /* the front end has its own reference */
    if (front && source->no_write_cache)
        blk_front_set_write_cache(front, false);
    return front;
}

coroutine_fn struct blk_front *image_co_open(const char *name, const struct image_source *source)
{
    struct error *error = NULL;
    struct blk_front *front = image_co_try_open(name, source, NULL, &error);
    if (!front) {
        error_prepend(&error, "Could not open '%s': ", name);
        error_report_free(error);
    }
    return front;
}

bool image_same_file(const char *a, const char *b)
{
    struct stat st_a, st_b;
    if (!strcmp(a, b))
        return true;
    return stat(a, &st_a) == 0 && stat(b, &st_b) == 0 && st_a.st_dev == st_b.st_dev && st_a.st_ino == st_b.st_ino;
}

coroutine_fn int image_co_close(struct blk_front *front)
{
    if (!front)
        return 0;
    char *name = xstrdup(blk_front_node(front)->filename);
    int ret = blk_co_front_free(front);
    if (ret < 0)
        error_report("Could not write '%s': %s", name, strerror(-ret));
    free(name);
    return ret;
}

coroutine_fn int image_co_with(const char *name, const struct image_source *source,
                               coroutine_fn int (*co_fn)(struct blk_front *front, void *arg), void *arg)
{
    struct blk_front *front = image_co_open(name, source);
    if (!front)
        return 1;
    int status = co_fn(front, arg);
    return image_co_close(front) < 0 && status == 0 ? 1 : status;
}

/* ---- command line ---- */

int image_source_arg(struct image_source *source, const char *command, int option)
{
    switch (option) {
    case 'f': source->format = optarg; return -1;
    case 'U': source->force_share = true; return -1;
    case IMAGE_OPT_IMAGE_OPTS: source->image_opts = true; return -1;
    case IMAGE_OPT_OBJECT: return image_object_arg(optarg) ? -1 : 1;
    case IMG_OPT_HELP: return img_command_help(command);
    default: return 1; /* reported already */
    }
}

const char *image_operand(int argc, char **argv)
{
    if (optind == argc - 1)
        return argv[optind];
    img_usage_error("Expecting one image file name");
    return NULL;
}

bool image_source_valid(const struct image_source *source)
{
    if (source->image_opts && source->format) {
        error_report("--image-opts and --format are mutually exclusive");
        return false;
    }
    return true;
}

bool image_object_arg(char *text)
{
    struct error *error = NULL;
    if (object_help(text))
        exit(0);
    struct opts *opts = object_parse(text, &error);
    int ret = opts ? object_create(opts, OBJECT_WORDS_TOOL, &error) : -EINVAL;
    opts_free(opts);
    error_report_free(error);
    return ret == 0;
}

static bool output_arg(const char *text, bool *json)
{
    *json = !strcmp(text, "json");
    if (*json || !strcmp(text, "human"))
        return true;
    error_report("--output must be used with human or json as argument.");
    return false;
}

int image_report_arg(struct image_report *report, const char *command, int option)
{
    if (option != IMAGE_OPT_OUTPUT)
        return image_source_arg(&report->source, command, option);
    report->output = optarg;
    return -1;
}

bool image_report_output(struct image_report *report)
{
    return !report->output || output_arg(report->output, &report->json);
}

bool image_report_operand(struct image_report *report, int argc, char **argv)
{
    report->filename = image_operand(argc, argv);
    return report->filename && image_report_output(report);
}
