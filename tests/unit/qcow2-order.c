/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2: who may use a cluster, a slice, a range, and from when on. Requests are held between having been mapped and
 * being carried out (memory_node.h) or at a test point, and the next step is taken meanwhile: what must wait for them
 * shall be seen waiting. A power cut is a copy of what the file holds at that moment.
 */
#include "qcow2_disk.h"
#include "l2.h"

#include <base/testpoint.h>

#define CLUSTER 4096u
#define DISK (MIB)
#define READS (1u << BLK_OP_READ)
#define WRITES (1u << BLK_OP_WRITE)

struct disk {
    struct blk_node *file, *node;
    struct blk_front *front;
};

static coroutine_fn void co_disk_begin_sized(struct disk *d, uint64_t size, const char *cluster_size, const char *more)
{
    char line[200];

    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE);
    co_create_qcow2(d->file, size, cluster_size);
    snprintf(line, sizeof(line), "driver=qcow2%s%s", strstr(more, ",file.") ? "" : ",file=mem", more);
    d->node = co_open_words(line, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    d->front = test_front(d->node);
}

static coroutine_fn void co_disk_begin(struct disk *d, const char *cluster_size, const char *more)
{
    co_disk_begin_sized(d, DISK, cluster_size, more);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    assert_int_equal(blk_co_front_free(d->front), 0);
    assert_int_equal(blk_co_node_unref(d->node), 0);
    co_assert_clean();
    assert_int_equal(blk_co_node_unref(d->file), 0);
    testpoint_reset();
}

static coroutine_fn void co_put(struct disk *d, uint64_t offset, uint8_t value, uint64_t length)
{
    assert_int_equal(co_put_bytes(d->front, offset, value, length), 0);
}

static void assert_bytes(const uint8_t *data, uint8_t value, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++)
        assert_int_equal(data[i], value);
}

static coroutine_fn void co_expect(struct disk *d, uint64_t offset, uint8_t value, uint64_t length)
{
    co_expect_bytes(d->front, offset, value, length);
}

/* Where the cluster at this guest offset lies in the file. */
static coroutine_fn uint64_t co_place(struct disk *d, uint64_t offset)
{
    struct blk_extent extent;

    assert_int_equal(blk_co_map(d->node, offset, CLUSTER, &extent), 0);
    assert_int_equal(extent.kind, BLK_DATA);
    return extent.child_offset;
}

static coroutine_fn int co_flush(struct disk *d) { return blk_front_co_flush(d->front); }

static coroutine_fn void co_discard(struct disk *d, uint64_t offset, uint64_t length)
{
    assert_int_equal(blk_front_co_discard(d->front, offset, length), 0);
}

/* ---- what a power cut at this moment would leave: checked, and open ---- */

static coroutine_fn struct blk_node *co_cut(struct disk *d, struct blk_node **copy)
{
    struct memory_node *m = memory_node(d->file);
    struct blk_check check = { 0 };

    *copy = co_open_words("driver=memory,node-name=cut,size=0", BLK_O_RDWR | BLK_O_RESIZE);
    memory_node_fill(*copy, m->data, m->capacity);
    struct blk_node *node = co_open_words("driver=qcow2,file=cut", 0);
    assert_int_equal(blk_co_check(node, &check, 0, NULL), 0);
    assert_int_equal(check.corruptions + check.check_errors, 0);
    return node;
}

/* Each byte of the range is one of the two. */
static coroutine_fn void co_expect_after_cut(struct disk *d, uint64_t offset, uint64_t length, uint8_t one, uint8_t two)
{
    struct blk_node *copy, *node = co_cut(d, &copy);
    uint8_t *data = xmalloc(length);

    assert_int_equal(blk_co_read(node, offset, data, length), 0);
    for (uint64_t i = 0; i < length; i++)
        assert_true(data[i] == one || data[i] == two);
    free(data);
    assert_int_equal(blk_co_node_unref(node), 0);
    assert_int_equal(blk_co_node_unref(copy), 0);
}

/* ---- requests in the background ---- */

struct request {
    struct disk *d;
    enum blk_op op;
    uint64_t offset, length;
    uint8_t value;
    bool done;
    int result;
    uint8_t data[CLUSTER];
};

