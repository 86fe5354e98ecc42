/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file driver where the host's calls fail, are cut short or interrupted, or do not exist, and how often it makes
 * them: flushes by cache mode, zeroes without fallocate().
 *
 * This program has its own preadv2, pwritev2, pwrite, fdatasync and fallocate, in front of the C library's, which the
 * path through the workers calls.
 */
#include "file.h"

#include <linux/falloc.h>
#include <sys/syscall.h>
#include <sys/uio.h>

/* ---- the host's calls, with faults ---- */

static struct {
    atomic_int next_error;   /* the next transfer fails with this errno */
    atomic_int shorten;      /* that many transfers are cut to 512 bytes */
    atomic_int sync_error;   /* every fdatasync fails with this errno */
    atomic_int fill_error;   /* every pwrite fails with this errno */
    atomic_int no_fallocate; /* modes (bits) that are -EOPNOTSUPP; ALLOCATE_BIT for mode 0 */
    atomic_int syncs, dsync_writes, fallocates;
} host;
#define ALLOCATE_BIT (1 << 20)

static bool take(atomic_int *count)
{
    int now = atomic_load(count);

    return now > 0 && atomic_fetch_sub(count, 1) > 0;
}

static ssize_t transfer(long number, int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    int error = atomic_exchange(&host.next_error, 0);
    struct iovec first = iov[0];

    if (error) {
        errno = error;
        return -1;
    }
    if (take(&host.shorten)) {
        first.iov_len = MIN(first.iov_len, (size_t)512);
        iov = &first;
        count = 1;
    }
    return syscall(number, fd, iov, count, offset, 0L, flags);
}

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return transfer(SYS_preadv2, fd, iov, count, offset, flags);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    if (flags & RWF_DSYNC)
        host.dsync_writes++;
    return transfer(SYS_pwritev2, fd, iov, count, offset, flags);
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
    if (host.fill_error) {
        errno = host.fill_error;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, buffer, length, offset);
}

