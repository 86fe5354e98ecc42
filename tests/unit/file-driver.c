/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file driver against a model, on a disk and on tmpfs, in all cache modes, by ring, by workers, and without
 * io_uring at all; then its edges: the end of the file, growth, short transfers, what the host does not support,
 * errors in words.
 *
 * This program has its own preadv2, pwritev2, fdatasync and fallocate, in front of the C library's: the path through
 * the workers can be made to see short transfers, interruptions and failures, and calls are counted.
 */
#include "image.h"
#include "model.h"

#include <base/checked.h>
#include <linux/falloc.h>
#include <sys/mount.h>
#include <sys/syscall.h>

/* ---- the host's calls, with faults ---- */

static struct {
    atomic_int next_error;   /* the next transfer fails with this errno */
    atomic_int shorten;      /* that many transfers are cut to 512 bytes */
    atomic_int sync_error;   /* every fdatasync fails with this errno */
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

/* ---- set-up ---- */

struct mode {
    const char *name;
    const char *folder;
    const char *aio;
    unsigned flags;
};

static coroutine_fn struct blk_node *co_open(const char *path, const char *aio, unsigned flags, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "file");
    opts_set(opts, "filename", path);
    if (aio)
        opts_set(opts, "aio", aio);
    struct blk_node *node = blk_co_open(NULL, opts, flags, errp);
    opts_free(opts);
    return node;
}

/* Runs a test's coroutine with the arguments it wants in `arg`. */
static void run(void **state, int (*fn)(void *arg), void *arg)
{
    memset(&host, 0, sizeof(host));
    assert_int_equal(co_run(test_loop(state), fn, arg), 0);
}

/* ---- the model ---- */

static int co_model_test(void *arg)
{
    const struct mode *mode = arg;
    char *path = path_in(mode->folder, "model");
    struct model m;
    uint8_t *content = xcalloc(1, MODEL_MAX);

    model_init(&m, MIB, true);
    make_file(path, m.size);
    struct blk_node *node = co_open(path, mode->aio, mode->flags | BLK_O_RDWR | BLK_O_UNMAP, NULL);
    assert_non_null(node);
    co_model_steps(&m, node, 400);
    assert_int_equal(blk_co_node_unref(node), 0);

    int fd = open(path, O_RDONLY);
    ssize_t got = read(fd, content, MODEL_MAX);
    close(fd);
    assert_true(got > 0 && align_up((uint64_t)got, 512) <= align_up(m.size, 4096));
    assert_memory_equal(content, m.data, MODEL_MAX);
    unlink(path);
    free(path);
    model_finish(&m);
    free(content);
    return 0;
}

static void random_operations_match_the_model(void **state)
{
    static const unsigned caches[] = { 0, BLK_O_DIRECT, BLK_O_DSYNC, BLK_O_DIRECT | BLK_O_DSYNC, BLK_O_NO_FLUSH };
    static const char *const aios[] = { "io_uring", "threads" };
    const char *const folders[] = { disk_folder, memory_folder };

    model_seed();
    for (size_t f = 0; f < ARRAY_SIZE(folders); f++) {
        for (size_t a = 0; a < ARRAY_SIZE(aios); a++) {
            for (size_t c = 0; c < ARRAY_SIZE(caches); c++) {
                struct mode mode = { .folder = folders[f], .aio = aios[a], .flags = caches[c] };
                run(state, co_model_test, &mode);
            }
        }
    }
}

/* ---- the end of the file ---- */

