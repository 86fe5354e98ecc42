/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* write, writev, discard, flush: what changes the image, one request at a time. */
#include "io.h"

#include <block/snapshot.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

struct write_args {
    bool csv, quiet, vm_state, compress, fua, no_fallback, unmap, zeroes;
    const char *pattern, *file;
};

static int refuse(const char *text)
{
    printf("%s\n", text);
    return -EINVAL;
}

/* 0 if the options go together. */
static int check_write(const struct write_args *args)
{
    if (args->vm_state && args->zeroes)
        return refuse("-b and -z cannot be specified at the same time");
    if (args->fua && (args->vm_state || args->compress))
        return refuse("-f and -b or -c cannot be specified at the same time");
    if (args->no_fallback && !args->zeroes)
        return refuse("-n requires -z to be specified");
    if (args->unmap && !args->zeroes)
        return refuse("-u requires -z to be specified");
    if (args->zeroes + !!args->pattern + !!args->file > 1)
        return refuse("Only one of -z, -P, and -s can be specified at the same time");
    return 0;
}

static int finish(const struct io_report *report, const char *name, int ret)
{
    if (ret < 0)
        printf("%s failed: %s\n", name, strerror(-ret));
    else
        io_report(report);
    return ret;
}

static coroutine_fn int co_write_data(struct io_session *session, const struct write_args *args,
                                      struct io_report *report)
{
    struct io_buffer buffer;
    uint8_t pattern = 0xcd;
    if ((args->pattern && !io_pattern(args->pattern, &pattern)) ||
        !io_buffer_init_length(&buffer, session, report->length, pattern))
        return -EINVAL;
    int ret = -EINVAL;
    if (!args->file || io_buffer_load(&buffer, args->file)) {
        report->start_ns = loop_now_ns();
        if (args->vm_state)
            ret = blk_co_vm_state_write(blk_front_node(session->front), report->offset, buffer.data, report->length,
                                        NULL);
        else
            ret = blk_front_co_writev(session->front, report->offset, report->length, buffer.iov, 1,
                                      (args->fua ? BLK_REQ_FUA : 0u) | (args->compress ? BLK_REQ_COMPRESSED : 0u));
        finish(report, "write", ret);
    }
    io_buffer_finish(&buffer);
    return ret;
}

static coroutine_fn int co_write_zeroes(struct io_session *session, const struct write_args *args,
                                        struct io_report *report)
{
    unsigned flags = (args->fua ? BLK_REQ_FUA : 0u) | (args->unmap ? BLK_REQ_MAY_UNMAP : 0u) |
                     (args->no_fallback ? BLK_REQ_NO_FALLBACK : 0u);
    report->start_ns = loop_now_ns();
    return finish(report, "write", blk_front_co_write_zeroes(session->front, report->offset, report->length, flags));
}

static coroutine_fn int co_run_write(struct io_session *session, int argc, char **argv)
{
    struct write_args args = { 0 };
    int option;
    while ((option = getopt(argc, argv, "bcCfnpP:qs:uz")) != -1) {
        switch (option) {
        case 'b': args.vm_state = true; break;
        case 'c': args.compress = true; break;
        case 'C': args.csv = true; break;
        case 'f': args.fua = true; break;
        case 'n': args.no_fallback = true; break;
        case 'p': break; /* of old times */
        case 'P': args.pattern = optarg; break;
        case 'q': args.quiet = true; break;
        case 's': args.file = optarg; break;
        case 'u': args.unmap = true; break;
        case 'z': args.zeroes = true; break;
        default: return io_usage("write");
        }
    }
    if (optind != argc - 2)
        return io_usage("write");
    int ret = check_write(&args);
    struct io_report report = { .verb = "wrote", .quiet = args.quiet, .csv = args.csv };
    if (ret < 0)
        return ret;
    if (!io_number(argv[optind], &report.offset) || !io_number(argv[optind + 1], &report.length) ||
        (args.vm_state && !io_sectors(report.offset, report.length)))
        return -EINVAL;
    if (report.length > IO_MAX_LENGTH && !args.no_fallback) {
        printf("length cannot exceed %d without -n, given %s\n", IO_MAX_LENGTH, argv[optind + 1]);
        return -EINVAL;
    }
    return args.zeroes ? co_write_zeroes(session, &args, &report) : co_write_data(session, &args, &report);
}

