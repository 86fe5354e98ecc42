/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qcow2 with subclusters: an entry is two words, and who reads it without the lock sees both of one time. */
#include "driver.h"
#include "l2.h"
#include "qcow2_disk.h"

#include <pthread.h>

#define CLUSTER 16384u
#define SUBCLUSTER (CLUSTER / 32)
#define ROUNDS 300000u

struct disk {
    struct blk_node *file, *node;
    struct qcow2_slice *slice;
    atomic_bool stop;
};

static coroutine_fn void co_disk_begin(struct disk *d)
{
    uint8_t data[512] = { 'a' };

    *d = (struct disk){ .file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE) };
    co_create_qcow2_with(d->file, MIB, "cluster_size=16384,extended_l2=on");
    d->node = co_open_words("driver=qcow2,file=mem", BLK_O_RDWR | BLK_O_RESIZE);
    assert_int_equal(blk_co_write(d->node, 0, data, sizeof(data), 0), 0);
    assert_int_equal(blk_co_write(d->node, CLUSTER, data, sizeof(data), 0), 0);
    d->slice = qcow2_slice_find(d->node->state, 0);
    assert_non_null(d->slice);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    assert_int_equal(blk_co_node_unref(d->node), 0);
    co_assert_clean();
    assert_int_equal(blk_co_node_unref(d->file), 0);
}

/* Now the first cluster, where only subcluster 0 has data, and now the second, where 0 to 5 have. */
static void *flip(void *arg)
{
    struct disk *d = arg;
    struct qcow2 *s = d->node->state;
    struct qcow2_entry first = qcow2_slice_entry(s, d->slice, 0), second = qcow2_slice_entry(s, d->slice, 1);

    second.subclusters = qcow2_subclusters(0x3f, 0);
    for (unsigned i = 0; !atomic_load(&d->stop); i++)
        qcow2_slice_set(s, d->slice, 0, i % 2 ? first : second);
    qcow2_slice_set(s, d->slice, 0, first);
    return NULL;
}

TEST_CO(both_words_of_an_entry_are_of_one_time)
{
    struct disk d;
    pthread_t thread;
    unsigned seen = 0;

    co_disk_begin(&d);
    struct qcow2 *s = d.node->state;
    uint64_t place = qcow2_entry_host(qcow2_slice_entry(s, d.slice, 1)) + UINT64_C(5) * SUBCLUSTER;
    assert_int_equal(pthread_create(&thread, NULL, flip, &d), 0);
    for (unsigned i = 0; i < ROUNDS || (seen < ROUNDS / 100 && i < 100 * ROUNDS); i++) {
        struct blk_extent extent = { .length = SUBCLUSTER };
        qcow2_map(d.node, BLK_OP_READ, 0, 5 * SUBCLUSTER, SUBCLUSTER, &extent);
        if (extent.kind != BLK_DATA)
            continue;
        assert_true(extent.child_offset == place);
        seen++;
    }
    assert_true(seen > 0);
    atomic_store(&d.stop, true);
    pthread_join(thread, NULL);
    co_disk_end(&d);
    return 0;
}

TEST_CO(a_write_for_absent_parts_leaves_each_subcluster_that_is_there)
{
    static uint8_t data[CLUSTER];
    struct disk d;

    co_disk_begin(&d);
    memset(data, 'b', sizeof(data));
    assert_int_equal(blk_co_write_zeroes(d.node, 4 * SUBCLUSTER, SUBCLUSTER, 0), 0);
    assert_int_equal(blk_co_write(d.node, 0, data, sizeof(data), BLK_REQ_ABSENT_ONLY), 0);
    assert_int_equal(blk_co_read(d.node, 0, data, sizeof(data)), 0);
    for (unsigned i = 0; i < 32; i++)
        assert_int_equal(data[i * SUBCLUSTER], i == 0 ? 'a' : i == 4 ? 0 : 'b');
    co_disk_end(&d);
    return 0;
}

TEST_CO(an_entry_that_changes_is_not_looked_at)
{
    struct disk d;
    struct blk_extent extent = { .length = 512 };

    co_disk_begin(&d);
    atomic_fetch_add(&d.slice->changes, 1);
    qcow2_map(d.node, BLK_OP_READ, 0, 0, 512, &extent);
    assert_int_equal(extent.kind, BLK_SLOW);
    atomic_fetch_add(&d.slice->changes, 1);
    qcow2_map(d.node, BLK_OP_READ, 0, 0, 512, &extent);
    assert_int_equal(extent.kind, BLK_DATA);
    co_disk_end(&d);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(both_words_of_an_entry_are_of_one_time),
        LOOP_TEST(a_write_for_absent_parts_leaves_each_subcluster_that_is_there),
        LOOP_TEST(an_entry_that_changes_is_not_looked_at),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