static int co_end_test(void *arg)
{
    const struct mode *mode = arg;
    char *path = path_in(mode->folder, "end");
    uint8_t *buffer = aligned_alloc(4096, 8192);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    memset(buffer, 7, 1000);
    assert_int_equal(write(fd, buffer, 1000), 1000);
    close(fd);
    struct blk_node *node = co_open(path, mode->aio, mode->flags | BLK_O_RDWR, NULL);
    assert_non_null(node);
    assert_int_equal(blk_node_size(node), 1024);
    memset(buffer, 0xff, 8192);
    assert_int_equal(blk_co_read(node, 0, buffer, 8192), 0);
    for (int i = 0; i < 8192; i++)
        assert_int_equal(buffer[i], i < 1000 ? 7 : 0);
    memset(buffer, 0xff, 8192);
    assert_int_equal(blk_co_read(node, 1000, buffer, 24), 0);
    assert_true(buffer[0] == 0 && buffer[23] == 0 && buffer[24] == 0xff);

    buffer[0] = 9;
    assert_int_equal(blk_co_write(node, 5000, buffer, 1, 0), 0);
    assert_true(blk_node_size(node) >= 5120);
    assert_int_equal(blk_co_read(node, 4990, buffer, 20), 0);
    assert_true(buffer[9] == 0 && buffer[10] == 9 && buffer[11] == 0);
    assert_int_equal(blk_co_write_zeroes(node, 64 * KIB, 64 * KIB, BLK_REQ_MAY_UNMAP), 0);
    assert_int_equal(blk_node_size(node), 128 * KIB);
    assert_int_equal(blk_co_write_zeroes(node, 256 * KIB, 64 * KIB, 0), 0);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 320 * KIB);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    free(buffer);
    return 0;
}

static void reads_past_the_end_are_zero_and_writes_grow(void **state)
{
    const char *const folders[] = { disk_folder, memory_folder };

    for (int i = 0; i < 8; i++) {
        struct mode mode = { .folder = folders[i & 1],
                             .aio = i & 2 ? "threads" : "io_uring",
                             .flags = i & 4 ? BLK_O_DIRECT : 0 };
        run(state, co_end_test, &mode);
    }
}

/* Vectors that the kernel would refuse as they are, and a transfer that it cuts into pieces. */
static int co_many_vectors(void *arg)
{
    const struct mode *mode = arg;
    enum { COUNT = 3000 };
    char *path = path_in(mode->folder, "vectors");
    uint8_t *buffer = xmalloc(COUNT * 7);
    struct iovec *iov = xcalloc(COUNT, sizeof(*iov));

    make_file(path, 0);
    struct blk_node *node = co_open(path, mode->aio, BLK_O_RDWR, NULL);
    assert_non_null(node);
    for (int i = 0; i < COUNT; i++) {
        iov[i] = (struct iovec){ buffer + 7 * i, 7 };
        memset(buffer + 7 * i, i % 251, 7);
    }
    assert_int_equal(blk_co_writev(node, 11, COUNT * 7, iov, COUNT, 0), 0);
    memset(buffer, 0xff, COUNT * 7);
    assert_int_equal(blk_co_readv(node, 11, COUNT * 7, iov, COUNT), 0);
    for (int i = 0; i < COUNT * 7; i++)
        assert_int_equal(buffer[i], i / 7 % 251);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    free(iov);
    free(buffer);
    return 0;
}

static void requests_may_have_any_number_of_vectors(void **state)
{
    struct mode ring = { .folder = disk_folder, .aio = "io_uring" },
                threads = { .folder = disk_folder, .aio = "threads" };

    run(state, co_many_vectors, &ring);
    run(state, co_many_vectors, &threads);
}

/* ---- faults, in the workers ---- */

static int co_fault_test(void *arg)
{
    char *path = path_in(disk_folder, "faults");
    uint8_t buffer[8192], back[8192];
    struct iovec iov[3] = { { buffer, 100 }, { buffer + 100, 3000 }, { buffer + 3100, 5092 } };

    make_file(path, MIB);
    struct blk_node *node = co_open(path, "threads", BLK_O_RDWR | BLK_O_UNMAP, NULL);
    assert_non_null(node);
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
    blk_co_node_unref(node);
    unlink(path);
    free(path);
    return 0;
}

static void short_interrupted_and_failed_calls(void **state) { run(state, co_fault_test, NULL); }

/* Each fallocate mode that is missing is asked for once, and the bytes are zero all the same. */
static int co_missing_modes_test(void *arg)
{
    int missing = *(int *)arg;
    char *path = path_in(disk_folder, "missing");
    uint8_t buffer[65536], back[65536];

    make_file(path, MIB);
    struct blk_node *node = co_open(path, "threads", BLK_O_RDWR | BLK_O_UNMAP, NULL);
    assert_non_null(node);
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
    assert_int_equal(blk_co_node_unref(node), 0);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 2 * MIB + 65536);
    unlink(path);
    free(path);
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
    char *path = path_in(disk_folder, "flush");
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
    make_file(path, MIB);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct blk_node *node = co_open(path, "threads", cases[i].flags | BLK_O_RDWR, NULL);
        assert_non_null(node);
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
        assert_int_equal(blk_co_node_unref(node), 0);
    }
    unlink(path);
    free(path);
    free(buffer);
    return 0;
}

