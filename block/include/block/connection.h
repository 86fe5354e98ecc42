/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A node's connection to its server, for drivers over a network: requests wait for it, are sent, time out, are sent
 * again or fail when it is lost, and are cancelled, the same way for every protocol. The driver knows how to connect,
 * how to send one request, and what an answer looks like.
 *
 * A connection has a loop of its own. All of the driver's callbacks run there, and so does all that it starts in
 * them; requests come from any loop, and go back to it. What the server does never makes a loop of a guest wait.
 *
 *   connecting ──► up ──► lost ──► up …         requests: sent     wait (reconnect-delay)
 *                          │
 *                          └─► gone ──► up …                       fail at once with -EIO; it is tried on
 *
 * What a server had acknowledged but not flushed when it was lost may be lost too. If the driver cannot tell that it
 * is still the same server, every flush fails from then on, until the node is opened anew: nothing is called durable
 * that may not be.
 */
#pragma once

#include <block/node.h>

#define CONNECTION_MAX_IN_FLIGHT 256u

struct connection;

/* One try to reach the server. Copied freely; what was copied ends with the connection that it was made for. */
struct connection_stream {
    struct connection *connection;
    uint64_t generation;
    int fd;
};

/* All on the connection's loop. */
struct connection_ops {
    /* Reaches the server and shakes hands; waits by connection_co_send() and connection_co_recv() only. Starts what
     * receives answers. On failure nothing stays open. */
    coroutine_fn int (*co_connect)(struct connection *c, struct error **errp);
    /* Sends one request, whose answer will name `tag`; one at a time. < 0: the connection is lost. */
    coroutine_fn int (*co_send)(struct connection *c, struct blk_io *io, unsigned tag);
    /* Closes what co_connect opened. No coroutine of the driver goes on with it: what waits gets -ECANCELED. */
    void (*disconnect)(struct connection *c);
};

struct connection_settings {
    uint64_t open_timeout_ns;    /* at open a server that is not there is waited for so long; 0: tried once */
    uint64_t reconnect_delay_ns; /* so long requests wait for a lost server; 0: they fail */
    uint64_t request_timeout_ns; /* a server that owes an answer for so long is lost; 0: never */
    uint64_t connect_timeout_ns; /* of one try to connect; 0: 30 s */
    unsigned max_in_flight;      /* requests sent and not answered; 1 … CONNECTION_MAX_IN_FLIGHT */
    /* What was sent before the connection was lost may be sent again: once co_connect has returned, the server carries
     * out nothing more of what came over the old one. */
    bool resend;
};

/* Embedded in the driver's state. */
struct connection {
    /* The driver's, before connection_co_open(). */
    const struct connection_ops *ops;
    struct blk_node *node;
    struct connection_settings settings;

    /* connection.c's; the connection's loop only. */
    struct loop *loop;
    enum { CONNECTION_CONNECTING, CONNECTION_UP, CONNECTION_LOST, CONNECTION_GONE, CONNECTION_CLOSED } state;
    uint64_t generation;       /* of streams that are in use */
    struct list waiting, sent; /* blk_io, by what lies in its scratch; in order */
    struct blk_io **by_tag;    /* of those sent */
    unsigned in_flight, next_tag;
    struct list waiters;      /* struct waiter: coroutines that wait for a file descriptor */
    struct co *sender_asleep; /* what sends, while it has nothing to do */
    struct loop_timer give_up, answer_due, connect_due, pause_over;
    struct loop_post closing;
    uint64_t pause_ns;        /* before the next try; 0: none, the server has answered */
    struct co *pausing;       /* the coroutine that connects, between two tries */
    bool connecting, hung_up; /* co_connect runs, and what it has started has seen the end already */
    bool reconnecting, abandoned, same_server, lost_writes;
    uint64_t acknowledged, flushed; /* writes, counted: those not in the second may be in a server's memory only */
};

/* From the driver's co_open: starts the loop, connects, waiting for a server as set. Fails with what the last try
 * said. Main loop. */
coroutine_fn int connection_co_open(struct connection *c, struct error **errp);
/* From co_close: no request is in flight. Does not wait for the server. Main loop. */
void connection_close(struct connection *c);
/* From the driver's `submit`. Any loop. */
void connection_submit(struct connection *c, struct blk_io *io);
/* From the driver's `cancel`: every request ends with -ECANCELED, and no buffer is touched any more; what a server has
 * been sent it may carry out nevertheless. `for_good`: requests that come later end so too, whatever they are. Main
 * loop. */
void connection_cancel(struct connection *c, bool for_good);

/* ---- on the connection's loop ---- */

/* The request that an answer names; NULL: there is none, the server talks nonsense. */
struct blk_io *connection_find(struct connection *c, unsigned tag);
/* It is answered: 0 or -errno. A write with BLK_REQ_FUA counts as durable: a driver whose protocol has no such thing
 * flushes before it says so. */
void connection_done(struct connection *c, struct blk_io *io, int result);
/* The driver has lost its server, or does not want it any more; says why in one clause. Harmless if that is known. */
void connection_lost(struct connection *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* In co_connect: it is known that what the server acknowledged before is not lost. */
void connection_same_server(struct connection *c);

/* A stream on a socket that does not block; in co_connect. */
struct connection_stream connection_stream(struct connection *c, int fd);
/* All of it, or -errno: -ECONNRESET at the other's end, -ECANCELED once the connection is lost (the fd is closed
 * then). */
coroutine_fn int connection_co_send(struct connection_stream stream, const void *data, size_t length);
coroutine_fn int connection_co_recv(struct connection_stream stream, void *data, size_t length);