static coroutine_fn void co_request(void *arg)
{
    struct request *r = arg;

    memset(r->data, r->value, r->length);
    switch (r->op) {
    case BLK_OP_READ: r->result = blk_front_co_read(r->d->front, r->offset, r->data, r->length); break;
    case BLK_OP_WRITE: r->result = blk_front_co_write(r->d->front, r->offset, r->data, r->length, 0); break;
    case BLK_OP_DISCARD: r->result = blk_front_co_discard(r->d->front, r->offset, r->length); break;
    default: r->result = blk_front_co_flush(r->d->front); break;
    }
    r->done = true;
}

static void start(struct request *r) { co_start(co_request, r); }

static coroutine_fn void co_wait(struct request *r)
{
    while (!r->done)
        co_sleep_ns(100000);
    assert_int_equal(r->result, 0);
}

static coroutine_fn void co_give_time(void)
{
    for (unsigned i = 0; i < 20; i++)
        co_relax();
}

/* ---- a freed cluster and the requests that have mapped it ---- */

/* Twenty new clusters; is one of them at `place`? */
static coroutine_fn bool co_takes_place(struct disk *d, uint64_t place, uint8_t value, uint64_t from)
{
    bool taken = false;

    for (uint64_t offset = from; offset < from + 20 * CLUSTER; offset += CLUSTER) {
        co_put(d, offset, value, CLUSTER);
        taken = taken || co_place(d, offset) == place;
        assert_int_equal(co_flush(d), 0);
    }
    return taken;
}

static coroutine_fn void co_free_cluster_under(struct disk *d, struct request *held, unsigned ops)
{
    co_put(d, 0, 'a', CLUSTER);
    assert_int_equal(co_flush(d), 0);
    uint64_t place = co_place(d, 0);
    memory_node_hold(d->file, ops, place, CLUSTER);
    start(held);
    memory_node_co_wait_held(d->file, 1);
    memory_node_hold(d->file, 0, 0, 0);
    co_discard(d, 0, CLUSTER);
    assert_int_equal(co_flush(d), 0);
    assert_false(co_takes_place(d, place, 'b', 16 * CLUSTER));
    memory_node_release(d->file);
    co_wait(held);
    /* And then it is free. */
    assert_true(co_takes_place(d, place, 'c', 64 * CLUSTER));
    for (uint64_t i = 0; i < 20; i++) {
        co_expect(d, (16 + i) * CLUSTER, 'b', CLUSTER);
        co_expect(d, (64 + i) * CLUSTER, 'c', CLUSTER);
    }
}

TEST_CO(a_read_in_flight_keeps_its_cluster)
{
    struct disk d;
    struct request held = { .d = &d, .op = BLK_OP_READ, .length = CLUSTER };

    co_disk_begin(&d, "4096", "");
    co_free_cluster_under(&d, &held, READS);
    assert_bytes(held.data, 'a', CLUSTER);
    co_disk_end(&d);
    return 0;
}

TEST_CO(a_write_in_flight_keeps_its_cluster)
{
    struct disk d;
    struct request held = { .d = &d, .op = BLK_OP_WRITE, .length = CLUSTER, .value = 'x' };

    co_disk_begin(&d, "4096", "");
    co_free_cluster_under(&d, &held, WRITES);
    co_disk_end(&d);
    return 0;
}

/* A zero cluster that has kept its place is filled by the next write to it, with zeroes around. A write that mapped the
 * cluster before it was zeroed must not land among these: the second zeroing below comes after that write has ended,
 * still finds a zero cluster, and has nothing to do. */
TEST_CO(a_zeroed_cluster_is_filled_after_who_has_mapped_it)
{
    struct disk d;
    struct request held = { .d = &d, .op = BLK_OP_WRITE, .offset = 512, .length = 512, .value = 'x' };
    struct request fill = { .d = &d, .op = BLK_OP_WRITE, .length = 512, .value = 'b' };

    co_disk_begin(&d, "4096", "");
    co_put(&d, 0, 'a', CLUSTER);
    assert_int_equal(co_flush(&d), 0);
    memory_node_hold(d.file, WRITES, co_place(&d, 0), CLUSTER);
    start(&held);
    memory_node_co_wait_held(d.file, 1);
    memory_node_hold(d.file, 0, 0, 0);
    assert_int_equal(blk_front_co_write_zeroes(d.front, 0, CLUSTER, 0), 0);
    testpoint_hold("qcow2-link");
    start(&fill);
    co_give_time();
    assert_int_equal(testpoint_count("qcow2-link"), 0);
    memory_node_release(d.file);
    co_wait(&held);
    testpoint_co_wait_held("qcow2-link");
    assert_int_equal(blk_front_co_write_zeroes(d.front, 512, 512, 0), 0);
    testpoint_release("qcow2-link");
    co_wait(&fill);
    co_expect(&d, 0, 'b', 512);
    co_expect(&d, 512, 0, CLUSTER - 512);
    co_disk_end(&d);
    return 0;
}

