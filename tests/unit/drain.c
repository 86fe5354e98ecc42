/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Drained sections, epochs by disk, and what front ends are told: the block core on nodes in memory. A disk that does
 * not answer is a node with a long latency.
 */
#include "image.h"
#include "memory_node.h"

#define MS UINT64_C(1000000)

/* ---- a driver with work of its own: writes to its file every millisecond ---- */

struct ticker {
    struct blk_node *node;
    struct loop_timer timer;
    bool stopped, writing;
    struct co_cond ended;
    unsigned ticks, begun, over;
};

static struct ticker *ticker;

static void ticker_arm(struct ticker *t);

static void co_tick(void *arg)
{
    struct ticker *t = arg;
    uint8_t byte[512] = { 1 };

    t->writing = true;
    blk_co_write(t->node->file, 0, byte, sizeof(byte), 0);
    t->ticks++;
    t->writing = false;
    co_cond_broadcast(&t->ended);
    if (!t->stopped)
        ticker_arm(t);
}

static void ticker_fired(struct loop_timer *timer) { co_start(co_tick, container_of(timer, struct ticker, timer)); }

static void ticker_arm(struct ticker *t) { loop_timer_arm(t->node->loop, &t->timer, loop_now_ns() + MS); }

static coroutine_fn int ticker_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct ticker *t = ticker = node->state;
    int ret = blk_co_open_child(node, "file", opts, NULL, flags, false, errp);

    if (ret < 0)
        return ret;
    t->node = node;
    t->timer.fn = ticker_fired;
    co_cond_init(&t->ended);
    atomic_store(&node->size, blk_node_size(node->file));
    ticker_arm(t);
    return 0;
}

static void ticker_drain_begin(struct blk_node *node)
{
    struct ticker *t = node->state;

    t->begun++;
    t->stopped = true;
    loop_timer_disarm(&t->timer);
}

static coroutine_fn void ticker_co_drain_settle(struct blk_node *node)
{
    struct ticker *t = node->state;

    while (t->writing)
        co_cond_wait(&t->ended, NULL);
}

static void ticker_drain_end(struct blk_node *node)
{
    struct ticker *t = node->state;

    t->over++;
    t->stopped = false;
    ticker_arm(t);
}

static coroutine_fn int ticker_co_close(struct blk_node *node)
{
    struct ticker *t = node->state;

    t->stopped = true;
    loop_timer_disarm(&t->timer);
    ticker_co_drain_settle(node);
    co_cond_finish(&t->ended);
    return 0;
}

static void ticker_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                       struct blk_extent *extent)
{
    *extent = (struct blk_extent){ .kind = BLK_DATA, .length = length, .child = node->file, .child_offset = offset };
}

static const struct blk_driver ticker_driver = {
    .name = "ticker",
    .flags = BLK_DRIVER_FILTER,
    .state_size = sizeof(struct ticker),
    .co_open = ticker_co_open,
    .co_close = ticker_co_close,
    .map = ticker_map,
    .drain_begin = ticker_drain_begin,
    .co_drain_settle = ticker_co_drain_settle,
    .drain_end = ticker_drain_end,
};
BLK_DRIVER(ticker_driver)

/* ---- helpers ---- */

static coroutine_fn struct blk_node *co_node(const char *line) { return co_open_words(line, BLK_O_RDWR | BLK_O_UNMAP); }

/* One request of its own coroutine. */
struct one {
    struct blk_front *front;
    uint64_t offset, length;
    bool write, done;
    int result;
};

static void co_one(void *arg)
{
    struct one *one = arg;
    AUTO_FREE uint8_t *buffer = xcalloc(1, one->length);

    one->result = one->write ? blk_front_co_write(one->front, one->offset, buffer, one->length, 0)
                             : blk_front_co_read(one->front, one->offset, buffer, one->length);
    one->done = true;
}

static double seconds_since(uint64_t start) { return (double)(loop_now_ns() - start) / 1e9; }

/* ---- epochs by disk ---- */

