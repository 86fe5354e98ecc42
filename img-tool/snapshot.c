/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* snapshot: lists, creates, applies and deletes internal snapshots. */
#include "command.h"
#include "image.h"
#include "snapshot_list.h"

#include <block/snapshot.h>
#include <errno.h>
#include <string.h>
#include <time.h>

struct snapshot_args {
    struct image_source source;
    int action; /* 'l', 'c', 'a', 'd'; 0: none was asked for */
    const char *name;
    const char *filename;
};

static coroutine_fn int co_list(struct blk_front *front)
{
    struct blk_info info = { 0 };
    struct error *error = NULL;

    if (blk_co_info(blk_front_node(front), &info, &error) < 0) {
        error_report_free(error);
        return 1;
    }
    snapshot_list_print(info.snapshots);
    blk_info_finish(&info);
    return 0;
}

static coroutine_fn int co_create(struct blk_front *front, const char *name)
{
    struct timespec now;
    struct error *error = NULL;

    clock_gettime(CLOCK_REALTIME, &now);
    struct blk_snapshot what = { .name = name, .date_sec = (uint32_t)now.tv_sec, .date_nsec = (uint32_t)now.tv_nsec };
    int ret = blk_co_snapshot_create(blk_front_node(front), &what, &error);
    if (ret == 0)
        return 0;
    struct error *said = NULL; /* QEMU's words; why is ours */
    error_set(&said, ret, "Could not create snapshot '%s': %d (%s)", name, ret, strerror(-ret));
    if (ret != -ENOTSUP)
        error_hint(&said, "%s", error_hint_text(error) ? error_hint_text(error) : error_text(error));
    error_free(error);
    error_report_free(said);
    return 1;
}

static coroutine_fn int co_apply(struct blk_front *front, const char *name)
{
    struct error *error = NULL;

    if (blk_co_snapshot_apply(blk_front_node(front), name, &error) == 0)
        return 0;
    error_prepend(&error, "Could not apply snapshot '%s': ", name);
    error_report_free(error);
    return 1;
}

static coroutine_fn int co_delete(struct blk_front *front, const char *name)
{
    struct error *error = NULL;

    int ret = blk_co_snapshot_delete(blk_front_node(front), name, &error);

    if (ret == 0)
        return 0;
    if (ret == -ENOTSUP) { /* what has no snapshots has not this one */
        error_free(error);
        error = NULL;
        error_set(&error, ret, "snapshot not found");
    }
    error_prepend(&error, "Could not delete snapshot '%s': ", name);
    error_report_free(error);
    return 1;
}

static coroutine_fn int co_snapshot(struct blk_front *front, void *arg)
{
    const struct snapshot_args *args = arg;

    switch (args->action) {
    case 'l': return co_list(front);
    case 'c': return co_create(front, args->name);
    case 'a': return co_apply(front, args->name);
    case 'd': return co_delete(front, args->name);
    default: return 0;
    }
}

static const struct img_option options[] = {
    IMAGE_CHANGE_OPTIONS,
    { 'l', "list", NULL, "list the snapshots", true },
    { 'c', "create", "NAME", "keep what the disk holds now", true },
    { 'a', "apply", "SNAPSHOT", "make the disk what it was then: an id, or else a name", true },
    { 'd', "delete", "SNAPSHOT", "forget one", true },
    IMAGE_FORCE_SHARE_OPTION,
    { 'q', "quiet", NULL, "accepted; nothing is printed anyway" },
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct snapshot_args *args)
{
    int option, status;

    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'l':
        case 'c':
        case 'a':
        case 'd':
            if (args->action)
                return img_usage_error("Cannot mix '-l', '-a', '-c', '-d'");
            args->action = option;
            args->name = optarg;
            break;
        case 'q': break; /* nothing is said anyway */
        default:
            status = image_source_arg(&args->source, "snapshot", option);
            if (status >= 0)
                return status;
        }
    }
    args->filename = image_operand(argc, argv);
    return args->filename && image_source_valid(&args->source) ? -1 : 1;
}

static coroutine_fn int co_run_snapshot(int argc, char **argv)
{
    struct snapshot_args args = { 0 };
    int status = parse(argc, argv, &args);

    if (status >= 0)
        return status;
    if (args.action != 'l')
        args.source.flags = BLK_O_RDWR | BLK_O_UNMAP;
    return image_co_with(args.filename, &args.source, co_snapshot, &args);
}

static struct img_command snapshot = {
    .name = "snapshot",
    .usage = "[--object OBJECT] [--image-opts] [-f FMT] [-U] [-q] [-l | -a SNAPSHOT | -c NAME | -d NAME] FILE",
    .help = "Internal snapshots: states of the disk that are kept in the image itself.",
    .options = options,
    .co_run = co_run_snapshot,
};
IMG_COMMAND(snapshot)
