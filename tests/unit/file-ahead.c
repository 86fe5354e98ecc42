/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file that is grown ahead of its writers (drivers/file_ahead.c): what the host sees, what the node shows, and that
 * nothing of it is left where it could be seen: at the close, when its user stops writing, at a truncate, where the
 * host does not let it grow.
 */
#include "file.h"

#include <base/checked.h>
#include <base/testpoint.h>
#include <signal.h>
#include <sys/resource.h>

static uint64_t host_size(const struct test_file *file)
{
    struct stat st;

    assert_int_equal(stat(file->path, &st), 0);
    return (uint64_t)st.st_size;
}

static coroutine_fn void co_begin_ahead(struct test_file *file, const char *folder, uint64_t size, const char *aio,
                                        unsigned flags)
{
    co_test_file_begin(file, folder, size, aio, flags);
    file->node->driver->grow_ahead(file->node, &ahead_hole);
}

static uint8_t *filled(uint64_t length, int value)
{
    uint8_t *buffer = aligned_alloc(4096, length);

    memset(buffer, value, length);
    return buffer;
}

static coroutine_fn void co_assert_content(struct blk_node *node, uint64_t offset, uint64_t length, int value)
{
    uint8_t *buffer = filled(length, ~value);

    assert_int_equal(blk_co_read(node, offset, buffer, length), 0);
    assert_true(buffer[0] == value && memcmp(buffer, buffer + 1, length - 1) == 0);
    free(buffer);
}

/* ---- growing and cutting ---- */

static const struct mode {
    const char *aio;
    unsigned flags;
} modes[] = { { NULL, 0 },
              { NULL, BLK_O_DIRECT },
              { "threads", BLK_O_DIRECT },
              { NULL, BLK_O_DIRECT | BLK_O_DSYNC },
              { NULL, BLK_O_DSYNC } };

static int co_seen_test(void *arg)
{
    const struct mode *mode = arg;
    struct test_file file;
    uint8_t *buffer = filled(64 * KIB, 5);
    struct blk_extent extent = { 0 };

    co_begin_ahead(&file, disk_folder, MIB, mode->aio, mode->flags);
    assert_int_equal(host_size(&file), MIB);
    assert_int_equal(blk_co_write(file.node, MIB - 64 * KIB, buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&file), MIB); /* not past the end */
    assert_int_equal(blk_co_write(file.node, MIB, buffer, 64 * KIB, BLK_REQ_FUA), 0);

    /* The host's file is longer, the node is not, and reads end at the node's end. */
    uint64_t grown = host_size(&file), end = MIB + 64 * KIB;
    assert_true(grown >= end + 16 * MIB && grown <= end + 256 * MIB);
    assert_int_equal(blk_node_size(file.node), end);
    co_assert_content(file.node, MIB - 64 * KIB, 128 * KIB, 5);
    co_assert_content(file.node, end, 64 * KIB, 0);
    struct stat st;
    assert_int_equal(stat(file.path, &st), 0);
    assert_true(st.st_blocks * 512 <= 1 * MIB); /* a hole */
    assert_int_equal(file.node->driver->co_extent(file.node, end - 4 * KIB, 4 * KIB, &extent), 0);
    assert_true(extent.kind == BLK_DATA && extent.length == 4 * KIB && (extent.flags & BLK_EXTENT_EOF));

    /* What follows does not change it until it is used up. */
    assert_int_equal(blk_co_write(file.node, grown - 64 * KIB, buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&file), grown);
    assert_int_equal(blk_node_size(file.node), grown);
    co_assert_content(file.node, end, 64 * KIB, 0);
    assert_int_equal(blk_co_write(file.node, grown, buffer, 4096, 0), 0);
    assert_true(host_size(&file) >= grown + 16 * MIB);
    assert_int_equal(blk_co_flush(file.node), 0);

    assert_int_equal(blk_co_node_unref(file.node), 0);
    assert_int_equal(host_size(&file), grown + 4096);
    unlink(file.path);
    free(file.path);
    free(buffer);
    return 0;
}

static void the_host_sees_a_longer_file_and_the_node_does_not(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
        run_co(state, co_seen_test, (void *)(uintptr_t)&modes[i]);
}

