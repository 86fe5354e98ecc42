/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * check: looks for inconsistencies in an image's metadata, and repairs them if asked to.
 *
 * Exit status: 0 clean (or repaired), 1 the check failed, 2 corruptions, 3 leaks only, 63 the format has no checks.
 * After a repair the image is checked again, and the second result decides; what was found and repaired is told from
 * the first.
 */
#include "command.h"
#include "image.h"
#include "json_out.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum { STATUS_OK, STATUS_FAILED, STATUS_CORRUPT, STATUS_LEAKS, STATUS_NO_CHECKS = 63 };

struct check_args {
    struct image_report report;
    bool quiet;
    unsigned fix; /* BLK_FIX_* */
};

static void report_line(struct blk_check *check, bool error, const char *line) { fprintf(stderr, "%s\n", line); }

static void add(json_t *object, const char *key, uint64_t value, bool always)
{
    if (always || value)
        json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* Keys in the order in which QEMU's JSON has them. */
static void print_json(const struct blk_check *check, const char *filename, const char *format)
{
    json_t *object = json_object();
    add(object, "image-end-offset", check->image_end_offset, check->image_end_offset != 0);
    add(object, "compressed-clusters", check->compressed_clusters, false);
    add(object, "total-clusters", check->total_clusters, false);
    add(object, "corruptions", check->corruptions, false);
    add(object, "corruptions-fixed", check->corruptions_fixed, false);
    add(object, "check-errors", check->check_errors, true);
    add(object, "leaks-fixed", check->leaks_fixed, false);
    add(object, "leaks", check->leaks, false);
    add(object, "allocated-clusters", check->allocated_clusters, false);
    json_add_name(object, "filename", filename);
    json_object_set_new(object, "format", json_string(format));
    add(object, "fragmented-clusters", check->fragmented_clusters, false);
    json_print(object, stdout);
    json_decref(object);
}

static void print_human(const struct blk_check *check)
{
    if (!check->corruptions && !check->leaks && !check->check_errors)
        printf("No errors were found on the image.\n");
    if (check->corruptions)
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               check->corruptions);
    if (check->leaks)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               check->leaks);
    if (check->check_errors)
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n", check->check_errors);
    if (check->total_clusters && check->allocated_clusters) {
        double total = (double)check->total_clusters, allocated = (double)check->allocated_clusters;
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% compressed clusters\n",
               check->allocated_clusters, check->total_clusters, allocated * 100.0 / total,
               (double)check->fragmented_clusters * 100.0 / allocated,
               (double)check->compressed_clusters * 100.0 / allocated);
    }
    if (check->image_end_offset)
        printf("Image end offset: %" PRIu64 "\n", check->image_end_offset);
}

/* 0, or an exit status after reporting. */
static coroutine_fn int co_check_once(struct blk_front *front, struct blk_check *check, unsigned fix)
{
    struct error *error = NULL;
    *check = (struct blk_check){ .report = report_line };
    int ret = blk_co_check(blk_front_node(front), check, fix, &error);
    if (ret >= 0)
        return 0;
    if (ret == -ENOTSUP)
        error_report("This image format does not support checks");
    else
        error_report("%s", error ? error_text(error) : "Check failed");
    error_free(error);
    return ret == -ENOTSUP ? STATUS_NO_CHECKS : STATUS_FAILED;
}

static coroutine_fn int co_check_again(struct blk_front *front, struct blk_check *check, const struct check_args *args)
{
    uint64_t leaks_fixed = check->leaks_fixed, corruptions_fixed = check->corruptions_fixed;
    if (!args->quiet && !args->report.json) {
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n"
               "Double checking the fixed image now...\n",
               leaks_fixed, corruptions_fixed);
        fflush(stdout);
    }
    int status = co_check_once(front, check, 0);
    check->leaks_fixed = leaks_fixed;
    check->corruptions_fixed = corruptions_fixed;
    return status;
}

static coroutine_fn int co_check(struct blk_front *front, void *arg)
{
    const struct check_args *args = arg;
    struct blk_check check;
    int status = co_check_once(front, &check, args->fix);
    if (status == 0 && (check.leaks_fixed || check.corruptions_fixed))
        status = co_check_again(front, &check, args);
    if (status)
        return status;
    if (args->report.json && !args->quiet)
        print_json(&check, args->report.filename, blk_front_node(front)->driver->name);
    else if (!args->quiet)
        print_human(&check);
    if (check.check_errors) {
        error_report("Check failed");
        return STATUS_FAILED;
    }
    if (check.corruptions)
        return STATUS_CORRUPT;
    return check.leaks ? STATUS_LEAKS : STATUS_OK;
}

static int repair_arg(struct check_args *args, const char *text)
{
    if (!strcmp(text, "leaks"))
        args->fix = BLK_FIX_LEAKS;
    else if (!strcmp(text, "all"))
        args->fix = BLK_FIX_LEAKS | BLK_FIX_ERRORS;
    else
        return img_usage_error("Unknown option value for -r (expecting 'leaks' or 'all'): %s", text);
    args->report.source.flags |= BLK_O_RDWR | BLK_O_RESIZE;
    return 0;
}

static const struct img_option options[] = {
    IMAGE_REPORT_OPTIONS,
    { 'r', "repair", "leaks|all", "give lost clusters back, or repair all that can be repaired" },
    { 'T', "source-cache", "CACHE", "cache mode for what is only read", true },
    { 'T', "cache", "CACHE", NULL, true },
    IMAGE_QUIET_OPTION,
    { 0 },
};

/* -1 to go on, else the exit status. */
static int parse(int argc, char **argv, struct check_args *args)
{
    const char *cache = "writeback";
    int option, status;
    while ((option = img_getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'T': cache = optarg; break;
        case 'q': args->quiet = true; break;
        case 'r':
            if (repair_arg(args, optarg))
                return 1;
            break;
        default:
            status = image_report_arg(&args->report, "check", option);
            if (status >= 0)
                return status;
        }
    }
    if (!image_report_operand(&args->report, argc, argv))
        return 1;
    if (!image_cache_arg(&args->report.source, "source cache", cache))
        return 1;
    return image_source_valid(&args->report.source) ? -1 : 1;
}

static coroutine_fn int co_run_check(int argc, char **argv)
{
    struct check_args args = { .report.source.flags = BLK_O_CHECK | BLK_O_UNMAP };
    int status = parse(argc, argv, &args);
    return status < 0 ? image_co_with(args.report.filename, &args.report.source, co_check, &args) : status;
}

static struct img_command check = {
    .name = "check",
    .usage = "[--object OBJECT] [--image-opts] [-q] [-f FMT] [--output=FORMAT] [-r [leaks | all]] [-T CACHE] [-U] FILE",
    .help = "Looks for inconsistencies in an image. -r leaks gives lost clusters back; -r all repairs everything that "
            "can be\n"
            "repaired. Exit status: 0 clean, 1 the check failed, 2 corruptions, 3 leaked clusters, 63 format without "
            "checks.",
    .options = options,
    .co_run = co_run_check,
};
IMG_COMMAND(check)
