/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * quorum with rewrite-corrupted=on: what differs is written over, and what others write to the same place meanwhile
 * stays. Three images in memory, the second of which has been damaged.
 */
#include "beside.h"
#include "image.h"
#include "memory_node.h"

#include <base/checked.h>
#include <base/testpoint.h>

#define IMAGES 3u
#define DAMAGED 1u
#define SIZE (64u * KIB)
#define SECTOR 512u

struct disk {
    struct blk_node *images[IMAGES], *quorum;
};

static coroutine_fn void co_disk_begin(struct disk *d)
{
    static const char *const images[IMAGES] = { "driver=memory,node-name=a,size=65536",
                                                "driver=memory,node-name=b,size=65536",
                                                "driver=memory,node-name=c,size=65536" };
    uint8_t content[SIZE];

    for (unsigned i = 0; i < IMAGES; i++) {
        memset(content, i == DAMAGED ? 'x' : 'o', SIZE);
        d->images[i] = co_open_words(images[i], BLK_O_RDWR);
        memory_node_fill(d->images[i], content, SIZE);
    }
    d->quorum = co_open_words("driver=quorum,vote-threshold=2,rewrite-corrupted=on,"
                              "children.0=a,children.1=b,children.2=c",
                              BLK_O_RDWR | BLK_O_UNMAP);
}

/* All images have this in their first sector. */
static coroutine_fn void co_expect(struct disk *d, uint8_t value)
{
    uint8_t data[SECTOR];

    for (unsigned i = 0; i < IMAGES; i++) {
        assert_int_equal(blk_co_read(d->images[i], 0, data, SECTOR), 0);
        for (unsigned at = 0; at < SECTOR; at++)
            assert_int_equal(data[at], value);
    }
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    testpoint_reset();
    assert_int_equal(blk_co_node_unref(d->quorum), 0);
    for (unsigned i = 0; i < IMAGES; i++)
        assert_int_equal(blk_co_node_unref(d->images[i]), 0);
}

TEST_CO(only_what_differs_is_written_over)
{
    struct disk d;
    uint8_t data[SECTOR];

    co_disk_begin(&d);
    assert_int_equal(blk_co_read(d.quorum, 0, data, SECTOR), 0);
    assert_int_equal(data[0], 'o');
    co_expect(&d, 'o');
    for (unsigned i = 0; i < IMAGES; i++)
        assert_int_equal(memory_node(d.images[i])->writes, i == DAMAGED);
    assert_int_equal(blk_co_read(d.images[DAMAGED], SECTOR, data, SECTOR), 0);
    assert_int_equal(data[0], 'x'); /* nobody has read that */
    co_disk_end(&d);
    return 0;
}

TEST_CO(a_write_after_the_vote_stays)
{
    struct disk d;
    struct beside read;
    uint8_t data[SECTOR];

    co_disk_begin(&d);
    testpoint_hold("quorum-voted");
    beside_start(&read, d.quorum, BLK_OP_READ);
    testpoint_co_wait_held("quorum-voted");
    memset(data, 'n', SECTOR);
    assert_int_equal(blk_co_write(d.quorum, 0, data, SECTOR, 0), 0);
    testpoint_release("quorum-voted");
    assert_int_equal(beside_co_result(&read), 0);
    assert_int_equal(read.data[0], 'o'); /* as it was when it was read */
    co_expect(&d, 'n');
    co_disk_end(&d);
    return 0;
}

TEST_CO(a_change_waits_for_a_rewrite_that_has_begun)
{
    static const enum blk_op ops[] = { BLK_OP_WRITE, BLK_OP_WRITE_ZEROES, BLK_OP_DISCARD };
    static const uint8_t after[] = { 0xee, 0, 'o' }; /* a discard leaves what was there */
    struct disk d;
    struct beside read, change;

    for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
        co_disk_begin(&d);
        testpoint_hold("quorum-rewrite");
        beside_start(&read, d.quorum, BLK_OP_READ);
        testpoint_co_wait_held("quorum-rewrite");
        beside_start(&change, d.quorum, ops[i]);
        assert_int_equal(blk_co_write_zeroes(d.quorum, SECTOR, SECTOR, 0), 0); /* elsewhere nobody waits */
        co_sleep_ns(5000000);
        assert_false(change.done);
        testpoint_release("quorum-rewrite");
        assert_int_equal(beside_co_result(&read), 0);
        assert_int_equal(beside_co_result(&change), 0);
        co_expect(&d, after[i]);
        co_disk_end(&d);
    }
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(only_what_differs_is_written_over),
        LOOP_TEST(a_write_after_the_vote_stays),
        LOOP_TEST(a_change_waits_for_a_rewrite_that_has_begun),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
