/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Connections to servers (block/connection.h).
 *
 * Everything but connection_submit(), connection_cancel(), open and close runs on the connection's loop, so there are
 * no locks. Invariants:
 * N1 A request is on one of the lists `waiting` and `sent`, or done; those sent have a tag of their own.
 * N2 `generation` moves whenever a connection, or a try for one, ends: coroutines that wait on its stream are woken
 *    with -ECANCELED, and none of them touches the stream, a request or its buffers afterwards.
 * N3 A request that is being sent is not found by its tag: a server that answers too early talks nonsense, and the
 *    sender never reads a buffer that its owner has back.
 */
#include <base/coroutine.h>
#include <base/log.h>
#include <block/connection.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define FIRST_PAUSE_NS UINT64_C(100000000)
#define LONGEST_PAUSE_NS UINT64_C(5000000000)
#define CONNECT_TIMEOUT_NS UINT64_C(30000000000)

/* In blk_io's scratch. */
struct slot {
    struct list link;
    uint64_t sent_ns;
    uint64_t acknowledged; /* a flush: writes that it covers */
    unsigned tag;
    bool sending; /* N3 */
};
_Static_assert(sizeof(struct slot) <= sizeof(((struct blk_io *)0)->scratch), "a slot lies in a request's scratch");

static struct slot *slot_of(struct blk_io *io) { return (struct slot *)(void *)io->scratch; }
static struct blk_io *io_of(struct list *link)
{
    return (struct blk_io *)(void *)((char *)container_of(link, struct slot, link) - offsetof(struct blk_io, scratch));
}

static bool list_take(struct list *list, struct blk_io **io)
{
    if (list_empty(list))
        return false;
    *io = io_of(list->next);
    list_remove(list->next);
    return true;
}

/* ---- streams ---- */

struct waiter {
    struct list link;
    struct loop_fd lfd;
    struct co *co;
    int result;
    bool ended;
};

static void waiter_removed(struct loop_fd *lfd) { co_wake(container_of(lfd, struct waiter, lfd)->co); }

static void end_wait(struct waiter *w, int result)
{
    if (w->ended)
        return;
    w->ended = true;
    w->result = result;
    list_remove(&w->link);
    loop_fd_remove(&w->lfd, waiter_removed);
}

static void waiter_ready(struct loop_fd *lfd, short revents)
{
    (void)revents; /* errors are told by the call that follows */
    end_wait(container_of(lfd, struct waiter, lfd), 0);
}

static coroutine_fn int co_wait(struct connection_stream stream, short events)
{
    struct connection *c = stream.connection;
    struct waiter w = { .lfd = { .fd = stream.fd, .events = events, .ready = waiter_ready }, .co = co_self() };

    list_append(&c->waiters, &w.link);
    loop_fd_add(c->loop, &w.lfd);
    co_yield();
    return w.result;
}

static bool is_over(struct connection_stream stream) { return stream.generation != stream.connection->generation; }

struct connection_stream connection_stream(struct connection *c, int fd)
{
    return (struct connection_stream){ c, c->generation, fd };
}

/* What a call on the socket has said; > 0: so many bytes, 0: try again. */
static coroutine_fn ssize_t co_judge(struct connection_stream stream, ssize_t got, short events)
{
    if (got > 0)
        return got;
    if (got == 0)
        return -ECONNRESET;
    if (errno == EINTR)
        return 0;
    return errno == EAGAIN || errno == EWOULDBLOCK ? co_wait(stream, events) : -errno;
}