static int co_zeroes_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = filled(64 * KIB, 5);

    co_begin_ahead(&file, disk_folder, 0, NULL, BLK_O_UNMAP);
    for (uint64_t at = 0; at < 4 * MIB; at += 2 * MIB) {
        assert_int_equal(blk_co_write_zeroes(file.node, at, MIB, at ? BLK_REQ_MAY_UNMAP : 0), 0);
        assert_int_equal(blk_node_size(file.node), at + MIB);
        assert_true(host_size(&file) >= 16 * MIB);
        assert_int_equal(blk_co_write(file.node, at + MIB, buffer, 64 * KIB, 0), 0);
        co_assert_content(file.node, at, MIB, 0);
        co_assert_content(file.node, at + MIB, 64 * KIB, 5);
    }
    assert_int_equal(blk_co_write_zeroes(file.node, 63 * MIB, MIB, BLK_REQ_MAY_UNMAP), 0);
    assert_int_equal(blk_node_size(file.node), 64 * MIB);
    assert_int_equal(blk_co_discard(file.node, 3 * MIB, 61 * MIB), 0);
    file.node->driver->grow_ahead(file.node, NULL);
    assert_int_equal(host_size(&file), 64 * MIB);
    assert_int_equal(blk_co_write_zeroes(file.node, 64 * MIB, MIB, BLK_REQ_MAY_UNMAP), 0);
    assert_int_equal(host_size(&file), 65 * MIB);
    assert_int_equal(blk_co_write(file.node, 65 * MIB, buffer, 4096, 0), 0);
    assert_int_equal(host_size(&file), 65 * MIB + 4096); /* off is off */
    co_test_file_end(&file);
    free(buffer);
    return 0;
}

static void zeroes_at_the_end_count_as_written(void **state) { run_co(state, co_zeroes_test, NULL); }

static int co_truncate_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = filled(64 * KIB, 5);
    static const char *const preallocs[] = { "off", "falloc", "full" };

    co_begin_ahead(&file, disk_folder, MIB, NULL, 0);
    for (size_t i = 0; i < ARRAY_SIZE(preallocs); i++) {
        uint64_t size = blk_node_size(file.node);
        assert_int_equal(blk_co_write(file.node, size, buffer, 64 * KIB, 0), 0);
        assert_true(host_size(&file) >= size + 16 * MIB);
        size += 64 * KIB;
        /* Longer by less than was grown ahead: the file ends there, and what is new is preallocated. */
        struct stat before, after;
        assert_int_equal(stat(file.path, &before), 0);
        assert_int_equal(blk_co_truncate(file.node, size + MIB, true, preallocs[i], NULL), 0);
        assert_int_equal(stat(file.path, &after), 0);
        assert_int_equal(after.st_size, size + MIB);
        assert_int_equal(blk_node_size(file.node), size + MIB);
        assert_true((after.st_blocks - before.st_blocks) * 512 >= (i ? MIB : 0));
        co_assert_content(file.node, size, MIB, 0);
        co_assert_content(file.node, size - 64 * KIB, 64 * KIB, 5);
    }
    /* Shorter, and it grows ahead again from there. */
    uint64_t size = blk_node_size(file.node) - 512 * KIB;
    assert_int_equal(blk_co_write(file.node, blk_node_size(file.node), buffer, 64 * KIB, 0), 0);
    assert_int_equal(blk_co_truncate(file.node, size, true, "off", NULL), 0);
    assert_int_equal(host_size(&file), size);
    assert_int_equal(blk_node_size(file.node), size);
    assert_int_equal(blk_co_write(file.node, size, buffer, 64 * KIB, 0), 0);
    assert_int_equal(blk_node_size(file.node), size + 64 * KIB);
    assert_true(host_size(&file) >= size + 16 * MIB);
    co_assert_content(file.node, size, 64 * KIB, 5);
    assert_int_equal(blk_co_node_unref(file.node), 0);
    assert_int_equal(host_size(&file), size + 64 * KIB);
    unlink(file.path);
    free(file.path);
    free(buffer);
    return 0;
}

static void a_truncate_means_the_node_s_size(void **state) { run_co(state, co_truncate_test, NULL); }

/* ---- who else sees the file ---- */