/* Drain, read-modify-write, flush and close of one disk while a request hangs on another. */
static int hung_disk(void *arg)
{
    struct blk_node *slow = co_node("driver=memory,size=1M,latency-ns=700000000");
    struct blk_node *quick = co_node("driver=memory,size=1M,align=512");
    struct blk_front *hung = test_front(slow), *front = test_front(quick);
    struct one one = { .front = hung, .length = 512 };
    uint8_t bytes[100] = { 7 }, found[100];

    co_start(co_one, &one);
    uint64_t start = loop_now_ns();
    assert_int_equal(blk_front_co_write(front, 100, bytes, sizeof(bytes), 0), 0);
    blk_co_drain_begin(quick);
    blk_drain_end(quick);
    assert_int_equal(blk_front_co_flush(front), 0);
    assert_int_equal(blk_front_co_read(front, 100, found, sizeof(found)), 0);
    assert_memory_equal(bytes, found, sizeof(found));
    blk_co_front_free(front);
    blk_co_node_unref(quick);
    assert_true(seconds_since(start) < 0.4);
    assert_false(one.done);
    blk_co_drain_begin(slow); /* here the request is waited for */
    assert_true(one.done || seconds_since(start) > 0.6);
    blk_drain_end(slow);
    blk_co_front_free(hung);
    assert_true(one.done);
    blk_co_node_unref(slow);
    return 0;
}

static void test_hung_disk_delays_no_other(void **state) { run_co(state, hung_disk, NULL); }

/* A node that two disks share is drained for both of them, a disk above it for itself alone. */
static int shared_base(void *arg)
{
    struct blk_node *base = co_node("driver=memory,size=1M,node-name=base,latency-ns=300000000");
    struct blk_node *one = co_node("driver=ticker,node-name=t1,file=base"),
                    *two = co_node("driver=blkdebug,image=base");
    struct blk_front *front_one = test_front(one), *front_two = test_front(two);
    struct one request = { .front = front_two, .length = 512 };

    co_start(co_one, &request);
    blk_co_drain_begin(two);
    assert_true(request.done);
    blk_drain_end(two);
    request.done = false;
    co_start(co_one, &request);
    blk_co_drain_begin(base);
    assert_true(request.done);
    blk_drain_end(base);
    blk_co_front_free(front_one);
    blk_co_front_free(front_two);
    blk_co_node_unref(one);
    blk_co_node_unref(two);
    blk_co_node_unref(base);
    return 0;
}

static void test_shared_base_is_drained_for_both(void **state) { run_co(state, shared_base, NULL); }

/* ---- sections ---- */

/* A front end that came inside is held until the end, and released by it. */
static int newcomer(void *arg)
{
    struct blk_node *node = co_node("driver=memory,size=1M");
    struct blk_front *first = test_front(node);

    blk_co_drain_begin(node);
    blk_co_drain_begin(node);
    struct blk_front *second = test_front(node);
    struct one a = { .front = first, .length = 512 }, b = { .front = second, .length = 512, .write = true };
    co_start(co_one, &a);
    co_start(co_one, &b);
    co_sleep_ns(20 * MS);
    assert_false(a.done || b.done);
    blk_drain_end(node);
    co_sleep_ns(20 * MS);
    assert_false(a.done || b.done);
    assert_int_equal(memory_node(node)->reads + memory_node(node)->writes, 0);
    blk_drain_end(node);
    co_sleep_ns(20 * MS);
    assert_true(a.done && b.done);
    assert_int_equal(a.result | b.result, 0);
    blk_co_front_free(second);
    blk_co_front_free(first);
    blk_co_node_unref(node);
    return 0;
}

static void test_newcomers_are_held_and_released(void **state) { run_co(state, newcomer, NULL); }

/* Sections of a node and of what is below it end in any order. */
static int crossing(void *arg)
{
    struct blk_node *node = co_node("driver=ticker,file.driver=memory,file.size=1M");
    struct blk_front *front = test_front(node);
    struct one a = { .front = front, .length = 512 };

    blk_co_drain_begin(node);
    blk_co_drain_begin(node->file);
    co_start(co_one, &a);
    blk_drain_end(node);
    co_sleep_ns(20 * MS);
    assert_false(a.done);
    blk_drain_end(node->file);
    co_sleep_ns(20 * MS);
    assert_true(a.done);
    blk_co_front_free(front);
    blk_co_node_unref(node);
    return 0;
}

static void test_sections_cross(void **state) { run_co(state, crossing, NULL); }