/* A filter below the image acts outside the epoch in which the image was asked where the data is. So here the image
 * holds the place: who would free it waits for the request. */
static coroutine_fn void co_free_cluster_under_filter(struct disk *d, struct request *held, unsigned ops)
{
    struct request discard = { .d = d, .op = BLK_OP_DISCARD, .length = CLUSTER };

    co_put(d, 0, 'a', CLUSTER);
    assert_int_equal(co_flush(d), 0);
    uint64_t place = co_place(d, 0);
    memory_node_hold(d->file, ops, place, CLUSTER);
    start(held);
    memory_node_co_wait_held(d->file, 1);
    memory_node_hold(d->file, 0, 0, 0);
    start(&discard);
    co_give_time();
    assert_false(co_takes_place(d, place, 'b', 16 * CLUSTER));
    memory_node_release(d->file);
    co_wait(held);
    co_wait(&discard);
    assert_int_equal(co_flush(d), 0);
    assert_true(co_takes_place(d, place, 'c', 64 * CLUSTER));
    for (uint64_t i = 0; i < 20; i++)
        co_expect(d, (16 + i) * CLUSTER, 'b', CLUSTER);
}

#define FILTER ",file.driver=blklogwrites,file.file=mem,file.log.driver=memory,file.log.size=0"

TEST_CO(requests_through_a_filter_keep_their_cluster)
{
    struct disk d;
    struct request read = { .d = &d, .op = BLK_OP_READ, .length = CLUSTER };
    struct request write = { .d = &d, .op = BLK_OP_WRITE, .length = CLUSTER, .value = 'x' };

    co_disk_begin(&d, "4096", FILTER);
    co_free_cluster_under_filter(&d, &read, READS);
    assert_bytes(read.data, 'a', CLUSTER);
    co_disk_end(&d);
    co_disk_begin(&d, "4096", FILTER);
    co_free_cluster_under_filter(&d, &write, WRITES);
    co_disk_end(&d);
    return 0;
}

/* ---- an evicted slice and the requests that look at it ---- */

/* 512-byte clusters: a slice for each 32 KiB. */
#define SLICE_SPAN (64u * 512u)

TEST_CO(a_slice_out_of_the_cache_stays_for_who_has_seen_it)
{
    struct disk d;
    struct request held = { .d = &d, .op = BLK_OP_READ, .length = 512 };
    struct qcow2_slice *slice;

    co_disk_begin(&d, "512", ",l2-cache-size=4096");
    struct qcow2 *s = d.node->state;
    for (uint64_t i = 0; i < DISK / SLICE_SPAN; i++)
        co_put(&d, i * SLICE_SPAN, 'a', 512);
    assert_int_equal(co_flush(&d), 0);
    co_expect(&d, 0, 'a', 512);
    slice = qcow2_slice_find(s, 0);
    assert_non_null(slice);
    struct qcow2_entry entry = qcow2_slice_entry(s, slice, 0);
    memory_node_hold(d.file, READS, co_place(&d, 0), 512);
    start(&held);
    memory_node_co_wait_held(d.file, 1);
    memory_node_hold(d.file, 0, 0, 0);
    for (unsigned round = 0; round < 3; round++) {
        for (uint64_t i = 1; i < DISK / SLICE_SPAN; i++)
            co_expect(&d, i * SLICE_SPAN, 'a', 512);
    }
    assert_null(qcow2_slice_find(s, 0));
    assert_int_equal(qcow2_slice_entry(s, slice, 0).word,
                     entry.word); /* as the request may do: AddressSanitizer looks too */
    memory_node_release(d.file);
    co_wait(&held);
    assert_bytes(held.data, 'a', 512);
    co_disk_end(&d);
    return 0;
}

