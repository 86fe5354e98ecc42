/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* resize: gives an image another size. Shrinking loses data, so it takes --shrink, and growing is the only way that
 * preallocates. */
#include "command.h"
#include "image.h"

#include <inttypes.h>
#include <string.h>

struct resize_args {
    struct image_source source;
    bool quiet, shrink;
    const char *prealloc;
    const char *filename;
    int direction; /* -1, +1: relative; 0: absolute */
    uint64_t size;
};

/* The size with its sign, always the last argument. */
static int parse_size(struct resize_args *args, const char *text)
{
    static const struct opt_desc table[] = { { "size", OPT_SIZE, NULL, "Virtual disk size", NULL, 0 },
                                             { NULL, OPT_STRING, NULL, NULL, NULL, 0 } };
    if (*text == '+' || *text == '-')
        args->direction = *text++ == '+' ? 1 : -1;
    struct error *error = NULL;
    struct opts *opts = opts_new();
    opts_set(opts, "size", text);
    int ret = opts_size(opts, table, "size", &args->size, &error);
    opts_free(opts);
    error_report_free(error);
    return ret < 0 ? 1 : -1;
}

enum { OPTION_PREALLOC = IMAGE_OPT_OWN, OPTION_SHRINK };

static const struct img_option options[] = {
    IMAGE_OPTIONS,
    { OPTION_PREALLOC, "preallocation", "off|metadata|falloc|full", "what new space gets at once" },
    { OPTION_SHRINK, "shrink", NULL, "allow a smaller size, which loses what lies behind it" },
    IMAGE_QUIET_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. The size is taken off first, or "-1M" would be options. */
static int parse(int argc, char **argv, struct resize_args *args)
{
    bool help = argc == 2 && (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help"));
    if (argc < 3 && !help)
        return img_usage_error("Not enough arguments");
    const char *size = help ? NULL : argv[--argc];
    int option, status;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'q': args->quiet = true; break;
        case OPTION_SHRINK: args->shrink = true; break;
        case OPTION_PREALLOC:
            if (strcmp(optarg, "off") && strcmp(optarg, "metadata") && strcmp(optarg, "falloc") &&
                strcmp(optarg, "full")) {
                error_report("Invalid preallocation mode '%s'", optarg);
                return 1;
            }
            args->prealloc = optarg;
            break;
        default:
            status = image_source_arg(&args->source, "resize", option);
            if (status >= 0)
                return status;
        }
    }
    if (optind != argc - 1)
        return img_usage_error("Expecting image file name and size");
    args->filename = argv[optind];
    status = parse_size(args, size);
    return status < 0 && !image_source_valid(&args->source) ? 1 : status;
}

/* The new size from the old one; false after reporting. */
static bool target_size(const struct resize_args *args, uint64_t current, uint64_t *out)
{
    uint64_t size = args->size;
    if (args->direction < 0)
        size = size < current ? current - size : 0;
    else if (args->direction > 0)
        size += current; /* both below 2^63 */
    if (!size || size > INT64_MAX) {
        error_report("New image size must be positive");
        return false;
    }
    if (size <= current && strcmp(args->prealloc, "off") != 0) {
        error_report("Preallocation can only be used for growing images");
        return false;
    }
    if (size < current && !args->shrink) {
        error_report("Use the --shrink option to perform a shrink operation.");
        warn_report(
            "Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an "
            "operation, make sure there is no important data there.");
        return false;
    }
    *out = size;
    return true;
}

static coroutine_fn int co_resize(struct blk_front *front, void *arg)
{
    const struct resize_args *args = arg;
    struct error *error = NULL;
    uint64_t size;
    if (!target_size(args, blk_front_size(front), &size))
        return 1;
    /* exact: a file that cannot be made as small as asked is an error. */
    if (blk_front_co_truncate(front, size, true, args->prealloc, &error) < 0) {
        error_report_free(error);
        return 1;
    }
    if (!args->quiet)
        printf("Image resized.\n");
    return 0;
}

static coroutine_fn int co_run_resize(int argc, char **argv)
{
    struct resize_args args = { .source = { .flags = BLK_O_RDWR | BLK_O_RESIZE }, .prealloc = "off" };
    int status = parse(argc, argv, &args);
    return status < 0 ? image_co_with(args.filename, &args.source, co_resize, &args) : status;
}

static struct img_command resize = {
    .name = "resize",
    .usage = "[--object OBJECT] [--image-opts] [-f FMT] [--preallocation=MODE] [-q] [--shrink] FILE [+ | -]SIZE",
    .help = "Makes the disk of an image larger or, with --shrink, smaller. Change partitions and file systems inside "
            "first\n"
            "(shrinking) or afterwards (growing).",
    .options = options,
    .co_run = co_run_resize,
};
IMG_COMMAND(resize)
