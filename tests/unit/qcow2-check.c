/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2: check looks at many tables at a time, on all processors. What it finds comes in the order of the tables, it
 * ends with the first that cannot be read, and nothing is counted twice.
 */
#include "qcow2_disk.h"
#include "l2.h"

#include <block/change.h>

#define CLUSTER 4096u
/* A table maps 2 MiB, a refcount block counts 2048 clusters. More tables than one loop looks at by itself. */
#define TABLE_SPAN (2 * MIB)
#define TABLES 400u

struct disk {
    struct blk_node *file, *node;
    struct blk_check check;
    unsigned said, known; /* lines of text in all; those that are `expected` in this order */
    const char *const *expected;
};

static void report(struct blk_check *check, bool error, const char *line)
{
    struct disk *d = container_of(check, struct disk, check);

    (void)error;
    if (d->expected[d->known] && !strcmp(line, d->expected[d->known]))
        d->known++;
    d->said++;
}

static uint8_t *at(struct disk *d, uint64_t offset) { return memory_node(d->file)->data + offset; }
static uint64_t word(struct disk *d, uint64_t offset) { return load_be64(at(d, offset)); }
static uint64_t l1_place(struct disk *d, uint64_t index) { return word(d, QCOW2_AT_L1_OFFSET) + 8 * index; }
static uint64_t table_place(struct disk *d, uint64_t index) { return word(d, l1_place(d, index)) & QCOW2_OFFSET_MASK; }

/* A cluster of data for each table. */
static coroutine_fn void co_disk_begin(struct disk *d)
{
    uint8_t data[CLUSTER] = { 1 };

    *d = (struct disk){ 0 };
    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    co_create_qcow2(d->file, (uint64_t)TABLES * TABLE_SPAN, "4096");
    d->node = co_open_words("driver=qcow2,file=mem", BLK_O_RDWR | BLK_O_RESIZE);
    for (uint64_t i = 0; i < TABLES; i++)
        assert_int_equal(blk_co_write(d->node, i * TABLE_SPAN, data, CLUSTER, 0), 0);
    assert_int_equal(blk_co_node_unref(d->node), 0);
    d->node = co_open_words("driver=qcow2,file=mem", 0);
}

static coroutine_fn int co_check(struct disk *d, const char *const *expected)
{
    d->check = (struct blk_check){ .report = report };
    d->expected = expected;
    d->said = d->known = 0;
    return blk_co_check(d->node, &d->check, 0, NULL);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    assert_int_equal(blk_co_node_unref(d->node), 0);
    assert_int_equal(blk_co_node_unref(d->file), 0);
}

TEST_CO(every_table_is_counted_once)
{
    static const char *const none[] = { NULL };
    struct disk d;

    co_disk_begin(&d);
    for (int turn = 0; turn < 3; turn++) {
        assert_int_equal(co_check(&d, none), 0);
        assert_int_equal(d.said, 0);
        assert_int_equal(d.check.allocated_clusters, TABLES);
        assert_int_equal(d.check.fragmented_clusters, 0);
        assert_int_equal(d.check.corruptions + d.check.leaks + d.check.check_errors, 0);
        assert_true(d.check.image_end_offset > (uint64_t)TABLES * 2 * CLUSTER);
    }
    co_disk_end(&d);
    return 0;
}

TEST_CO(what_is_said_has_the_order_of_the_tables)
{
    static const unsigned damaged[] = { 3, 170, 171, 299, TABLES - 1 };
    static char text[5][80];
    static const char *const expected[] = { text[0], text[1], text[2], text[3], text[4], NULL };
    struct disk d;

    co_disk_begin(&d);
    for (unsigned i = 0; i < 5; i++) {
        uint64_t place = table_place(&d, damaged[i]), entry = word(&d, place) | UINT64_C(1) << (56 + i);
        store_be64(at(&d, place), entry);
        snprintf(text[i], sizeof(text[i]), "ERROR found l2 entry with reserved bits set: %" PRIx64, entry);
    }
    assert_int_equal(co_check(&d, expected), 0);
    assert_int_equal(d.known, 5);
    assert_int_equal(d.said, 5);
    assert_int_equal(d.check.corruptions, 5);
    assert_int_equal(d.check.allocated_clusters, TABLES);
    co_disk_end(&d);
    return 0;
}

/* Of a cluster whose refcount is not what was counted, the flag is judged by the refcount. */
TEST_CO(the_copied_flag_follows_the_refcount)
{
    static char text[3][100];
    static const char *const expected[] = { text[0], text[1], NULL };
    struct disk d;

    co_disk_begin(&d);
    uint64_t entry = word(&d, table_place(&d, 234)), cluster = (entry & QCOW2_OFFSET_MASK) / CLUSTER;
    uint64_t block = word(&d, word(&d, QCOW2_AT_REFTABLE_OFFSET) + cluster / 2048 * 8);
    store_be16(at(&d, block + cluster % 2048 * 2), 2);
    snprintf(text[0], sizeof(text[0]), "Leaked cluster %" PRIu64 " refcount=2 reference=1", cluster);
    snprintf(text[1], sizeof(text[1]), "ERROR OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=2", entry);
    assert_int_equal(co_check(&d, expected), 0);
    assert_int_equal(d.known, 2);
    assert_int_equal(d.said, 2);
    co_disk_end(&d);
    return 0;
}

/* The read of one table fails once, whichever comes then: it is not taken for fine, and nothing more is looked at. */
TEST_CO(a_table_that_cannot_be_read_ends_it)
{
    static const char *const expected[] = { "ERROR: I/O error in check_refcounts_l2", NULL };
    struct disk d;

    co_disk_begin(&d);
    for (unsigned number = 1; number < TABLES; number += 90) {
        uint64_t reads = memory_node(d.file)->reads;
        memory_node_fail(d.file, (struct memory_faults){ .fail_at = number, .with = -EIO });
        assert_int_equal(co_check(&d, expected), -EIO);
        assert_int_equal(d.known, 1);
        assert_int_equal(d.said, 1);
        assert_int_equal(d.check.check_errors, 1);
        assert_true(memory_node(d.file)->reads - reads < number + 40);
    }
    co_disk_end(&d);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(every_table_is_counted_once),
        LOOP_TEST(what_is_said_has_the_order_of_the_tables),
        LOOP_TEST(the_copied_flag_follows_the_refcount),
        LOOP_TEST(a_table_that_cannot_be_read_ends_it),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
