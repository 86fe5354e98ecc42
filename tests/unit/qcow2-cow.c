/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qcow2: what a write costs that copies from a backing image: how many reads, at once or in one, and of what. */
#include "qcow2_disk.h"

#define CLUSTER 65536u
#define READS (1u << BLK_OP_READ)

struct disk {
    struct blk_node *base, *file, *node;
    uint8_t *expected;
};

static coroutine_fn void co_disk_begin(struct disk *d)
{
    d->base = co_open_words("driver=memory,node-name=base,size=1M", BLK_O_RDWR | BLK_O_RESIZE);
    d->expected = xmalloc(MIB);
    for (unsigned i = 0; i < MIB; i++)
        d->expected[i] = memory_node(d->base)->data[i] = (uint8_t)(i / 512 * 7 + i);
    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE);
    co_create_qcow2(d->file, MIB, "65536");
    d->node = co_open_words("driver=qcow2,file=mem,backing=base", BLK_O_RDWR | BLK_O_RESIZE);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    uint8_t *data = xmalloc(MIB);

    assert_int_equal(blk_co_read(d->node, 0, data, MIB), 0);
    assert_memory_equal(data, d->expected, MIB);
    free(data);
    free(d->expected);
    assert_int_equal(blk_co_node_unref(d->node), 0);
    assert_int_equal(blk_co_node_unref(d->file), 0);
    assert_int_equal(blk_co_node_unref(d->base), 0);
}

struct writer {
    struct disk *d;
    uint64_t offset, length;
    bool done;
};

static coroutine_fn void co_writer(void *arg)
{
    struct writer *w = arg;
    uint8_t *data = w->d->expected + w->offset;

    memset(data, 'w', w->length);
    assert_int_equal(blk_co_write(w->d->node, w->offset, data, w->length, 0), 0);
    w->done = true;
}

/* A small write within a cluster: one read of the base, with what the write replaces. */
TEST_CO(both_sides_come_in_one_read)
{
    struct disk d;

    co_disk_begin(&d);
    struct writer w = { .d = &d, .offset = CLUSTER + 20480, .length = 4096 };
    co_writer(&w);
    assert_int_equal(memory_node(d.base)->reads, 1);
    /* At an edge of the cluster there is one side. */
    w = (struct writer){ .d = &d, .offset = 3 * CLUSTER, .length = 512 };
    co_writer(&w);
    assert_int_equal(memory_node(d.base)->reads, 2);
    w = (struct writer){ .d = &d, .offset = 5 * CLUSTER - 512, .length = 512 };
    co_writer(&w);
    assert_int_equal(memory_node(d.base)->reads, 3);
    co_disk_end(&d);
    return 0;
}

/* Far apart, in one cluster or in two: two reads, at the same time. */
TEST_CO(two_sides_are_read_at_once)
{
    static const struct writer writers[] = { { .offset = CLUSTER + 4096, .length = CLUSTER - 8192 },
                                             { .offset = 4 * CLUSTER - 4096, .length = 2 * CLUSTER } };

    for (size_t i = 0; i < ARRAY_SIZE(writers); i++) {
        struct disk d;
        struct writer w = writers[i];
        co_disk_begin(&d);
        w.d = &d;
        memory_node_hold(d.base, READS, 0, MIB);
        co_start(co_writer, &w);
        memory_node_co_wait_held(d.base, 2);
        assert_false(w.done);
        memory_node_release(d.base);
        while (!w.done)
            co_sleep_ns(100000);
        assert_int_equal(memory_node(d.base)->reads, 2);
        co_disk_end(&d);
    }
    return 0;
}

/* One of them cannot be read: the write fails, and what was there stays. */
TEST_CO(a_side_that_cannot_be_read_fails_the_write)
{
    static uint8_t data[CLUSTER - 8192];

    for (unsigned fail_at = 1; fail_at <= 2; fail_at++) {
        struct disk d;
        co_disk_begin(&d);
        memory_node_fail(d.base, (struct memory_faults){ .fail_at = fail_at, .with = -EIO });
        assert_int_equal(blk_co_write(d.node, CLUSTER + 4096, data, sizeof(data), 0), -EIO);
        memory_node_fail(d.base, (struct memory_faults){ 0 });
        co_disk_end(&d);
    }
    return 0;
}

/* Who waits for a range is woken by its end; who waits for another sleeps on, and is woken too. */
TEST_CO(each_waiter_gets_its_turn)
{
    struct disk d;
    struct writer w[8] = { 0 };

    co_disk_begin(&d);
    memory_node_hold(d.base, READS, 0, MIB);
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        w[i] = (struct writer){ .d = &d, .offset = i / 4 * CLUSTER + i % 4 * 8192 + 4096, .length = 4096 };
        co_start(co_writer, &w[i]);
    }
    memory_node_co_wait_held(d.base, 2); /* one of each cluster; the others wait for it */
    memory_node_release(d.base);
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        while (!w[i].done)
            co_sleep_ns(100000);
    }
    assert_int_equal(memory_node(d.base)->reads, 2);
    co_disk_end(&d);
    return 0;
}

/* ---- only where nothing is: copy on read, stream ---- */

static coroutine_fn int co_write_absent(struct disk *d, uint64_t offset, uint64_t length, uint8_t value)
{
    uint8_t *data = xmalloc(length);

    memset(data, value, length);
    int ret = blk_co_write(d->node, offset, data, length, BLK_REQ_ABSENT_ONLY);
    free(data);
    return ret;
}

