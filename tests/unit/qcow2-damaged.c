/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2: refcounts that call a cluster free although an entry names it. It must not become metadata: writes that are
 * mapped through the entry would destroy a table. The image is marked corrupt before that, and nothing more is lost.
 */
#include "qcow2_disk.h"
#include "l2.h"

#include <block/change.h>

#define CLUSTER 512u
/* A table maps 32 KiB, a refcount block counts 256 clusters. */
#define TABLE_SPAN (32 * KIB)

struct disk {
    struct blk_node *file, *node;
};

static coroutine_fn int co_put(struct disk *d, uint64_t offset, uint8_t value, uint64_t length)
{
    uint8_t *data = xmalloc(length);

    memset(data, value, length);
    int ret = blk_co_write(d->node, offset, data, length, 0);
    free(data);
    return ret;
}

static coroutine_fn void co_expect(struct disk *d, uint64_t offset, uint8_t value, uint64_t length)
{
    uint8_t *data = xmalloc(length);

    assert_int_equal(blk_co_read(d->node, offset, data, length), 0);
    for (uint64_t i = 0; i < length; i++)
        assert_int_equal(data[i], value);
    free(data);
}

static uint8_t *at(struct disk *d, uint64_t offset) { return memory_node(d->file)->data + offset; }
static uint64_t word(struct disk *d, uint64_t offset) { return load_be64(at(d, offset)) & QCOW2_OFFSET_MASK; }
/* Where the L2 entry of a cluster below 32 KiB lies. */
static uint64_t entry_place(struct disk *d, uint64_t offset)
{
    return word(d, word(d, QCOW2_AT_L1_OFFSET)) + offset / CLUSTER * 8;
}

/* An image with `clusters` clusters of 'a', closed. */
static coroutine_fn void co_disk_begin_sized(struct disk *d, unsigned clusters, uint64_t size)
{
    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    co_create_qcow2(d->file, size, "512");
    d->node = co_open_words("driver=qcow2,file=mem", BLK_O_RDWR | BLK_O_RESIZE);
    assert_int_equal(co_put(d, 0, 'a', clusters * CLUSTER), 0);
    assert_int_equal(blk_co_node_unref(d->node), 0);
}

static coroutine_fn void co_disk_begin(struct disk *d, unsigned clusters) { co_disk_begin_sized(d, clusters, MIB); }