int fdatasync(int fd)
{
    host.syncs++;
    if (host.sync_error) {
        errno = host.sync_error;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    host.fallocates++;
    if ((mode ? mode & ~FALLOC_FL_KEEP_SIZE : ALLOCATE_BIT) & host.no_fallocate) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

/* Runs a test's coroutine on a host without faults. */
static void run(void **state, int (*fn)(void *arg), void *arg)
{
    memset(&host, 0, sizeof(host));
    run_co(state, fn, arg);
}

/* ---- faults, in the workers ---- */

static int co_fault_test(void *arg)
{
    struct test_file file;
    uint8_t buffer[8192], back[8192];
    struct iovec iov[3] = { { buffer, 100 }, { buffer + 100, 3000 }, { buffer + 3100, 5092 } };

    co_test_file_begin(&file, disk_folder, MIB, "threads", BLK_O_UNMAP);
    struct blk_node *node = file.node;
    for (unsigned i = 0; i < sizeof(buffer); i++)
        buffer[i] = (uint8_t)(i * 31 % 251);
    host.shorten = 20;
    assert_int_equal(blk_co_writev(node, 4096, 8192, iov, 3, 0), 0);
    host.shorten = 20;
    assert_int_equal(blk_co_read(node, 4096, back, 8192), 0);
    assert_true(host.shorten < 20);
    assert_memory_equal(buffer, back, 8192);

    static const int passing[] = { EINTR, EAGAIN };
    for (size_t i = 0; i < ARRAY_SIZE(passing); i++) {
        host.shorten = 0;
        host.next_error = passing[i];
        memset(back, 0, sizeof(back));
        assert_int_equal(blk_co_read(node, 4096, back, 8192), 0);
        assert_int_equal(host.next_error, 0);
        assert_memory_equal(buffer, back, 8192);
    }
    static const int lasting[] = { EIO, ENOSPC, EDQUOT };
    for (size_t i = 0; i < ARRAY_SIZE(lasting); i++) {
        host.next_error = lasting[i];
        assert_int_equal(blk_co_write(node, 4096, buffer, 4096, 0), -lasting[i]);
    }

    host.dsync_writes = 0;
    assert_int_equal(blk_co_write(node, 0, buffer, 512, BLK_REQ_FUA), 0);
    assert_int_equal(host.dsync_writes, 1);
    assert_int_equal(blk_co_write(node, 0, buffer, 512, 0), 0);
    assert_int_equal(host.dsync_writes, 1);
    host.syncs = 0;
    assert_int_equal(blk_co_write_zeroes(node, 0, 4096, BLK_REQ_FUA), 0);
    assert_int_equal(host.syncs, 1);

    /* A failed fdatasync() loses the dirty marks: no later flush may claim success. */
    host.sync_error = EIO;
    assert_int_equal(blk_co_flush(node), -EIO);
    host.sync_error = 0;
    assert_int_equal(blk_co_flush(node), -EIO);
    co_test_file_end(&file);
    return 0;
}

/* A write that is synchronous syncs the file: it may be told of another write's loss, and the kernel says that once. */
static int co_synchronous_write_test(void *arg)
{
    static const struct {
        unsigned flags, request;
        int error, flush;
    } cases[] = {
        { 0, BLK_REQ_FUA, EIO, -EIO }, { BLK_O_DSYNC, 0, EIO, -EIO },           { 0, 0, EIO, 0 },
        { 0, BLK_REQ_FUA, ENOSPC, 0 }, { BLK_O_NO_FLUSH, BLK_REQ_FUA, EIO, 0 }, { BLK_O_DIRECT, BLK_REQ_FUA, EIO, 0 },
    };
    uint8_t *buffer = aligned_alloc(4096, 4096);

    memset(buffer, 1, 4096);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct test_file file;
        co_test_file_begin(&file, disk_folder, MIB, "threads", cases[i].flags);
        host.next_error = cases[i].error;
        assert_int_equal(blk_co_write(file.node, 0, buffer, 4096, cases[i].request), -cases[i].error);
        assert_int_equal(blk_co_write(file.node, 0, buffer, 4096, cases[i].request), 0);
        assert_int_equal(blk_co_flush(file.node), cases[i].flush);
        co_test_file_end(&file);
    }
    free(buffer);
    return 0;
}

static void a_failed_synchronous_write_fails_every_flush(void **state) { run(state, co_synchronous_write_test, NULL); }

static void short_interrupted_and_failed_calls(void **state) { run(state, co_fault_test, NULL); }

/* Each fallocate mode that is missing is asked for once, and the bytes are zero all the same. */
static int co_missing_modes_test(void *arg)
{
    int missing = *(int *)arg;
    struct test_file file;
    uint8_t buffer[65536], back[65536];
    struct stat st;

    co_test_file_begin(&file, disk_folder, MIB, "threads", BLK_O_UNMAP);
    struct blk_node *node = file.node;
    host.no_fallocate = missing;
    for (int round = 0; round < 2; round++) {
        int asked = host.fallocates;
        memset(buffer, 0x77, sizeof(buffer));
        assert_int_equal(blk_co_write(node, 0, buffer, sizeof(buffer), 0), 0);
        assert_int_equal(blk_co_write_zeroes(node, 4096, 8192, 0), 0);
        assert_int_equal(blk_co_write_zeroes(node, 32768, 4096, BLK_REQ_MAY_UNMAP), 0);
        assert_int_equal(blk_co_discard(node, 40960, 4096), 0);
        memset(buffer + 4096, 0, 8192);
        memset(buffer + 32768, 0, 4096);
        assert_int_equal(blk_co_read(node, 0, back, sizeof(back)), 0);
        memcpy(buffer + 40960, back + 40960, 4096);
        assert_memory_equal(buffer, back, sizeof(back));
        if (missing == (FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE | ALLOCATE_BIT) && round == 1)
            assert_int_equal(host.fallocates, asked);
    }
    /* Growing by zeroes, too. */
    assert_int_equal(blk_co_write_zeroes(node, 2 * MIB, 65536, BLK_REQ_MAY_UNMAP), 0);
    assert_int_equal(stat(file.path, &st), 0);
    assert_int_equal(st.st_size, 2 * MIB + 65536);
    co_test_file_end(&file);
    return 0;
}

static void missing_fallocate_modes_fall_back(void **state)
{
    static const int bits[] = { FALLOC_FL_ZERO_RANGE, FALLOC_FL_PUNCH_HOLE, ALLOCATE_BIT };

    for (int set = 0; set < 8; set++) {
        int missing = (set & 1 ? bits[0] : 0) | (set & 2 ? bits[1] : 0) | (set & 4 ? bits[2] : 0);
        run(state, co_missing_modes_test, &missing);
    }
}

/* ---- flushes by cache mode ---- */

static int co_flush_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = aligned_alloc(4096, 4096);
    static const struct {
        unsigned flags;
        int syncs;
    } cases[] = {
        { 0, 3 },
        { BLK_O_DIRECT, 3 },
        { BLK_O_NO_FLUSH, 0 },
        { BLK_O_DSYNC, 1 },
        { BLK_O_DIRECT | BLK_O_DSYNC, 1 }, /* what was in the cache before the open, once */
    };

    memset(buffer, 1, 4096);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        co_test_file_begin(&file, disk_folder, MIB, "threads", cases[i].flags);
        struct blk_node *node = file.node;
        host.syncs = host.dsync_writes = 0;
        for (int n = 0; n < 3; n++) {
            assert_int_equal(blk_co_write(node, 0, buffer, 4096, BLK_REQ_FUA), 0);
            assert_int_equal(blk_co_flush(node), 0);
        }
        assert_int_equal(host.syncs, cases[i].syncs);
        assert_int_equal(host.dsync_writes, cases[i].flags & (BLK_O_DSYNC | BLK_O_NO_FLUSH) ? 0 : 3);
        /* fallocate() knows nothing of O_DSYNC. */
        host.syncs = 0;
        assert_int_equal(blk_co_write_zeroes(node, 0, 4096, 0), 0);
        assert_int_equal(host.syncs, cases[i].flags & BLK_O_DSYNC ? 1 : 0);
        co_test_file_end(&file);
    }
    free(buffer);
    return 0;
}

