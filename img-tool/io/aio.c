/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * aio_read, aio_write, aio_flush: requests that go on while the next command runs. They use blk_submit() as a device
 * does; what they did is told when they are done. A command counts as successful once its request is on its way.
 */
#include "io.h"

#include <base/coroutine.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct aio {
    struct blk_request request;
    struct io_session *session;
    struct io_buffer buffer;
    struct io_report report;
    bool dump, have_pattern;
    uint8_t pattern;
};

static void free_aio(struct aio *aio)
{
    io_buffer_finish(&aio->buffer);
    free(aio);
}

static void end_request(struct aio *aio)
{
    struct io_session *session = aio->session;
    free_aio(aio);
    session->aio_in_flight--;
    if (!session->aio_in_flight && session->aio_waiting) {
        struct co *waiting = session->aio_waiting;
        session->aio_waiting = NULL;
        co_wake(waiting);
    }
}

static void read_done(struct blk_request *request, int result)
{
    struct aio *aio = container_of(request, struct aio, request);
    if (result < 0) {
        printf("readv failed: %s\n", strerror(-result));
        end_request(aio);
        return;
    }
    if (aio->have_pattern && !io_check_pattern(aio->buffer.data, aio->pattern, aio->buffer.length))
        printf("Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n", request->offset,
               aio->buffer.length);
    if (aio->dump && !aio->report.quiet)
        io_dump(aio->buffer.data, request->offset, aio->buffer.length);
    io_report(&aio->report);
    end_request(aio);
}

static void write_done(struct blk_request *request, int result)
{
    struct aio *aio = container_of(request, struct aio, request);
    if (result < 0)
        printf("aio_write failed: %s\n", strerror(-result));
    else
        io_report(&aio->report);
    end_request(aio);
}

static void submit(struct aio *aio)
{
    struct blk_request *request = &aio->request;
    request->offset = aio->report.offset;
    request->length = aio->report.length;
    request->iov = aio->buffer.iov;
    request->iov_count = aio->buffer.iov_count;
    aio->report.start_ns = loop_now_ns();
    aio->session->aio_in_flight++;
    blk_submit(aio->session->front, request);
}

/* Options of both into *aio; `zeroes` and the rest make no sense to one of them and are not in its list of options.
 * 0, an error, or IO_QUIT if -i wants no request at all. */
static int parse(int argc, char **argv, const char *options, struct aio *aio, bool *zeroes)
{
    bool unmap = false, invalid = false;
    int option;
    while ((option = getopt(argc, argv, options)) != -1) {
        switch (option) {
        case 'C': aio->report.csv = true; break;
        case 'f': aio->request.flags |= BLK_REQ_FUA; break;
        case 'i': invalid = true; break;
        case 'q': aio->report.quiet = true; break;
        case 'u': unmap = true; break;
        case 'v': aio->dump = true; break;
        case 'z': *zeroes = true; break;
        case 'P':
            aio->have_pattern = true;
            if (!io_pattern(optarg, &aio->pattern))
                return -EINVAL;
            break;
        default: return io_usage(argv[0]);
        }
    }
    if (optind > argc - 2)
        return io_usage(argv[0]);
    if (*zeroes && optind != argc - 2) {
        printf("-z supports only a single length parameter\n");
        return -EINVAL;
    }
    if (unmap && !*zeroes) {
        printf("-u requires -z to be specified\n");
        return -EINVAL;
    }
    if (unmap)
        aio->request.flags |= BLK_REQ_MAY_UNMAP;
    if (invalid)
        printf("injecting invalid %s request\n", !strcmp(argv[0], "aio_read") ? "read" : "write");
    return invalid ? IO_QUIT : 0;
}

/* Whether there is a request to submit. */
static bool prepare(struct aio *aio, int argc, char **argv, bool zeroes, uint8_t fill)
{
    if (!io_number(argv[optind], &aio->report.offset))
        return false;
    if (zeroes)
        return io_length(argv[optind + 1], &aio->report.length);
    if (!io_buffer_init(&aio->buffer, aio->session, argv + optind + 1, argc - optind - 1, fill))
        return false;
    aio->report.length = aio->buffer.length;
    return true;
}

static coroutine_fn int co_run_aio_read(struct io_session *session, int argc, char **argv)
{
    struct aio *aio = xcalloc(1, sizeof(*aio));
    bool zeroes = false;
    aio->session = session;
    int ret = parse(argc, argv, "CP:iqv", aio, &zeroes);
    if (ret == 0)
        ret = prepare(aio, argc, argv, false, 0xab) ? 0 : -EINVAL;
    if (ret != 0) {
        free_aio(aio);
        return ret < 0 ? ret : 0;
    }
    aio->report.verb = "read";
    aio->request.op = BLK_OP_READ;
    aio->request.done = read_done;
    submit(aio);
    return 0;
}

static coroutine_fn int co_run_aio_write(struct io_session *session, int argc, char **argv)
{
    struct aio *aio = xcalloc(1, sizeof(*aio));
    bool zeroes = false;
    aio->session = session;
    aio->pattern = 0xcd;
    int ret = parse(argc, argv, "CfiP:quz", aio, &zeroes);
    if (ret == 0)
        ret = prepare(aio, argc, argv, zeroes, aio->pattern) ? 0 : -EINVAL;
    if (ret != 0) {
        free_aio(aio);
        return ret < 0 ? ret : 0;
    }
    aio->report.verb = "wrote";
    aio->request.op = zeroes ? BLK_OP_WRITE_ZEROES : BLK_OP_WRITE;
    aio->request.done = write_done;
    submit(aio);
    return 0;
}

static coroutine_fn int co_run_aio_flush(struct io_session *session, int argc, char **argv)
{
    if (session->aio_in_flight) {
        session->aio_waiting = co_self();
        co_yield();
    }
    return 0;
}

static struct io_command aio_read_command = {
    .name = "aio_read",
    .min_args = 2,
    .max_args = -1,
    .args = "[-Ciqv] [-P pattern] off len [len..]",
    .summary = "asynchronously reads a number of bytes",
    .help = " As readv, but goes on with the next command; aio_flush waits. Errors do not make the command fail.\n",
    .co_run = co_run_aio_read,
};
IO_COMMAND(aio_read_command)

static struct io_command aio_write_command = {
    .name = "aio_write",
    .flags = IO_WRITES,
    .min_args = 2,
    .max_args = -1,
    .args = "[-Cfiquz] [-P pattern] off len [len..]",
    .summary = "asynchronously writes a number of bytes",
    .help = " As writev (with -z, as write -z), but goes on with the next command; aio_flush waits. Errors do not make "
            "the\n"
            " command fail.\n",
    .co_run = co_run_aio_write,
};
IO_COMMAND(aio_write_command)

static struct io_command aio_flush_command = {
    .name = "aio_flush",
    .summary = "completes all outstanding aio requests",
    .co_run = co_run_aio_flush,
};
IO_COMMAND(aio_flush_command)