static coroutine_fn void co_reopen(struct disk *d)
{
    d->node = co_open_words("driver=qcow2,file=mem", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
}

/* Nothing but what was damaged is wrong, every cluster reads as before, and the image says that it is corrupt. */
static coroutine_fn void co_disk_end(struct disk *d, unsigned clusters, unsigned damage)
{
    struct blk_check check = { 0 };

    blk_co_node_unref(d->node);
    assert_true(load_be64(at(d, QCOW2_AT_INCOMPATIBLE)) & QCOW2_INCOMPAT_CORRUPT);
    d->node = co_open_words("driver=qcow2,file=mem", 0);
    assert_int_equal(blk_co_check(d->node, &check, 0, NULL), 0);
    assert_int_equal(check.corruptions, damage);
    co_expect(d, 0, 'a', clusters * CLUSTER);
    assert_int_equal(blk_co_node_unref(d->node), 0);
    assert_int_equal(blk_co_node_unref(d->file), 0);
}

static void set_refcount(struct disk *d, uint64_t cluster, uint16_t count)
{
    store_be16(at(d, word(d, word(d, QCOW2_AT_REFTABLE_OFFSET)) + cluster * 2), count);
}

/* The slice is in memory, and mapped writes go through it, when a table is needed elsewhere. */
TEST_CO(a_cluster_in_use_becomes_no_l2_table)
{
    struct disk d;

    co_disk_begin(&d, 8);
    set_refcount(&d, word(&d, entry_place(&d, 3 * CLUSTER)) / CLUSTER, 0);
    co_reopen(&d);
    assert_int_equal(co_put(&d, 3 * CLUSTER, 'a', CLUSTER), 0);
    assert_int_equal(co_put(&d, 20 * TABLE_SPAN, 'b', CLUSTER), -EIO);
    assert_int_equal(co_put(&d, 3 * CLUSTER, 'c', CLUSTER), -EIO);
    co_disk_end(&d, 8, 2);
    return 0;
}

/* It was evicted, but a write that was mapped through it is still on its way. */
TEST_CO(nor_while_a_request_still_sees_it)
{
    struct disk d;
    uint64_t place;

    co_disk_begin(&d, 8);
    place = word(&d, entry_place(&d, 3 * CLUSTER));
    set_refcount(&d, place / CLUSTER, 0);
    co_reopen(&d);
    struct qcow2 *s = d.node->state;
    co_expect(&d, 3 * CLUSTER, 'a', CLUSTER);
    struct blk_front *front = blk_front_new("test", d.node, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, NULL);
    unsigned *token = epoch_enter(d.node->epoch, loop_current());
    atomic_store(&qcow2_slice_find(s, 0)->referenced, false);
    co_mutex_lock(&s->lock);
    qcow2_slices_clean(s);
    co_mutex_unlock(&s->lock);
    assert_null(qcow2_slice_find(s, 0));
    assert_int_equal(co_put(&d, 20 * TABLE_SPAN, 'b', CLUSTER), -EIO);
    epoch_exit(token);
    assert_int_equal(blk_co_front_free(front), 0);
    co_disk_end(&d, 8, 2);
    return 0;
}

/* No block counts the second range of clusters, though some are in use. */
TEST_CO(nor_a_refcount_block)
{
    struct disk d;
    uint64_t blocks, place = 0, offset;

    co_disk_begin(&d, 330);
    blocks = word(&d, QCOW2_AT_REFTABLE_OFFSET);
    /* The block that counts these clusters lies among them, at their start; whose data are the first after it? */
    memset(at(&d, blocks + 8), 0, 8);
    for (offset = 0; place < 257 * CLUSTER; offset += CLUSTER) {
        uint64_t table = word(&d, word(&d, QCOW2_AT_L1_OFFSET) + offset / TABLE_SPAN * 8);
        place = word(&d, table + offset % TABLE_SPAN / CLUSTER * 8);
    }
    /* Into the place that the next block will take. */
    offset -= CLUSTER;
    memmove(at(&d, 256 * CLUSTER), at(&d, place), CLUSTER);
    uint64_t table = word(&d, word(&d, QCOW2_AT_L1_OFFSET) + offset / TABLE_SPAN * 8);
    store_be64(at(&d, table + offset % TABLE_SPAN / CLUSTER * 8), 256 * CLUSTER | QCOW2_COPIED);
    co_reopen(&d);
    co_expect(&d, 0, 'a', 330 * CLUSTER);
    assert_int_equal(co_put(&d, 20 * TABLE_SPAN, 'b', CLUSTER), -EIO);
    assert_int_equal(co_put(&d, offset, 'c', CLUSTER), -EIO);
    blk_co_node_unref(d.node);
    d.node = co_open_words("driver=qcow2,file=mem", 0);
    co_expect(&d, 0, 'a', 330 * CLUSTER);
    assert_true(load_be64(at(&d, QCOW2_AT_INCOMPATIBLE)) & QCOW2_INCOMPAT_CORRUPT);
    assert_int_equal(blk_co_node_unref(d.node), 0);
    assert_int_equal(blk_co_node_unref(d.file), 0);
    return 0;
}

/* An entry that names what lies past the file's end, where new tables go. */
TEST_CO(nor_one_past_the_end_of_the_file)
{
    struct disk d;

    co_disk_begin(&d, 8);
    uint64_t end = blk_node_size(d.file);
    store_be64(at(&d, entry_place(&d, 8 * CLUSTER)), end | QCOW2_COPIED);
    co_reopen(&d);
    co_expect(&d, 8 * CLUSTER, 0, CLUSTER);
    assert_int_equal(co_put(&d, 20 * TABLE_SPAN, 'b', CLUSTER), 0);
    /* The table is there now: this would go over it. */
    assert_int_equal(co_put(&d, 8 * CLUSTER, 'c', CLUSTER), -EIO);
    co_expect(&d, 20 * TABLE_SPAN, 'b', CLUSTER);
    co_disk_end(&d, 8, 2);
    return 0;
}

/* An entry that names clusters behind all that is counted, and within the file: where a larger refcount table goes. */
TEST_CO(nor_the_refcount_table)
{
    enum { COUNTED = 64 * 256 * CLUSTER, RUN = 64 * KIB }; /* the first table's 64 blocks, 256 clusters each */
    uint64_t place = COUNTED + CLUSTER, end = COUNTED + MIB, entry;
    uint8_t *content = xcalloc(1, end);
    int ret = 0;
    struct disk d;

    co_disk_begin_sized(&d, 8, 32 * MIB);
    entry = entry_place(&d, 3 * CLUSTER);
    memcpy(content, at(&d, 0), blk_node_size(d.file));
    memcpy(content + place, content + word(&d, entry), CLUSTER);
    store_be64(content + entry, place | QCOW2_COPIED);
    memory_node_fill(d.file, content, end);
    co_reopen(&d);
    co_expect(&d, 0, 'a', 8 * CLUSTER);
    struct qcow2 *s = d.node->state;
    assert_false(qcow2_slice_find(s, 0)->suspect);
    for (uint64_t offset = MIB; ret == 0 && offset < 16 * MIB; offset += RUN)
        ret = co_put(&d, offset, 'b', RUN);
    assert_int_equal(ret, -EIO);
    assert_int_equal(s->header.reftable_offset, s->reftable_offset);
    free(content);
    assert_true(load_be64(at(&d, QCOW2_AT_INCOMPATIBLE)) & QCOW2_INCOMPAT_CORRUPT);
    co_expect(&d, 0, 'a', 8 * CLUSTER);
    blk_co_node_unref(d.node); /* fails: it is corrupt */
    assert_int_equal(blk_co_node_unref(d.file), 0);
    return 0;
}

/* ---- a reopen ---- */

static coroutine_fn void co_reopen_with(struct disk *d, const char *key, const char *value)
{
    struct opts *opts = opts_new();
    struct blk_reopen item = { .node = d->node, .opts = opts };
    struct error *error = NULL;

    opts_set(opts, key, value);
    if (blk_co_reopen(&item, 1, &error) < 0)
        fail_msg("%s", error_text(error));
    opts_free(opts);
}

/* An entry that names the L1 table, found sound while nothing was checked: with the checks on it is looked at again. */
TEST_CO(what_is_in_memory_is_judged_by_the_new_options)
{
    struct disk d;

    co_disk_begin(&d, 8);
    uint64_t l1 = word(&d, QCOW2_AT_L1_OFFSET);
    store_be64(at(&d, entry_place(&d, 4 * CLUSTER)), l1 | QCOW2_COPIED);
    d.node = co_open_words("driver=qcow2,file=mem,overlap-check=none", BLK_O_RDWR | BLK_O_RESIZE);
    co_expect(&d, 3 * CLUSTER, 'a', CLUSTER); /* the slice is in memory */
    co_reopen_with(&d, "overlap-check", "all");
    assert_int_equal(co_put(&d, 4 * CLUSTER, 'x', CLUSTER), -EIO);
    co_expect(&d, 3 * CLUSTER, 'a', CLUSTER);
    blk_co_node_unref(d.node);
    assert_int_equal(word(&d, l1) != 0, 1);
    assert_true(load_be64(at(&d, QCOW2_AT_INCOMPATIBLE)) & QCOW2_INCOMPAT_CORRUPT);
    assert_int_equal(blk_co_node_unref(d.file), 0);
    return 0;
}

/* ---- lazy refcounts ---- */

/* A shrink that finds nothing but empty tables to give back says first that refcounts are late. */
TEST_CO(a_shrink_sets_the_dirty_bit_first)
{
    struct disk d;

    co_disk_begin(&d, 8);
    d.node = co_open_words("driver=qcow2,file=mem", BLK_O_RDWR | BLK_O_RESIZE);
    assert_int_equal(co_put(&d, 20 * TABLE_SPAN, 'b', CLUSTER), 0);
    assert_int_equal(blk_co_write_zeroes(d.node, 20 * TABLE_SPAN, CLUSTER, BLK_REQ_MAY_UNMAP), 0);
    assert_int_equal(blk_co_node_unref(d.node), 0);
    uint64_t table = word(&d, word(&d, QCOW2_AT_L1_OFFSET) + 20 * 8);
    assert_true(table != 0);
    memset(at(&d, table), 0, CLUSTER); /* it may have an entry that says zeroes */
    d.node = co_open_words("driver=qcow2,file=mem,lazy-refcounts=on", BLK_O_RDWR | BLK_O_RESIZE);
    assert_int_equal(blk_co_truncate(d.node, 8 * CLUSTER, false, "off", NULL), 0);
    assert_int_equal(word(&d, word(&d, QCOW2_AT_L1_OFFSET) + 20 * 8), 0);
    assert_true(load_be64(at(&d, QCOW2_AT_INCOMPATIBLE)) & QCOW2_INCOMPAT_DIRTY);
    assert_int_equal(blk_co_node_unref(d.node), 0);
    assert_int_equal(load_be64(at(&d, QCOW2_AT_INCOMPATIBLE)), 0);
    co_assert_clean();
    assert_int_equal(blk_co_node_unref(d.file), 0);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(a_cluster_in_use_becomes_no_l2_table),
        LOOP_TEST(nor_while_a_request_still_sees_it),
        LOOP_TEST(nor_a_refcount_block),
        LOOP_TEST(nor_one_past_the_end_of_the_file),
        LOOP_TEST(nor_the_refcount_table),
        LOOP_TEST(what_is_in_memory_is_judged_by_the_new_options),
        LOOP_TEST(a_shrink_sets_the_dirty_bit_first),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
