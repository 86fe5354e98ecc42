/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * block/connection.h with the driver and the server of tests/lib/toy_server.c: a server that goes and comes back,
 * hangs, talks nonsense, is not there when a disk is opened; requests that wait, are sent again, fail, are cancelled;
 * and what a flush may say afterwards.
 */
#include "beside.h"
#include "image.h"
#include "toy_server.h"

#include <base/loop.h>

#define MS UINT64_C(1000000)

static struct toy_server server;
static int folder; /* a socket's name is short, that of a test's folder need not be */

static void begin(void)
{
    folder = open(disk_folder, O_DIRECTORY | O_CLOEXEC);
    server.path = xasprintf("/proc/self/fd/%d/toy", folder);
    memset(server.data, 0, sizeof(server.data));
    memset(server.durable, 0, sizeof(server.durable));
    atomic_store(&server.hangs, false);
    atomic_store(&server.hangs_up, false);
    atomic_store(&server.cut_every, 0);
    atomic_store(&server.accepted, 0);
    toy_server_start(&server, false);
}

static coroutine_fn struct blk_node *co_open_toy(const char *more, struct error **errp)
{
    char *line = xasprintf("driver=toy,path=%s%s", server.path, more);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR, errp);

    free(line);
    return node;
}

static coroutine_fn void co_end(struct blk_node *node)
{
    assert_int_equal(blk_co_node_unref(node), 0);
    toy_server_stop(&server);
    free(server.path);
    close(folder);
}

static coroutine_fn int co_put(struct blk_node *node, unsigned sector, uint8_t value)
{
    uint8_t data[512];

    memset(data, value, sizeof(data));
    return blk_co_write(node, sector * 512u, data, sizeof(data), 0);
}

static coroutine_fn void co_expect(struct blk_node *node, unsigned sector, uint8_t value)
{
    uint8_t data[512];

    assert_int_equal(blk_co_read(node, sector * 512u, data, sizeof(data)), 0);
    for (size_t i = 0; i < sizeof(data); i++)
        assert_int_equal(data[i], value);
}

/* Until the toy has sent so many requests, ever. */
static coroutine_fn void co_wait_sent(unsigned count)
{
    while (atomic_load(&toy_sent) < count)
        co_sleep_ns(MS / 10);
}

/* ---- going and coming back ---- */

static atomic_uint busy;

struct user {
    struct blk_front *front;
    unsigned sector, rounds;
};

static coroutine_fn void co_use(void *arg)
{
    const struct user *u = arg;
    uint8_t data[512], read[512];

    for (unsigned i = 0; i < u->rounds; i++) {
        memset(data, (int)(i + u->sector), sizeof(data));
        assert_int_equal(blk_front_co_write(u->front, u->sector * 512u, data, sizeof(data), 0), 0);
        assert_int_equal(blk_front_co_read(u->front, u->sector * 512u, read, sizeof(read)), 0);
        assert_memory_equal(read, data, sizeof(data));
        if (i % 16 == 0)
            assert_int_equal(blk_front_co_flush(u->front), 0);
    }
    atomic_fetch_sub(&busy, 1u);
}

/* More requests than it takes at a time, of three loops, while the connection is cut again and again. */
TEST_CO(requests_are_sent_again)
{
    static struct user users[24];

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000,same-server=on", NULL);
    struct blk_front *front = test_front(node);
    struct loop *loops[] = { loop_current(), loop_thread_start("one", NULL), loop_thread_start("two", NULL) };
    atomic_store(&server.cut_every, 37);
    for (unsigned i = 0; i < ARRAY_SIZE(users); i++) {
        users[i] = (struct user){ .front = front, .sector = i, .rounds = 60 };
        atomic_fetch_add(&busy, 1u);
        co_start_on(loops[i % 3], co_use, &users[i]);
    }
    while (atomic_load(&busy))
        co_sleep_ns(MS);
    assert_true(atomic_load(&server.accepted) > 10);
    loop_thread_stop(loops[1]);
    loop_thread_stop(loops[2]);
    assert_int_equal(blk_co_front_free(front), 0);
    co_end(node);
    return 0;
}

