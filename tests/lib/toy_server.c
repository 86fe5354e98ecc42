/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "toy_server.h"

#include <base/coroutine.h>
#include <block/connection.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct message {
    uint32_t tag, op; /* an answer's op: 0 or an errno */
    uint64_t offset, length;
};

/* ---- the server ---- */

/* False: the connection has ended, or the server shall stop. */
static bool receive(struct toy_server *server, int fd, void *data, size_t length)
{
    for (size_t done = 0; done < length;) {
        struct pollfd fds[] = { { .fd = fd, .events = POLLIN }, { .fd = server->wake[0], .events = POLLIN } };
        poll(fds, 2, -1);
        if (atomic_load(&server->stop))
            return false;
        ssize_t got = recv(fd, (char *)data + done, length - done, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return false;
        done += got > 0 ? (size_t)got : 0;
    }
    return true;
}

static bool answer(int fd, const struct message *m, const void *data, size_t length)
{
    struct message reply = { .tag = m->tag, .length = length };

    return send(fd, &reply, sizeof(reply), MSG_NOSIGNAL) == sizeof(reply) &&
           (length == 0 || send(fd, data, length, MSG_NOSIGNAL) == (ssize_t)length);
}

static bool serve_one(struct toy_server *server, int fd, struct message *m)
{
    uint8_t data[TOY_BYTES];

    if (m->op == BLK_OP_WRITE && atomic_exchange(&server->eager, false)) {
        if (!answer(fd, m, NULL, 0))
            return false;
        poll(&(struct pollfd){ .fd = fd, .events = POLLRDHUP }, 1, 5000); /* until the other hangs up */
    }
    if (m->op == BLK_OP_WRITE && !receive(server, fd, data, m->length))
        return false;
    while (atomic_load(&server->hangs)) {
        usleep(1000);
        if (atomic_load(&server->stop))
            return false;
    }
    usleep(atomic_load(&server->slow_ms) * 1000);
    pthread_mutex_lock(&server->lock);
    if (m->op == BLK_OP_WRITE)
        memcpy(server->data + m->offset, data, m->length);
    else if (m->op == BLK_OP_READ)
        memcpy(data, server->data + m->offset, m->length);
    else
        memcpy(server->durable, server->data, TOY_BYTES);
    pthread_mutex_unlock(&server->lock);
    if (atomic_exchange(&server->nonsense, false))
        m->tag += 77;
    return answer(fd, m, data, m->op == BLK_OP_READ ? m->length : 0);
}

static void serve(struct toy_server *server, int fd)
{
    struct message m;

    while (receive(server, fd, &m, sizeof(m)) && serve_one(server, fd, &m)) {
        unsigned every = atomic_load(&server->cut_every);
        if (every && atomic_fetch_add(&server->served, 1u) % every == every - 1)
            return;
    }
}

static void *serve_all(void *arg)
{
    struct toy_server *server = arg;

    while (!atomic_load(&server->stop)) {
        struct pollfd fds[] = { { .fd = server->listener, .events = POLLIN },
                                { .fd = server->wake[0], .events = POLLIN } };
        poll(fds, 2, -1);
        int fd = fds[0].revents ? accept4(server->listener, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd >= 0) {
            atomic_fetch_add(&server->accepted, 1u);
            if (!atomic_load(&server->hangs_up))
                serve(server, fd);
            close(fd);
        }
    }
    return NULL;
}

void toy_server_start(struct toy_server *server, bool lose)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    if (lose)
        memcpy(server->data, server->durable, TOY_BYTES);
    strncpy(address.sun_path, server->path, sizeof(address.sun_path) - 1);
    unlink(server->path);
    atomic_store(&server->stop, false);
    pthread_mutex_init(&server->lock, NULL);
    server->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (pipe(server->wake) < 0 || bind(server->listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(server->listener, 8) < 0 || pthread_create(&server->thread, NULL, serve_all, server) != 0)
        abort();
}

void toy_server_stop(struct toy_server *server)
{
    unlink(server->path); /* nobody comes any more */
    atomic_store(&server->stop, true);
    if (write(server->wake[1], "x", 1) != 1)
        abort();
    pthread_join(server->thread, NULL);
    close(server->listener);
    close(server->wake[0]);
    close(server->wake[1]);
}

/* ---- the driver ---- */

atomic_uint toy_sent;
atomic_bool toy_waits_for_end;

struct toy {
    struct connection connection;
    char *path;
    struct connection_stream stream;
    uint64_t reconnect_delay, open_timeout, request_timeout;
    bool resend, same_server;
};

static const struct opt_desc toy_options[] = {
    { .name = "path", .type = OPT_STRING, .at = OPT_AT(struct toy, path) },
    { .name = "reconnect-delay", .type = OPT_NUMBER, .def = "0", .at = OPT_AT(struct toy, reconnect_delay) },
    { .name = "open-timeout", .type = OPT_NUMBER, .def = "0", .at = OPT_AT(struct toy, open_timeout) },
    { .name = "request-timeout", .type = OPT_NUMBER, .def = "0", .at = OPT_AT(struct toy, request_timeout) },
    { .name = "resend", .type = OPT_BOOL, .def = "on", .at = OPT_AT(struct toy, resend) },
    { .name = "same-server", .type = OPT_BOOL, .def = "off", .at = OPT_AT(struct toy, same_server) },
    { 0 },
};

static struct toy *toy_of(struct connection *c) { return container_of(c, struct toy, connection); }

static coroutine_fn int co_receive_one(struct toy *toy, struct connection_stream stream)
{
    struct message m;
    int ret = connection_co_recv(stream, &m, sizeof(m));

    if (ret < 0)
        return ret;
    struct blk_io *io = connection_find(&toy->connection, m.tag);
    if (!io || m.length != (io->op == BLK_OP_READ ? io->length : 0))
        return -EBADMSG;
    for (int i = 0; i < io->iov_count && io->op == BLK_OP_READ; i++) {
        ret = connection_co_recv(stream, io->iov[i].iov_base, io->iov[i].iov_len);
        if (ret < 0)
            return ret;
    }
    connection_done(&toy->connection, io, -(int)m.op);
    return 0;
}

static coroutine_fn void co_receive(void *arg)
{
    struct toy *toy = arg;
    struct connection_stream stream = toy->stream;
    int ret;

    do {
        ret = co_receive_one(toy, stream);
    } while (ret == 0);
    if (ret != -ECANCELED)
        connection_lost(&toy->connection, "%s", strerror(-ret));
}

static coroutine_fn int toy_co_connect(struct connection *c, struct error **errp)
{
    struct toy *toy = toy_of(c);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    strncpy(address.sun_path, toy->path, sizeof(address.sun_path) - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int ret = error_set_errno(errp, -errno, "Failed to connect to '%s'", toy->path);
        close(fd);
        return ret;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){ 4096 }, sizeof(int)); /* long requests go in pieces */
    toy->stream = connection_stream(c, fd);
    struct connection_stream stream = toy->stream;
    do {
        co_sleep_ns(2000000); /* as a handshake takes its time */
    } while (atomic_load(&toy_waits_for_end) && recv(fd, &(char){ 0 }, 1, MSG_PEEK) != 0);
    if (stream.generation != toy->connection.generation) {
        close(fd);
        return error_set(errp, -ECANCELED, "Too late");
    }
    if (toy->same_server)
        connection_same_server(c);
    co_start(co_receive, toy);
    return 0;
}