static coroutine_fn int co_run_writev(struct io_session *session, int argc, char **argv)
{
    struct io_report report = { .verb = "wrote" };
    const char *pattern_text = NULL;
    uint8_t pattern = 0xcd;
    unsigned flags = 0;
    int option;
    while ((option = getopt(argc, argv, "CfP:q")) != -1) {
        switch (option) {
        case 'C': report.csv = true; break;
        case 'f': flags = BLK_REQ_FUA; break;
        case 'P': pattern_text = optarg; break;
        case 'q': report.quiet = true; break;
        default: return io_usage("writev");
        }
    }
    if (optind > argc - 2)
        return io_usage("writev");
    struct io_buffer buffer;
    if ((pattern_text && !io_pattern(pattern_text, &pattern)) || !io_number(argv[optind], &report.offset) ||
        !io_buffer_init(&buffer, session, argv + optind + 1, argc - optind - 1, pattern))
        return -EINVAL;
    report.length = buffer.length;
    report.start_ns = loop_now_ns();
    int ret = blk_front_co_writev(session->front, report.offset, buffer.length, buffer.iov, buffer.iov_count, flags);
    finish(&report, "writev", ret);
    io_buffer_finish(&buffer);
    return ret;
}

static coroutine_fn int co_run_discard(struct io_session *session, int argc, char **argv)
{
    struct io_report report = { .verb = "discard" };
    int option;
    while ((option = getopt(argc, argv, "Cq")) != -1) {
        switch (option) {
        case 'C': report.csv = true; break;
        case 'q': report.quiet = true; break;
        default: return io_usage("discard");
        }
    }
    if (optind != argc - 2)
        return io_usage("discard");
    if (!io_number(argv[optind], &report.offset) || !io_length(argv[optind + 1], &report.length))
        return -EINVAL;
    report.start_ns = loop_now_ns();
    return finish(&report, "discard", blk_front_co_discard(session->front, report.offset, report.length));
}

static coroutine_fn int co_run_flush(struct io_session *session, int argc, char **argv)
{
    int ret = blk_front_co_flush(session->front);
    if (ret < 0)
        printf("flush failed: %s\n", strerror(-ret));
    return ret;
}

static struct io_command write_command = {
    .name = "write",
    .alias = "w",
    .flags = IO_WRITES,
    .min_args = 2,
    .max_args = -1,
    .args = "[-bcCfnquz] [-P pattern | -s source_file] off len",
    .summary = "writes a number of bytes at a specified offset",
    .help = " -P  the byte to write (0xcd)   -s  a file to write from, over and over\n"
            " -z  zeroes, without sending them; -u: may unmap; -n: not if that would be slow\n"
            " -c  as compressed clusters: whole ones, that have no data yet\n"
            " -f  force unit access: durable when done\n"
            " -q  say nothing   -C  statistics for programs   -p  ignored\n\n Example: write -P 5 512 1k\n",
    .co_run = co_run_write,
};
IO_COMMAND(write_command)

static struct io_command writev_command = {
    .name = "writev",
    .flags = IO_WRITES,
    .min_args = 2,
    .max_args = -1,
    .args = "[-Cfq] [-P pattern] off len [len..]",
    .summary = "writes a number of bytes at a specified offset",
    .help = " Writes from as many buffers as there are lengths. Options as for write.\n",
    .co_run = co_run_writev,
};
IO_COMMAND(writev_command)

static struct io_command discard_command = {
    .name = "discard",
    .alias = "d",
    .flags = IO_WRITES,
    .min_args = 2,
    .max_args = -1,
    .args = "[-Cq] off len",
    .summary = "discards a number of bytes at a specified offset",
    .help = " -q  say nothing   -C  statistics for programs\n",
    .co_run = co_run_discard,
};
IO_COMMAND(discard_command)

static struct io_command flush_command = {
    .name = "flush",
    .alias = "f",
    .summary = "flush all in-core file state to disk",
    .co_run = co_run_flush,
};
IO_COMMAND(flush_command)