/* What waits fails when the delay is over, what comes then fails at once; and all is well when it is back. */
TEST_CO(a_server_that_stays_away)
{
    struct beside r, flush;

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=600", NULL);
    co_expect(node, 0, 0);
    toy_server_stop(&server);
    uint64_t before = loop_now_ns();
    beside_start(&r, node, BLK_OP_READ);
    beside_start(&flush, node, BLK_OP_FLUSH);
    assert_int_equal(beside_co_result(&r), -EIO);
    assert_int_equal(beside_co_result(&flush), -EIO);
    assert_true(loop_now_ns() - before >= 500 * MS);
    before = loop_now_ns();
    assert_int_equal(co_put(node, 1, 1), -EIO);
    assert_true(loop_now_ns() - before < 500 * MS);
    toy_server_start(&server, false);
    while (co_put(node, 1, 1) < 0)
        co_sleep_ns(10 * MS);
    co_expect(node, 1, 1);
    assert_int_equal(blk_co_flush(node), 0); /* nothing had been acknowledged */
    co_end(node);
    return 0;
}

TEST_CO(without_a_delay_requests_fail)
{
    struct beside r;

    begin();
    struct blk_node *node = co_open_toy("", NULL);
    atomic_store(&server.hangs, true);
    beside_start(&r, node, BLK_OP_READ);
    co_sleep_ns(20 * MS);
    toy_server_stop(&server);
    assert_int_equal(beside_co_result(&r), -EIO);
    atomic_store(&server.hangs, false);
    toy_server_start(&server, false);
    while (co_put(node, 1, 1) < 0)
        co_sleep_ns(10 * MS);
    co_end(node);
    return 0;
}

/* A protocol in which it would not be safe: what was sent fails, what was not waits. */
TEST_CO(what_may_not_be_sent_again_fails)
{
    struct beside r[10];
    unsigned failed = 0, before = atomic_load(&toy_sent);

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000,resend=off", NULL);
    atomic_store(&server.hangs, true);
    for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
        beside_start(&r[i], node, BLK_OP_READ);
    co_wait_sent(before + 8); /* the toy's depth */
    toy_server_stop(&server);
    atomic_store(&server.hangs, false);
    toy_server_start(&server, false);
    for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
        failed += beside_co_result(&r[i]) == -EIO;
    assert_int_equal(failed, 8);
    co_end(node);
    return 0;
}

/* ---- hanging ---- */

TEST_CO(a_server_that_hangs_is_left)
{
    struct beside r;

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000,request-timeout=100", NULL);
    atomic_store(&server.hangs, true);
    beside_start(&r, node, BLK_OP_WRITE);
    co_sleep_ns(50 * MS);
    assert_false(r.done);
    co_sleep_ns(150 * MS);
    atomic_store(&server.hangs, false);
    assert_int_equal(beside_co_result(&r), 0);
    co_expect(node, 0, 0xee);
    assert_true(atomic_load(&server.accepted) >= 2);
    co_end(node);
    return 0;
}

struct reader {
    struct blk_node *node;
    unsigned sector;
    uint64_t until;
    bool done;
};

static coroutine_fn void co_reader(void *arg)
{
    struct reader *r = arg;

    while (loop_now_ns() < r->until)
        co_expect(r->node, r->sector, 0);
    r->done = true;
}

/* And one that answers within the time is not, though it always owes an answer. */
TEST_CO(a_server_that_answers_is_kept)
{
    struct reader readers[3];

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000,request-timeout=2000", NULL);
    atomic_store(&server.slow_ms, 10);
    for (unsigned i = 0; i < ARRAY_SIZE(readers); i++) {
        readers[i] = (struct reader){ .node = node, .sector = i, .until = loop_now_ns() + 2300 * MS };
        co_start(co_reader, &readers[i]);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(readers); i++) {
        while (!readers[i].done)
            co_sleep_ns(MS);
    }
    atomic_store(&server.slow_ms, 0);
    assert_int_equal(atomic_load(&server.accepted), 1);
    co_end(node);
    return 0;
}

