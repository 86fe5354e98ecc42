/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file driver against a model, on a disk and on tmpfs, in all cache modes, by ring, by workers, and without
 * io_uring at all; then its edges: the end of the file, growth, holes, what the host does not support, errors in words.
 * What happens where the host's calls fail: file-faults.c.
 */
#include "file.h"
#include "model.h"

#include <base/checked.h>
#include <sys/mount.h>

struct mode {
    const char *name;
    const char *folder;
    const char *aio;
    unsigned flags;
    bool ahead; /* the file is grown ahead */
};

/* ---- the model ---- */

static int co_model_test(void *arg)
{
    const struct mode *mode = arg;
    struct test_file file;
    struct model m;
    uint8_t *content = xcalloc(1, MODEL_MAX);

    model_init(&m, MIB, true);
    co_test_file_begin(&file, mode->folder, m.size, mode->aio, mode->flags | BLK_O_UNMAP);
    if (mode->ahead)
        file.node->driver->grow_ahead(file.node, &ahead_hole);
    co_model_steps(&m, file.node, 400);
    assert_int_equal(blk_co_flush(file.node), 0);
    file.node->driver->grow_ahead(file.node, NULL);

    int fd = open(file.path, O_RDONLY);
    ssize_t got = read(fd, content, MODEL_MAX);
    close(fd);
    assert_true(got > 0 && align_up((uint64_t)got, 512) <= align_up(m.size, 4096));
    assert_memory_equal(content, m.data, MODEL_MAX);
    co_test_file_end(&file);
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
                run_co(state, co_model_test, &mode);
                mode.ahead = true;
                if (f == 0 && a == 0)
                    run_co(state, co_model_test, &mode);
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
    struct blk_node *node = co_open_file(path, mode->aio, mode->flags | BLK_O_RDWR, NULL);
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
        run_co(state, co_end_test, &mode);
    }
}

/* Vectors that the kernel would refuse as they are, and a transfer that it cuts into pieces. */
static int co_many_vectors(void *arg)
{
    const struct mode *mode = arg;
    enum { COUNT = 3000 };
    struct test_file file;
    uint8_t *buffer = xmalloc(COUNT * 7);
    struct iovec *iov = xcalloc(COUNT, sizeof(*iov));

    co_test_file_begin(&file, mode->folder, 0, mode->aio, 0);
    struct blk_node *node = file.node;
    for (int i = 0; i < COUNT; i++) {
        iov[i] = (struct iovec){ buffer + 7 * i, 7 };
        memset(buffer + 7 * i, i % 251, 7);
    }
    assert_int_equal(blk_co_writev(node, 11, COUNT * 7, iov, COUNT, 0), 0);
    memset(buffer, 0xff, COUNT * 7);
    assert_int_equal(blk_co_readv(node, 11, COUNT * 7, iov, COUNT), 0);
    for (int i = 0; i < COUNT * 7; i++)
        assert_int_equal(buffer[i], i / 7 % 251);
    co_test_file_end(&file);
    free(iov);
    free(buffer);
    return 0;
}

static void requests_may_have_any_number_of_vectors(void **state)
{
    struct mode ring = { .folder = disk_folder, .aio = "io_uring" },
                threads = { .folder = disk_folder, .aio = "threads" };

    run_co(state, co_many_vectors, &ring);
    run_co(state, co_many_vectors, &threads);
}

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
    if (!on_tmpfs(disk_folder)) {
        assert_true(co_create_file(path, 1ull << 62, "", &error) < 0); /* too large for ext4 */
        assert_non_null(error);
        error_free(error);
        error = NULL;
    }
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

static void creating_files(void **state) { run_co(state, co_create_test, NULL); }

