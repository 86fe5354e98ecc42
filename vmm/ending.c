/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The end in bounded time. From the moment that somebody asks for it, the drives are flushed and closed side by side
 * (drive.c), while a thread of our own watches the clock and the signals:
 *
 *   closing ──► given up ──► exit      each step after its time, or at once on SIGTERM or SIGINT, the first of all
 *                                      such signals apart (it, or the guest, asked for the end)
 *
 * "Given up" cancels what can be cancelled, so that the rest of the end is in order. What cannot be cancelled is a
 * request that hangs in the host's kernel, on a dead NFS mount say: it may hold the main loop too, in a close(2), which
 * is why the thread needs nothing of the loop. Then the process exits as it stands.
 * Invariant: guest memory is unmapped only after every device is quiet, so a request that never ends keeps its buffers.
 */
#include "ending.h"

#include "chardev.h"
#include "cmdline.h"
#include "drive.h"
#include "lifecycle.h"
#include "machine.h"
#include "pidfile.h"

#include <base/compiler.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A server that is given up is left within milliseconds, and so is what lies on it. */
#define GRACE_NS UINT64_C(2000000000)

static struct {
    struct machine *machine;
    struct loop_post post;
    pthread_t thread;
    int closed_fd; /* an eventfd: all is closed */
    bool begun, watched;
    bool posted; /* the thread's, then, when it is joined, the main loop's */
    bool given_up;
} ending;

static void give_up(struct loop_post *post)
{
    drives_give_up();
    ending.given_up = true;
}

enum wake { CLOSED, TIME_OVER, SIGNAL };

/* Until `deadline_ns`; 0: there is none. */
static enum wake wait_until(uint64_t deadline_ns)
{
    struct pollfd fds[] = { { .fd = ending.closed_fd, .events = POLLIN }, { .fd = signals_fd(), .events = POLLIN } };

    for (;;) {
        bool again = false;
        uint64_t now = loop_now_ns();
        if (deadline_ns && now >= deadline_ns)
            return TIME_OVER;
        uint64_t left_ms = deadline_ns ? (deadline_ns - now) / 1000000 + 1 : 0;
        poll(fds, 2, deadline_ns ? (int)MIN(left_ms, UINT64_C(60000)) : -1);
        if (fds[0].revents & POLLIN)
            return CLOSED;
        if (fds[1].revents & POLLIN && signals_take(&again) && again)
            return SIGNAL;
    }
}

static void *watch_main(void *argument)
{
    uint64_t seconds = ending.machine->config->close_timeout;

    pthread_setname_np(pthread_self(), "ending");
    if (wait_until(seconds ? loop_now_ns() + seconds * UINT64_C(1000000000) : 0) == CLOSED)
        return NULL;
    ending.posted = true;
    loop_post(ending.machine->loop, &ending.post);
    if (wait_until(loop_now_ns() + GRACE_NS) == CLOSED)
        return NULL;
    drives_report_open();
    error_report("exiting with requests in flight that do not end");
    terminal_restore();
    pidfile_remove();
    _exit(1);
}

void ending_begin(struct machine *machine)
{
    if (ending.begun)
        return;
    ending.begun = true;
    ending.machine = machine;
    ending.post.fn = give_up;
    signals_unwatch();
    drives_begin_end();
    ending.closed_fd = eventfd(0, EFD_CLOEXEC);
    int err = ending.closed_fd < 0 ? errno : pthread_create(&ending.thread, NULL, watch_main, NULL);
    if (err)
        warn_report("cannot watch how long closing the drives takes: %s", strerror(err));
    ending.watched = !err;
}

void ending_finish(void)
{
    if (ending.watched) {
        eventfd_write(ending.closed_fd, 1);
        pthread_join(ending.thread, NULL);
        while (ending.posted && !ending.given_up)
            loop_step(ending.machine->loop, true);
    }
    if (ending.begun && ending.closed_fd >= 0)
        close(ending.closed_fd);
}
