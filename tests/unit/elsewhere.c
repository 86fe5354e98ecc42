/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A protocol driver that does its work elsewhere: on a loop of its own, as a connection to a server has one, and in
 * threads of a library. Requests of several loops come back each on its own loop, with the right result, never from
 * inside submit.
 */
#include "image.h"

enum { LOOPS = 3, DEPTH = 8, ROUNDS = 2000, SECTORS = 64 };

struct elsewhere {
    struct loop *loop; /* the connection's */
    pthread_mutex_t lock;
    uint8_t data[SECTORS * 512];
};

/* ---- the driver ---- */

static void serve(struct blk_io *io)
{
    struct elsewhere *e = io->node->state;
    uint8_t *at = e->data + io->offset;

    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < io->iov_count; at += io->iov[i++].iov_len) {
        if (io->op == BLK_OP_READ)
            memcpy(io->iov[i].iov_base, at, io->iov[i].iov_len);
        else
            memcpy(at, io->iov[i].iov_base, io->iov[i].iov_len);
    }
    pthread_mutex_unlock(&e->lock);
    blk_io_complete(io, io->offset == 63 * 512 ? -EIO : 0);
}

static void arrived(struct loop_post *post) { serve(container_of(post, struct blk_io, post)); }

static void *library(void *arg)
{
    serve(arg);
    return NULL;
}

/* Every 64th by a thread of its own, every seventh at once, the others on the connection's loop. */
static void elsewhere_submit(struct blk_node *node, struct blk_io *io)
{
    static atomic_uint count;
    struct elsewhere *e = node->state;
    unsigned number = atomic_fetch_add(&count, 1u);
    pthread_t thread;

    if (number % 64 == 0 && pthread_create(&thread, NULL, library, io) == 0) {
        pthread_detach(thread);
    } else if (number % 7 == 0) {
        serve(io);
    } else {
        io->post.fn = arrived;
        loop_post(e->loop, &io->post);
    }
}

static coroutine_fn int elsewhere_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct elsewhere *e = node->state;

    pthread_mutex_init(&e->lock, NULL);
    e->loop = loop_thread_start("connection", errp);
    atomic_store(&node->size, sizeof(e->data));
    return e->loop ? 0 : -EIO;
}

static coroutine_fn int elsewhere_co_close(struct blk_node *node)
{
    struct elsewhere *e = node->state;

    loop_thread_stop(e->loop);
    pthread_mutex_destroy(&e->lock);
    return 0;
}

static const struct blk_driver elsewhere_driver = {
    .name = "elsewhere",
    .flags = BLK_DRIVER_PROTOCOL,
    .state_size = sizeof(struct elsewhere),
    .co_open = elsewhere_co_open,
    .co_close = elsewhere_co_close,
    .submit = elsewhere_submit,
};
BLK_DRIVER(elsewhere_driver)

/* ---- requests of several loops ---- */

struct user {
    struct blk_request request;
    struct loop_post post;
    struct blk_front *front;
    struct loop *loop;
    struct iovec iov;
    unsigned sector, rounds;
    bool submitting;
    uint8_t data[512], value;
};

static atomic_uint busy;

static void next(struct user *u)
{
    bool write = u->request.op != BLK_OP_WRITE;

    u->request.op = write ? BLK_OP_WRITE : BLK_OP_READ;
    u->request.flags = 0;
    u->request.offset = u->sector * 512u;
    u->request.length = u->iov.iov_len = 512;
    u->iov.iov_base = u->data;
    u->request.iov = &u->iov;
    u->request.iov_count = 1;
    memset(u->data, write ? ++u->value : 0xee, sizeof(u->data));
    u->submitting = true;
    blk_submit(u->front, &u->request);
    u->submitting = false;
}

static void done(struct blk_request *request, int result)
{
    struct user *u = container_of(request, struct user, request);

    assert_ptr_equal(loop_current(), u->loop);
    assert_false(u->submitting);
    assert_int_equal(result, u->sector == 63 ? -EIO : 0);
    if (request->op == BLK_OP_READ && result == 0) {
        for (size_t i = 0; i < sizeof(u->data); i++)
            assert_int_equal(u->data[i], u->value);
    }
    if (++u->rounds < ROUNDS)
        next(u);
    else
        atomic_fetch_sub(&busy, 1u);
}

static void begin(struct loop_post *post)
{
    struct user *u = container_of(post, struct user, post);

    u->loop = loop_current();
    next(u);
}

static int several_loops(void *arg)
{
    static struct user users[LOOPS * DEPTH];
    struct blk_node *node = co_open_line("driver=elsewhere", BLK_O_RDWR, NULL);
    struct blk_front *front = test_front(node);
    struct loop *loops[LOOPS] = { loop_current(), loop_thread_start("one", NULL), loop_thread_start("two", NULL) };

    for (unsigned i = 0; i < ARRAY_SIZE(users); i++) {
        users[i] = (struct user){ .front = front, .sector = i == 0 ? 63 : i, .post.fn = begin, .request.done = done };
        atomic_fetch_add(&busy, 1u);
        loop_post(loops[i % LOOPS], &users[i].post);
    }
    for (unsigned i = 0; atomic_load(&busy); i++) {
        co_sleep_ns(1000000);
        if (i % 8 == 0) {
            blk_co_drain_begin(node);
            blk_drain_end(node);
        }
    }
    blk_co_front_free(front);
    blk_co_node_unref(node);
    loop_thread_stop(loops[1]);
    loop_thread_stop(loops[2]);
    return 0;
}

static void test_requests_come_back_where_they_came_from(void **state) { run_co(state, several_loops, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = { LOOP_TEST(test_requests_come_back_where_they_came_from) };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return run_on_both_backends(tests);
}