/* What a slice said when it left the cache: kept for a request that may look at it, and after that request until the
 * next slice leaves. A cluster that it names may long be free. */
TEST_CO(a_slice_that_nobody_looks_at_names_no_cluster)
{
    struct disk d;
    struct request held = { .d = &d, .op = BLK_OP_READ, .offset = 20 * SLICE_SPAN, .length = 512 };
    const uint64_t tables = DISK / SLICE_SPAN;

    co_disk_begin(&d, "512", ",l2-cache-size=4096");
    struct qcow2 *s = d.node->state;
    for (uint64_t i = 0; i < tables - 1; i++)
        co_put(&d, i * SLICE_SPAN, 'a', 512);
    assert_int_equal(co_flush(&d), 0);
    uint64_t place = co_place(&d, 0);
    co_expect(&d, held.offset, 'a', 512);
    memory_node_hold(d.file, READS, co_place(&d, held.offset), 512);
    start(&held);
    memory_node_co_wait_held(d.file, 1);
    memory_node_hold(d.file, 0, 0, 0);
    for (unsigned round = 0; round < 3; round++) {
        for (uint64_t i = 1; i < 16; i++)
            co_expect(&d, i * SLICE_SPAN, 'a', 512);
    }
    assert_null(qcow2_slice_find(s, 0));
    assert_false(list_empty(&s->limbo_slices));
    co_discard(&d, 0, 512);
    assert_int_equal(co_flush(&d), 0);
    memory_node_release(d.file);
    co_wait(&held);
    co_discard(&d, 512, 512); /* what may be free is given back on the way */
    co_give_time();
    /* It becomes the last L2 table. */
    co_put(&d, (tables - 1) * SLICE_SPAN, 'b', 512);
    assert_int_equal(qcow2_l1_entry(s, (uint32_t)(tables - 1)) & QCOW2_OFFSET_MASK, place);
    co_disk_end(&d);
    return 0;
}

/* ---- a commit that fails, and one under way ---- */

/* Each request of the commit fails in turn: what is still there on the disk is given to nobody, and the next commit
 * makes up for it, whether something else has changed meanwhile or not. */
static coroutine_fn bool co_fail_commit(uint64_t fail_at, bool more_changes)
{
    struct disk d;

    co_disk_begin(&d, "4096", "");
    co_put(&d, 0, 'a', 4 * CLUSTER);
    assert_int_equal(co_flush(&d), 0);
    co_discard(&d, 0, 4 * CLUSTER);
    co_put(&d, 32 * CLUSTER, 'n', CLUSTER);
    memory_node_fail(d.file, (struct memory_faults){ .fail_at = fail_at, .with = -EIO });
    int ret = co_flush(&d);
    bool failed = memory_node(d.file)->faults.failed;
    memory_node_fail(d.file, (struct memory_faults){ 0 });
    assert_int_equal(ret, failed ? -EIO : 0);
    if (more_changes)
        co_put(&d, 64 * CLUSTER, 'b', 20 * CLUSTER);
    co_expect_after_cut(&d, 0, 4 * CLUSTER, 'a', 0);
    assert_int_equal(co_flush(&d), 0);
    co_expect_after_cut(&d, 0, 4 * CLUSTER, 0, 0);
    co_expect_after_cut(&d, 32 * CLUSTER, CLUSTER, 'n', 'n');
    co_disk_end(&d);
    return failed;
}

TEST_CO(a_failed_commit_frees_nothing)
{
    uint64_t failures = 0;

    while (co_fail_commit(failures + 1, true))
        failures++;
    assert_true(failures >= 4); /* refcounts, flush, entries, flush */
    for (uint64_t i = 1; i <= failures; i++)
        assert_true(co_fail_commit(i, false));
    return 0;
}

