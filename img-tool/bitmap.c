/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bitmap: the dirty bitmaps that an image keeps: made, removed, emptied, merged, enabled and disabled. Several of these
 * on one bitmap are done in the order in which they are given; the first that fails ends it.
 */
#include "command.h"
#include "image.h"
#include "size_arg.h"

#include <block/bitmap.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    OPTION_ADD = IMAGE_OPT_OWN,
    OPTION_REMOVE,
    OPTION_REMOVE_ALL,
    OPTION_CLEAR,
    OPTION_ENABLE,
    OPTION_DISABLE,
    OPTION_MERGE
};

struct action {
    int option;         /* OPTION_* */
    const char *source; /* of a merge */
};

struct bitmap_args {
    struct image_source source;
    const char *filename, *name;
    struct action *actions;
    size_t count;
    bool add, merge, only_all; /* of the actions: is one of them; are all of them --remove-all */
    bool have_granularity;
    uint64_t granularity;
    const char *source_file, *source_format;
};

static const char *name_of(int option)
{
    switch (option) {
    case OPTION_ADD: return "add";
    case OPTION_REMOVE: return "remove";
    case OPTION_REMOVE_ALL: return "remove-all";
    case OPTION_CLEAR: return "clear";
    case OPTION_ENABLE: return "enable";
    case OPTION_DISABLE: return "disable";
    default: return "merge";
    }
}

/* ---- what is done ---- */

/* One that may be changed; NULL and *errp: there is none, or it says nothing. */
static struct blk_bitmap *find_usable(struct blk_node *node, const char *name, struct error **errp)
{
    struct blk_bitmap *bitmap = blk_bitmap_find(node, name, errp);

    return bitmap && blk_bitmap_check_usable(bitmap, errp) == 0 ? bitmap : NULL;
}

static coroutine_fn int co_merge(struct blk_node *node, struct blk_node *from, const char *source, const char *name,
                                 struct error **errp)
{
    struct blk_bitmap *into = find_usable(node, name, errp);
    struct blk_bitmap *bitmap = into ? find_usable(from, source, errp) : NULL;

    return bitmap ? blk_bitmap_merge(into, bitmap, errp) : -EINVAL;
}

static coroutine_fn void co_remove_all(struct blk_node *node)
{
    struct blk_node *image = blk_node_below_filters(node);

    while (!list_empty(&image->bitmaps))
        blk_co_bitmap_remove(list_first(&image->bitmaps, struct blk_bitmap, link));
}

static coroutine_fn int co_act(const struct bitmap_args *args, const struct action *action, struct blk_node *node,
                               struct blk_node *from, struct error **errp)
{
    struct blk_bitmap *bitmap;

    switch (action->option) {
    case OPTION_ADD: return blk_co_bitmap_add(node, args->name, args->granularity, errp) ? 0 : -EINVAL;
    case OPTION_MERGE: return co_merge(node, from ? from : node, action->source, args->name, errp);
    case OPTION_REMOVE_ALL: co_remove_all(node); return 0;
    case OPTION_REMOVE:
        bitmap = blk_bitmap_find(node, args->name, errp);
        if (bitmap)
            blk_co_bitmap_remove(bitmap);
        return bitmap ? 0 : -EINVAL;
    default: break;
    }
    bitmap = find_usable(node, args->name, errp);
    if (!bitmap)
        return -EINVAL;
    if (action->option == OPTION_CLEAR)
        blk_bitmap_clear(bitmap);
    else
        blk_bitmap_enable(bitmap, action->option == OPTION_ENABLE);
    return 0;
}

static coroutine_fn int co_act_all(const struct bitmap_args *args, struct blk_node *node, struct blk_node *from)
{
    struct error *error = NULL;

    for (size_t i = 0; i < args->count; i++) {
        if (co_act(args, &args->actions[i], node, from, &error) == 0)
            continue;
        error_prepend(&error, "Operation %s on bitmap %s failed: ", name_of(args->actions[i].option),
                      args->name ? args->name : "");
        error_report_free(error);
        return 1;
    }
    return 0;
}

/* The file of --merge's bitmaps is only read. */
static coroutine_fn struct blk_front *co_open_source(const struct bitmap_args *args)
{
    struct image_source source = { .format = args->source_format };
    struct blk_front *front = image_co_open(args->source_file, &source);
    struct error *error = NULL;

    if (front && blk_co_bitmaps_load(blk_front_node(front), &error) < 0) {
        error_report_free(error);
        image_co_close(front);
        return NULL;
    }
    return front;
}

