/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The filter preallocate: what the host's file is while it is written and afterwards, what the nodes show of that, and
 * where it cannot be.
 */
#include "file.h"

#include <base/checked.h>
#include <signal.h>
#include <sys/resource.h>

#define AHEAD (8 * MIB)
#define OPTIONS "prealloc-size=8M,prealloc-align=3M" /* no power of two */

struct disk {
    struct test_file file;
    struct blk_node *filter;
    uint8_t *buffer; /* 64 KiB of fives */
};

static struct stat host_stat(const struct disk *d)
{
    struct stat st;

    assert_int_equal(stat(d->file.path, &st), 0);
    return st;
}

static uint64_t host_size(const struct disk *d) { return (uint64_t)host_stat(d).st_size; }

/* How long the file is for a write that ends at `end`. */
static uint64_t grown_for(uint64_t end) { return (end + AHEAD + 3 * MIB - 1) / (3 * MIB) * (3 * MIB); }

static coroutine_fn void co_disk_begin(struct disk *d, const char *folder, uint64_t size, const char *between)
{
    AUTO_FREE char *path = path_in(folder, "image");
    AUTO_FREE char *line = xasprintf("driver=preallocate," OPTIONS ",file.%sdriver=file,file.%sfilename=%s%s%s",
                                     between ? "file." : "", between ? "file." : "", path,
                                     between ? ",file.driver=" : "", between ? between : "");

    d->file.path = xstrdup(path);
    make_file(path, size);
    d->filter = co_open_words(line, BLK_O_RDWR | BLK_O_UNMAP);
    d->file.node = blk_node_protocol(d->filter);
    d->buffer = aligned_alloc(4096, 64 * KIB);
    memset(d->buffer, 5, 64 * KIB);
}

static void disk_free(struct disk *d)
{
    unlink(d->file.path);
    free(d->file.path);
    free(d->buffer);
}

static coroutine_fn void co_disk_end(struct disk *d, uint64_t size)
{
    assert_int_equal(blk_co_node_unref(d->filter), 0);
    assert_int_equal(host_size(d), size);
    disk_free(d);
}

static coroutine_fn void co_assert_content(struct blk_node *node, uint64_t offset, uint64_t length, uint8_t value)
{
    uint8_t *buffer = aligned_alloc(4096, length);

    memset(buffer, ~value, length);
    assert_int_equal(blk_co_read(node, offset, buffer, length), 0);
    assert_true(buffer[0] == value && memcmp(buffer, buffer + 1, length - 1) == 0);
    free(buffer);
}

/* ---- growing and cutting ---- */

static coroutine_fn void co_grow(const char *folder, const char *between)
{
    struct disk d;
    uint64_t end = MIB + 64 * KIB;

    co_disk_begin(&d, folder, MIB, between);
    assert_int_equal(blk_co_write(d.filter, MIB - 64 * KIB, d.buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&d), MIB); /* not past the end */
    assert_int_equal(blk_co_write(d.filter, MIB, d.buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&d), grown_for(end));
    assert_true((uint64_t)host_stat(&d).st_blocks * 512 >= grown_for(end) - MIB);
    assert_int_equal(blk_node_size(d.filter), end);
    co_assert_content(d.filter, MIB - 64 * KIB, 128 * KIB, 5);
    co_assert_content(d.filter, end, 64 * KIB, 0);

    /* Until it is used up. */
    uint64_t grown = grown_for(end);
    assert_int_equal(blk_co_write(d.filter, grown - 64 * KIB, d.buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&d), grown);
    co_assert_content(d.filter, end, 64 * KIB, 0);
    assert_int_equal(blk_co_write(d.filter, grown, d.buffer, 4096, 0), 0);
    assert_int_equal(host_size(&d), grown_for(grown + 4096));
    assert_int_equal(blk_node_size(d.filter), grown + 4096);
    co_disk_end(&d, grown + 4096);
}

TEST_CO(space_is_there_before_it_is_written_and_no_longer_than_that)
{
    co_grow(disk_folder, NULL);
    co_grow(memory_folder, NULL);
    co_grow(disk_folder, "copy-on-read"); /* whatever grows with it may be between */
    co_grow(disk_folder, "raw");
    return 0;
}

TEST_CO(zeroes_past_the_end_count_as_written)
{
    struct disk d;

    co_disk_begin(&d, disk_folder, 0, NULL);
    for (uint64_t at = 0; at < 4 * MIB; at += 2 * MIB) {
        assert_int_equal(blk_co_write_zeroes(d.filter, at, MIB, at ? BLK_REQ_MAY_UNMAP : 0), 0);
        assert_int_equal(blk_node_size(d.filter), at + MIB);
        assert_int_equal(host_size(&d), grown_for(MIB));
        assert_int_equal(blk_co_write(d.filter, at + MIB, d.buffer, 64 * KIB, 0), 0);
        co_assert_content(d.filter, at, MIB, 0);
        co_assert_content(d.filter, at + MIB, 64 * KIB, 5);
    }
    assert_int_equal(blk_co_write_zeroes(d.filter, 63 * MIB, MIB, BLK_REQ_MAY_UNMAP), 0);
    assert_int_equal(host_size(&d), grown_for(64 * MIB));
    co_assert_content(d.filter, 63 * MIB, MIB, 0);
    co_disk_end(&d, 64 * MIB);
    return 0;
}

