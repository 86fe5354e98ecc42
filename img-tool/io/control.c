/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sleep, help, quit, abort, sigraise; and breakpoints, at which blkdebug stops requests. */
#include "io.h"

#include "../size_arg.h"

#include <base/coroutine.h>
#include <block/blkdebug.h>

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static coroutine_fn int co_run_sleep(struct io_session *session, int argc, char **argv)
{
    uint64_t ms;
    if (!img_number_arg(argv[1], INT_MAX, &ms)) {
        printf("%s is not a valid number\n", argv[1]);
        return -EINVAL;
    }
    co_sleep_ns(ms * 1000000);
    return 0;
}

static coroutine_fn int co_run_help(struct io_session *session, int argc, char **argv)
{
    return io_help(argc > 1 ? argv[1] : NULL);
}

static coroutine_fn int co_run_quit(struct io_session *session, int argc, char **argv) { return IO_QUIT; }

static coroutine_fn int co_run_abort(struct io_session *session, int argc, char **argv) { abort(); }

static coroutine_fn int co_run_sigraise(struct io_session *session, int argc, char **argv)
{
    uint64_t number;
    if (!io_number(argv[1], &number))
        return -EINVAL;
    fflush(stdout); /* the signal may be the end */
    raise((int)number);
    return 0;
}

/* ---- breakpoints: of a blkdebug node below ---- */

static int said(int ret, const char *what)
{
    if (ret < 0)
        printf("%s: %s\n", what, strerror(-ret));
    return ret;
}

static struct blk_node *node_of(struct io_session *session) { return blk_front_node(session->front); }

static coroutine_fn int co_run_break(struct io_session *session, int argc, char **argv)
{
    return said(blkdebug_break(node_of(session), argv[1], argv[2]), "Could not set breakpoint");
}

static coroutine_fn int co_run_remove_break(struct io_session *session, int argc, char **argv)
{
    AUTO_FREE char *what = xasprintf("Could not remove breakpoint %s", argv[1]);
    return said(blkdebug_remove_break(node_of(session), argv[1]), what);
}

static coroutine_fn int co_run_resume(struct io_session *session, int argc, char **argv)
{
    return said(blkdebug_resume(node_of(session), argv[1]), "Could not resume request");
}

static coroutine_fn int co_run_wait_break(struct io_session *session, int argc, char **argv)
{
    int stopped;

    while ((stopped = blkdebug_has_stopped(node_of(session), argv[1])) == 0)
        co_sleep_ns(1000000);
    return said(MIN(stopped, 0), "Could not wait for a breakpoint");
}

#define SIMPLE(id, ...) \
    static struct io_command id##_command = { .name = #id, .co_run = co_run_##id, __VA_ARGS__ }; \
    IO_COMMAND(id##_command)

SIMPLE(sleep, .flags = IO_NO_FILE, .min_args = 1, .max_args = 1, .summary = "waits for the given value in milliseconds")
SIMPLE(help, .alias = "?", .flags = IO_NO_FILE, .max_args = 1, .args = "[command]",
       .summary = "help for one or all commands")
SIMPLE(quit, .alias = "q", .flags = IO_NO_FILE, .max_args = -1, .summary = "exit the program")
SIMPLE(abort, .flags = IO_NO_FILE, .summary = "simulate a program crash using abort(3)")
SIMPLE(sigraise, .flags = IO_NO_FILE, .min_args = 1, .max_args = 1, .args = "signal", .summary = "raises a signal")
SIMPLE(break, .min_args = 2, .max_args = 2, .args = "event tag",
       .summary = "sets a breakpoint on event and tags the stopped request as tag")
SIMPLE(remove_break, .min_args = 1, .max_args = 1, .args = "tag", .summary = "remove a breakpoint by tag")
SIMPLE(resume, .min_args = 1, .max_args = 1, .args = "tag", .summary = "resumes the request tagged as tag")
SIMPLE(wait_break, .min_args = 1, .max_args = 1, .args = "tag", .summary = "waits for the suspension of a request")
