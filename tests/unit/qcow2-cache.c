/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cache-clean-interval: what is not used leaves memory, what is used or not durable stays, and closing waits. */
#include "qcow2_disk.h"
#include "state.h"

#define SECOND UINT64_C(1000000000)
#define CLUSTER 512u

static coroutine_fn struct blk_node *co_open(const char *line)
{
    return co_open_words(line, BLK_O_RDWR | BLK_O_RESIZE);
}

static coroutine_fn struct blk_node *co_make_image(void)
{
    struct blk_node *file = co_open("driver=memory,node-name=mem,size=0");

    co_create_qcow2(file, MIB, "512");
    return file;
}

static coroutine_fn int co_cleaning(void *arg)
{
    struct blk_node *file = co_make_image();
    struct blk_node *node = co_open("driver=qcow2,file=mem,cache-clean-interval=1");
    struct qcow2 *s = node->state;
    uint8_t data[CLUSTER] = { 7 };

    /* Three L2 tables. */
    for (uint64_t i = 0; i < 3; i++)
        assert_int_equal(blk_co_write(node, i * 64 * CLUSTER, data, CLUSTER, 0), 0);
    co_sleep_ns(3 * SECOND);
    assert_int_equal(s->slice_count, 3); /* nothing is durable yet */
    assert_true(s->refblock_count > 0);
    assert_int_equal(blk_co_flush(node), 0);
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(blk_co_read(node, 0, data, CLUSTER), 0);
        co_sleep_ns(SECOND / 2);
    }
    assert_int_equal(s->slice_count, 1); /* the one that is read all the time */
    assert_int_equal(s->refblock_count, 0);
    assert_int_equal(blk_co_read(node, 2 * 64 * CLUSTER, data, CLUSTER), 0);
    assert_int_equal(data[0], 7);
    assert_int_equal(s->slice_count, 2);
    assert_int_equal(blk_co_node_unref(node), 0);
    blk_co_node_unref(file);
    return 0;
}

static void what_nobody_uses_leaves_memory(void **state)
{
    struct loop *loop = loop_new(NULL);

    assert_int_equal(co_run(loop, co_cleaning, NULL), 0);
    loop_free(loop);
}

static coroutine_fn int co_never(void *arg)
{
    struct blk_node *file = co_make_image();
    struct blk_node *node = co_open("driver=qcow2,file=mem,cache-clean-interval=0");
    struct qcow2 *s = node->state;
    uint8_t data[CLUSTER] = { 7 };

    assert_int_equal(blk_co_write(node, 0, data, CLUSTER, BLK_REQ_FUA), 0);
    co_sleep_ns(SECOND * 5 / 2);
    assert_int_equal(s->slice_count, 1);
    assert_int_equal(blk_co_node_unref(node), 0);
    blk_co_node_unref(file);
    return 0;
}

static void zero_is_never(void **state)
{
    struct loop *loop = loop_new(NULL);

    assert_int_equal(co_run(loop, co_never, NULL), 0);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_nobody_uses_leaves_memory),
        cmocka_unit_test(zero_is_never),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(cmocka_run_group_tests(tests, NULL, NULL));
}