static coroutine_fn bool co_is_there(struct disk *d, uint64_t offset)
{
    struct blk_extent extent;

    assert_int_equal(blk_co_map(d->node, offset, 512, &extent), 0);
    return extent.kind != BLK_ABSENT;
}

/* Clusters with data, with zeroes and without anything: the last alone are written. */
TEST_CO(only_absent_clusters_are_written)
{
    struct disk d;

    co_disk_begin(&d);
    struct writer w = { .d = &d, .offset = 2 * CLUSTER + 512, .length = 1024 };
    co_writer(&w);
    assert_int_equal(blk_co_write_zeroes(d.node, 4 * CLUSTER, CLUSTER, 0), 0);
    memset(d.expected + 4 * CLUSTER, 0, CLUSTER);
    assert_int_equal(co_write_absent(&d, CLUSTER, 5 * CLUSTER, 'c'), 0);
    for (unsigned i = 1; i < 6; i++) {
        assert_true(co_is_there(&d, i * CLUSTER));
        if (i != 2 && i != 4)
            memset(d.expected + i * CLUSTER, 'c', CLUSTER);
    }
    assert_false(co_is_there(&d, 6 * CLUSTER));
    /* A part of a cluster: what is around it comes from the base. */
    assert_int_equal(co_write_absent(&d, 8 * CLUSTER + 4096, 512, 'c'), 0);
    memset(d.expected + 8 * CLUSTER + 4096, 'c', 512);
    assert_int_equal(co_write_absent(&d, 8 * CLUSTER, CLUSTER, 'd'), 0); /* there by now */
    /* A file has all of itself. */
    uint64_t writes = memory_node(d.file)->writes;
    uint8_t byte = 'x';
    assert_int_equal(blk_co_write(d.file, 0, &byte, 1, BLK_REQ_ABSENT_ONLY), 0);
    assert_int_equal(memory_node(d.file)->writes, writes);
    co_disk_end(&d);
    return 0;
}

TEST_CO(only_absent_clusters_are_zeroed)
{
    struct disk d;

    co_disk_begin(&d);
    struct writer w = { .d = &d, .offset = 2 * CLUSTER + 512, .length = 1024 };
    co_writer(&w);
    assert_int_equal(blk_co_write_zeroes(d.node, CLUSTER + 512, 4 * CLUSTER - 512, BLK_REQ_ABSENT_ONLY), -ENOTSUP);
    assert_false(co_is_there(&d, 3 * CLUSTER));
    assert_int_equal(blk_co_write_zeroes(d.node, CLUSTER, 4 * CLUSTER, BLK_REQ_ABSENT_ONLY | BLK_REQ_MAY_UNMAP), 0);
    for (unsigned i = 1; i < 5; i++) {
        assert_true(co_is_there(&d, i * CLUSTER));
        if (i != 2)
            memset(d.expected + i * CLUSTER, 0, CLUSTER);
    }
    /* A part of a cluster that is there. */
    assert_int_equal(blk_co_write_zeroes(d.node, 2 * CLUSTER, 1024, BLK_REQ_ABSENT_ONLY), 0);
    /* A file has all of itself. */
    uint64_t zeroes = memory_node(d.file)->zeroes;
    assert_int_equal(blk_co_write_zeroes(d.file, 0, 512, BLK_REQ_ABSENT_ONLY), 0);
    assert_int_equal(memory_node(d.file)->zeroes, zeroes);
    co_disk_end(&d);
    return 0;
}

struct absent_writer {
    struct disk *d;
    bool done;
};

static coroutine_fn void co_absent_writer(void *arg)
{
    struct absent_writer *w = arg;

    assert_int_equal(co_write_absent(w->d, CLUSTER, CLUSTER, 'c'), 0);
    w->done = true;
}

/* A guest's write that is on its way, or comes while the copy is, stays. */
TEST_CO(a_write_of_the_guest_stays)
{
    for (int guest_first = 0; guest_first < 2; guest_first++) {
        struct disk d;
        co_disk_begin(&d);
        struct writer guest = { .d = &d, .offset = CLUSTER, .length = CLUSTER };
        struct absent_writer copy = { .d = &d };
        memory_node_hold(d.file, 1u << BLK_OP_WRITE, 5 * CLUSTER, MIB); /* data: behind the tables */
        if (guest_first)
            co_start(co_writer, &guest);
        else
            co_start(co_absent_writer, &copy);
        memory_node_co_wait_held(d.file, 1);
        if (guest_first)
            co_start(co_absent_writer, &copy);
        else
            co_start(co_writer, &guest);
        co_sleep_ns(1000000);
        assert_false(guest.done || copy.done);
        memory_node_release(d.file);
        while (!guest.done || !copy.done)
            co_sleep_ns(100000);
        co_disk_end(&d);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(both_sides_come_in_one_read),
        LOOP_TEST(two_sides_are_read_at_once),
        LOOP_TEST(a_side_that_cannot_be_read_fails_the_write),
        LOOP_TEST(each_waiter_gets_its_turn),
        LOOP_TEST(only_absent_clusters_are_written),
        LOOP_TEST(only_absent_clusters_are_zeroed),
        LOOP_TEST(a_write_of_the_guest_stays),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