static void co_begin_and_end(void *arg)
{
    struct blk_node *node = *(struct blk_node **)arg;

    blk_co_drain_begin(node);
    *(struct blk_node **)arg = NULL;
    blk_drain_end(node);
}

/* Front ends and whole parents that go while a section waits for them. */
static int parents_go(void *arg)
{
    struct blk_node *node = co_node("driver=memory,size=1M,node-name=m,latency-ns=100000000"), *draining = node;
    struct blk_node *parent = co_node("driver=ticker,node-name=p,file=m");
    struct blk_front *above = test_front(parent), *beside = test_front(node), *third = test_front(node);
    struct one a = { .front = above, .length = 512 }, b = { .front = beside, .length = 512, .write = true };

    blk_co_node_unref(parent); /* the front end holds it */
    co_start(co_one, &a);
    co_start(co_one, &b);
    co_start(co_begin_and_end, &draining);
    assert_non_null(draining);
    blk_co_front_free(beside);
    blk_co_front_free(above); /* and the parent */
    while (draining)
        co_sleep_ns(MS);
    assert_true(a.done && b.done);
    blk_co_front_free(third);
    blk_co_node_unref(node);
    return 0;
}

static void test_parents_go_while_a_section_waits(void **state) { run_co(state, parents_go, NULL); }

/* The drainer frees a front end inside its own section. */
static int freed_inside(void *arg)
{
    struct blk_node *node = co_node("driver=memory,size=1M");
    struct blk_front *front = test_front(node), *stays = test_front(node);
    struct one a = { .front = stays, .length = 512 };

    blk_co_drain_begin(node);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(memory_node(node)->flushes, 1);
    co_start(co_one, &a);
    co_sleep_ns(10 * MS);
    assert_false(a.done);
    blk_drain_end(node);
    blk_co_front_free(stays);
    assert_true(a.done);
    blk_co_node_unref(node);
    return 0;
}

static void test_front_end_is_freed_inside(void **state) { run_co(state, freed_inside, NULL); }

/* ---- the driver's own work ---- */

static int own_work(void *arg)
{
    struct blk_node *node = co_node("driver=ticker,file.driver=memory,file.size=1M,file.latency-ns=2000000");
    struct blk_node *file = node->file;

    co_sleep_ns(20 * MS);
    assert_true(ticker->ticks > 0);
    blk_co_drain_begin(file); /* what is above works on it too */
    uint64_t writes = memory_node(file)->writes;
    assert_false(ticker->writing);
    co_sleep_ns(20 * MS);
    assert_int_equal(memory_node(file)->writes, writes);
    blk_co_drain_begin(node);
    blk_drain_end(file);
    co_sleep_ns(20 * MS);
    assert_int_equal(memory_node(file)->writes, writes);
    blk_drain_end(node);
    co_sleep_ns(20 * MS);
    assert_true(memory_node(file)->writes > writes);
    assert_int_equal(ticker->begun, 1);
    assert_int_equal(ticker->over, 1);
    blk_co_node_unref(node);
    return 0;
}

static void test_drivers_own_work_is_held(void **state) { run_co(state, own_work, NULL); }

/* A driver that is opened above a drained node does not begin. */
static int opened_inside(void *arg)
{
    struct blk_node *file = co_node("driver=memory,size=1M,node-name=f");

    blk_co_drain_begin(file);
    struct blk_node *node = co_node("driver=ticker,file=f");
    co_sleep_ns(20 * MS);
    assert_int_equal(memory_node(file)->writes, 0);
    blk_drain_end(file);
    co_sleep_ns(20 * MS);
    assert_true(memory_node(file)->writes > 0);
    blk_co_drain_begin(file);
    blk_co_node_unref(node); /* closed while it is held */
    blk_drain_end(file);
    blk_co_node_unref(file);
    return 0;
}

static void test_driver_opened_inside_waits(void **state) { run_co(state, opened_inside, NULL); }

/* ---- what front ends are told ---- */

struct heard {
    uint64_t size;
    unsigned resized, held, released, failed;
    enum blk_on_error action;
};

static void heard_resized(void *arg, uint64_t size)
{
    struct heard *heard = arg;

    heard->resized++;
    heard->size = size;
}

static void heard_drained(void *arg, bool held)
{
    struct heard *heard = arg;

    if (held)
        heard->held++;
    else
        heard->released++;
}

