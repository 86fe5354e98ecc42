/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Dirty bitmaps in memory: which bits a change sets, on every way to the file, and what merging and other sizes make of
 * them. */
#include "image.h"
#include "memory_node.h"

#include <block/bitmap.h>

#define DISK (MIB)

static bool is_set(const struct blk_bitmap *bitmap, uint64_t bit)
{
    return atomic_load(&bitmap->words[bit / 64]) >> bit % 64 & 1;
}

static uint64_t count(const struct blk_bitmap *bitmap)
{
    uint64_t bits = 0;

    for (uint64_t i = 0; i < blk_bitmap_words(bitmap); i++)
        bits += (uint64_t)__builtin_popcountll(atomic_load(&bitmap->words[i]));
    return bits;
}

/* Exactly first … last. */
static void assert_bits(struct blk_bitmap *bitmap, uint64_t first, uint64_t last)
{
    for (uint64_t i = first; i <= last; i++)
        assert_true(is_set(bitmap, i));
    assert_int_equal(count(bitmap), last - first + 1);
    blk_bitmap_clear(bitmap);
    assert_int_equal(count(bitmap), 0);
}

struct disk {
    struct blk_node *node;
    struct blk_front *front;
};

static coroutine_fn void co_begin(struct disk *d)
{
    d->node = co_open_words("driver=memory,node-name=mem,size=1048576", BLK_O_RDWR | BLK_O_UNMAP);
    d->front = test_front(d->node);
}

static coroutine_fn void co_end(struct disk *d)
{
    assert_int_equal(blk_co_front_free(d->front), 0);
    assert_int_equal(blk_co_node_unref(d->node), 0);
}

static struct blk_bitmap *add(struct disk *d, const char *name, unsigned granularity_bits)
{
    struct blk_bitmap *bitmap = blk_bitmap_attach(d->node, name, strlen(name), granularity_bits);

    assert_int_equal(blk_bitmap_make_words(bitmap), 0);
    bitmap->enabled = true;
    blk_bitmaps_recount(d->node);
    return bitmap;
}

TEST_CO(every_change_sets_the_bits_that_it_touches)
{
    static uint8_t data[128 * 1024];
    struct disk d;

    co_begin(&d);
    struct blk_bitmap *b = add(&d, "b", 12);
    assert_int_equal(blk_front_co_write(d.front, 4096, data, 4096, 0), 0);
    assert_bits(b, 1, 1);
    assert_int_equal(blk_front_co_write(d.front, 4096 * 63 + 512, data, 4096, 0), 0); /* two bits, two words */
    assert_bits(b, 63, 64);
    assert_int_equal(blk_front_co_write(d.front, 8191, data, 2, 0), 0); /* a read-modify-write */
    assert_bits(b, 1, 2);
    assert_int_equal(blk_front_co_write_zeroes(d.front, 0, DISK, 0), 0);
    assert_bits(b, 0, 255);
    assert_int_equal(blk_front_co_discard(d.front, 65536, 65536), 0);
    assert_bits(b, 16, 31);
    assert_int_equal(blk_co_write(d.node, DISK - 512, data, 512, 0), 0);
    assert_bits(b, 255, 255);
    assert_int_equal(blk_front_co_read(d.front, 0, data, sizeof(data)), 0);
    assert_int_equal(blk_front_co_flush(d.front), 0);
    assert_int_equal(count(b), 0);
    co_end(&d);
    return 0;
}

TEST_CO(who_is_not_enabled_records_nothing)
{
    static uint8_t data[4096];
    struct disk d;

    co_begin(&d);
    struct blk_bitmap *off = add(&d, "off", 12), *on = add(&d, "on", 12), *broken = add(&d, "broken", 12);
    broken->inconsistent = true;
    blk_bitmap_enable(off, false);
    assert_int_equal(atomic_load(&d.node->recording), 1);
    assert_int_equal(blk_front_co_write(d.front, 0, data, sizeof(data), 0), 0);
    assert_int_equal(count(off) + count(broken), 0);
    assert_bits(on, 0, 0);
    blk_bitmap_free(on);
    blk_bitmaps_recount(d.node);
    assert_int_equal(atomic_load(&d.node->recording), 0);
    co_end(&d);
    return 0;
}

TEST_CO(merging_goes_between_granularities)
{
    struct disk d;

    co_begin(&d);
    struct blk_bitmap *fine = add(&d, "fine", 9), *coarse = add(&d, "coarse", 16), *tail = add(&d, "tail", 20);
    blk_bitmaps_record(d.node, 65536, 512);
    blk_bitmap_clear(coarse);
    blk_bitmap_clear(tail);
    assert_int_equal(blk_bitmap_merge(coarse, fine, NULL), 0);
    assert_bits(fine, 128, 128);
    assert_int_equal(blk_bitmap_merge(fine, coarse, NULL), 0);
    assert_bits(fine, 128, 255);
    assert_bits(coarse, 1, 1);
    blk_bitmaps_record(d.node, DISK - 1, 1);
    blk_bitmap_clear(fine);
    assert_int_equal(blk_bitmap_merge(fine, tail, NULL), 0); /* nothing past the end */
    assert_bits(fine, 0, DISK / 512 - 1);
    tail->size /= 2;
    assert_int_equal(blk_bitmap_merge(fine, tail, NULL), -EINVAL);
    co_end(&d);
    return 0;
}

TEST_CO(what_is_cut_off_does_not_come_back)
{
    struct disk d;

    co_begin(&d);
    struct blk_bitmap *b = add(&d, "b", 12);
    blk_bitmaps_record(d.node, 0, DISK);
    assert_int_equal(blk_bitmaps_resize(d.node, 5 * 4096 + 1), 0);
    assert_int_equal(blk_bitmap_bits(b), 6);
    assert_int_equal(count(b), 6);
    assert_int_equal(blk_bitmaps_resize(d.node, DISK), 0);
    assert_bits(b, 0, 5);
    assert_int_equal(blk_bitmaps_resize(d.node, UINT64_C(1) << 60), -EFBIG);
    assert_int_equal(b->size, DISK);
    co_end(&d);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(every_change_sets_the_bits_that_it_touches),
        LOOP_TEST(who_is_not_enabled_records_nothing),
        LOOP_TEST(merging_goes_between_granularities),
        LOOP_TEST(what_is_cut_off_does_not_come_back),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