static coroutine_fn int toy_co_send(struct connection *c, struct blk_io *io, unsigned tag)
{
    struct connection_stream stream = toy_of(c)->stream;
    struct message m = { .tag = tag, .op = io->op, .offset = io->offset, .length = io->length };
    int ret = connection_co_send(stream, &m, sizeof(m));

    for (int i = 0; ret == 0 && io->op == BLK_OP_WRITE && i < io->iov_count; i++)
        ret = connection_co_send(stream, io->iov[i].iov_base, io->iov[i].iov_len);
    atomic_fetch_add(&toy_sent, ret == 0);
    return ret;
}

static void toy_disconnect(struct connection *c) { close(toy_of(c)->stream.fd); }

static const struct connection_ops toy_ops = { toy_co_connect, toy_co_send, toy_disconnect };

static coroutine_fn int toy_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct toy *toy = node->state;
    const uint64_t ms = 1000000;

    (void)flags;
    if (opts_read(opts, toy_options, toy, errp) < 0)
        return -EINVAL;
    toy->path = xstrdup(toy->path);
    toy->connection.ops = &toy_ops;
    toy->connection.node = node;
    toy->connection.settings = (struct connection_settings){ .open_timeout_ns = toy->open_timeout * ms,
                                                             .reconnect_delay_ns = toy->reconnect_delay * ms,
                                                             .request_timeout_ns = toy->request_timeout * ms,
                                                             .max_in_flight = 8,
                                                             .resend = toy->resend };
    atomic_store(&node->size, TOY_BYTES);
    int ret = connection_co_open(&toy->connection, errp);
    if (ret < 0)
        free(toy->path);
    return ret;
}

static coroutine_fn int toy_co_close(struct blk_node *node)
{
    struct toy *toy = node->state;

    connection_close(&toy->connection);
    free(toy->path);
    return 0;
}

static void toy_submit(struct blk_node *node, struct blk_io *io)
{
    if (io->op == BLK_OP_WRITE_ZEROES || io->op == BLK_OP_DISCARD)
        blk_io_complete(io, -ENOTSUP);
    else
        connection_submit(&((struct toy *)node->state)->connection, io);
}

static void toy_cancel(struct blk_node *node, bool for_good)
{
    connection_cancel(&((struct toy *)node->state)->connection, for_good);
}

static const struct blk_driver toy_driver = {
    .name = "toy",
    .flags = BLK_DRIVER_PROTOCOL,
    .state_size = sizeof(struct toy),
    .options = toy_options,
    .co_open = toy_co_open,
    .co_close = toy_co_close,
    .submit = toy_submit,
    .cancel = toy_cancel,
};
BLK_DRIVER(toy_driver)
