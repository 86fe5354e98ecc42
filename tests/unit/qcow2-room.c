/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2 on a host that is full: freed clusters serve the next allocation, whatever it is for, without a flush; a full
 * disk fails only when nothing is on its way to be free. And the host gets its space back in the background.
 */
#include "qcow2_disk.h"
#include "state.h"

#include <base/checked.h>
#include <base/testpoint.h>

#define CLUSTER 512u
/* Of the host: 512-byte clusters, so an L2 table maps 32 KiB and a refcount block counts 256 clusters. */
#define HOST_CLUSTERS 200u
#define READS (1u << BLK_OP_READ)
#define ZEROES (1u << BLK_OP_WRITE_ZEROES)
#define DISCARDS (1u << BLK_OP_DISCARD)

struct disk {
    struct blk_node *file, *node;
    struct blk_front *front;
};

/* What is below the image: a file on a full file system, or a device (a raw node of a fixed size). */
static const char *const hosts[] = { "file=mem",
                                     "file.driver=raw,file.file=mem,file.size=102400,pass-discard-request=off" };

static coroutine_fn void co_disk_begin(struct disk *d, const char *host)
{
    char line[200];

    d->file = co_open_words("driver=memory,node-name=mem,size=0,max-size=102400",
                            BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    co_create_qcow2(d->file, MIB, "512");
    if (strstr(host, "size="))
        assert_int_equal(blk_co_truncate(d->file, HOST_CLUSTERS * CLUSTER, false, "off", NULL), 0);
    snprintf(line, sizeof(line), "driver=qcow2,%s", host);
    d->node = co_open_words(line, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    d->front = test_front(d->node);
}

static coroutine_fn void co_disk_reopen(struct disk *d)
{
    assert_int_equal(blk_co_front_free(d->front), 0);
    assert_int_equal(blk_co_node_unref(d->node), 0);
    d->node = co_open_words("driver=qcow2,file=mem", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    d->front = test_front(d->node);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    assert_int_equal(blk_co_front_free(d->front), 0);
    assert_int_equal(blk_co_node_unref(d->node), 0);
    co_assert_clean();
    assert_int_equal(blk_co_node_unref(d->file), 0);
    testpoint_reset();
}

static coroutine_fn int co_put(struct disk *d, uint64_t offset, uint8_t value)
{
    return co_put_bytes(d->front, offset, value, CLUSTER);
}

static coroutine_fn void co_expect(struct disk *d, uint64_t offset, uint8_t value)
{
    co_expect_bytes(d->front, offset, value, CLUSTER);
}

/* Writes clusters from `offset` on until the host is full; how many that were. */
static coroutine_fn unsigned co_fill(struct disk *d, uint64_t offset, uint8_t value)
{
    unsigned count = 0;
    int ret;

    while ((ret = co_put(d, offset + count * CLUSTER, value)) == 0)
        count++;
    assert_int_equal(ret, -ENOSPC);
    return count;
}

static coroutine_fn uint64_t co_place(struct disk *d, uint64_t offset)
{
    struct blk_extent extent;

    assert_int_equal(blk_co_map(d->node, offset, CLUSTER, &extent), 0);
    assert_int_equal(extent.kind, BLK_DATA);
    return extent.child_offset;
}

/* ---- allocation ---- */

/* Data and L2 tables: what was freed is all there for others, to the last cluster, with no flush between. */
TEST_CO(freed_clusters_serve_before_a_flush)
{
    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
        struct disk d;
        co_disk_begin(&d, hosts[i]);
        unsigned count = co_fill(&d, 0, 'a');
        assert_true(count > 150);
        assert_int_equal(blk_front_co_discard(d.front, 0, 40 * CLUSTER), 0);
        /* 512 KiB: a table of its own is needed there first. */
        unsigned more = co_fill(&d, 512 * KIB, 'b');
        assert_int_equal(more, 39);
        for (unsigned c = 40; c < count; c++)
            co_expect(&d, c * CLUSTER, 'a');
        for (unsigned c = 0; c < more; c++)
            co_expect(&d, 512 * KIB + c * CLUSTER, 'b');
        co_expect(&d, 0, 0);
        co_disk_end(&d);
    }
    return 0;
}

/* A zeroed cluster needs a table too, and so does a run of clusters that must lie together. */
TEST_CO(zeroes_and_tables_get_freed_clusters_too)
{
    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
        struct disk d;
        co_disk_begin(&d, hosts[i]);
        co_fill(&d, 0, 'a');
        assert_int_equal(blk_front_co_discard(d.front, 0, 2 * CLUSTER), 0);
        assert_int_equal(blk_front_co_write_zeroes(d.front, 512 * KIB, CLUSTER, 0), 0);
        assert_int_equal(blk_front_co_discard(d.front, 8 * CLUSTER, 20 * CLUSTER), 0);
        /* To 4 MiB: an L1 table of two clusters. */
        assert_int_equal(blk_co_truncate(d.node, 4 * MIB, false, "off", NULL), 0);
        co_expect(&d, 512 * KIB, 0);
        co_expect(&d, 40 * CLUSTER, 'a');
        co_disk_end(&d);
    }
    return 0;
}

/* Whatever fails once while clusters are freed, a refcount block that cannot be read among others: closing tries it
 * again, and leaves no leak. */
TEST_CO(an_error_while_clusters_are_freed_leaves_no_leak)
{
    for (uint64_t fail_at = 1; fail_at < 16; fail_at++) {
        struct disk d;
        co_disk_begin(&d, hosts[0]);
        for (unsigned c = 0; c < 8; c++)
            assert_int_equal(co_put(&d, c * CLUSTER, 'a'), 0);
        co_disk_reopen(&d); /* nothing is in memory */
        assert_int_equal(blk_front_co_discard(d.front, 0, 5 * CLUSTER), 0);
        memory_node_fail(d.file, (struct memory_faults){ .fail_at = fail_at, .with = -EIO });
        blk_front_co_flush(d.front);
        for (unsigned i = 0; i < 10; i++)
            co_sleep_ns(100000); /* the background */
        memory_node_fail(d.file, (struct memory_faults){ 0 });
        co_expect(&d, 0, 0);
        co_expect(&d, 7 * CLUSTER, 'a');
        co_disk_end(&d);
    }
    return 0;
}

/* Nothing is freed by a commit that fails: the write says what is wrong, and no cluster has two owners. */
TEST_CO(a_commit_that_fails_makes_no_room)
{
    struct disk d;

    co_disk_begin(&d, hosts[0]);
    unsigned count = co_fill(&d, 0, 'a');
    assert_int_equal(blk_front_co_discard(d.front, 0, 4 * CLUSTER), 0);
    memory_node_fail(d.file, (struct memory_faults){ .fail_at = 1, .for_good = true, .with = -EIO });
    assert_int_equal(co_put(&d, 512 * KIB, 'b'), -EIO);
    memory_node_fail(d.file, (struct memory_faults){ 0 });
    assert_int_equal(co_put(&d, 512 * KIB, 'c'), 0);
    co_expect(&d, 512 * KIB, 'c');
    for (unsigned c = 4; c < count; c++)
        co_expect(&d, c * CLUSTER, 'a');
    co_disk_end(&d);
    return 0;
}

struct request {
    struct disk *d;
    enum blk_op op;
    uint64_t offset;
    uint8_t data[CLUSTER];
    bool done;
    int result;
};

static coroutine_fn void co_request(void *arg)
{
    struct request *r = arg;

    if (r->op == BLK_OP_READ)
        r->result = blk_front_co_read(r->d->front, r->offset, r->data, CLUSTER);
    else if (r->op == BLK_OP_WRITE)
        r->result = co_put(r->d, r->offset, 'w');
    else if (r->op == BLK_OP_WRITE_ZEROES)
        r->result = blk_front_co_write_zeroes(r->d->front, r->offset, CLUSTER, BLK_REQ_MAY_UNMAP);
    else
        r->result = blk_front_co_flush(r->d->front);
    r->done = true;
}

static coroutine_fn void co_wait(struct request *r)
{
    while (!r->done)
        co_sleep_ns(100000);
    assert_int_equal(r->result, 0);
}

/* The cluster that a read still looks at is waited for: neither a failure nor other data under the read. */
TEST_CO(a_writer_waits_for_room_that_a_read_holds)
{
    struct disk d;
    struct request read = { .d = &d, .op = BLK_OP_READ }, write = { .d = &d, .op = BLK_OP_WRITE, .offset = 9 * KIB };

    co_disk_begin(&d, hosts[0]);
    assert_int_equal(co_put(&d, 0, 'a'), 0);
    co_fill(&d, 32 * KIB, 'f');
    memory_node_hold(d.file, READS, co_place(&d, 0), CLUSTER);
    co_start(co_request, &read);
    memory_node_co_wait_held(d.file, 1);
    memory_node_hold(d.file, 0, 0, 0);
    assert_int_equal(blk_front_co_discard(d.front, 0, CLUSTER), 0);
    co_start(co_request, &write);
    co_sleep_ns(20000000);
    assert_false(write.done);
    memory_node_release(d.file);
    co_wait(&read);
    co_wait(&write);
    for (unsigned i = 0; i < CLUSTER; i++)
        assert_int_equal(read.data[i], 'a');
    co_expect(&d, 9 * KIB, 'w');
    co_disk_end(&d);
    return 0;
}

/* ---- who grows ---- */

/* A raw node passes writes past its end on to a file that grows, and has the size that comes of it; one of a fixed size
 * does not. */
TEST_CO(the_file_grows_below_a_raw_node)
{
    struct disk d;

    co_disk_begin(&d, "file.driver=raw,file.file=mem");
    assert_true(blk_node_grows(d.node->file));
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(co_put(&d, i * CLUSTER, (uint8_t)(i + 1)), 0);
    for (unsigned i = 0; i < 100; i++)
        co_expect(&d, i * CLUSTER, (uint8_t)(i + 1));
    assert_int_equal(blk_node_size(d.node->file), blk_node_size(d.file));
    co_disk_end(&d);
    co_disk_begin(&d, hosts[1]);
    assert_false(blk_node_grows(d.node->file));
    assert_int_equal(blk_co_write(d.node->file, HOST_CLUSTERS * CLUSTER, "12345678", 8, 0), -EIO);
    co_disk_end(&d);
    return 0;
}

/* ---- back to the host ---- */

/* places[i]: where discarded cluster 2 * i lies. */
static coroutine_fn void co_punch_begin(struct disk *d, uint64_t *places)
{
    co_disk_begin(d, hosts[0]);
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(co_put(d, i * CLUSTER, 'a'), 0);
        places[i / 2] = co_place(d, align_down(i, 2) * CLUSTER);
    }
    assert_int_equal(blk_front_co_flush(d->front), 0);
    memory_node_hold(d->file, DISCARDS, 0, HOST_CLUSTERS * CLUSTER);
    for (unsigned i = 0; i < 40; i += 2)
        assert_int_equal(blk_front_co_discard(d->front, i * CLUSTER, CLUSTER), 0);
}