static void flushes_reach_the_disk_as_the_cache_mode_says(void **state) { run(state, co_flush_test, NULL); }

/* ---- sizes, creation, holes ---- */

static coroutine_fn int co_create_file(const char *path, uint64_t size, const char *options, struct error **errp)
{
    struct opts *opts = opts_new();

    assert_int_equal(opts_parse(opts, options, NULL, 0, NULL), 0);
    int ret = blk_co_create("file", path, opts, size, errp);
    opts_free(opts);
    return ret;
}

static int co_create_test(void *arg)
{
    char *path = path_in(disk_folder, "created");
    struct error *error = NULL;
    struct stat st;

    assert_int_equal(co_create_file(path, MIB, "", &error), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, MIB);
    assert_true(st.st_blocks * 512 < 64 * (long)KIB);
    static const char *const modes[] = { "preallocation=falloc", "preallocation=full" };
    for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
        assert_int_equal(co_create_file(path, MIB + 1000, modes[i], &error), 0);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, MIB + 1000);
        assert_true(st.st_blocks * 512 >= MIB);
    }
    unlink(path);
    assert_int_equal(co_create_file(path, MIB, "preallocation=bogus", &error), -EINVAL);
    assert_error(&error, "invalid parameter value: bogus");
    assert_int_equal(co_create_file(path, MIB, "preallocation=metadata", &error), -ENOTSUP);
    assert_error(&error, "Unsupported preallocation mode: metadata");
    assert_int_equal(co_create_file(path, MIB, "extent_size_hint=5G", &error), -EINVAL);
    assert_error(&error, "Extent size hint is too large");
    assert_true(co_create_file(path, 1ull << 62, "", &error) < 0); /* too large for ext4 */
    assert_non_null(error);
    error_free(error);
    error = NULL;
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(co_create_file("/nonexistent-folder/x", MIB, "", &error), -ENOENT);
    assert_error(&error, "Could not create '/nonexistent-folder/x': No such file or directory");
    assert_true(co_create_file(disk_folder, MIB, "", &error) < 0);
    char *text = xasprintf("Could not create '%s': Is a directory", disk_folder);
    assert_error(&error, text);
    free(text);
    free(path);
    return 0;
}

static void creating_files(void **state) { run(state, co_create_test, NULL); }

static int co_truncate_test(void *arg)
{
    char *path = path_in(disk_folder, "truncated");
    uint8_t buffer[4096];
    struct error *error = NULL;
    struct stat st;

    make_file(path, MIB);
    for (int i = 0; i < 2; i++) {
        struct blk_node *node = co_open(path, NULL, BLK_O_RDWR | (i ? BLK_O_DIRECT : 0), NULL);
        assert_non_null(node);
        assert_int_equal(blk_co_truncate(node, 2 * MIB, true, "off", &error), 0);
        assert_int_equal(blk_node_size(node), 2 * MIB);
        assert_int_equal(blk_co_truncate(node, MIB, false, "off", &error), 0); /* may stay larger */
        assert_int_equal(blk_node_size(node), 2 * MIB);
        assert_int_equal(blk_co_truncate(node, MIB, true, "full", &error), -ENOTSUP);
        error_free(error);
        error = NULL;
        assert_int_equal(blk_co_truncate(node, 2 * MIB + 100, true, "full", &error), 0);
        assert_int_equal(blk_node_size(node), 2 * MIB + 512);
        assert_int_equal(blk_co_truncate(node, 4 * MIB, true, "falloc", &error), 0);
        assert_int_equal(stat(path, &st), 0);
        assert_true(st.st_blocks * 512 >= 2 * MIB);
        assert_int_equal(st.st_size, 4 * MIB);
        memset(buffer, 3, sizeof(buffer));
        assert_int_equal(blk_co_write(node, 3 * MIB, buffer, 4096, 0), 0);
        assert_int_equal(blk_co_truncate(node, 3 * MIB + 512, true, "off", &error), 0);
        assert_int_equal(blk_co_truncate(node, 4 * MIB, true, "off", &error), 0);
        assert_int_equal(blk_co_read(node, 3 * MIB, buffer, 4096), 0);
        assert_true(buffer[511] == 3 && buffer[512] == 0 && buffer[4095] == 0);
        assert_int_equal(blk_co_truncate(node, MIB, true, "off", &error), 0);
        assert_int_equal(blk_co_node_unref(node), 0);
    }
    unlink(path);
    free(path);
    return 0;
}