static coroutine_fn int co_with_image(struct blk_front *front, void *arg)
{
    const struct bitmap_args *args = arg;
    struct blk_front *from = args->source_file ? co_open_source(args) : NULL;

    if (args->source_file && !from)
        return 1;
    int status = co_act_all(args, blk_front_node(front), from ? blk_front_node(from) : NULL);
    if (image_co_close(from) < 0)
        status = 1;
    return status;
}

/* ---- the command line ---- */

static void add_action(struct bitmap_args *args, int option, const char *source)
{
    args->actions = xrealloc(args->actions, (args->count + 1) * sizeof(*args->actions));
    args->actions[args->count++] = (struct action){ option, source };
    args->add = args->add || option == OPTION_ADD;
    args->merge = args->merge || option == OPTION_MERGE;
    args->only_all = option == OPTION_REMOVE_ALL && (args->count == 1 || args->only_all);
}

static int check(int argc, char **argv, struct bitmap_args *args)
{
    if (args->count == 0)
        return error_report("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge"), 1;
    if (args->have_granularity && !args->add)
        return error_report("granularity only supported with --add"), 1;
    if (args->source_format && !args->source_file)
        return error_report("-F only supported with -b"), 1;
    if (args->source_file && !args->merge)
        return error_report("Merge bitmap source file only supported with --merge"), 1;
    if (argc - optind != (args->only_all ? 1 : 2))
        return error_report("Expecting filename%s", args->only_all ? "" : " and bitmap name"), 1;
    args->filename = argv[optind];
    args->name = args->only_all ? NULL : argv[optind + 1];
    return image_source_valid(&args->source) ? -1 : 1;
}

static const struct img_option options[] = {
    IMAGE_CHANGE_OPTIONS,
    { OPTION_ADD, "add", NULL, "make the bitmap" },
    { OPTION_REMOVE, "remove", NULL, "forget it" },
    { OPTION_REMOVE_ALL, "remove-all", NULL, "forget all bitmaps of FILE", true },
    { OPTION_CLEAR, "clear", NULL, "forget what was written until now" },
    { OPTION_ENABLE, "enable", NULL, "record what is written from now on" },
    { OPTION_DISABLE, "disable", NULL, "record nothing more" },
    { OPTION_MERGE, "merge", "SOURCE", "add what the bitmap SOURCE has" },
    { 'b', "source-file", "FILE", "the image that has SOURCE" },
    { 'F', "source-format", "FMT", "that image's format" },
    { 'g', "granularity", "SIZE", "of --add: so many bytes are one bit" },
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct bitmap_args *args)
{
    int option, status;

    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'b': args->source_file = optarg; break;
        case 'F': args->source_format = optarg; break;
        case 'g':
            if (!img_size_arg("granularity", optarg, 0, INT64_MAX, &args->granularity))
                return 1;
            args->have_granularity = true;
            break;
        case OPTION_ADD:
        case OPTION_REMOVE:
        case OPTION_REMOVE_ALL:
        case OPTION_CLEAR:
        case OPTION_ENABLE:
        case OPTION_DISABLE:
        case OPTION_MERGE: add_action(args, option, optarg); break;
        default:
            status = image_source_arg(&args->source, "bitmap", option);
            if (status >= 0)
                return status;
        }
    }
    return check(argc, argv, args);
}

static coroutine_fn int co_run_bitmap(int argc, char **argv)
{
    struct bitmap_args args = { .source.flags = BLK_O_RDWR };
    int status = parse(argc, argv, &args);

    if (status < 0)
        status = image_co_with(args.filename, &args.source, co_with_image, &args);
    free(args.actions);
    return status;
}

static struct img_command bitmap = {
    .name = "bitmap",
    .usage = "(--add [-g GRANULARITY] | --remove | --clear | --enable | --disable | --merge SOURCE)... [-b SOURCE_FILE "
             "[-F SOURCE_FMT]] [--object OBJECT] [--image-opts | -f FMT] FILE BITMAP",
    .help =
        "Changes the dirty bitmaps that an image keeps, which say what was written since when. Several changes of one\n"
        "bitmap are made in the order given. --merge adds what another one has, of the image in SOURCE_FILE with -b;\n"
        "-g is how many bytes a bit stands for. '--remove-all FILE' forgets all of them.",
    .options = options,
    .co_run = co_run_bitmap,
};
IMG_COMMAND(bitmap)
