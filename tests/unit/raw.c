/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw: offset and size, mapped as an addition, created with something in its first block, and the guard of the first
 * sector where the format was guessed. The tests bring a format of their own to be mistaken for: "FAKEFMT!".
 */
#include "image.h"

#include <block/probe.h>

static int fake_probe(const struct blk_probe *probe)
{
    return probe->head_length >= 8 && memcmp(probe->head, "FAKEFMT!", 8) == 0 ? 100 : 0;
}

static coroutine_fn int fake_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    return error_set(errp, -EINVAL, "opened as fake");
}

static const struct blk_driver fake_driver = {
    .name = "fake",
    .flags = BLK_DRIVER_FORMAT,
    .probe = fake_probe,
    .co_open = fake_co_open,
};
BLK_DRIVER(fake_driver)

static char *line_for(const char *path, const char *more)
{
    return xasprintf("driver=raw,file.driver=file,file.filename=%s%s", path, more);
}

/* ---- a window on the file ---- */

static int co_window_test(void *arg)
{
    char *path = path_in(disk_folder, "window"), *line = line_for(path, ",offset=64k,size=1M");
    uint8_t buffer[512];
    struct blk_extent extent;

    make_file(path, 2 * MIB);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR, NULL);
    assert_non_null(node);
    assert_int_equal(blk_node_size(node), MIB);
    memset(buffer, 0x33, 512);
    assert_int_equal(blk_co_write(node, 1000, buffer, 512, 0), 0);
    assert_int_equal(blk_co_write(node, MIB - 100, buffer, 100, 0), 0);
    assert_int_equal(blk_co_write(node, MIB - 100, buffer, 101, 0), -EIO);
    assert_int_equal(blk_co_write(node, MIB, buffer, 1, 0), -EIO);
    assert_int_equal(blk_co_map(node, 4096, MIB - 4096, &extent), 0);
    assert_true(extent.kind == BLK_DATA && extent.child == node->file && extent.child_offset == 64 * KIB + 4096);
    struct error *error = NULL;
    assert_int_equal(blk_co_truncate(node, 2 * MIB, true, "off", &error), -ENOTSUP);
    assert_error(&error, "Cannot resize fixed-size raw disks");
    assert_int_equal(blk_co_node_unref(node), 0);

    int fd = open(path, O_RDONLY);
    uint8_t file[4] = { 0 };
    assert_int_equal(pread(fd, file, 2, 64 * KIB + 999), 2);
    assert_true(file[0] == 0 && file[1] == 0x33);
    assert_int_equal(pread(fd, file, 2, 64 * KIB + MIB - 1), 2);
    assert_true(file[0] == 0x33 && file[1] == 0);
    close(fd);
    unlink(path);
    free(path);
    free(line);
    return 0;
}

static void offset_and_size_are_a_window(void **state) { run_co(state, co_window_test, NULL); }

static int co_size_test(void *arg)
{
    char *path = path_in(disk_folder, "sizes");
    static const struct {
        const char *options;
        uint64_t size;
        const char *error;
    } cases[] = {
        { "", MIB, NULL },
        { ",offset=512", MIB - 512, NULL },
        { ",offset=513", MIB - 512, NULL },
        { ",offset=1M", 0, NULL },
        { ",size=512", 512, NULL },
        { ",offset=1047552,size=1024", 1024, NULL },
        { ",size=100", 0, "Specified size is not multiple of 512" },
        { ",offset=2M", 0, "Offset (2097152) cannot be greater than size of the containing file (1048576)" },
        { ",offset=1M,size=512", 0,
          "The sum of offset (1048576) and size (512) has to be smaller or equal to the  actual size of the "
          "containing file (1048576)" },
    };

    make_file(path, MIB);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char *line = line_for(path, cases[i].options);
        if (cases[i].error) {
            co_assert_refused(line, 0, cases[i].error);
        } else {
            struct blk_node *node = co_open_line(line, 0, NULL);
            assert_non_null(node);
            assert_int_equal(blk_node_size(node), cases[i].size);
            assert_int_equal(blk_co_node_unref(node), 0);
        }
        free(line);
    }
    char *line = line_for(path, ",offset=512");
    struct blk_node *node = co_open_line(line, BLK_O_RDWR, NULL);
    assert_int_equal(blk_co_truncate(node, 2 * MIB, true, "off", NULL), 0);
    assert_int_equal(blk_node_size(node), 2 * MIB);
    assert_int_equal(blk_node_size(node->file), 2 * MIB + 512);
    assert_int_equal(blk_co_node_unref(node), 0);
    free(line);
    unlink(path);
    free(path);
    return 0;
}