TEST_CO(a_new_size_is_the_file_s_own)
{
    struct disk d;
    static const uint64_t sizes[] = { 5 * MIB, 20 * MIB, 2 * MIB + 512 };

    co_disk_begin(&d, disk_folder, MIB, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        uint64_t old = blk_node_size(d.filter), end = old + 64 * KIB;
        assert_int_equal(blk_co_write(d.filter, old, d.buffer, 64 * KIB, 0), 0);
        assert_int_equal(host_size(&d), grown_for(end));
        assert_int_equal(blk_co_truncate(d.filter, sizes[i], true, "off", NULL), 0);
        assert_int_equal(host_size(&d), sizes[i]);
        assert_int_equal(blk_node_size(d.filter), sizes[i]);
        if (sizes[i] > end)
            co_assert_content(d.filter, end, sizes[i] - end, 0);
    }
    co_disk_end(&d, sizes[ARRAY_SIZE(sizes) - 1]);
    return 0;
}

/* ---- who else sees the file ---- */

TEST_CO(who_stops_writing_leaves_a_file_of_its_size)
{
    const unsigned read = BLK_PERM_CONSISTENT_READ, change = BLK_PERM_WRITE | BLK_PERM_RESIZE;
    struct disk d;

    co_disk_begin(&d, disk_folder, 0, NULL);
    for (uint64_t at = 0; at < 2 * MIB; at += MIB) {
        struct blk_front *front = blk_front_new("writer", d.filter, read | change, read, NULL);
        assert_non_null(front);
        assert_int_equal(blk_co_write(d.filter, at, d.buffer, 64 * KIB, 0), 0);
        assert_int_equal(host_size(&d), grown_for(at + 64 * KIB));
        assert_int_equal(blk_co_front_free(front), 0);
        assert_int_equal(host_size(&d), at + 64 * KIB);
    }
    co_disk_end(&d, MIB + 64 * KIB);
    return 0;
}

TEST_CO(a_file_that_the_filter_leaves_grows_no_more)
{
    struct disk d;

    co_disk_begin(&d, disk_folder, 0, NULL);
    blk_node_ref(d.file.node);
    assert_int_equal(blk_co_write(d.filter, 0, d.buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&d), grown_for(64 * KIB));
    assert_int_equal(blk_co_node_unref(d.filter), 0);
    assert_int_equal(host_size(&d), 64 * KIB);
    assert_int_equal(blk_co_write(d.file.node, 64 * KIB, d.buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&d), 128 * KIB);
    assert_int_equal(blk_co_node_unref(d.file.node), 0);
    disk_free(&d);
    return 0;
}

/* ---- where it cannot be ---- */

/* The host's limit stands for a full disk: what fits is allocated, and a write that fits is no worse off. */
TEST_CO(a_host_without_room_takes_what_it_can)
{
    struct disk d;
    struct rlimit old, limit;

    co_disk_begin(&d, disk_folder, 0, NULL);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = MIB;
    signal(SIGXFSZ, SIG_DFL); /* growing ahead never causes it */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(blk_co_write(d.filter, 0, d.buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&d), MIB);
    assert_int_equal(blk_co_write(d.filter, MIB - 64 * KIB, d.buffer, 64 * KIB, 0), 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(blk_co_write(d.filter, MIB, d.buffer, 64 * KIB, 0), -EFBIG);
    assert_int_equal(blk_node_size(d.filter), MIB);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(blk_co_write(d.filter, MIB, d.buffer, 64 * KIB, 0), 0);
    co_disk_end(&d, MIB + 64 * KIB);
    return 0;
}

TEST_CO(past_what_a_file_can_be)
{
    struct disk d;

    co_disk_begin(&d, disk_folder, MIB, NULL);
    assert_int_equal(blk_co_write(d.filter, INT64_MAX - 8191, d.buffer, 4096, 0), -EFBIG);
    assert_int_equal(blk_node_size(d.filter), MIB);
    assert_int_equal(blk_co_write(d.filter, MIB, d.buffer, 4096, 0), 0);
    co_disk_end(&d, MIB + 4096);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(space_is_there_before_it_is_written_and_no_longer_than_that),
        LOOP_TEST(zeroes_past_the_end_count_as_written),
        LOOP_TEST(a_new_size_is_the_file_s_own),
        LOOP_TEST(who_stops_writing_leaves_a_file_of_its_size),
        LOOP_TEST(a_file_that_the_filter_leaves_grows_no_more),
        LOOP_TEST(a_host_without_room_takes_what_it_can),
        LOOP_TEST(past_what_a_file_can_be),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