static int co_perm_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = filled(64 * KIB, 5);
    const unsigned read = BLK_PERM_CONSISTENT_READ, change = BLK_PERM_WRITE | BLK_PERM_RESIZE;

    co_begin_ahead(&file, disk_folder, 0, NULL, arg ? BLK_O_NO_LOCK : 0);
    struct blk_front *front = blk_front_new("writer", file.node, read | change, read, NULL);
    assert_non_null(front);
    assert_int_equal(blk_co_write(file.node, 0, buffer, 64 * KIB, 0), 0);
    assert_true(host_size(&file) > 64 * KIB);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(host_size(&file), 64 * KIB);
    front = blk_front_new("reader", file.node, read, BLK_PERM_ALL, NULL);
    assert_non_null(front);

    /* Now somebody else writes; what is there when we are through is his. */
    int fd = open(file.path, O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, buffer, 4096, 64 * KIB), 4096);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(host_size(&file), 68 * KIB);
    assert_int_equal(ftruncate(fd, 64 * KIB), 0);

    /* Against the rules, while we write: nothing that is not ours is cut off. */
    front = blk_front_new("writer", file.node, read | change, BLK_PERM_ALL, NULL);
    assert_non_null(front);
    assert_int_equal(blk_co_write(file.node, 64 * KIB, buffer, 4096, 0), 0);
    uint64_t grown = host_size(&file);
    assert_int_equal(pwrite(fd, buffer, 4096, (off_t)grown), 4096);
    close(fd);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(host_size(&file), grown + 4096);
    co_test_file_end(&file);
    free(buffer);
    return 0;
}

static void who_stops_writing_leaves_a_file_of_its_size(void **state)
{
    run_co(state, co_perm_test, NULL);
    run_co(state, co_perm_test, "without locks");
}

/* ---- where it cannot be ---- */

static int co_limit_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = filled(64 * KIB, 5);
    struct rlimit old, limit;

    co_begin_ahead(&file, disk_folder, 0, NULL, 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = 256 * KIB;
    signal(SIGXFSZ, SIG_DFL); /* growing ahead never causes it */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(blk_co_write(file.node, 0, buffer, 64 * KIB, 0), 0);
    assert_int_equal(host_size(&file), 256 * KIB);
    assert_int_equal(blk_co_write(file.node, 192 * KIB, buffer, 64 * KIB, 0), 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(blk_co_write(file.node, 256 * KIB, buffer, 64 * KIB, 0), -EFBIG);
    assert_int_equal(blk_node_size(file.node), 256 * KIB);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(blk_co_write(file.node, 256 * KIB, buffer, 64 * KIB, 0), 0);
    assert_int_equal(blk_co_node_unref(file.node), 0);
    assert_int_equal(host_size(&file), 320 * KIB);
    unlink(file.path);
    free(file.path);
    free(buffer);
    return 0;
}

static void the_host_s_limit_is_kept(void **state) { run_co(state, co_limit_test, NULL); }

/* Past what the file system can do, and at the largest offset there is: the write's own error. */
static int co_huge_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = filled(4096, 5);

    co_begin_ahead(&file, disk_folder, MIB, NULL, 0);
    assert_int_equal(blk_co_write(file.node, INT64_MAX - 8191, buffer, 4096, 0), -EFBIG);
    assert_int_equal(blk_node_size(file.node), MIB);
    assert_int_equal(blk_co_write(file.node, MIB, buffer, 4096, 0), 0);
    assert_int_equal(blk_node_size(file.node), MIB + 4096);
    assert_int_equal(blk_co_node_unref(file.node), 0);
    assert_int_equal(host_size(&file), MIB + 4096);
    unlink(file.path);
    free(file.path);
    free(buffer);
    return 0;
}

static void past_what_a_file_can_be(void **state) { run_co(state, co_huge_test, NULL); }

static int co_not_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = filled(4096, 5);

    co_begin_ahead(&file, memory_folder, MIB, NULL, 0);
    assert_int_equal(blk_co_write(file.node, MIB, buffer, 4096, 0), 0);
    assert_int_equal(host_size(&file), MIB + 4096);
    co_test_file_end(&file);
    co_test_file_begin(&file, disk_folder, MIB, NULL, 0); /* nobody asked */
    assert_int_equal(blk_co_write(file.node, MIB, buffer, 4096, 0), 0);
    assert_int_equal(host_size(&file), MIB + 4096);
    co_test_file_end(&file);
    free(buffer);
    return 0;
}

static void not_in_memory_and_not_unasked(void **state) { run_co(state, co_not_test, NULL); }

/* ---- many loops ---- */

#define LOOPS 3u
#define DEPTH 4u /* coroutines of a loop */
#define BLOCK (256 * KIB)
#define BLOCKS_EACH 32u

struct grower {
    struct blk_node *node;
    struct loop *loop;
    unsigned index;
    atomic_uint *left;
    struct co *main;
};

static coroutine_fn void grower_co(void *arg)
{
    struct grower *g = arg;
    uint8_t *buffer = filled(BLOCK, (int)g->index + 1);

    for (unsigned i = 0; i < BLOCKS_EACH; i++) {
        uint64_t offset = ((uint64_t)i * LOOPS * DEPTH + g->index) * BLOCK;
        assert_int_equal(blk_co_write(g->node, offset, buffer, BLOCK, 0), 0);
        assert_true(blk_node_size(g->node) >= offset + BLOCK);
    }
    free(buffer);
    if (atomic_fetch_sub(g->left, 1) == 1)
        co_wake(g->main);
}