static void growing_and_shrinking(void **state) { run(state, co_truncate_test, NULL); }

static int co_extent_test(void *arg)
{
    const char *folder = arg;
    char *path = path_in(folder, "holes");
    uint8_t *buffer = xcalloc(1, 64 * KIB);
    struct blk_extent extent;

    make_file(path, MIB + 100);
    struct blk_node *node = co_open(path, NULL, BLK_O_RDWR | BLK_O_UNMAP, NULL);
    assert_non_null(node);
    memset(buffer, 1, 64 * KIB);
    assert_int_equal(blk_co_write(node, 128 * KIB, buffer, 64 * KIB, 0), 0);
    static const struct {
        uint64_t offset, length;
        enum blk_kind kind;
    } expected[] = { { 0, 128 * KIB, BLK_ZERO },
                     { 128 * KIB, 64 * KIB, BLK_DATA },
                     { 192 * KIB, 832 * KIB + 512, BLK_ZERO } };
    for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
        assert_int_equal(blk_co_map(node, expected[i].offset, 4 * MIB, &extent), 0);
        assert_int_equal(extent.kind, expected[i].kind);
        assert_int_equal(extent.length, expected[i].length);
    }
    assert_true(extent.flags & BLK_EXTENT_EOF);
    assert_int_equal(blk_co_map(node, 150 * KIB, 1000, &extent), 0);
    assert_true(extent.kind == BLK_DATA && extent.length == 1000);
    assert_int_equal(blk_co_discard(node, 128 * KIB, 64 * KIB), 0);
    assert_int_equal(blk_co_map(node, 0, 4 * MIB, &extent), 0);
    assert_true(extent.kind == BLK_ZERO && extent.length == MIB + 512);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    free(buffer);
    return 0;
}

static void holes_are_seen(void **state)
{
    run(state, co_extent_test, disk_folder);
    run(state, co_extent_test, memory_folder);
}

/* ---- what is refused ---- */

static coroutine_fn void co_refused(const char *path, const char *aio, unsigned flags, const char *fmt)
{
    struct error *error = NULL;
    char *text = xasprintf(fmt, path); // NOLINT: the format is the test's own

    assert_null(co_open(path, aio, flags, &error));
    assert_error(&error, text);
    free(text);
}

static int co_refusal_test(void *arg)
{
    char *path = path_in(disk_folder, "missing"), *fifo = path_in(disk_folder, "fifo"),
         *file = path_in(disk_folder, "file");
    struct error *error = NULL;

    co_refused(path, NULL, 0, "Could not open '%s': No such file or directory");
    co_refused(disk_folder, NULL, BLK_O_RDWR, "Could not open '%s': Is a directory");
    co_refused(disk_folder, NULL, 0, "'file' driver requires '%s' to be a regular file");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    co_refused(fifo, NULL, 0, "'file' driver requires '%s' to be a regular file");
    co_refused(fifo, NULL, BLK_O_RDWR, "'file' driver requires '%s' to be a regular file");
    co_refused("/dev/null", NULL, 0, "'file' driver requires '%s' to be a regular file");
    co_refused("/proc/version", NULL, BLK_O_DIRECT, "Could not open '%s': filesystem does not support O_DIRECT");
    co_refused("", NULL, 0, "The 'file' block driver requires a file name%.0s");
    make_file(file, MIB);
    co_refused(file, "native", 0,
               "aio=native was specified, but it requires cache.direct=on, which was not specified.%.0s");
    co_refused(file, "bogus", 0, "invalid parameter value: bogus%.0s");

    assert_null(co_open("/proc/version", NULL, BLK_O_DIRECT, &error));
    assert_string_equal(error_hint_text(error), "cache modes that work there: writeback, writethrough, unsafe");
    error_free(error);
    unlink(fifo);
    unlink(file);
    free(path);
    free(fifo);
    free(file);
    return 0;
}

