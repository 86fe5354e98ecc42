/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Copy on read beside writes, and with a host that has no room: the backing image's read is held, and the next step is
 * taken meanwhile.
 */
#include "beside.h"
#include "qcow2_disk.h"

#define CLUSTER 4096u
#define READS (1u << BLK_OP_READ)

struct disk {
    struct blk_node *file, *backing, *image, *filter;
};

static coroutine_fn void co_disk_begin(struct disk *d, uint8_t below)
{
    uint8_t *data = xmalloc(MIB);

    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE);
    d->backing = co_open_words("driver=memory,node-name=below,size=1048576", BLK_O_RDWR);
    memset(data, below, MIB);
    memory_node_fill(d->backing, data, MIB);
    free(data);
    co_create_qcow2(d->file, MIB, "4096");
    d->image = co_open_words("driver=qcow2,node-name=image,file=mem,backing=below", BLK_O_RDWR | BLK_O_RESIZE);
    d->filter = co_open_words("driver=copy-on-read,file=image", BLK_O_RDWR);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    assert_int_equal(blk_co_node_unref(d->filter), 0);
    assert_int_equal(blk_co_node_unref(d->image), 0);
    assert_int_equal(blk_co_node_unref(d->backing), 0);
    co_assert_clean();
    assert_int_equal(blk_co_node_unref(d->file), 0);
}

/* Has the image the first cluster itself, and what is in its byte `at`? */
static coroutine_fn void co_expect(struct disk *d, bool own, uint64_t at, uint8_t value)
{
    struct blk_extent extent;
    uint8_t byte;

    assert_int_equal(blk_co_map(d->image, 0, CLUSTER, &extent), 0);
    assert_int_equal(extent.kind != BLK_ABSENT, own);
    assert_int_equal(blk_co_read(d->image, at, &byte, 1), 0);
    assert_int_equal(byte, value);
}

static coroutine_fn void co_write_between(uint8_t below)
{
    struct disk d;
    struct beside read;
    uint8_t data[512];

    co_disk_begin(&d, below);
    memory_node_hold(d.backing, READS, 0, CLUSTER);
    beside_start(&read, d.filter, BLK_OP_READ);
    memory_node_co_wait_held(d.backing, 1);
    memory_node_hold(d.backing, 0, 0, 0);
    memset(data, 'w', sizeof(data));
    assert_int_equal(blk_co_write(d.image, 0, data, sizeof(data), 0), 0);
    memory_node_release(d.backing);
    assert_int_equal(beside_co_result(&read), 0);
    co_expect(&d, true, 0, 'w');
    co_expect(&d, true, 512, below);
    co_disk_end(&d);
}

TEST_CO(a_write_between_reading_and_copying_stays)
{
    co_write_between('b');
    co_write_between(0); /* zeroes are copied as zeroes */
    return 0;
}

TEST_CO(what_is_read_is_there_although_it_cannot_be_copied)
{
    struct disk d;
    uint8_t data[512];

    co_disk_begin(&d, 'b');
    memory_node_fail(d.file, (struct memory_faults){ .fail_at = 1, .for_good = true, .with = -ENOSPC });
    assert_int_equal(blk_co_read(d.filter, 0, data, sizeof(data)), 0);
    assert_int_equal(data[0], 'b');
    memory_node_fail(d.file, (struct memory_faults){ 0 });
    assert_int_equal(blk_co_read(d.filter, 0, data, sizeof(data)), 0);
    co_expect(&d, true, CLUSTER - 1, 'b');
    co_disk_end(&d);
    return 0;
}

TEST_CO(an_error_below_is_told_and_copies_nothing)
{
    struct disk d;
    uint8_t data[512];

    co_disk_begin(&d, 'b');
    memory_node_fail(d.backing, (struct memory_faults){ .fail_at = 1, .with = -EIO });
    assert_int_equal(blk_co_read(d.filter, 0, data, sizeof(data)), -EIO);
    memory_node_fail(d.backing, (struct memory_faults){ 0 });
    co_expect(&d, false, 0, 'b');
    co_disk_end(&d);
    return 0;
}

/* Below a format it is as long as the file: what is written past the end is there when it is read. */
TEST_CO(it_grows_with_the_file_below)
{
    struct blk_node *file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE);
    struct blk_node *filter = co_open_words("driver=copy-on-read,file=mem", BLK_O_RDWR | BLK_O_RESIZE);
    uint8_t data[CLUSTER], back[CLUSTER];

    memset(data, 'd', sizeof(data));
    assert_int_equal(blk_co_write(filter, 0, data, CLUSTER, 0), 0);
    assert_int_equal(blk_co_read(filter, 0, back, CLUSTER), 0);
    assert_memory_equal(back, data, CLUSTER);
    assert_int_equal(blk_co_write_zeroes(filter, CLUSTER, CLUSTER, 0), 0);
    assert_int_equal(blk_node_size(filter), 2 * CLUSTER);
    assert_int_equal(blk_co_node_unref(filter), 0);
    assert_int_equal(blk_co_node_unref(file), 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(a_write_between_reading_and_copying_stays),
        LOOP_TEST(what_is_read_is_there_although_it_cannot_be_copied),
        LOOP_TEST(an_error_below_is_told_and_copies_nothing),
        LOOP_TEST(it_grows_with_the_file_below),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
