/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Eventfds that others signal. With a ring: one IORING_OP_READ of the counter waits in the kernel; its completion is
 * the signal, and the next read goes out with the next iteration's enter: no system call of its own. An eventfd that is
 * O_NONBLOCK answers such a read with EAGAIN at once; it, and a loop without ring, gets readiness and read(2) instead.
 *
 * Invariant: no signal is lost. A count that a read took while the event was being removed goes back into the eventfd.
 */
#include "loop_internal.h"

#include <assert.h>
#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    EVENT_ARMED = 1 << 0, /* a read is with the ring */
    EVENT_BY_FD = 1 << 1, /* event->lfd is in use instead */
    EVENT_REMOVED = 1 << 2,
};

static void arm(struct loop_event *event)
{
    event->state |= EVENT_ARMED;
    struct io_uring_sqe *sqe = loop_ring_sqe_internal(event->loop, &event->io);
    io_uring_prep_read(sqe, event->fd, &event->count, sizeof(event->count), 0);
}

static void fd_ready(struct loop_fd *lfd, short revents)
{
    struct loop_event *event = container_of(lfd, struct loop_event, lfd);
    uint64_t count;
    if ((revents & POLLIN) && eventfd_read(event->fd, &count) == 0)
        event->signalled(event, count);
}

static void watch_fd(struct loop_event *event)
{
    event->state |= EVENT_BY_FD;
    event->lfd = (struct loop_fd){ .fd = event->fd, .events = POLLIN, .ready = fd_ready };
    loop_fd_add(event->loop, &event->lfd);
}

static void was_removed(struct loop_event *event)
{
    if (event->removed)
        event->removed(event);
}

static void read_done(struct loop_io *io, int32_t result)
{
    struct loop_event *event = container_of(io, struct loop_event, io);
    event->state &= ~(unsigned)EVENT_ARMED;
    bool got = result == (int32_t)sizeof(event->count);
    if (event->state & EVENT_REMOVED) {
        if (got)
            eventfd_write(event->fd, event->count);
        was_removed(event);
        return;
    }
    if (got)
        event->signalled(event, event->count);
    if (event->state & EVENT_REMOVED)
        return; /* in its callback, which saw no read outstanding: loop_event_remove() has arranged for `removed` */
    if (got || result == -ECANCELED || result == -EINTR)
        arm(event);
    else
        watch_fd(event);
}

void loop_event_add(struct loop *loop, struct loop_event *event)
{
    event->loop = loop;
    event->state = 0;
    event->removed = NULL;
    event->io.done = read_done;
    if (loop->has_ring)
        arm(event);
    else
        watch_fd(event);
}

static void lfd_removed(struct loop_fd *lfd) { was_removed(container_of(lfd, struct loop_event, lfd)); }

void loop_event_remove(struct loop_event *event, void (*removed)(struct loop_event *event))
{
    assert(!(event->state & EVENT_REMOVED));
    event->removed = removed;
    event->state |= EVENT_REMOVED;
    if (event->state & EVENT_ARMED) {
        loop_ring_cancel_internal(event->loop, &event->io);
        return;
    }
    /* Called by `signalled` itself: no read is outstanding. A paused lfd only brings `removed` in its turn. */
    if (!(event->state & EVENT_BY_FD)) {
        event->lfd = (struct loop_fd){ .fd = event->fd };
        loop_fd_add(event->loop, &event->lfd);
    }
    loop_fd_remove(&event->lfd, lfd_removed);
}