static void what_is_not_an_image_is_refused_in_words(void **state) { run(state, co_refusal_test, NULL); }

static int co_full_test(void *arg)
{
    const char *folder = arg;
    char *path = path_in(folder, "x");
    uint8_t *buffer = xmalloc(MIB);
    static const char *const aios[] = { "io_uring", "threads" };

    memset(buffer, 1, MIB);
    for (size_t i = 0; i < ARRAY_SIZE(aios); i++) {
        make_file(path, 8 * MIB);
        struct blk_node *node = co_open(path, aios[i], BLK_O_RDWR, NULL);
        assert_non_null(node);
        int ret = 0;
        for (unsigned at = 0; at < 4 && ret == 0; at++)
            ret = blk_co_write(node, at * MIB, buffer, MIB, 0);
        assert_int_equal(ret, -ENOSPC);
        struct error *error = NULL;
        assert_int_equal(blk_co_truncate(node, 16 * MIB, true, "falloc", &error), -ENOSPC);
        assert_error(&error, "Could not preallocate new data: No space left on device");
        assert_int_equal(blk_node_size(node), 8 * MIB);
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, 8 * MIB);
        assert_int_equal(blk_co_node_unref(node), 0);
    }
    unlink(path);
    free(path);
    free(buffer);
    return 0;
}

static void a_full_file_system_is_enospc(void **state)
{
    char folder[] = "/tmp/vmm-full-XXXXXX";

    assert_non_null(mkdtemp(folder));
    if (mount("none", folder, "tmpfs", 0, "size=2m") < 0) {
        print_message("needs to mount a tmpfs: %s\n", strerror(errno));
        rmdir(folder);
        skip();
    }
    run(state, co_full_test, folder);
    assert_int_equal(umount(folder), 0);
    rmdir(folder);
}

/* ---- the mapped path ---- */

struct bench {
    struct blk_front *front;
    struct blk_request request;
    struct iovec iov;
    int left;
    struct co *co;
};

static void bench_done(struct blk_request *request, int result)
{
    struct bench *bench = container_of(request, struct bench, request);

    assert_int_equal(result, 0);
    if (--bench->left == 0)
        co_wake(bench->co);
    else
        blk_submit(bench->front, request);
}

static int co_mapped_test(void *arg)
{
    char *path = path_in(disk_folder, "mapped");
    struct bench bench = { .left = 1000, .co = co_self() };
    uint8_t *buffer = aligned_alloc(4096, 4096);
    struct blk_stats stats;

    make_file(path, MIB);
    struct blk_node *node = co_open(path, NULL, BLK_O_RDWR | BLK_O_DIRECT, NULL);
    assert_non_null(node);
    bench.front = blk_front_new("test", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL, NULL);
    assert_non_null(bench.front);
    memset(buffer, 5, 4096);
    bench.iov = (struct iovec){ buffer, 4096 };
    bench.request = (struct blk_request){
        .op = BLK_OP_WRITE, .offset = 8192, .length = 4096, .iov = &bench.iov, .iov_count = 1, .done = bench_done
    };
    uint64_t coroutines = co_count_started();
    blk_submit(bench.front, &bench.request);
    co_yield();
    assert_int_equal(co_count_started(), coroutines);
    blk_front_stats(bench.front, &stats);
    assert_int_equal(stats.mapped, 1000);
    assert_int_equal(stats.slow, 0);
    assert_int_equal(blk_co_front_free(bench.front), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    free(buffer);
    return 0;
}

static void plain_requests_need_no_coroutine(void **state) { run(state, co_mapped_test, NULL); }

struct single {
    struct blk_request request;
    struct co *co;
    int result;
};

static void single_done(struct blk_request *request, int result)
{
    struct single *single = container_of(request, struct single, request);

    single->result = result;
    co_wake(single->co);
}

/* The mapped path, too, falls back where the host can neither zero nor discard. */
static int co_fallback_test(void *arg)
{
    char *path = path_in(disk_folder, "fallback");
    uint8_t buffer[8192];
    struct single single = { .co = co_self() };

    make_file(path, MIB);
    struct blk_node *node = co_open(path, "threads", BLK_O_RDWR | BLK_O_UNMAP, NULL);
    struct blk_front *front = blk_front_new("test", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL,
                                            NULL);
    assert_non_null(front);
    memset(buffer, 9, sizeof(buffer));
    assert_int_equal(blk_front_co_write(front, 0, buffer, 8192, 0), 0);
    host.no_fallocate = FALLOC_FL_ZERO_RANGE | FALLOC_FL_PUNCH_HOLE | ALLOCATE_BIT;
    static const enum blk_op ops[] = { BLK_OP_WRITE_ZEROES, BLK_OP_DISCARD };
    for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
        single.request = (struct blk_request){ .op = ops[i], .offset = 0, .length = 4096, .done = single_done };
        blk_submit(front, &single.request);
        co_yield();
        assert_int_equal(single.result, 0);
    }
    assert_int_equal(blk_front_co_read(front, 0, buffer, 8192), 0);
    assert_true(buffer[0] == 0 && buffer[4095] == 0 && buffer[4096] == 9);
    single.request = (struct blk_request){
        .op = BLK_OP_WRITE_ZEROES, .flags = BLK_REQ_NO_FALLBACK, .length = 4096, .done = single_done
    };
    blk_submit(front, &single.request);
    co_yield();
    assert_int_equal(single.result, -ENOTSUP);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    return 0;
}

