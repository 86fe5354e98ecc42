/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * open, close: the image that the other commands work on. Closing waits for aio_ requests first.
 */
#include "io.h"

#include <base/coroutine.h>
#include <block/blkdebug.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- words ---- */

bool io_cache_arg(struct image_source *source, const char *text)
{
    if (image_cache_mode(source, text))
        return true;
    error_report("Invalid cache option: %s", text);
    return false;
}

bool io_discard_arg(struct image_source *source, const char *text)
{
    if (!strcmp(text, "unmap") || !strcmp(text, "on")) {
        source->flags |= BLK_O_UNMAP;
    } else if (!strcmp(text, "ignore") || !strcmp(text, "off")) {
        source->flags &= ~(unsigned)BLK_O_UNMAP;
    } else {
        error_report("Invalid discard option: %s", text);
        return false;
    }
    return true;
}

bool io_aio_arg(struct image_source *source, const char *text)
{
    if (!strcmp(text, "threads")) {
        source->flags |= BLK_O_AIO_THREADS;
    } else if (strcmp(text, "native") != 0 && strcmp(text, "io_uring") != 0) {
        error_report("Invalid aio option: %s", text);
        return false;
    }
    return true;
}

bool io_options_arg(struct opts *options, const char *text)
{
    struct error *error = NULL;
    if (opts_parse(options, text, NULL, OPTS_LAST_WINS | OPTS_WARN_SHORT, &error) == 0)
        return true;
    error_report_free(error);
    return false;
}

/* ---- opening ---- */

static coroutine_fn int co_open(struct io_session *session, struct error **errp)
{
    session->front = image_co_try_open(session->name, &session->source, session->options, errp);
    return session->front ? 0 : -EINVAL;
}

static void forget(struct io_session *session)
{
    free(session->name);
    opts_free(session->options);
    session->name = NULL;
    session->options = NULL;
}

coroutine_fn int io_co_open(struct io_session *session, const char *name, struct opts *options,
                            const struct image_source *source)
{
    struct error *error = NULL;
    if (session->front) {
        error_report("file open already, try 'help close'");
        opts_free(options);
        return -EINVAL;
    }
    session->name = name ? xstrdup(name) : NULL;
    session->options = options;
    session->source = *source;
    if (co_open(session, &error) == 0)
        return 0;
    error_prepend(&error, "can't open%s%s: ", name ? " device " : "", name ? name : "");
    error_report_free(error);
    forget(session);
    return -EINVAL;
}

coroutine_fn void io_co_wait_for_aio(struct io_session *session)
{
    while (session->aio_in_flight) {
        session->aio_waiting = co_self();
        co_yield();
    }
}

static coroutine_fn int co_close_image(struct io_session *session)
{
    if (session->front) /* whoever has stopped at a breakpoint would be waited for */
        blkdebug_remove_break(blk_front_node(session->front), NULL);
    io_co_wait_for_aio(session);
    int ret = image_co_close(session->front);
    session->front = NULL;
    return ret;
}

coroutine_fn int io_co_close(struct io_session *session)
{
    int ret = co_close_image(session);
    forget(session);
    return ret;
}

/* Options of `open`. 0 to go on. */
static int parse_open(int argc, char **argv, struct image_source *source, struct opts *options)
{
    int option;
    while ((option = getopt(argc, argv, "snCro:ki:t:d:U")) != -1) {
        bool good = true;
        switch (option) {
        case 'n': good = io_cache_arg(source, "none"); break;
        case 'r': source->flags &= ~(unsigned)BLK_O_RDWR; break;
        case 'k': break; /* native AIO: what we do anyway */
        case 'i': good = io_aio_arg(source, optarg); break;
        case 't': good = io_cache_arg(source, optarg); break;
        case 'd': good = io_discard_arg(source, optarg); break;
        case 'U': source->force_share = true; break;
        case 'o': good = io_options_arg(options, optarg); break;
        case 's': source->temporary = true; break;
        case 'C': source->copy_on_read = true; break;
        default: return io_usage("open");
        }
        if (!good)
            return -EINVAL;
    }
    return 0;
}

static coroutine_fn int co_run_open(struct io_session *session, int argc, char **argv)
{
    struct image_source source = { .flags = BLK_O_RDWR };
    struct opts *options = opts_new();
    int ret = parse_open(argc, argv, &source, options);
    if (ret == 0 && (argc - optind > 1 || (optind == argc && !opts_count(options))) && !session->front)
        ret = io_usage("open");
    if (ret < 0) {
        opts_free(options);
        return ret;
    }
    return io_co_open(session, argv[optind], options, &source);
}

static coroutine_fn int co_run_close(struct io_session *session, int argc, char **argv) { return io_co_close(session); }

static struct io_command open_command = {
    .name = "open",
    .alias = "o",
    .flags = IO_NO_FILE,
    .min_args = 1,
    .max_args = -1,
    .args = "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
    .summary = "open the file specified by path",
    .help = " -r  read-only              -n  cache mode none        -t  another cache mode\n"
            " -U  although others write  -d  discard: unmap, ignore -i  AIO: threads, native, io_uring\n"
            " -o  key=value,...: options of the block node; may say all, without a path\n",
    .co_run = co_run_open,
};
IO_COMMAND(open_command)

static struct io_command close_command = {
    .name = "close",
    .alias = "c",
    .summary = "close the current open file",
    .co_run = co_run_close,
};
IO_COMMAND(close_command)