/* At every step of a commit: what it frees is not given away before it is done, and a power cut finds a sound image. */
TEST_CO(a_commit_under_way_frees_nothing)
{
    static const char *const steps[] = { "qcow2-commit-phase-0", "qcow2-commit-phase-1", "qcow2-commit-phase-2",
                                         "qcow2-commit-written" };

    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        struct disk d;
        struct request flush = { .d = &d, .op = BLK_OP_FLUSH };
        co_disk_begin(&d, "4096", "");
        co_put(&d, 0, 'a', 4 * CLUSTER);
        assert_int_equal(co_flush(&d), 0);
        co_discard(&d, 0, 4 * CLUSTER);
        co_put(&d, 32 * CLUSTER, 'n', 2 * CLUSTER);
        testpoint_hold(steps[i]);
        start(&flush);
        testpoint_co_wait_held(steps[i]);
        co_put(&d, 64 * CLUSTER, 'b', 20 * CLUSTER);
        co_expect_after_cut(&d, 0, 4 * CLUSTER, 'a', 0);
        co_expect_after_cut(&d, 32 * CLUSTER, 2 * CLUSTER, 'n', 0);
        assert_false(flush.done);
        testpoint_release(steps[i]);
        co_wait(&flush);
        co_expect_after_cut(&d, 0, 4 * CLUSTER, 0, 0);
        co_expect_after_cut(&d, 32 * CLUSTER, 2 * CLUSTER, 'n', 'n');
        co_expect(&d, 64 * CLUSTER, 'b', 20 * CLUSTER);
        co_disk_end(&d);
    }
    return 0;
}

/* The refcount table has moved, its commit fails after the header named the new place. What is written into the table
 * by the next commit still lands after the blocks that it names: whichever of these is lost in a power cut. */
TEST_CO(a_table_in_force_is_written_in_order_though_its_commit_failed)
{
    struct disk d;
    struct request flush = { .d = &d, .op = BLK_OP_FLUSH };
    uint64_t at = 0, run = 64 * KIB, block = 0;

    co_disk_begin_sized(&d, 32 * MIB, "512", ",l2-cache-size=4M");
    struct qcow2 *s = d.node->state;
    while (!s->reftable_moved) {
        co_put(&d, at, 'a', run);
        at += run;
        if (!s->reftable_moved)
            assert_int_equal(co_flush(&d), 0);
    }
    testpoint_hold("qcow2-commit-phase-2");
    start(&flush);
    testpoint_co_wait_held("qcow2-commit-phase-2");
    memory_node_fail(d.file, (struct memory_faults){ .fail_at = 1, .with = -EIO });
    testpoint_release("qcow2-commit-phase-2");
    while (!flush.done)
        co_sleep_ns(100000);
    assert_int_equal(flush.result, -EIO);
    assert_int_equal(s->header.reftable_offset, s->reftable_offset);

    memory_node_fail(d.file, (struct memory_faults){ 0 });
    for (int i = 0; i < 6; i++, at += run)
        co_put(&d, at, 'b', run);
    for (uint64_t i = 0; i < s->reftable_entries && s->reftable[i]; i++)
        block = be64toh(s->reftable[i]);
    assert_true(block >= memory_node(d.file)->capacity || *(memory_node(d.file)->data + block) == 0);
    memory_node_hold(d.file, 1u << BLK_OP_FLUSH, 0, 0);
    flush = (struct request){ .d = &d, .op = BLK_OP_FLUSH };
    start(&flush);
    memory_node_co_wait_held(d.file, 1);
    /* Nothing of it has been flushed. */
    assert_true(block < memory_node(d.file)->capacity);
    uint8_t written[512], *data = memory_node(d.file)->data + block;
    memcpy(written, data, sizeof(written));
    memset(data, 0, sizeof(written));
    struct blk_node *copy, *node = co_cut(&d, &copy);
    memcpy(data, written, sizeof(written));
    assert_int_equal(blk_co_node_unref(node), 0);
    assert_int_equal(blk_co_node_unref(copy), 0);
    memory_node_release(d.file);
    co_wait(&flush);
    co_disk_end(&d);
    return 0;
}

/* A flush that comes while a commit runs covers what was written since that one took its copy. */
TEST_CO(a_flush_during_a_commit_gets_one_of_its_own)
{
    struct disk d;
    struct request first = { .d = &d, .op = BLK_OP_FLUSH }, second = { .d = &d, .op = BLK_OP_FLUSH };

    co_disk_begin(&d, "4096", "");
    co_put(&d, 0, 'a', CLUSTER);
    testpoint_hold("qcow2-commit-phase-2");
    start(&first);
    testpoint_co_wait_held("qcow2-commit-phase-2");
    co_put(&d, 9 * CLUSTER, 'b', CLUSTER);
    start(&second);
    co_give_time();
    testpoint_release("qcow2-commit-phase-2");
    co_wait(&second);
    co_expect_after_cut(&d, 9 * CLUSTER, CLUSTER, 'b', 'b');
    co_wait(&first);
    co_disk_end(&d);
    return 0;
}