/* Straight from a front end, more vectors than the kernel takes in one call. */
static int co_front_vectors_test(void *arg)
{
    enum { COUNT = 2500 };
    char *path = path_in(disk_folder, "front-vectors");
    uint8_t *buffer = xmalloc(COUNT * 16);
    struct iovec *iov = xcalloc(COUNT, sizeof(*iov));
    struct single single = { .co = co_self() };

    make_file(path, MIB);
    struct blk_node *node = co_open(path, arg, BLK_O_RDWR, NULL);
    struct blk_front *front = blk_front_new("test", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL,
                                            NULL);
    assert_non_null(front);
    for (unsigned i = 0; i < COUNT; i++) {
        iov[i] = (struct iovec){ buffer + 16 * i, 16 };
        memset(buffer + 16 * i, (int)(i % 251), 16);
    }
    for (int i = 0; i < 2; i++) {
        single.request = (struct blk_request){ .op = i ? BLK_OP_READ : BLK_OP_WRITE,
                                               .length = COUNT * 16,
                                               .iov = iov,
                                               .iov_count = COUNT,
                                               .done = single_done };
        blk_submit(front, &single.request);
        co_yield();
        assert_int_equal(single.result, 0);
        for (unsigned n = 0; n < COUNT; n++)
            assert_true(buffer[16 * n] == n % 251 && buffer[16 * n + 15] == n % 251);
        memset(buffer, 0xff, COUNT * 16);
    }
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    free(iov);
    free(buffer);
    return 0;
}

static void front_ends_may_use_any_number_of_vectors(void **state)
{
    run(state, co_front_vectors_test, "io_uring");
    run(state, co_front_vectors_test, "threads");
}

static void unsupported_requests_fall_back(void **state) { run(state, co_fallback_test, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(random_operations_match_the_model),
        LOOP_TEST(reads_past_the_end_are_zero_and_writes_grow),
        LOOP_TEST(requests_may_have_any_number_of_vectors),
        LOOP_TEST(short_interrupted_and_failed_calls),
        LOOP_TEST(missing_fallocate_modes_fall_back),
        LOOP_TEST(flushes_reach_the_disk_as_the_cache_mode_says),
        LOOP_TEST(creating_files),
        LOOP_TEST(growing_and_shrinking),
        LOOP_TEST(holes_are_seen),
        LOOP_TEST(what_is_not_an_image_is_refused_in_words),
        LOOP_TEST(a_full_file_system_is_enospc),
        LOOP_TEST(plain_requests_need_no_coroutine),
        LOOP_TEST(unsupported_requests_fall_back),
        LOOP_TEST(front_ends_may_use_any_number_of_vectors),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
