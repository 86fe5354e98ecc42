/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2: the metadata lock is free while the host writes and flushes, for the header, for a new L2 table, for what
 * marks an image corrupt. Others go on meanwhile; who needs what is being written waits for it, and for nothing else.
 * And the host need not read what it writes.
 */
#include "qcow2_disk.h"
#include "l2.h"

#include <base/testpoint.h>

#define CLUSTER 4096u
/* A table of 4 KiB maps 2 MiB. */
#define TABLE_SPAN (2 * MIB)
#define FLUSHES (1u << BLK_OP_FLUSH)

struct disk {
    struct blk_node *file, *node;
    struct blk_front *front;
};

static coroutine_fn void co_open_image(struct disk *d, const char *more)
{
    char line[200];

    snprintf(line, sizeof(line), "driver=qcow2,file=mem%s", more);
    d->node = co_open_words(line, BLK_O_RDWR | BLK_O_RESIZE);
    d->front = test_front(d->node);
}

static coroutine_fn void co_close_image(struct disk *d)
{
    assert_int_equal(blk_co_front_free(d->front), 0);
    assert_int_equal(blk_co_node_unref(d->node), 0);
}

static coroutine_fn int co_put(struct disk *d, uint64_t offset, uint8_t value)
{
    return co_put_bytes(d->front, offset, value, CLUSTER);
}

static coroutine_fn void co_expect(struct disk *d, uint64_t offset, uint8_t value)
{
    co_expect_bytes(d->front, offset, value, CLUSTER);
}

/* Two tables with a cluster each, closed and opened again, so that nothing is in memory. */
static coroutine_fn void co_disk_begin(struct disk *d, const char *more)
{
    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE);
    co_create_qcow2(d->file, 64 * MIB, "4096");
    co_open_image(d, "");
    assert_int_equal(co_put(d, 0, 'a'), 0);
    assert_int_equal(co_put(d, TABLE_SPAN, 'b'), 0);
    co_close_image(d);
    co_open_image(d, more);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    co_close_image(d);
    co_assert_clean();
    assert_int_equal(blk_co_node_unref(d->file), 0);
    testpoint_reset();
}

struct writer {
    struct disk *d;
    uint64_t offset;
    uint8_t value;
    bool done;
    int result;
};

static coroutine_fn void co_writer(void *arg)
{
    struct writer *w = arg;

    w->result = co_put(w->d, w->offset, w->value);
    w->done = true;
}

static coroutine_fn void co_wait(struct writer *w)
{
    while (!w->done)
        co_sleep_ns(100000);
}

static bool is_dirty_on_disk(struct disk *d)
{
    return load_be64(memory_node(d->file)->data + QCOW2_AT_INCOMPATIBLE) & QCOW2_INCOMPAT_DIRTY;
}

/* The first change sets the dirty bit; a read that has to load its table is not held up by the flush. */
TEST_CO(a_read_does_not_wait_for_the_dirty_bit)
{
    struct disk d;

    co_disk_begin(&d, ",lazy-refcounts=on");
    struct writer w = { .d = &d, .offset = 8 * CLUSTER, .value = 'c' };
    memory_node_hold(d.file, FLUSHES, 0, 0);
    co_start(co_writer, &w);
    memory_node_co_wait_held(d.file, 1);
    co_expect(&d, 0, 'a');
    co_expect(&d, TABLE_SPAN, 'b');
    assert_false(w.done);
    memory_node_release(d.file);
    co_wait(&w);
    assert_int_equal(w.result, 0);
    co_disk_end(&d);
    return 0;
}

/* The bit is on disk before any writer goes on, also if the write of the header fails for the first of two. */
TEST_CO(no_writer_goes_on_without_the_dirty_bit)
{
    struct disk d;

    co_disk_begin(&d, ",lazy-refcounts=on");
    struct writer w[] = { { .d = &d, .offset = 8 * CLUSTER, .value = 'c' },
                          { .d = &d, .offset = 9 * CLUSTER, .value = 'd' } };
    co_expect(&d, 0, 'a');
    memory_node_fail(d.file, (struct memory_faults){ .fail_at = 1, .with = -EIO });
    for (unsigned i = 0; i < 2; i++)
        co_start(co_writer, &w[i]);
    for (unsigned i = 0; i < 2; i++)
        co_wait(&w[i]);
    assert_int_equal(w[0].result, -EIO);
    assert_int_equal(w[1].result, 0);
    assert_true(is_dirty_on_disk(&d));
    memory_node_fail(d.file, (struct memory_faults){ 0 });
    co_expect(&d, 9 * CLUSTER, 'd');
    co_disk_end(&d);
    assert_false(w[0].result == 0);
    return 0;
}

/* A table is being made: other tables are read and written; a second write below the same one waits, and finds it. */
TEST_CO(others_go_on_while_a_table_is_made)
{
    struct disk d;

    co_disk_begin(&d, "");
    struct writer w[] = { { .d = &d, .offset = 5 * TABLE_SPAN, .value = 'c' },
                          { .d = &d, .offset = 5 * TABLE_SPAN + 7 * CLUSTER, .value = 'd' } };
    testpoint_hold("qcow2-make-table");
    co_start(co_writer, &w[0]);
    testpoint_co_wait_held("qcow2-make-table");
    co_expect(&d, 0, 'a');
    assert_int_equal(co_put(&d, CLUSTER, 'e'), 0);
    co_expect(&d, 5 * TABLE_SPAN, 0);
    co_start(co_writer, &w[1]);
    co_sleep_ns(2000000);
    assert_false(w[1].done);
    testpoint_release("qcow2-make-table");
    for (unsigned i = 0; i < 2; i++) {
        co_wait(&w[i]);
        assert_int_equal(w[i].result, 0);
    }
    co_expect(&d, 5 * TABLE_SPAN, 'c');
    co_expect(&d, 5 * TABLE_SPAN + 7 * CLUSTER, 'd');
    co_disk_end(&d);
    return 0;
}

