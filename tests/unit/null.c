/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* null-co and null-aio: sizes, names, zeroes, latency, and that a request on them costs no coroutine. */
#include "image.h"

static int co_null_test(void *arg)
{
    uint8_t buffer[4096];
    struct blk_node *node = co_open_line("driver=null-co", BLK_O_RDWR, NULL);

    assert_non_null(node);
    assert_int_equal(blk_node_size(node), 1024 * MIB);
    memset(buffer, 0x5a, sizeof(buffer));
    assert_int_equal(blk_co_write(node, 4096, buffer, 4096, BLK_REQ_FUA), 0);
    assert_int_equal(blk_co_read(node, 4096, buffer, 4096), 0);
    assert_int_equal(buffer[17], 0x5a); /* left as it was */
    assert_int_equal(blk_co_write(node, 1024 * MIB, buffer, 512, 0), -EIO);
    assert_int_equal(blk_co_write_zeroes(node, 0, MIB, 0), 0);
    assert_int_equal(blk_co_discard(node, 0, MIB), 0);
    assert_int_equal(blk_co_flush(node), 0);
    assert_int_equal(blk_co_node_unref(node), 0);

    node = co_open_line("driver=null-aio,size=1000,read-zeroes=on", 0, NULL);
    assert_non_null(node);
    assert_int_equal(blk_node_size(node), 1024);
    struct blk_extent extent;
    assert_int_equal(blk_co_map(node, 0, 4096, &extent), 0);
    assert_true(extent.kind == BLK_ZERO && extent.length == 1024);
    memset(buffer, 0x5a, sizeof(buffer));
    assert_int_equal(blk_co_read(node, 512, buffer, 512), 0);
    assert_true(buffer[0] == 0 && buffer[511] == 0 && buffer[512] == 0x5a);
    assert_int_equal(blk_co_node_unref(node), 0);

    struct error *error = NULL;
    assert_null(blk_co_open("null-co:///x", NULL, 0, &error));
    assert_error(&error, "The only allowed filename for this driver is 'null-co://'");
    node = blk_co_open("null-co://", NULL, 0, &error);
    assert_non_null(node);
    assert_int_equal(blk_co_node_unref(node), 0);
    return 0;
}

static void size_zeroes_and_names(void **state) { run_co(state, co_null_test, NULL); }

static int co_latency_test(void *arg)
{
    struct blk_node *node = co_open_line("driver=null-co,latency-ns=20000000", BLK_O_RDWR, NULL);
    uint64_t start = loop_now_ns();

    assert_non_null(node);
    for (int i = 0; i < 3; i++)
        assert_int_equal(blk_co_flush(node), 0);
    assert_true(loop_now_ns() - start >= 60000000);
    assert_int_equal(blk_co_node_unref(node), 0);
    return 0;
}

static void latency_is_waited_for(void **state) { run_co(state, co_latency_test, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = { LOOP_TEST(size_zeroes_and_names), LOOP_TEST(latency_is_waited_for) };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