/* The answer that comes late goes nowhere. */
TEST_CO(cancelled_requests_end_at_once)
{
    struct beside r[12];

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000", NULL);
    atomic_store(&server.hangs, true);
    for (unsigned i = 0; i < ARRAY_SIZE(r); i++) /* some sent, some waiting */
        beside_start(&r[i], node, BLK_OP_READ);
    co_sleep_ns(20 * MS);
    uint64_t before = loop_now_ns();
    blk_node_cancel(node, false);
    for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
        assert_int_equal(beside_co_result(&r[i]), -ECANCELED);
    assert_true(loop_now_ns() - before < 5000 * MS);
    atomic_store(&server.hangs, false);
    co_expect(node, 0, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
        assert_int_equal(r[i].data[511], 0xee);
    co_end(node);
    return 0;
}

/* An image on a server that hangs can be closed. */
TEST_CO(given_up_for_good)
{
    struct beside r;

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000", NULL);
    atomic_store(&server.hangs, true);
    beside_start(&r, node, BLK_OP_WRITE);
    co_sleep_ns(20 * MS);
    blk_node_cancel(node, true);
    assert_int_equal(beside_co_result(&r), -ECANCELED);
    uint64_t before = loop_now_ns();
    assert_int_equal(co_put(node, 1, 1), -ECANCELED);
    assert_int_equal(blk_co_flush(node), -ECANCELED);
    blk_co_drain_begin(node);
    blk_drain_end(node);
    co_end(node);
    assert_true(loop_now_ns() - before < 5000 * MS);
    return 0;
}

/* A drained section waits for what waits for the server, and no longer than that is allowed to. */
TEST_CO(drained_while_it_is_away)
{
    struct beside r;

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=200", NULL);
    struct blk_front *front = test_front(node);
    co_expect(node, 0, 0);
    toy_server_stop(&server);
    beside_start(&r, node, BLK_OP_WRITE);
    uint64_t before = loop_now_ns();
    blk_co_drain_begin(node);
    blk_drain_end(node);
    assert_true(loop_now_ns() - before < 5000 * MS);
    assert_int_equal(beside_co_result(&r), -EIO);
    assert_int_equal(blk_co_front_free(front), -EIO); /* its flush finds nobody */
    toy_server_start(&server, false);
    co_end(node);
    return 0;
}

/* ---- what is durable ---- */

TEST_CO(a_flush_after_writes_were_lost_fails)
{
    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000", NULL);
    assert_int_equal(co_put(node, 1, 1), 0);
    assert_int_equal(blk_co_flush(node), 0);
    assert_int_equal(co_put(node, 2, 2), 0);
    toy_server_stop(&server);
    toy_server_start(&server, true);
    struct beside r;
    beside_start(&r, node, BLK_OP_FLUSH); /* may come before the loss is seen */
    assert_int_equal(beside_co_result(&r), -EIO);
    co_expect(node, 1, 1);
    co_expect(node, 2, 0); /* lost indeed */
    assert_int_equal(co_put(node, 2, 2), 0);
    assert_int_equal(blk_co_flush(node), -EIO); /* what else was lost nobody knows */
    assert_int_equal(blk_co_node_unref(node), 0);
    node = co_open_toy("", NULL);
    assert_int_equal(blk_co_flush(node), 0);
    co_end(node);
    return 0;
}

TEST_CO(a_flush_fails_for_no_other_reason)
{
    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000", NULL);
    assert_int_equal(co_put(node, 1, 1), 0);
    assert_int_equal(blk_co_flush(node), 0);
    toy_server_stop(&server);
    toy_server_start(&server, true);
    assert_int_equal(co_put(node, 2, 2), 0);
    assert_int_equal(blk_co_flush(node), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    /* The same server, so it says. */
    node = co_open_toy(",reconnect-delay=20000,same-server=on", NULL);
    assert_int_equal(co_put(node, 3, 3), 0);
    toy_server_stop(&server);
    toy_server_start(&server, false);
    assert_int_equal(blk_co_flush(node), 0);
    co_expect(node, 3, 3);
    co_end(node);
    return 0;
}

/* A write that is acknowledged while a flush is on its way is not covered by it. */
TEST_CO(a_flush_covers_what_came_before)
{
    struct beside r;

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000", NULL);
    assert_int_equal(co_put(node, 1, 1), 0);
    atomic_store(&server.hangs, true);
    unsigned before = atomic_load(&toy_sent);
    beside_start(&r, node, BLK_OP_WRITE);
    struct beside flush;
    beside_start(&flush, node, BLK_OP_FLUSH);
    co_wait_sent(before + 2); /* before the write is acknowledged */
    atomic_store(&server.hangs, false);
    assert_int_equal(beside_co_result(&r), 0);
    assert_int_equal(beside_co_result(&flush), 0);
    toy_server_stop(&server);
    toy_server_start(&server, true);
    assert_int_equal(blk_co_flush(node), -EIO);
    co_end(node);
    return 0;
}

/* ---- opening, nonsense ---- */

static coroutine_fn void co_start_late(void *arg)
{
    (void)arg;
    co_sleep_ns(150 * MS);
    toy_server_start(&server, false);
}

TEST_CO(opening_waits_as_long_as_it_may)
{
    struct error *error = NULL;

    begin();
    toy_server_stop(&server);
    assert_null(co_open_toy("", &error));
    assert_non_null(strstr(error_text(error), "Failed to connect to '"));
    error_free(error);
    error = NULL;
    uint64_t before = loop_now_ns();
    assert_null(co_open_toy(",open-timeout=250", &error));
    assert_true(loop_now_ns() - before >= 250 * MS && loop_now_ns() - before < 10000 * MS);
    error_free(error);
    co_start(co_start_late, NULL);
    struct blk_node *node = co_open_toy(",open-timeout=20000", NULL);
    assert_non_null(node);
    co_expect(node, 0, 0);
    co_end(node);
    return 0;
}

TEST_CO(nonsense_ends_the_connection)
{
    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000", NULL);
    atomic_store(&server.nonsense, true);
    co_expect(node, 0, 0);
    assert_int_equal(atomic_load(&server.accepted), 2);
    co_end(node);
    return 0;
}

/* A server that takes a connection and drops it is not there: it is seen at open, and requests do not wait for ever. */
TEST_CO(a_server_that_hangs_up)
{
    struct error *error = NULL;
    struct beside r;

    begin();
    atomic_store(&server.hangs_up, true);
    atomic_store(&toy_waits_for_end, true);
    assert_null(co_open_toy("", &error));
    assert_string_equal(error_text(error), "The server has hung up");
    error_free(error);
    atomic_store(&toy_waits_for_end, false);
    atomic_store(&server.hangs_up, false);
    struct blk_node *node = co_open_toy(",reconnect-delay=400", NULL);
    atomic_store(&server.hangs_up, true);
    atomic_store(&server.cut_every, 1);
    co_expect(node, 0, 0); /* the last answer */
    beside_start(&r, node, BLK_OP_READ);
    assert_int_equal(beside_co_result(&r), -EIO);
    atomic_store(&server.hangs_up, false);
    atomic_store(&server.cut_every, 0);
    while (co_put(node, 1, 1) < 0)
        co_sleep_ns(10 * MS);
    co_end(node);
    return 0;
}

/* A request that is still being sent is not answered, whatever the server says. */
TEST_CO(an_answer_that_comes_too_early)
{
    static uint8_t data[TOY_BYTES], read[TOY_BYTES];

    begin();
    struct blk_node *node = co_open_toy(",reconnect-delay=20000", NULL);
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i / 512 + i);
    atomic_store(&server.eager, true);
    assert_int_equal(blk_co_write(node, 0, data, sizeof(data), 0), 0);
    assert_int_equal(atomic_load(&server.accepted), 2);
    assert_int_equal(blk_co_read(node, 0, read, sizeof(read)), 0);
    assert_memory_equal(read, data, sizeof(data));
    co_end(node);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(requests_are_sent_again),           LOOP_TEST(a_server_that_stays_away),
        LOOP_TEST(without_a_delay_requests_fail),     LOOP_TEST(what_may_not_be_sent_again_fails),
        LOOP_TEST(a_server_that_hangs_is_left),       LOOP_TEST(a_server_that_answers_is_kept),
        LOOP_TEST(cancelled_requests_end_at_once),    LOOP_TEST(given_up_for_good),
        LOOP_TEST(drained_while_it_is_away),          LOOP_TEST(a_flush_after_writes_were_lost_fails),
        LOOP_TEST(a_flush_fails_for_no_other_reason), LOOP_TEST(a_flush_covers_what_came_before),
        LOOP_TEST(opening_waits_as_long_as_it_may),   LOOP_TEST(nonsense_ends_the_connection),
        LOOP_TEST(an_answer_that_comes_too_early),    LOOP_TEST(a_server_that_hangs_up),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
