/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fd readiness. With a ring: a one-shot IORING_OP_POLL_ADD that is armed again after each report, which makes it
 * level-triggered, since a poll that is armed on a ready fd completes at once. Without: an entry of loop_poll.c's list.
 *
 * Invariants: at most one poll is outstanding for a struct loop_fd (LFD_ARMED); `removed` runs only when there is none.
 * A cancel is queued before the poll that replaces the cancelled one, so it can never hit the replacement.
 */
#include "loop_internal.h"

#include <assert.h>
#include <errno.h>

enum {
    LFD_ARMED = 1 << 0,     /* a poll is with the ring */
    LFD_CANCELLED = 1 << 1, /* and a cancel for it */
    LFD_REMOVED = 1 << 2,
};

static void polled(struct loop_io *io, int32_t result);

static void arm(struct loop_fd *lfd)
{
    if (!lfd->loop->has_ring || !lfd->events || (lfd->state & (LFD_ARMED | LFD_REMOVED)))
        return;
    lfd->io.done = polled;
    io_uring_prep_poll_add(loop_ring_sqe_internal(lfd->loop, &lfd->io), lfd->fd, (unsigned short)lfd->events);
    lfd->state = LFD_ARMED;
}

static void cancel(struct loop_fd *lfd)
{
    if ((lfd->state & LFD_ARMED) && !(lfd->state & LFD_CANCELLED)) {
        lfd->state |= LFD_CANCELLED;
        loop_ring_cancel_internal(lfd->loop, &lfd->io);
    }
}

/* Calls `ready` for what is still wanted. poll(2) reports errors and hang-ups unasked. */
void loop_fd_report(struct loop_fd *lfd, short revents)
{
    revents = (short)(revents & (lfd->events | POLLERR | POLLHUP | POLLNVAL));
    if (revents && lfd->events && !(lfd->state & LFD_REMOVED))
        lfd->ready(lfd, revents);
}

static void polled(struct loop_io *io, int32_t result)
{
    struct loop_fd *lfd = container_of(io, struct loop_fd, io);
    lfd->state &= ~(unsigned)(LFD_ARMED | LFD_CANCELLED);
    if (lfd->state & LFD_REMOVED) {
        if (lfd->removed)
            lfd->removed(lfd);
        return;
    }
    if (result >= 0)
        loop_fd_report(lfd, (short)result);
    else if (result != -ECANCELED)
        loop_fd_report(lfd, POLLNVAL); /* what poll(2) says of an fd that cannot be polled */
    arm(lfd);
}

bool loop_fd_polled(const struct loop_fd *lfd) { return lfd->events && !(lfd->state & LFD_REMOVED); }

void loop_fd_add(struct loop *loop, struct loop_fd *lfd)
{
    lfd->loop = loop;
    lfd->state = 0;
    list_init(&lfd->link);
    if (!loop->has_ring)
        list_append(&loop->fds, &lfd->link);
    arm(lfd);
}

void loop_fd_modify(struct loop_fd *lfd, short events)
{
    assert(!(lfd->state & LFD_REMOVED));
    if (events == lfd->events)
        return;
    lfd->events = events;
    cancel(lfd); /* armed again with the new events when the old poll has ended */
    arm(lfd);
}

void loop_fd_remove(struct loop_fd *lfd, void (*removed)(struct loop_fd *lfd))
{
    assert(!(lfd->state & LFD_REMOVED));
    lfd->removed = removed;
    lfd->state |= LFD_REMOVED;
    list_remove(&lfd->link);
    if (lfd->state & LFD_ARMED)
        cancel(lfd);
    else
        list_append(&lfd->loop->fds_removed, &lfd->link);
}

bool loop_fd_run_removed(struct loop *loop)
{
    struct list todo;
    list_init(&todo);
    list_splice(&todo, &loop->fds_removed);
    while (!list_empty(&todo)) {
        struct loop_fd *lfd = list_first(&todo, struct loop_fd, link);
        list_remove(&lfd->link);
        if (lfd->removed)
            lfd->removed(lfd);
    }
    return true;
}