static void sizes_and_refusals(void **state) { run_co(state, co_size_test, NULL); }

static int co_create_test(void *arg)
{
    char *path = path_in(disk_folder, "created");
    struct opts *opts = opts_new();
    struct stat st;

    assert_int_equal(blk_co_create("raw", path, opts, MIB, NULL), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size == MIB && st.st_blocks * 512 == 4096);
    opts_set(opts, "preallocation", "full");
    assert_int_equal(blk_co_create("raw", path, opts, MIB, NULL), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_true(st.st_size == MIB && st.st_blocks * 512 >= MIB);
    struct error *error = NULL;
    opts_set(opts, "preallocation", "metadata");
    unlink(path);
    assert_int_equal(blk_co_create("raw", path, opts, MIB, &error), -ENOTSUP);
    assert_error(&error, "Unsupported preallocation mode: metadata");
    assert_int_equal(access(path, F_OK), -1);
    opts_free(opts);
    free(path);
    return 0;
}

static void creating(void **state) { run_co(state, co_create_test, NULL); }

/* ---- the guard ---- */

static int co_guard_test(void *arg)
{
    char *path = path_in(disk_folder, "guarded");
    uint8_t buffer[4096] = { 0 }, back[4096];
    struct iovec pieces[] = { { buffer, 3 }, { buffer + 3, 600 }, { buffer + 603, 4096 - 603 } };

    make_file(path, 10 * KIB);
    struct blk_node *node = blk_co_open(path, NULL, BLK_O_RDWR, NULL);
    assert_non_null(node);
    assert_string_equal(node->driver->name, "raw");

    for (unsigned i = 0; i < sizeof(buffer); i++)
        buffer[i] = (uint8_t)(i % 251);
    assert_int_equal(blk_co_writev(node, 0, 4096, pieces, 3, 0), 0);
    assert_int_equal(blk_co_read(node, 0, back, 4096), 0);
    assert_memory_equal(buffer, back, 4096);

    memcpy(buffer, "FAKEFMT!", 8);
    assert_int_equal(blk_co_writev(node, 0, 4096, pieces, 3, 0), -EPERM);
    assert_int_equal(blk_co_write(node, 0, buffer, 512, 0), -EPERM);
    assert_int_equal(blk_co_write(node, 0, buffer, 8, 0), -EPERM);
    /* Letter by letter. */
    assert_int_equal(blk_co_write(node, 0, "FAKE", 4, 0), 0);
    assert_int_equal(blk_co_write(node, 4, "FMT!", 4, 0), -EPERM);
    assert_int_equal(blk_co_write(node, 4, "FMT?", 4, 0), 0);
    /* Elsewhere a guest may write what it likes. */
    assert_int_equal(blk_co_write(node, 512, buffer, 512, 0), 0);
    assert_int_equal(blk_co_write_zeroes(node, 0, 1024, 0), 0);
    assert_int_equal(blk_co_node_unref(node), 0);

    char *line = line_for(path, "");
    node = co_open_line(line, BLK_O_RDWR, NULL);
    assert_int_equal(blk_co_write(node, 0, buffer, 512, 0), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    struct error *error = NULL;
    assert_null(blk_co_open(path, NULL, BLK_O_RDWR, &error));
    assert_error(&error, "opened as fake");
    unlink(path);
    free(line);
    free(path);
    return 0;
}

static void a_guessed_raw_image_does_not_become_another_format(void **state) { run_co(state, co_guard_test, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(offset_and_size_are_a_window),
        LOOP_TEST(sizes_and_refusals),
        LOOP_TEST(creating),
        LOOP_TEST(a_guessed_raw_image_does_not_become_another_format),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
