/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* read and readv: read, compare with a pattern, dump, report. */
#include "io.h"

#include <block/snapshot.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

struct read_args {
    bool csv, quiet, dump, vm_state;
    const char *pattern, *skip, *length; /* texts, parsed once all options are known */
};

static coroutine_fn int co_read_and_report(struct io_session *session, struct io_buffer *buffer, uint64_t offset,
                                           const char *name, const struct read_args *args, uint64_t check_offset,
                                           uint64_t check_length)
{
    uint8_t pattern = 0;
    if (args->pattern && !io_pattern(args->pattern, &pattern))
        return -EINVAL;
    struct io_report report = { .verb = "read",
                                .quiet = args->quiet,
                                .csv = args->csv,
                                .offset = offset,
                                .length = buffer->length,
                                .start_ns = loop_now_ns() };
    int ret = args->vm_state
                  ? blk_co_vm_state_read(blk_front_node(session->front), offset, buffer->data, buffer->length)
                  : blk_front_co_readv(session->front, offset, buffer->length, buffer->iov, buffer->iov_count);
    if (ret < 0) {
        printf("%s failed: %s\n", name, strerror(-ret));
        return ret;
    }
    uint64_t end_ns = loop_now_ns();
    if (args->pattern && !io_check_pattern(buffer->data + check_offset, pattern, check_length)) {
        printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n", offset + check_offset,
               check_length);
        ret = -EINVAL;
    }
    if (args->dump && !args->quiet)
        io_dump(buffer->data, offset, buffer->length);
    report.start_ns += loop_now_ns() - end_ns; /* checking and dumping are not reading */
    io_report(&report);
    return ret;
}

/* What of the data the pattern is for. */
static bool check_range(const struct read_args *args, uint64_t length, uint64_t *check_offset, uint64_t *check_length)
{
    *check_offset = 0;
    if (args->skip && !io_number(args->skip, check_offset))
        return false;
    if (*check_offset > length) {
        printf("pattern verification range exceeds end of read data\n");
        return false;
    }
    *check_length = length - *check_offset;
    if (args->length && !io_number(args->length, check_length))
        return false;
    if (*check_length > length - *check_offset) {
        printf("pattern verification range exceeds end of read data\n");
        return false;
    }
    return true;
}

static coroutine_fn int co_run_read(struct io_session *session, int argc, char **argv)
{
    struct read_args args = { 0 };
    int option;
    while ((option = getopt(argc, argv, "abCl:pP:qs:v")) != -1) {
        switch (option) {
        case 'b': args.vm_state = true; break;
        case 'C': args.csv = true; break;
        case 'l': args.length = optarg; break;
        case 'a':
        case 'p': break; /* of old times */
        case 'P': args.pattern = optarg; break;
        case 'q': args.quiet = true; break;
        case 's': args.skip = optarg; break;
        case 'v': args.dump = true; break;
        default: return io_usage("read");
        }
    }
    if (optind != argc - 2 || (!args.pattern && (args.length || args.skip)))
        return io_usage("read");
    uint64_t offset, length, check_offset, check_length;
    struct io_buffer buffer;
    if (!io_number(argv[optind], &offset) || !io_length(argv[optind + 1], &length) ||
        !check_range(&args, length, &check_offset, &check_length) || (args.vm_state && !io_sectors(offset, length)) ||
        !io_buffer_init_length(&buffer, session, length, 0xab))
        return -EINVAL;
    int ret = co_read_and_report(session, &buffer, offset, "read", &args, check_offset, check_length);
    io_buffer_finish(&buffer);
    return ret;
}

static coroutine_fn int co_run_readv(struct io_session *session, int argc, char **argv)
{
    struct read_args args = { 0 };
    int option;
    while ((option = getopt(argc, argv, "CP:qv")) != -1) {
        switch (option) {
        case 'C': args.csv = true; break;
        case 'P': args.pattern = optarg; break;
        case 'q': args.quiet = true; break;
        case 'v': args.dump = true; break;
        default: return io_usage("readv");
        }
    }
    if (optind > argc - 2)
        return io_usage("readv");
    uint64_t offset;
    struct io_buffer buffer;
    if (!io_number(argv[optind], &offset) ||
        !io_buffer_init(&buffer, session, argv + optind + 1, argc - optind - 1, 0xab))
        return -EINVAL;
    int ret = co_read_and_report(session, &buffer, offset, "readv", &args, 0, buffer.length);
    io_buffer_finish(&buffer);
    return ret;
}

static struct io_command read_command = {
    .name = "read",
    .alias = "r",
    .min_args = 2,
    .max_args = -1,
    .args = "[-abCqv] [-P pattern [-s off] [-l len]] off len",
    .summary = "reads a number of bytes at a specified offset",
    .help = " -P  the byte that all of it must be; -s, -l: only from that byte on, so many\n"
            " -v  dump it   -q  say nothing   -C  statistics for programs   -p  ignored\n\n Example: read -v 512 1k\n",
    .co_run = co_run_read,
};
IO_COMMAND(read_command)

static struct io_command readv_command = {
    .name = "readv",
    .min_args = 2,
    .max_args = -1,
    .args = "[-Cqv] [-P pattern] off len [len..]",
    .summary = "reads a number of bytes at a specified offset",
    .help = " Reads into as many buffers as there are lengths. Options as for read.\n",
    .co_run = co_run_readv,
};
IO_COMMAND(readv_command)