/* The same where a snapshot shares the table (here: it looks so), and its slice is in memory, or loaded meanwhile. */
static coroutine_fn void co_copy_table(bool loaded_before)
{
    struct disk d;

    co_disk_begin(&d, "");
    assert_int_equal(co_put(&d, 100 * CLUSTER, 'z'), 0); /* in another slice of the table */
    co_close_image(&d);
    uint8_t *data = memory_node(d.file)->data, *l1 = data + load_be64(data + QCOW2_AT_L1_OFFSET);
    uint64_t table = load_be64(l1) & QCOW2_OFFSET_MASK;
    store_be64(l1, table);
    co_open_image(&d, ",l2-cache-entry-size=512");
    if (loaded_before)
        co_expect(&d, 0, 'a');
    struct writer w[] = { { .d = &d, .offset = 3 * CLUSTER, .value = 'c' },
                          { .d = &d, .offset = 4 * CLUSTER, .value = 'd' } };
    testpoint_hold("qcow2-make-table");
    co_start(co_writer, &w[0]);
    testpoint_co_wait_held("qcow2-make-table");
    co_start(co_writer, &w[1]);
    co_expect(&d, 0, 'a');
    testpoint_release("qcow2-make-table");
    for (unsigned i = 0; i < 2; i++) {
        co_wait(&w[i]);
        assert_int_equal(w[i].result, 0);
    }
    assert_int_equal(testpoint_count("qcow2-make-table"), 1);
    co_close_image(&d);
    co_open_image(&d, "");
    co_expect(&d, 0, 'a');
    co_expect(&d, 3 * CLUSTER, 'c');
    co_expect(&d, 4 * CLUSTER, 'd');
    co_expect(&d, 100 * CLUSTER, 'z');
    co_disk_end(&d);
}

TEST_CO(a_shared_table_is_copied_once)
{
    co_copy_table(true);
    co_copy_table(false);
    return 0;
}

/* The table could not be written: the write fails, nobody waits for ever, and the next one makes it. */
TEST_CO(a_table_that_could_not_be_made_is_made_by_the_next)
{
    struct disk d;

    co_disk_begin(&d, "");
    struct writer w[] = { { .d = &d, .offset = 5 * TABLE_SPAN, .value = 'c' },
                          { .d = &d, .offset = 5 * TABLE_SPAN + CLUSTER, .value = 'd' } };
    co_expect(&d, 0, 'a');
    assert_int_equal(co_put(&d, CLUSTER, 'e'), 0); /* the refcount block is in memory */
    testpoint_hold("qcow2-make-table");
    co_start(co_writer, &w[0]);
    testpoint_co_wait_held("qcow2-make-table");
    co_start(co_writer, &w[1]);
    memory_node_fail(d.file, (struct memory_faults){ .fail_at = 1, .with = -EIO });
    testpoint_release("qcow2-make-table");
    for (unsigned i = 0; i < 2; i++)
        co_wait(&w[i]);
    assert_int_equal(w[0].result, -EIO);
    assert_int_equal(w[1].result, 0);
    co_expect(&d, 5 * TABLE_SPAN, 0);
    co_expect(&d, 5 * TABLE_SPAN + CLUSTER, 'd');
    memory_node_fail(d.file, (struct memory_faults){ 0 });
    co_disk_end(&d);
    return 0;
}

/* The host writes 4 KiB at once: refcounts, L1 entries and slices are written so, and nothing is read first. */
TEST_CO(metadata_is_written_in_pieces_that_the_host_writes)
{
    struct disk d;

    d.file = co_open_words("driver=memory,node-name=mem,size=0,align=4096,mem-align=512", BLK_O_RDWR | BLK_O_RESIZE);
    co_create_qcow2(d.file, UINT64_C(4) << 40, "65536");
    co_open_image(&d, "");
    struct qcow2 *s = d.node->state;
    static uint8_t data[65536];
    memset(data, 'a', sizeof(data));
    assert_int_equal(blk_front_co_write(d.front, 0, data, sizeof(data), 0), 0);
    assert_int_equal(blk_front_co_flush(d.front), 0);
    uint64_t reads = memory_node(d.file)->reads;
    assert_int_equal(blk_front_co_write(d.front, 65536, data, sizeof(data), 0), 0);
    assert_int_equal(blk_front_co_write(d.front, UINT64_C(3) << 40, data, sizeof(data), 0), 0);
    assert_int_equal(blk_front_co_flush(d.front), 0);
    assert_int_equal(memory_node(d.file)->reads, reads + 1); /* the slice of the new table */
    assert_int_equal(s->write_unit, 4096);
    co_close_image(&d);
    co_open_image(&d, "");
    co_expect(&d, 65536, 'a');
    co_expect(&d, UINT64_C(3) << 40, 'a');
    co_disk_end(&d);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(a_read_does_not_wait_for_the_dirty_bit),
        LOOP_TEST(no_writer_goes_on_without_the_dirty_bit),
        LOOP_TEST(others_go_on_while_a_table_is_made),
        LOOP_TEST(a_shared_table_is_copied_once),
        LOOP_TEST(a_table_that_could_not_be_made_is_made_by_the_next),
        LOOP_TEST(metadata_is_written_in_pieces_that_the_host_writes),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