static int co_loops_test(void *arg)
{
    const struct mode *mode = arg;
    struct test_file file;
    struct grower growers[LOOPS * DEPTH];
    struct loop *loops[LOOPS];
    atomic_uint left = LOOPS * DEPTH;
    uint64_t whole = (uint64_t)BLOCKS_EACH * LOOPS * DEPTH * BLOCK;

    co_begin_ahead(&file, disk_folder, 0, mode->aio, mode->flags);
    for (unsigned i = 0; i < LOOPS; i++)
        loops[i] = loop_thread_start("grower", NULL);
    for (unsigned i = 0; i < LOOPS * DEPTH; i++) {
        growers[i] = (struct grower){ file.node, loops[i % LOOPS], i, &left, co_self() };
        co_start_on(growers[i].loop, grower_co, &growers[i]);
    }
    co_yield();
    for (unsigned i = 0; i < LOOPS; i++)
        loop_thread_stop(loops[i]);
    assert_int_equal(blk_node_size(file.node), whole);
    for (unsigned i = 0; i < BLOCKS_EACH * LOOPS * DEPTH; i++)
        co_assert_content(file.node, (uint64_t)i * BLOCK, BLOCK, (int)(i % (LOOPS * DEPTH)) + 1);
    assert_int_equal(blk_co_node_unref(file.node), 0);
    assert_int_equal(host_size(&file), whole);
    unlink(file.path);
    free(file.path);
    return 0;
}

static void loops_that_write_at_the_end_lose_nothing(void **state)
{
    static const struct mode direct = { NULL, BLK_O_DIRECT }, threads = { "threads", BLK_O_DIRECT };

    run_co(state, co_loops_test, (void *)(uintptr_t)&direct);
    run_co(state, co_loops_test, (void *)(uintptr_t)&threads);
}

/* ---- one who asked before another has grown the file ---- */

struct late {
    atomic_bool asked, grown;
};

static void wait_for_the_other(void *arg)
{
    struct late *late = arg;

    if (atomic_exchange(&late->asked, true))
        return;
    while (!atomic_load(&late->grown))
        usleep(1000);
}

static int co_late_test(void *arg)
{
    struct test_file file;
    struct late late = { 0 };
    struct loop *loop = loop_thread_start("late", NULL);
    atomic_uint left = 1;
    uint8_t *buffer = filled(BLOCK, 7);

    co_begin_ahead(&file, disk_folder, 0, NULL, 0);
    testpoint_call("file-ahead-asked", wait_for_the_other, &late);
    struct grower g = { file.node, loop, 0, &left, co_self() };
    co_start_on(loop, grower_co, &g);
    while (!atomic_load(&late.asked))
        co_sleep_ns(1000000);
    assert_int_equal(blk_co_write(file.node, 64 * MIB, buffer, BLOCK, 0), 0);
    assert_int_equal(testpoint_count("file-ahead-grow"), 1);
    atomic_store(&late.grown, true);
    co_yield();
    loop_thread_stop(loop);
    /* The late one's 96 MiB lie within what the other made, 80 MiB, but for the last ones. */
    assert_int_equal(testpoint_count("file-ahead-grow"), 2);
    testpoint_reset();
    free(buffer);
    co_test_file_end(&file);
    return 0;
}

static void who_asked_before_another_grew_does_not_grow_again(void **state) { run_co(state, co_late_test, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(the_host_sees_a_longer_file_and_the_node_does_not),
        LOOP_TEST(zeroes_at_the_end_count_as_written),
        LOOP_TEST(a_truncate_means_the_node_s_size),
        LOOP_TEST(who_stops_writing_leaves_a_file_of_its_size),
        LOOP_TEST(the_host_s_limit_is_kept),
        LOOP_TEST(past_what_a_file_can_be),
        LOOP_TEST(not_in_memory_and_not_unasked),
        LOOP_TEST(loops_that_write_at_the_end_lose_nothing),
        LOOP_TEST(who_asked_before_another_grew_does_not_grow_again),
    };

    if (image_tests_begin() < 0)
        return 1;
    if (on_tmpfs(disk_folder)) {
        puts("needs a test folder that is not on tmpfs");
        return image_tests_end(77);
    }
    return image_tests_end(run_on_both_backends(tests));
}