static void flushes_reach_the_disk_as_the_cache_mode_says(void **state) { run(state, co_flush_test, NULL); }

/* ---- the mapped path ---- */

/* The mapped path, too, falls back where the host can neither zero nor discard. */
static int co_fallback_test(void *arg)
{
    struct test_file file;
    uint8_t buffer[8192];

    co_test_file_begin(&file, disk_folder, MIB, "threads", BLK_O_UNMAP);
    struct blk_front *front = test_front(file.node);
    memset(buffer, 9, sizeof(buffer));
    assert_int_equal(blk_front_co_write(front, 0, buffer, 8192, 0), 0);
    host.no_fallocate = FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE | ALLOCATE_BIT;
    static const enum blk_op ops[] = { BLK_OP_WRITE_ZEROES, BLK_OP_DISCARD };
    for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
        struct blk_request request = { .op = ops[i], .offset = 0, .length = 4096 };
        assert_int_equal(co_test_submit(front, &request), 0);
    }
    assert_int_equal(blk_front_co_read(front, 0, buffer, 8192), 0);
    assert_true(buffer[0] == 0 && buffer[4095] == 0 && buffer[4096] == 9);
    struct blk_request request = { .op = BLK_OP_WRITE_ZEROES, .flags = BLK_REQ_NO_FALLBACK, .length = 4096 };
    assert_int_equal(co_test_submit(front, &request), -ENOTSUP);
    assert_int_equal(blk_co_front_free(front), 0);
    co_test_file_end(&file);
    return 0;
}

static void unsupported_requests_fall_back(void **state) { run(state, co_fallback_test, NULL); }

/* ---- resizing ---- */

static int co_resize_test(void *arg)
{
    struct test_file file;
    struct error *error = NULL;
    struct stat st;

    /* A preallocation that fails half way puts the old size back. */
    co_test_file_begin(&file, disk_folder, MIB, "threads", 0);
    host.fill_error = ENOSPC;
    assert_int_equal(blk_co_truncate(file.node, 3 * MIB, true, "full", &error), -ENOSPC);
    host.fill_error = 0;
    assert_error(&error, "Could not write zeros for preallocation: No space left on device");
    assert_int_equal(stat(file.path, &st), 0);
    assert_int_equal(st.st_size, MIB);
    assert_int_equal(blk_node_size(file.node), MIB);
    host.syncs = 0;
    assert_int_equal(blk_co_truncate(file.node, 2 * MIB, true, "off", NULL), 0);
    assert_int_equal(host.syncs, 0);
    co_test_file_end(&file);

    /* With O_DSYNC the new size is on disk. */
    co_test_file_begin(&file, disk_folder, MIB, "threads", BLK_O_DSYNC);
    host.syncs = 0;
    assert_int_equal(blk_co_truncate(file.node, 2 * MIB, true, "off", NULL), 0);
    assert_int_equal(host.syncs, 1);
    host.sync_error = EIO;
    assert_int_equal(blk_co_truncate(file.node, 3 * MIB, true, "off", &error), -EIO);
    host.sync_error = 0;
    assert_error(&error, "Could not flush the new size: Input/output error");
    co_test_file_end(&file);
    return 0;
}

static void resizes_fail_as_a_whole_and_are_durable(void **state) { run(state, co_resize_test, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(short_interrupted_and_failed_calls), LOOP_TEST(a_failed_synchronous_write_fails_every_flush),
        LOOP_TEST(missing_fallocate_modes_fall_back),  LOOP_TEST(flushes_reach_the_disk_as_the_cache_mode_says),
        LOOP_TEST(unsupported_requests_fall_back),     LOOP_TEST(resizes_fail_as_a_whole_and_are_durable),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