/* The host is busy giving back: flushes return, writes find other room, and nobody gets what is being given back. */
TEST_CO(a_flush_does_not_wait_for_discards)
{
    struct disk d;
    uint64_t places[20];

    co_punch_begin(&d, places);
    struct request flush = { .d = &d, .op = BLK_OP_FLUSH };
    co_start(co_request, &flush);
    co_wait(&flush);
    memory_node_co_wait_held(d.file, 4); /* several at once */
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(co_put(&d, 512 * KIB + i * CLUSTER, 'b'), 0);
        for (unsigned p = 0; p < ARRAY_SIZE(places); p++)
            assert_true(co_place(&d, 512 * KIB + i * CLUSTER) != places[p]);
    }
    memory_node_hold(d.file, 0, 0, 0);
    memory_node_release(d.file);
    co_sleep_ns(20000000);
    assert_int_equal(memory_node(d.file)->discards, 20);
    for (unsigned i = 0; i < 40; i++)
        co_expect(&d, 512 * KIB + i * CLUSTER, 'b');
    for (unsigned i = 1; i < 40; i += 2)
        co_expect(&d, i * CLUSTER, 'a');
    co_disk_end(&d);
    return 0;
}

/* Not without bound: a flush waits if too many clusters wait for the host. */
TEST_CO(a_flush_waits_for_far_too_many_discards)
{
    struct disk d;
    uint64_t places[20];

    co_punch_begin(&d, places);
    ((struct qcow2 *)d.node->state)->max_punch = 8;
    struct request flush = { .d = &d, .op = BLK_OP_FLUSH };
    co_start(co_request, &flush);
    memory_node_co_wait_held(d.file, 4);
    co_sleep_ns(5000000);
    assert_false(flush.done);
    assert_true(((struct qcow2 *)d.node->state)->punch_set.count <= 8);
    memory_node_hold(d.file, 0, 0, 0);
    memory_node_release(d.file);
    co_wait(&flush);
    co_sleep_ns(20000000);
    assert_int_equal(memory_node(d.file)->discards, 20);
    co_disk_end(&d);
    return 0;
}

