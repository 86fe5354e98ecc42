/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The loop without io_uring: fd readiness by ppoll(2), for kernels and containers that refuse a ring. Everything but
 * struct loop_io works as with a ring; file I/O goes to the worker pool then.
 *
 * Invariant: a struct loop_fd stays valid until its `removed` has run, which is after the dispatch below, so the arrays
 * of one iteration never hold a dangling pointer.
 */
#include "loop_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t collect(struct loop *loop)
{
    struct loop_fd *lfd;
    size_t count = 0;
    list_for_each(lfd, &loop->fds, link) {
        if (!loop_fd_polled(lfd))
            continue;
        if (count == loop->poll_room) {
            loop->poll_room = MAX(loop->poll_room * 2, (size_t)16);
            loop->pollfds = xrealloc(loop->pollfds, loop->poll_room * sizeof(*loop->pollfds));
            loop->polled = xrealloc(loop->polled, loop->poll_room * sizeof(struct loop_fd *));
        }
        loop->pollfds[count] = (struct pollfd){ .fd = lfd->fd, .events = lfd->events };
        loop->polled[count++] = lfd;
    }
    return count;
}

static int wait_ready(struct loop *loop, size_t count, uint64_t deadline)
{
    struct timespec ts = { 0 };
    if (deadline != LOOP_NO_WAIT && deadline != LOOP_FOREVER) {
        uint64_t now = loop_now_ns();
        uint64_t left = deadline > now ? deadline - now : 0;
        ts = (struct timespec){ .tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000) };
    }
    loop->stats.enters++;
    int ret = ppoll(loop->pollfds, count, deadline == LOOP_FOREVER ? NULL : &ts, NULL);
    if (ret < 0 && errno != EINTR && errno != ENOMEM) {
        fprintf(stderr, "ppoll: %s\n", strerror(errno)); /* a bug in this file: nothing to go on with */
        abort();
    }
    return ret;
}

bool loop_poll_iterate(struct loop *loop, uint64_t deadline, struct loop_post **taken)
{
    size_t count = collect(loop);
    bool asleep = deadline != LOOP_NO_WAIT && loop_posts_sleep(loop);
    int ready = wait_ready(loop, count, asleep ? deadline : LOOP_NO_WAIT);
    if (asleep)
        loop_posts_awake(loop, taken);
    bool ran = false;
    for (size_t i = 0; i < count && ready > 0; i++) {
        if (!loop->pollfds[i].revents)
            continue;
        ready--;
        ran = true;
        loop->stats.completed++;
        loop_fd_report(loop->polled[i], loop->pollfds[i].revents);
    }
    return ran;
}

void loop_poll_finish(struct loop *loop)
{
    free(loop->pollfds);
    free(loop->polled);
}