coroutine_fn int connection_co_send(struct connection_stream stream, const void *data, size_t length)
{
    ssize_t got;

    for (size_t done = 0; done < length; done += (size_t)got) {
        if (is_over(stream))
            return -ECANCELED;
        got = send(stream.fd, (const char *)data + done, length - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        got = co_judge(stream, got, POLLOUT);
        if (got < 0)
            return (int)got;
    }
    return is_over(stream) ? -ECANCELED : 0;
}

coroutine_fn int connection_co_recv(struct connection_stream stream, void *data, size_t length)
{
    ssize_t got;

    for (size_t done = 0; done < length; done += (size_t)got) {
        if (is_over(stream))
            return -ECANCELED;
        got = recv(stream.fd, (char *)data + done, length - done, MSG_DONTWAIT);
        got = co_judge(stream, got, POLLIN);
        if (got < 0)
            return (int)got;
    }
    return is_over(stream) ? -ECANCELED : 0;
}

static void kick_sender(struct connection *c)
{
    struct co *co = c->sender_asleep;

    c->sender_asleep = NULL; /* woken once */
    if (co)
        co_wake(co);
}

/* N2 */
static void end_generation(struct connection *c)
{
    c->generation++;
    while (!list_empty(&c->waiters))
        end_wait(list_first(&c->waiters, struct waiter, link), -ECANCELED);
    kick_sender(c);
}

/* ---- sending ---- */

static void take_tag(struct connection *c, struct blk_io *io)
{
    while (c->by_tag[c->next_tag % c->settings.max_in_flight])
        c->next_tag++;
    slot_of(io)->tag = c->next_tag++ % c->settings.max_in_flight;
    c->by_tag[slot_of(io)->tag] = io;
    c->in_flight++;
}

static void leave_tag(struct connection *c, struct blk_io *io)
{
    c->by_tag[slot_of(io)->tag] = NULL;
    c->in_flight--;
}

static void watch_answers(struct connection *c)
{
    if (!c->settings.request_timeout_ns || list_empty(&c->sent))
        return;
    loop_timer_arm(c->loop, &c->answer_due, slot_of(io_of(c->sent.next))->sent_ns + c->settings.request_timeout_ns);
}

static void answer_is_due(struct loop_timer *timer)
{
    struct connection *c = container_of(timer, struct connection, answer_due);

    if (list_empty(&c->sent))
        return;
    if (loop_now_ns() >= slot_of(io_of(c->sent.next))->sent_ns + c->settings.request_timeout_ns)
        connection_lost(c, "it has not answered for %" PRIu64 " ms", c->settings.request_timeout_ns / 1000000);
    else
        watch_answers(c);
}

static coroutine_fn int co_send_one(struct connection *c, struct blk_io *io)
{
    struct slot *slot = slot_of(io);
    uint64_t generation = c->generation;

    take_tag(c, io);
    slot->sending = true;
    slot->sent_ns = loop_now_ns();
    slot->acknowledged = c->acknowledged;
    list_append(&c->sent, &slot->link);
    if (!c->answer_due.heap_index) /* armed for one that is older */
        watch_answers(c);
    int ret = c->ops->co_send(c, io, slot->tag);
    if (c->generation != generation) /* the request may be gone */
        return -ECANCELED;
    slot->sending = false;
    return ret;
}

/* One for each connection that is made; ends with it. */
static coroutine_fn void co_sender(void *arg)
{
    struct connection *c = arg;
    uint64_t generation = c->generation;
    struct blk_io *io;
    int ret = 0;

    while (ret == 0 && c->generation == generation) {
        if (c->in_flight < c->settings.max_in_flight && list_take(&c->waiting, &io)) {
            ret = co_send_one(c, io);
        } else {
            c->sender_asleep = co_self();
            co_yield();
        }
    }
    if (c->generation == generation)
        connection_lost(c, "sending failed: %s", strerror(-ret));
}

/* ---- requests ---- */

static void fail_all(struct connection *c, int result)
{
    struct blk_io *io;

    while (list_take(&c->waiting, &io))
        blk_io_complete(io, result);
}

static void arrived(struct loop_post *post)
{
    struct blk_io *io = container_of(post, struct blk_io, post);
    struct connection *c = *(struct connection **)(void *)io->scratch;

    if (c->abandoned) {
        blk_io_complete(io, -ECANCELED);
    } else if (c->state == CONNECTION_GONE || (io->op == BLK_OP_FLUSH && c->lost_writes)) {
        blk_io_complete(io, -EIO);
    } else {
        *slot_of(io) = (struct slot){ 0 };
        list_append(&c->waiting, &slot_of(io)->link);
        kick_sender(c);
    }
}

void connection_submit(struct connection *c, struct blk_io *io)
{
    *(struct connection **)(void *)io->scratch = c;
    io->post.fn = arrived;
    loop_post(c->loop, &io->post);
}

struct blk_io *connection_find(struct connection *c, unsigned tag)
{
    struct blk_io *io = tag < c->settings.max_in_flight ? c->by_tag[tag] : NULL;

    return io && !slot_of(io)->sending ? io : NULL; /* N3 */
}

void connection_done(struct connection *c, struct blk_io *io, int result)
{
    list_remove(&slot_of(io)->link);
    leave_tag(c, io);
    c->pause_ns = 0;
    if (result == 0 && io->op == BLK_OP_FLUSH)
        c->flushed = MAX(c->flushed, slot_of(io)->acknowledged);
    else if (result == 0 && (io->op == BLK_OP_WRITE || io->op == BLK_OP_WRITE_ZEROES) && !(io->flags & BLK_REQ_FUA))
        c->acknowledged++;
    blk_io_complete(io, result);
    kick_sender(c);
}

/* ---- losing it ---- */

/* What was sent goes back in front of what waits, or ends with `result`. */
static void take_back(struct connection *c, bool again, int result)
{
    while (!list_empty(&c->sent)) {
        struct blk_io *io = io_of(c->sent.prev);
        list_remove(&slot_of(io)->link);
        leave_tag(c, io);
        if (again)
            list_prepend(&c->waiting, &slot_of(io)->link);
        else
            blk_io_complete(io, result);
    }
}

/* Waits no longer for an answer to what was sent. */
static void cut(struct connection *c, bool again, int result)
{
    end_generation(c);
    loop_timer_disarm(&c->answer_due);
    c->ops->disconnect(c);
    take_back(c, again, result);
}

static void give_up(struct loop_timer *timer)
{
    struct connection *c = container_of(timer, struct connection, give_up);

    if (c->state != CONNECTION_LOST)
        return;
    c->state = CONNECTION_GONE;
    fail_all(c, -EIO);
}

static coroutine_fn void co_reconnect(void *arg);

static void begin_reconnecting(struct connection *c)
{
    c->state = c->settings.reconnect_delay_ns ? CONNECTION_LOST : CONNECTION_GONE;
    if (c->state == CONNECTION_LOST)
        loop_timer_arm(c->loop, &c->give_up, loop_now_ns() + c->settings.reconnect_delay_ns);
    else
        fail_all(c, -EIO);
    if (!c->reconnecting) {
        c->reconnecting = true;
        co_start(co_reconnect, c);
    }
}

void connection_lost(struct connection *c, const char *fmt, ...)
{
    char why[200];
    va_list args;

    if (c->connecting) { /* what co_connect has started sees the end before it is told that it began */
        c->hung_up = true;
        end_generation(c);
    }
    if (c->state != CONNECTION_UP)
        return;
    va_start(args, fmt);
    vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    warn_report("%s: the connection to the server is lost: %s", c->node->filename, why);
    cut(c, c->settings.resend && c->settings.reconnect_delay_ns, -EIO);
    begin_reconnecting(c);
}

void connection_same_server(struct connection *c) { c->same_server = true; }

/* ---- reaching it ---- */

static void connect_is_due(struct loop_timer *timer)
{
    end_generation(container_of(timer, struct connection, connect_due));
}

/* Nobody knows whether what was acknowledged is still there. */
static void fail_flushes(struct connection *c)
{
    struct list *link = c->waiting.next;

    while (link != &c->waiting) {
        struct blk_io *io = io_of(link);
        link = link->next;
        if (io->op == BLK_OP_FLUSH) {
            list_remove(&slot_of(io)->link);
            blk_io_complete(io, -EIO);
        }
    }
}

static coroutine_fn int co_connect(struct connection *c, struct error **errp)
{
    uint64_t generation = c->generation;
    struct error *error = NULL;

    loop_timer_arm(c->loop, &c->connect_due, loop_now_ns() + c->settings.connect_timeout_ns);
    c->connecting = true;
    c->hung_up = false;
    int ret = c->ops->co_connect(c, &error);
    c->connecting = false;
    loop_timer_disarm(&c->connect_due);
    if (c->generation == generation) {
        error_propagate(errp, error);
        return ret;
    }
    if (ret == 0)
        c->ops->disconnect(c);
    error_free(error);
    if (c->hung_up)
        return error_set(errp, -ECONNRESET, "The server has hung up");
    return error_set(errp, -ETIMEDOUT, "No answer for %" PRIu64 " ms", c->settings.connect_timeout_ns / 1000000);
}

static coroutine_fn int co_try(struct connection *c, struct error **errp)
{
    c->same_server = false;
    int ret = co_connect(c, errp);
    if (ret < 0)
        return ret;
    if (!c->same_server && c->acknowledged != c->flushed && !c->lost_writes) {
        warn_report("%s: what was written and not flushed before may be lost: flushes fail from now on",
                    c->node->filename);
        c->lost_writes = true;
    }
    if (c->lost_writes)
        fail_flushes(c);
    c->state = CONNECTION_UP;
    loop_timer_disarm(&c->give_up);
    co_start(co_sender, c);
    return 0;
}

static bool is_wanted(const struct connection *c) { return c->state != CONNECTION_CLOSED && !c->abandoned; }

static void wake_pausing(struct connection *c)
{
    struct co *co = c->pausing;

    c->pausing = NULL; /* woken once */
    if (co)
        co_wake(co);
}

static void pause_over(struct loop_timer *timer) { wake_pausing(container_of(timer, struct connection, pause_over)); }

/* Between two tries; wake_pausing() ends it. */
static coroutine_fn void co_pause(struct connection *c, uint64_t ns)
{
    c->pausing = co_self();
    loop_timer_arm(c->loop, &c->pause_over, loop_now_ns() + ns);
    co_yield();
    loop_timer_disarm(&c->pause_over);
}

/* At once, unless the server took the connection last time and answered nothing. */
static coroutine_fn void co_reconnect(void *arg)
{
    struct connection *c = arg;
    struct error *error = NULL;
    bool told = false;

    while (is_wanted(c)) {
        if (c->pause_ns)
            co_pause(c, c->pause_ns);
        c->pause_ns = c->pause_ns ? MIN(c->pause_ns * 2, LONGEST_PAUSE_NS) : FIRST_PAUSE_NS;
        if (!is_wanted(c) || co_try(c, &error) == 0)
            break;
        if (!told && is_wanted(c))
            warn_report("%s: cannot connect again, still trying: %s", c->node->filename, error_text(error));
        told = true;
        error_free(error);
        error = NULL;
    }
    c->reconnecting = false;
}

/* ---- open, close, cancel ---- */

struct opening {
    struct connection *c;
    struct co *opener;
    struct error *error;
    int ret;
};

static coroutine_fn void co_first_connect(void *arg)
{
    struct opening *o = arg;
    uint64_t deadline = loop_now_ns() + o->c->settings.open_timeout_ns, pause = FIRST_PAUSE_NS;

    while ((o->ret = co_try(o->c, &o->error)) < 0) {
        uint64_t now = loop_now_ns();
        if (now >= deadline)
            break;
        error_free(o->error);
        o->error = NULL;
        co_pause(o->c, MIN(pause, deadline - now));
        pause = MIN(pause * 2, LONGEST_PAUSE_NS);
    }
    co_wake(o->opener);
}

coroutine_fn int connection_co_open(struct connection *c, struct error **errp)
{
    struct opening o = { .c = c, .opener = co_self() };

    c->settings.max_in_flight = MAX(c->settings.max_in_flight, 1u);
    c->settings.max_in_flight = MIN(c->settings.max_in_flight, CONNECTION_MAX_IN_FLIGHT);
    if (!c->settings.connect_timeout_ns)
        c->settings.connect_timeout_ns = CONNECT_TIMEOUT_NS;
    c->by_tag = xcalloc(c->settings.max_in_flight, sizeof(*c->by_tag));
    list_init(&c->waiting);
    list_init(&c->sent);
    list_init(&c->waiters);
    c->give_up.fn = give_up;
    c->answer_due.fn = answer_is_due;
    c->connect_due.fn = connect_is_due;
    c->pause_over.fn = pause_over;
    c->loop = loop_thread_start("connection", errp);
    if (!c->loop) {
        free(c->by_tag);
        return -EIO;
    }
    co_start_on(c->loop, co_first_connect, &o);
    co_yield();
    if (o.ret < 0) {
        error_propagate(errp, o.error);
        connection_close(c);
    }
    return o.ret;
}

/* Nothing comes any more. */
static void end(struct connection *c, int result)
{
    if (c->state == CONNECTION_UP)
        cut(c, false, result);
    else
        end_generation(c);
    fail_all(c, result);
    loop_timer_disarm(&c->give_up);
    wake_pausing(c);
}

static void close_on_loop(struct loop_post *post)
{
    struct connection *c = container_of(post, struct connection, closing);

    end(c, -ECANCELED);
    c->state = CONNECTION_CLOSED;
}

void connection_close(struct connection *c)
{
    c->closing.fn = close_on_loop;
    loop_post(c->loop, &c->closing);
    loop_thread_stop(c->loop);
    free(c->by_tag);
}

struct cancelling {
    struct loop_post post;
    struct connection *c;
    bool for_good;
};

static void cancel_on_loop(struct loop_post *post)
{
    struct cancelling *what = container_of(post, struct cancelling, post);
    struct connection *c = what->c;

    if (what->for_good) {
        c->abandoned = true;
        end(c, -ECANCELED);
        c->state = CONNECTION_GONE;
    } else {
        fail_all(c, -ECANCELED);
        if (c->state == CONNECTION_UP && !list_empty(&c->sent)) {
            cut(c, false, -ECANCELED);
            begin_reconnecting(c);
        }
    }
    free(what);
}

void connection_cancel(struct connection *c, bool for_good)
{
    struct cancelling *what = xcalloc(1, sizeof(*what));

    what->c = c;
    what->for_good = for_good;
    what->post.fn = cancel_on_loop;
    loop_post(c->loop, &what->post);
}