static int co_truncate_test(void *arg)
{
    char *path = path_in(disk_folder, "truncated");
    uint8_t buffer[4096];
    struct error *error = NULL;
    struct stat st;

    make_file(path, MIB);
    for (int i = 0; i < 2; i++) {
        struct blk_node *node = co_open_file(path, NULL, BLK_O_RDWR | (i ? BLK_O_DIRECT : 0), NULL);
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

static void growing_and_shrinking(void **state) { run_co(state, co_truncate_test, NULL); }

static int co_extent_test(void *arg)
{
    const char *folder = arg;
    struct test_file file;
    uint8_t *buffer = xcalloc(1, 64 * KIB);
    struct blk_extent extent;

    co_test_file_begin(&file, folder, MIB + 100, NULL, BLK_O_UNMAP);
    struct blk_node *node = file.node;
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
    co_test_file_end(&file);
    free(buffer);
    return 0;
}

static void holes_are_seen(void **state)
{
    run_co(state, co_extent_test, disk_folder);
    run_co(state, co_extent_test, memory_folder);
}

/* ---- what is refused ---- */

static coroutine_fn void co_refused(const char *path, const char *aio, unsigned flags, const char *fmt)
{
    struct error *error = NULL;
    char *text = xasprintf(fmt, path); // NOLINT: the format is the test's own

    assert_null(co_open_file(path, aio, flags, &error));
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

    assert_null(co_open_file("/proc/version", NULL, BLK_O_DIRECT, &error));
    assert_string_equal(error_hint_text(error), "cache modes that work there: writeback, writethrough, unsafe");
    error_free(error);
    unlink(fifo);
    unlink(file);
    free(path);
    free(fifo);
    free(file);
    return 0;
}

static void what_is_not_an_image_is_refused_in_words(void **state) { run_co(state, co_refusal_test, NULL); }

static int co_full_test(void *arg)
{
    const char *folder = arg;
    struct test_file file;
    uint8_t *buffer = xmalloc(MIB);
    static const char *const aios[] = { "io_uring", "threads" };

    memset(buffer, 1, MIB);
    for (size_t i = 0; i < ARRAY_SIZE(aios); i++) {
        co_test_file_begin(&file, folder, 8 * MIB, aios[i], 0);
        struct blk_node *node = file.node;
        int ret = 0;
        for (unsigned at = 0; at < 4 && ret == 0; at++)
            ret = blk_co_write(node, at * MIB, buffer, MIB, 0);
        assert_int_equal(ret, -ENOSPC);
        struct error *error = NULL;
        assert_int_equal(blk_co_truncate(node, 16 * MIB, true, "falloc", &error), -ENOSPC);
        assert_error(&error, "Could not preallocate new data: No space left on device");
        assert_int_equal(blk_node_size(node), 8 * MIB);
        struct stat st;
        assert_int_equal(stat(file.path, &st), 0);
        assert_int_equal(st.st_size, 8 * MIB);
        co_test_file_end(&file);
    }
    free(buffer);
    return 0;
}

static void a_full_file_system_is_enospc(void **state)
{
    char folder[PATH_MAX];

    test_template(folder, false);
    assert_non_null(mkdtemp(folder));
    if (mount("none", folder, "tmpfs", 0, "size=2m") < 0) {
        assert_true(errno == EPERM);
        rmdir(folder);
        print_message("needs to be allowed to mount\n");
        skip();
    }
    run_co(state, co_full_test, folder);
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
    struct test_file file;
    struct bench bench = { .left = 1000, .co = co_self() };
    uint8_t *buffer = aligned_alloc(4096, 4096);
    struct blk_stats stats;

    co_test_file_begin(&file, disk_folder, MIB, NULL, BLK_O_DIRECT);
    bench.front = test_front(file.node);
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
    co_test_file_end(&file);
    free(buffer);
    return 0;
}

static void plain_requests_need_no_coroutine(void **state) { run_co(state, co_mapped_test, NULL); }

/* Straight from a front end, more vectors than the kernel takes in one call. */
static int co_front_vectors_test(void *arg)
{
    enum { COUNT = 2500 };
    struct test_file file;
    uint8_t *buffer = xmalloc(COUNT * 16);
    struct iovec *iov = xcalloc(COUNT, sizeof(*iov));

    co_test_file_begin(&file, disk_folder, MIB, arg, 0);
    struct blk_front *front = test_front(file.node);
    for (unsigned i = 0; i < COUNT; i++) {
        iov[i] = (struct iovec){ buffer + 16 * i, 16 };
        memset(buffer + 16 * i, (int)(i % 251), 16);
    }
    for (int i = 0; i < 2; i++) {
        struct blk_request request = {
            .op = i ? BLK_OP_READ : BLK_OP_WRITE, .length = COUNT * 16, .iov = iov, .iov_count = COUNT
        };
        assert_int_equal(co_test_submit(front, &request), 0);
        for (unsigned n = 0; n < COUNT; n++)
            assert_true(buffer[16 * n] == n % 251 && buffer[16 * n + 15] == n % 251);
        memset(buffer, 0xff, COUNT * 16);
    }
    assert_int_equal(blk_co_front_free(front), 0);
    co_test_file_end(&file);
    free(iov);
    free(buffer);
    return 0;
}

static void front_ends_may_use_any_number_of_vectors(void **state)
{
    run_co(state, co_front_vectors_test, "io_uring");
    run_co(state, co_front_vectors_test, "threads");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(random_operations_match_the_model),
        LOOP_TEST(reads_past_the_end_are_zero_and_writes_grow),
        LOOP_TEST(requests_may_have_any_number_of_vectors),
        LOOP_TEST(creating_files),
        LOOP_TEST(growing_and_shrinking),
        LOOP_TEST(holes_are_seen),
        LOOP_TEST(what_is_not_an_image_is_refused_in_words),
        LOOP_TEST(a_full_file_system_is_enospc),
        LOOP_TEST(plain_requests_need_no_coroutine),
        LOOP_TEST(front_ends_may_use_any_number_of_vectors),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