/* The timer's commit, five seconds after the first change, does not come while the file below is drained, and comes
 * after that. */
TEST_CO(a_drained_image_commits_nothing_by_itself)
{
    struct disk d;

    co_disk_begin(&d, "4096", "");
    co_put(&d, 0, 'a', CLUSTER);
    blk_co_drain_begin(d.file);
    uint64_t writes = memory_node(d.file)->writes;
    co_sleep_ns(UINT64_C(5500000000));
    assert_int_equal(memory_node(d.file)->writes, writes);
    blk_drain_end(d.file);
    co_sleep_ns(UINT64_C(5500000000));
    assert_true(memory_node(d.file)->writes > writes);
    co_expect_after_cut(&d, 0, CLUSTER, 'a', 'a');
    co_disk_end(&d);
    return 0;
}

/* ---- writes that allocate ---- */

/* Two writes into one new cluster: the second waits for the first, and takes over what that has written. */
TEST_CO(two_writes_to_a_new_cluster_both_stay)
{
    struct disk d;
    struct request first = { .d = &d, .op = BLK_OP_WRITE, .offset = 0, .length = 512, .value = '1' };
    struct request second = { .d = &d, .op = BLK_OP_WRITE, .offset = 1024, .length = 512, .value = '2' };

    co_disk_begin(&d, "4096", "");
    testpoint_hold("qcow2-link");
    start(&first);
    testpoint_co_wait_held("qcow2-link");
    start(&second);
    co_give_time();
    assert_false(second.done);
    /* Its data is there, its entry is not: a commit now has nothing of it. */
    assert_int_equal(co_flush(&d), 0);
    co_expect_after_cut(&d, 0, CLUSTER, 0, 0);
    testpoint_release("qcow2-link");
    co_wait(&first);
    co_wait(&second);
    co_expect(&d, 0, '1', 512);
    co_expect(&d, 512, 0, 512);
    co_expect(&d, 1024, '2', 512);
    co_disk_end(&d);
    return 0;
}

/* A write that asks for durability maps to a cluster whose entry is in memory only. */
TEST_CO(a_durable_write_makes_its_entry_durable)
{
    struct disk d;
    uint8_t data[512];

    co_disk_begin(&d, "4096", "");
    co_put(&d, 0, 'a', CLUSTER);
    memset(data, 'f', sizeof(data));
    assert_int_equal(blk_front_co_write(d.front, 0, data, sizeof(data), BLK_REQ_FUA), 0);
    co_expect_after_cut(&d, 0, 512, 'f', 'f');
    blk_front_set_write_cache(d.front, false);
    co_put(&d, 8 * CLUSTER, 'g', 512);
    co_expect_after_cut(&d, 8 * CLUSTER, 512, 'g', 'g');
    blk_front_set_write_cache(d.front, true);
    co_disk_end(&d);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(a_read_in_flight_keeps_its_cluster),
        LOOP_TEST(a_write_in_flight_keeps_its_cluster),
        LOOP_TEST(requests_through_a_filter_keep_their_cluster),
        LOOP_TEST(a_zeroed_cluster_is_filled_after_who_has_mapped_it),
        LOOP_TEST(a_slice_out_of_the_cache_stays_for_who_has_seen_it),
        LOOP_TEST(a_slice_that_nobody_looks_at_names_no_cluster),
        LOOP_TEST(a_failed_commit_frees_nothing),
        LOOP_TEST(a_commit_under_way_frees_nothing),
        LOOP_TEST(a_table_in_force_is_written_in_order_though_its_commit_failed),
        LOOP_TEST(a_flush_during_a_commit_gets_one_of_its_own),
        LOOP_TEST(a_drained_image_commits_nothing_by_itself),
        LOOP_TEST(two_writes_to_a_new_cluster_both_stay),
        LOOP_TEST(a_durable_write_makes_its_entry_durable),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