/* Neighbours are given back in one, however they were discarded. */
TEST_CO(neighbours_are_given_back_together)
{
    struct disk d;

    co_disk_begin(&d, hosts[0]);
    for (unsigned i = 0; i < 40; i++)
        assert_int_equal(co_put(&d, i * CLUSTER, 'a'), 0);
    assert_int_equal(blk_front_co_flush(d.front), 0);
    for (unsigned i = 0; i < 40; i++)
        assert_int_equal(blk_front_co_discard(d.front, (39 - i) * CLUSTER, CLUSTER), 0);
    assert_int_equal(blk_front_co_flush(d.front), 0);
    co_sleep_ns(20000000);
    assert_in_range(memory_node(d.file)->discards, 1, 2);
    co_disk_end(&d);
    return 0;
}

static coroutine_fn void co_release_later(void *arg)
{
    struct disk *d = arg;

    co_sleep_ns(20000000);
    memory_node_hold(d->file, 0, 0, 0);
    memory_node_release(d->file);
}

/* No leak is left behind, and the host has everything back. */
TEST_CO(close_waits_for_discards)
{
    struct disk d;
    uint64_t places[20];

    co_punch_begin(&d, places);
    assert_int_equal(blk_front_co_flush(d.front), 0);
    memory_node_co_wait_held(d.file, 4);
    co_start(co_release_later, &d);
    assert_int_equal(blk_co_front_free(d.front), 0);
    assert_int_equal(blk_co_node_unref(d.node), 0);
    assert_int_equal(memory_node(d.file)->discards, 20);
    d.node = co_open_words("driver=qcow2,file=mem", 0);
    d.front = blk_front_new("test", d.node, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, NULL);
    co_disk_end(&d);
    return 0;
}

