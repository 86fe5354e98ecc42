/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2 with an external data file: what is durable before what, now that these are two files; and that the data file
 * of a raw image shows what the disk shows. Both files are in memory, `mem` and `data`.
 */
#include "beside.h"
#include "state.h"
#include "qcow2_disk.h"

#define CLUSTER 4096u
#define FLUSHES (1u << BLK_OP_FLUSH)
#define WRITES (1u << BLK_OP_WRITE)

struct disk {
    struct blk_node *file, *data, *node;
};

static coroutine_fn void co_create(struct blk_node *file, bool raw)
{
    struct opts *opts = opts_new();
    struct blk_create create = { .options = opts, .size = MIB, .file = file };
    char path[PATH_MAX];

    test_template(path, false);
    int fd = mkostemp(path, O_CLOEXEC);
    assert_true(fd >= 0);
    close(fd);
    opts_set(opts, "cluster_size", "4096");
    opts_set(opts, "data_file", path);
    opts_set(opts, "data_file_raw", raw ? "on" : "off");
    assert_int_equal(blk_driver_find("qcow2")->co_create(&create, NULL), 0);
    assert_int_equal(unlink(path), 0); /* another takes its place */
    opts_free(opts);
}

static coroutine_fn void co_disk_begin(struct disk *d, bool raw, unsigned flags)
{
    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE);
    d->data = co_open_words("driver=memory,node-name=data,size=1048576", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    co_create(d->file, raw);
    d->node = co_open_words("driver=qcow2,file=mem,data-file=data", BLK_O_RDWR | BLK_O_RESIZE | flags);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    struct blk_check check = { 0 };

    assert_int_equal(blk_co_node_unref(d->node), 0);
    struct blk_node *node = co_open_words("driver=qcow2,file=mem,data-file=data", 0);
    assert_int_equal(blk_co_check(node, &check, 0, NULL), 0);
    assert_int_equal(check.corruptions + check.check_errors + check.leaks, 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    assert_int_equal(blk_co_node_unref(d->data), 0);
    assert_int_equal(blk_co_node_unref(d->file), 0);
}

static coroutine_fn void co_put(struct disk *d, uint8_t value)
{
    uint8_t data[512];

    memset(data, value, sizeof(data));
    assert_int_equal(blk_co_write(d->node, 0, data, sizeof(data), 0), 0);
}

static coroutine_fn void co_expect(struct disk *d, uint8_t value)
{
    uint8_t data[512];

    assert_int_equal(blk_co_read(d->node, 0, data, sizeof(data)), 0);
    assert_int_equal(data[0], value);
}

static uint8_t in_data_file(const struct disk *d) { return memory_node(d->data)->data[0]; }

/* The first entry of the L1 table in the file. */
static uint64_t l1_entry(const struct disk *d)
{
    const uint8_t *file = memory_node(d->file)->data;

    return load_be64(file + load_be64(file + QCOW2_AT_L1_OFFSET));
}

/* W3 */
TEST_CO(an_entry_waits_for_its_data_in_the_other_file)
{
    struct disk d;
    struct beside flush;

    co_disk_begin(&d, false, 0);
    co_put(&d, 'a');
    memory_node_hold(d.data, FLUSHES, 0, UINT64_MAX);
    beside_start(&flush, d.node, BLK_OP_FLUSH);
    memory_node_co_wait_held(d.data, 1);
    co_sleep_ns(20000000);
    assert_false(flush.done);
    assert_true(l1_entry(&d) == 0);
    memory_node_release(d.data);
    assert_int_equal(beside_co_result(&flush), 0);
    assert_true(l1_entry(&d) != 0);
    co_disk_end(&d);
    return 0;
}

TEST_CO(a_flush_without_new_metadata_flushes_the_data)
{
    struct disk d;

    co_disk_begin(&d, false, 0);
    co_put(&d, 'a');
    assert_int_equal(blk_co_flush(d.node), 0);
    co_put(&d, 'b');
    uint64_t before = memory_node(d.data)->flushes;
    assert_int_equal(blk_co_flush(d.node), 0);
    assert_true(memory_node(d.data)->flushes > before);
    co_disk_end(&d);
    return 0;
}

TEST_CO(an_error_of_either_file_fails_the_flush)
{
    struct disk d;

    co_disk_begin(&d, false, 0);
    for (unsigned i = 0; i < 2; i++) {
        struct blk_node *failing = i ? d.file : d.data;
        assert_int_equal(blk_co_write_zeroes(d.node, 0, CLUSTER, 0), 0);
        co_put(&d, 'a');
        memory_node_fail(failing, (struct memory_faults){ .fail_at = 1, .for_good = true, .with = -EIO });
        assert_int_equal(blk_co_flush(d.node), -EIO);
        memory_node_fail(failing, (struct memory_faults){ 0 });
        assert_int_equal(blk_co_flush(d.node), 0);
        co_expect(&d, 'a');
    }
    co_disk_end(&d);
    return 0;
}

/* ---- zeroes and discards ---- */

TEST_CO(a_raw_data_file_shows_the_disks_zeroes)
{
    struct disk d;

    for (unsigned unmap = 0; unmap < 2; unmap++) {
        co_disk_begin(&d, true, unmap ? BLK_O_UNMAP : 0);
        co_put(&d, 'a');
        assert_int_equal(blk_co_write_zeroes(d.node, 0, CLUSTER, unmap ? BLK_REQ_MAY_UNMAP : 0), 0);
        assert_int_equal(in_data_file(&d), 0);
        co_put(&d, 'b');
        assert_int_equal(in_data_file(&d), 'b');
        assert_int_equal(blk_co_discard(d.node, 0, CLUSTER), 0);
        co_expect(&d, in_data_file(&d));
        co_disk_end(&d);
    }
    return 0;
}

TEST_CO(the_host_gets_back_what_is_zeroed_if_it_may)
{
    struct disk d;

    for (unsigned unmap = 0; unmap < 2; unmap++) {
        co_disk_begin(&d, false, unmap ? BLK_O_UNMAP : 0);
        co_put(&d, 'a');
        assert_int_equal(blk_co_write_zeroes(d.node, 0, CLUSTER, BLK_REQ_MAY_UNMAP), 0);
        assert_int_equal(memory_node(d.data)->zeroes, unmap);
        co_expect(&d, 0);
        co_disk_end(&d);
    }
    return 0;
}

static coroutine_fn void co_zero(void *arg)
{
    struct disk *d = arg;

    assert_int_equal(blk_co_write_zeroes(d->node, 0, CLUSTER, 0), 0);
    d->node = NULL; /* done */
}

/* A write that was mapped before lands among the zeroes, or after them, but never in the data file alone. */
TEST_CO(a_write_in_flight_does_not_part_the_raw_file_from_the_disk)
{
    struct disk d;
    struct beside write;

    co_disk_begin(&d, true, 0);
    co_put(&d, 'a');
    assert_int_equal(blk_co_flush(d.node), 0);
    memory_node_hold(d.data, WRITES, 0, CLUSTER);
    beside_start(&write, d.node, BLK_OP_WRITE);
    memory_node_co_wait_held(d.data, 1);
    memory_node_hold(d.data, 0, 0, 0);
    struct disk zeroed = d;
    co_start(co_zero, &zeroed);
    co_sleep_ns(20000000);
    memory_node_release(d.data);
    assert_int_equal(beside_co_result(&write), 0);
    while (zeroed.node)
        co_sleep_ns(100000);
    co_expect(&d, in_data_file(&d));
    co_disk_end(&d);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(an_entry_waits_for_its_data_in_the_other_file),
        LOOP_TEST(a_flush_without_new_metadata_flushes_the_data),
        LOOP_TEST(an_error_of_either_file_fails_the_flush),
        LOOP_TEST(a_raw_data_file_shows_the_disks_zeroes),
        LOOP_TEST(the_host_gets_back_what_is_zeroed_if_it_may),
        LOOP_TEST(a_write_in_flight_does_not_part_the_raw_file_from_the_disk),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