static void heard_failed(void *arg, bool is_read, int error, enum blk_on_error action)
{
    struct heard *heard = arg;

    assert_true(is_read);
    assert_int_equal(error, -EIO);
    heard->failed++;
    heard->action = action;
}

static int events(void *arg)
{
    static const struct blk_front_events callbacks = { .resized = heard_resized,
                                                       .drained = heard_drained,
                                                       .failed = heard_failed };
    struct blk_node *node = co_node("driver=blkdebug,image.driver=memory,image.size=1M");
    struct blk_front *front = test_front(node), *other = test_front(node);
    struct heard heard = { 0 };

    blk_front_set_events(front, &callbacks, &heard);
    blk_co_drain_begin(node->file);
    blk_co_drain_begin(node);
    assert_int_equal(heard.held, 1);
    blk_drain_end(node->file);
    assert_int_equal(heard.released, 0);
    blk_drain_end(node);
    assert_int_equal(heard.released, 1);
    /* By another front end: all of them hear of it. */
    assert_int_equal(blk_front_co_truncate(other, 2 * MIB, true, "off", NULL), 0);
    assert_int_equal(heard.resized, 1);
    assert_int_equal(heard.size, 2 * MIB);
    assert_int_equal(heard.held, 2);
    blk_front_set_on_error(front, BLK_ON_ERROR_STOP, BLK_ON_ERROR_REPORT);
    assert_int_equal(blk_front_on_error(front, true, -EIO), BLK_ON_ERROR_STOP);
    assert_int_equal(heard.failed, 1);
    assert_int_equal(heard.action, BLK_ON_ERROR_STOP);
    blk_co_front_free(front);
    blk_co_front_free(other);
    blk_co_node_unref(node);
    return 0;
}

static void test_front_end_hears_of_events(void **state) { run_co(state, events, NULL); }

static int accounting(void *arg)
{
    struct blk_node *node = co_node("driver=memory,size=1M,latency-ns=5000000");
    struct blk_front *front = test_front(node);
    struct blk_stats stats;
    uint8_t bytes[4096] = { 1 };
    uint64_t before = loop_now_ns();

    for (int i = 0; i < 4; i++)
        assert_int_equal(blk_front_co_write(front, 0, bytes, sizeof(bytes), 0), 0);
    assert_int_equal(blk_front_co_flush(front), 0);
    memory_node_fail(node, (struct memory_faults){ .fail_at = 1, .with = -EIO });
    assert_int_equal(blk_front_co_read(front, 0, bytes, sizeof(bytes)), -EIO);
    assert_int_equal(blk_front_co_read(front, 1 * MIB, bytes, sizeof(bytes)), -EIO);
    blk_front_stats(front, &stats);
    assert_int_equal(stats.operations[BLK_OP_WRITE], 4);
    assert_int_equal(stats.bytes[BLK_OP_WRITE], 4 * sizeof(bytes));
    assert_int_equal(stats.operations[BLK_OP_FLUSH], 1);
    assert_int_equal(stats.failed[BLK_OP_READ], 1);
    assert_int_equal(stats.bytes[BLK_OP_READ], 0);
    assert_int_equal(stats.invalid[BLK_OP_READ], 1);
    assert_in_range(stats.time_ns[BLK_OP_WRITE], 4 * 4 * MS, loop_now_ns() - before);
    assert_in_range(stats.time_ns[BLK_OP_READ], 4 * MS, loop_now_ns() - before);
    assert_in_range(stats.last_ns, before, loop_now_ns());
    blk_co_front_free(front);
    blk_co_node_unref(node);
    return 0;
}

static void test_requests_are_accounted_for(void **state) { run_co(state, accounting, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(test_hung_disk_delays_no_other),        LOOP_TEST(test_shared_base_is_drained_for_both),
        LOOP_TEST(test_newcomers_are_held_and_released),  LOOP_TEST(test_sections_cross),
        LOOP_TEST(test_parents_go_while_a_section_waits), LOOP_TEST(test_front_end_is_freed_inside),
        LOOP_TEST(test_drivers_own_work_is_held),         LOOP_TEST(test_driver_opened_inside_waits),
        LOOP_TEST(test_front_end_hears_of_events),        LOOP_TEST(test_requests_are_accounted_for),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return run_on_both_backends(tests);
}