/* discard-no-unref: who fills the cluster again waits until the host has its space back, else new data go with it. */
TEST_CO(a_cluster_is_not_filled_while_the_host_takes_its_space)
{
    struct disk d;
    struct request zero = { .d = &d, .op = BLK_OP_WRITE_ZEROES }, write = { .d = &d, .op = BLK_OP_WRITE };

    co_disk_begin(&d, "file=mem,discard-no-unref=on");
    assert_int_equal(co_put(&d, 0, 'a'), 0);
    uint64_t place = co_place(&d, 0);
    memory_node_hold(d.file, ZEROES, place, CLUSTER);
    co_start(co_request, &zero);
    memory_node_co_wait_held(d.file, 1);
    co_start(co_request, &write);
    co_sleep_ns(20000000);
    assert_false(write.done);
    memory_node_hold(d.file, 0, 0, 0);
    memory_node_release(d.file);
    co_wait(&zero);
    co_wait(&write);
    co_expect(&d, 0, 'w');
    assert_int_equal(co_place(&d, 0), place);
    co_disk_end(&d);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(freed_clusters_serve_before_a_flush),
        LOOP_TEST(zeroes_and_tables_get_freed_clusters_too),
        LOOP_TEST(an_error_while_clusters_are_freed_leaves_no_leak),
        LOOP_TEST(a_commit_that_fails_makes_no_room),
        LOOP_TEST(a_writer_waits_for_room_that_a_read_holds),
        LOOP_TEST(the_file_grows_below_a_raw_node),
        LOOP_TEST(a_flush_does_not_wait_for_discards),
        LOOP_TEST(a_flush_waits_for_far_too_many_discards),
        LOOP_TEST(neighbours_are_given_back_together),
        LOOP_TEST(close_waits_for_discards),
        LOOP_TEST(a_cluster_is_not_filled_while_the_host_takes_its_space),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
