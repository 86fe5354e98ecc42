/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Internal snapshots of qcow2 on a file whose I/O fails at each step in turn: what is being done happens or does not,
 * nothing is lost, and the image is clean, or says that it is to be repaired.
 */
#include "qcow2_disk.h"
#include "state.h"

#include <base/checked.h>
#include <block/snapshot.h>

#define CLUSTER 512u
#define CLUSTERS 96u /* of the disk; an L2 table maps 64 */

struct disk {
    struct blk_node *file, *node;
    struct blk_front *front;
};

static coroutine_fn void co_disk_open(struct disk *d)
{
    d->node = co_open_words("driver=qcow2,file=mem,l2-cache-size=512,refcount-cache-size=512",
                            BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    d->front = test_front(d->node);
}

static coroutine_fn void co_put(struct disk *d, unsigned cluster, uint8_t value)
{
    assert_int_equal(co_put_bytes(d->front, cluster * CLUSTER, value, CLUSTER), 0);
}

static coroutine_fn void co_expect(struct disk *d, unsigned cluster, uint8_t value)
{
    co_expect_bytes(d->front, cluster * CLUSTER, value, CLUSTER);
}

static coroutine_fn int co_create(struct disk *d, const char *name)
{
    struct blk_snapshot what = { .name = name };

    return blk_co_snapshot_create(d->node, &what, NULL);
}

static coroutine_fn bool co_has(struct disk *d, const char *name)
{
    struct blk_info info = { 0 };
    bool found = false;
    size_t index;
    json_t *one;

    assert_int_equal(blk_co_info(d->node, &info, NULL), 0);
    json_array_foreach(info.snapshots, index, one)
        found = found || strcmp(json_string_value(json_object_get(one, "name")), name) == 0;
    blk_info_finish(&info);
    return found;
}

/* The disk has 'b' everywhere, a snapshot "one" 'a' in its first half and nothing else. */
static coroutine_fn void co_disk_begin(struct disk *d)
{
    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    co_create_qcow2(d->file, CLUSTERS * CLUSTER, "512");
    co_disk_open(d);
    for (unsigned i = 0; i < CLUSTERS / 2; i++)
        co_put(d, i, 'a');
    assert_int_equal(co_create(d, "one"), 0);
    for (unsigned i = 0; i < CLUSTERS; i++)
        co_put(d, i, 'b');
    assert_int_equal(blk_front_co_flush(d->front), 0);
}

static coroutine_fn int co_disk_close(struct disk *d)
{
    int ret = blk_co_front_free(d->front);
    int closed = blk_co_node_unref(d->node);

    return ret < 0 ? ret : closed;
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    assert_int_equal(co_disk_close(d), 0);
    co_assert_clean();
    assert_int_equal(blk_co_node_unref(d->file), 0);
}

static coroutine_fn void co_expect_content(struct disk *d, uint8_t first_half, uint8_t second_half)
{
    for (unsigned i = 0; i < CLUSTERS; i++)
        co_expect(d, i, i < CLUSTERS / 2 ? first_half : second_half);
}

enum what { CREATE, APPLY, DELETE };

static coroutine_fn int co_do(struct disk *d, enum what what)
{
    switch (what) {
    case CREATE: return co_create(d, "two");
    case APPLY: return blk_co_snapshot_apply(d->node, "one", NULL);
    default: return blk_co_snapshot_delete(d->node, "one", NULL);
    }
}

/* Whatever was done, or not, to the disk: it holds one of the two contents, each snapshot what it kept. */
static coroutine_fn void co_expect_sane(struct disk *d, enum what what, int ret)
{
    uint8_t first;

    assert_int_equal(blk_front_co_read(d->front, 0, &first, 1), 0);
    if (what == APPLY && first == 'a')
        co_expect_content(d, 'a', 0);
    else
        co_expect_content(d, 'b', 'b');
    if (ret == 0) {
        assert_int_equal(first, what == APPLY ? 'a' : 'b');
        assert_int_equal(co_has(d, "one"), what != DELETE);
        assert_int_equal(co_has(d, "two"), what == CREATE);
    }
    if (co_has(d, "two")) {
        for (unsigned i = 0; i < CLUSTERS; i++)
            co_put(d, i, 'c'); /* nothing of it goes into a snapshot */
        assert_int_equal(blk_co_snapshot_apply(d->node, "two", NULL), 0);
        co_expect_content(d, 'b', 'b');
    }
    if (co_has(d, "one")) {
        for (unsigned i = 0; i < CLUSTERS; i++)
            co_put(d, i, 'd');
        assert_int_equal(blk_co_snapshot_apply(d->node, "one", NULL), 0);
        co_expect_content(d, 'a', 0);
    }
}

/* Each request to the file fails once, or from there on until the operation has returned. */
static coroutine_fn void co_fail_each(enum what what, bool for_good)
{
    bool failed = true;

    for (uint64_t at = 1; failed; at++) {
        struct disk d;
        co_disk_begin(&d);
        memory_node_fail(d.file, (struct memory_faults){ .fail_at = at, .for_good = for_good, .with = -EIO });
        int ret = co_do(&d, what);
        failed = memory_node(d.file)->faults.failed;
        memory_node_fail(d.file, (struct memory_faults){ 0 });
        assert_true(failed || ret == 0);
        if (at % 2) { /* a repair as the image is opened anew, or life goes on */
            co_disk_close(&d);
            co_disk_open(&d);
        }
        co_expect_sane(&d, what, ret);
        co_disk_close(&d);
        co_disk_open(&d);
        co_disk_end(&d);
        assert_true(at < 2000);
    }
}

TEST_CO(an_error_while_creating_leaves_all_as_it_was)
{
    co_fail_each(CREATE, false);
    co_fail_each(CREATE, true);
    return 0;
}

TEST_CO(an_error_while_applying_leaves_one_of_the_two_contents)
{
    co_fail_each(APPLY, false);
    co_fail_each(APPLY, true);
    return 0;
}

TEST_CO(an_error_while_deleting_loses_no_other_content)
{
    co_fail_each(DELETE, false);
    co_fail_each(DELETE, true);
    return 0;
}

/* A snapshot that cannot be made, as no refcount can be raised, changes nothing. */
TEST_CO(refcounts_that_cannot_grow_are_an_error_and_nothing_else)
{
    struct disk d;
    struct opts *opts = opts_new();
    struct error *error = NULL;

    d.file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    struct blk_create create = { .options = opts, .size = CLUSTERS * CLUSTER, .file = d.file };
    opts_set(opts, "cluster_size", "512");
    opts_set(opts, "refcount_bits", "2");
    assert_int_equal(blk_driver_find("qcow2")->co_create(&create, NULL), 0);
    opts_free(opts);
    co_disk_open(&d);
    for (unsigned i = 0; i < 70; i++)
        co_put(&d, i, 'a');
    assert_int_equal(co_create(&d, "one"), 0);
    co_put(&d, 69, 'b'); /* the last cluster and its table have a refcount of their own: the raise comes far */
    assert_int_equal(co_create(&d, "two"), 0);
    struct blk_snapshot what = { .name = "three" };
    assert_int_equal(blk_co_snapshot_create(d.node, &what, &error), -EINVAL);
    assert_non_null(strstr(error_text(error), "cannot grow"));
    error_free(error);
    assert_false(co_has(&d, "three"));
    for (unsigned i = 0; i < 69; i++)
        co_expect(&d, i, 'a');
    co_expect(&d, 69, 'b');
    co_disk_end(&d);
    return 0;
}

/* What a guest sends while a snapshot is made is in it as a whole or not at all, and the disk has all of it. */
struct writer {
    struct disk *d;
    unsigned written;
    bool stop, ended;
};

static coroutine_fn void co_write_on(void *arg)
{
    struct writer *w = arg;

    while (!w->stop) {
        co_put(w->d, w->written % CLUSTERS, (uint8_t)(w->written / CLUSTERS + 1));
        w->written++;
        if (w->written % 7 == 0)
            co_sleep_ns(1000);
    }
    w->ended = true;
}

TEST_CO(writes_go_on_while_snapshots_come_and_go)
{
    struct disk d;
    struct writer w = { .d = &d };

    co_disk_begin(&d);
    co_start(co_write_on, &w);
    for (unsigned i = 0; i < 10; i++) {
        co_sleep_ns(200000);
        assert_int_equal(co_create(&d, "moment"), 0);
        if (i % 2)
            assert_int_equal(blk_co_snapshot_delete(d.node, "moment", NULL), 0);
    }
    w.stop = true;
    while (!w.ended)
        co_sleep_ns(10000);
    assert_true(w.written > 100);
    for (unsigned i = w.written - MIN(w.written, CLUSTERS); i < w.written; i++)
        co_expect(&d, i % CLUSTERS, (uint8_t)(i / CLUSTERS + 1));
    assert_int_equal(blk_co_snapshot_apply(d.node, "one", NULL), 0);
    co_expect_content(&d, 'a', 0);
    co_disk_end(&d);
    return 0;
}

TEST_CO(names_that_are_none_and_images_that_have_no_snapshots)
{
    char long_name[300];
    struct disk d;

    co_disk_begin(&d);
    memset(long_name, 'n', sizeof(long_name));
    long_name[256] = 0;
    assert_int_equal(co_create(&d, long_name), -ENAMETOOLONG);
    assert_int_equal(blk_co_snapshot_apply(d.node, "none", NULL), -ENOENT);
    assert_int_equal(blk_co_snapshot_delete(d.node, "1", NULL), -ENOENT); /* by name only */
    assert_int_equal(blk_co_snapshot_apply(d.node, "1", NULL), 0);
    struct blk_snapshot what = { .name = "x" };
    assert_int_equal(blk_co_snapshot_create(d.file, &what, NULL), -ENOTSUP);
    co_disk_end(&d);
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(an_error_while_creating_leaves_all_as_it_was),
        LOOP_TEST(an_error_while_applying_leaves_one_of_the_two_contents),
        LOOP_TEST(an_error_while_deleting_loses_no_other_content),
        LOOP_TEST(refcounts_that_cannot_grow_are_an_error_and_nothing_else),
        LOOP_TEST(writes_go_on_while_snapshots_come_and_go),
        LOOP_TEST(names_that_are_none_and_images_that_have_no_snapshots),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
