/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* alloc, map, length, info, truncate: what the image is, and how large. "Allocated" means in the image itself, not
 * below it. */
#include "io.h"

#include "../json_out.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

/* Whether the top layer has [offset, offset + *length); *length is cut to where that changes. */
static coroutine_fn int co_is_allocated(struct io_session *session, uint64_t offset, uint64_t *length, bool *allocated)
{
    struct blk_node *node = blk_front_node(session->front);
    bool first = true;
    uint64_t done = 0;
    while (done < *length) {
        struct blk_status status;
        int ret = blk_co_status(node, node->backing, offset + done, *length - done, &status);
        if (ret < 0)
            return ret;
        bool here = status.present && status.depth == 0;
        if (!first && here != *allocated)
            break;
        *allocated = here;
        first = false;
        done += status.length;
    }
    *length = done;
    return 0;
}

static coroutine_fn int co_run_alloc(struct io_session *session, int argc, char **argv)
{
    uint64_t offset, count = BLK_SECTOR_SIZE, size = blk_front_size(session->front), sum = 0, length;
    char text[64];
    if (!io_number(argv[1], &offset) || (argc == 3 && !io_number(argv[2], &count)))
        return -EINVAL;
    count = offset < size ? MIN(count, size - offset) : 0;
    for (uint64_t at = 0; at < count; at += length) {
        bool allocated = false;
        length = count - at;
        int ret = co_is_allocated(session, offset + at, &length, &allocated);
        if (ret < 0) {
            printf("is_allocated failed: %s\n", strerror(-ret));
            return ret;
        }
        sum += allocated ? length : 0;
    }
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, count,
           io_size_text((double)offset, text, sizeof(text)));
    return 0;
}

static coroutine_fn int co_run_map(struct io_session *session, int argc, char **argv)
{
    uint64_t size = blk_front_size(session->front), length;
    for (uint64_t offset = 0; offset < size; offset += length) {
        bool allocated = false;
        char length_text[64], offset_text[64];
        length = size - offset;
        int ret = co_is_allocated(session, offset, &length, &allocated);
        if (ret < 0) {
            error_report("Failed to get allocation status: %s", strerror(-ret));
            return ret;
        }
        printf("%s (0x%" PRIx64 ") bytes %s allocated at offset %s (0x%" PRIx64 ")\n",
               io_size_text((double)length, length_text, sizeof(length_text)), length, allocated ? "   " : "not",
               io_size_text((double)offset, offset_text, sizeof(offset_text)), offset);
    }
    return 0;
}

static coroutine_fn int co_run_length(struct io_session *session, int argc, char **argv)
{
    char text[64];
    printf("%s\n", io_size_text((double)blk_front_size(session->front), text, sizeof(text)));
    return 0;
}

static coroutine_fn int co_run_info(struct io_session *session, int argc, char **argv)
{
    struct error *error = NULL;
    struct blk_info info;
    char cluster[64], vm_state[64];
    struct blk_node *node = blk_front_node(session->front);
    int ret = blk_co_info(node, &info, &error);
    if (ret < 0) {
        error_report_free(error);
        return ret;
    }
    printf("format name: %s\ncluster size: %s\nvm state offset: %s\n", node->driver->name,
           io_size_text((double)info.cluster_size, cluster, sizeof(cluster)),
           io_size_text((double)info.vm_state_offset, vm_state, sizeof(vm_state)));
    const json_t *data = json_object_get(info.format_specific, "data");
    if (data && json_object_size(data)) {
        printf("Format specific information:\n");
        json_print_human(data, 4, stdout);
    }
    blk_info_finish(&info);
    return 0;
}

static coroutine_fn int co_run_truncate(struct io_session *session, int argc, char **argv)
{
    const char *prealloc = "off";
    uint64_t size;
    int option;
    while ((option = getopt(argc, argv, "m:")) != -1) {
        if (option != 'm')
            return io_usage("truncate");
        if (strcmp(optarg, "off") && strcmp(optarg, "metadata") && strcmp(optarg, "falloc") && strcmp(optarg, "full")) {
            error_report("Invalid preallocation mode '%s'", optarg);
            return -EINVAL;
        }
        prealloc = optarg;
    }
    if (optind != argc - 1)
        return io_usage("truncate");
    if (!io_number(argv[optind], &size))
        return -EINVAL;
    struct error *error = NULL;
    int ret = blk_front_co_truncate(session->front, size, true, prealloc, &error);
    error_report_free(error);
    return ret;
}

static struct io_command alloc_command = {
    .name = "alloc",
    .alias = "a",
    .min_args = 1,
    .max_args = 2,
    .args = "offset [count]",
    .summary = "checks if offset is allocated in the file",
    .co_run = co_run_alloc,
};
IO_COMMAND(alloc_command)

static struct io_command map_command = {
    .name = "map",
    .args = "",
    .summary = "prints the allocated areas of a file",
    .co_run = co_run_map,
};
IO_COMMAND(map_command)

static struct io_command length_command = {
    .name = "length",
    .alias = "l",
    .summary = "gets the length of the current file",
    .co_run = co_run_length,
};
IO_COMMAND(length_command)

static struct io_command info_command = {
    .name = "info",
    .alias = "i",
    .summary = "prints information about the current file",
    .co_run = co_run_info,
};
IO_COMMAND(info_command)

static struct io_command truncate_command = {
    .name = "truncate",
    .alias = "t",
    .flags = IO_WRITES,
    .min_args = 1,
    .max_args = 3,
    .args = "[-m prealloc_mode] off",
    .summary = "truncates the current file at the given offset",
    .co_run = co_run_truncate,
};
IO_COMMAND(truncate_command)
