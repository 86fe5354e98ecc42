/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * host_device on loop devices with 512- and 4096-byte blocks, and `file` on ext4, XFS and btrfs mounted from loop
 * devices: the model in all cache modes, alignment, what is refused. Needs root and loop devices, else it is skipped
 * and says so.
 */
#include "image.h"
#include "model.h"

#include <block/change.h>
#include <sys/mount.h>

/* The output of a shell command without its newline, NULL where it failed. */
static char *output_of(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static char *output_of(const char *fmt, ...)
{
    char *command, text[4096];
    va_list args;

    va_start(args, fmt);
    assert_true(vasprintf(&command, fmt, args) > 0);
    va_end(args);
    FILE *f = popen(command, "re");
    size_t got = fread(text, 1, sizeof(text) - 1, f);
    free(command);
    text[got] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return pclose(f) == 0 ? xstrdup(text) : NULL;
}

struct device {
    char *file, *name;
};

static void device_attach(struct device *d, uint64_t size, const char *options)
{
    d->file = path_in(disk_folder, "device");
    make_file(d->file, size);
    d->name = output_of("losetup -f --show %s %s", options, d->file);
    assert_non_null(d->name);
}

static void device_detach(struct device *d)
{
    free(output_of("losetup -d %s", d->name));
    unlink(d->file);
    free(d->file);
    free(d->name);
}

#define SKIP_WITHOUT_LOOP(d, size, options) \
    do { \
        if (geteuid() != 0 || access("/dev/loop-control", F_OK) < 0) { \
            print_message("needs root and loop devices\n"); \
            skip(); \
        } \
        device_attach(d, size, options); \
    } while (0)

static const unsigned caches[] = { 0, BLK_O_DIRECT, BLK_O_DSYNC, BLK_O_DIRECT | BLK_O_DSYNC, BLK_O_NO_FLUSH };

/* ---- devices ---- */

struct device_case {
    const char *name;
    unsigned flags;
    const char *aio;
    uint32_t block;
};

/* Read-only and back, and then with O_DIRECT if it was without, or the reverse. */
static coroutine_fn void co_reopen_device(struct blk_node *node, const struct device_case *c)
{
    struct blk_reopen item = { .node = node, .clear = BLK_O_RDWR };

    assert_int_equal(blk_co_reopen(&item, 1, NULL), 0);
    assert_int_equal(blk_co_write(node, 0, "a", 1, 0), -EPERM);
    item = (struct blk_reopen){ .node = node, .set = BLK_O_RDWR };
    assert_int_equal(blk_co_reopen(&item, 1, NULL), 0);
    item = (struct blk_reopen){ .node = node, .set = ~c->flags & BLK_O_DIRECT, .clear = c->flags & BLK_O_DIRECT };
    assert_int_equal(blk_co_reopen(&item, 1, NULL), 0);
    assert_int_equal(node->limits.request_alignment, c->flags & BLK_O_DIRECT ? 1 : c->block);
}

static int co_device_model(void *arg)
{
    const struct device_case *c = arg;
    char *line = xasprintf("driver=host_device,filename=%s,aio=%s", c->name, c->aio);
    struct error *error = NULL;
    struct model m;

    model_init(&m, 2 * MIB, false);
    struct blk_node *node = co_open_line(line, c->flags | BLK_O_RDWR | BLK_O_UNMAP, &error);
    assert_non_null(node);
    assert_int_equal(node->limits.logical_block, c->block);
    assert_int_equal(node->limits.request_alignment, c->flags & BLK_O_DIRECT ? c->block : 1);
    assert_int_equal(blk_co_write_zeroes(node, 0, 2 * MIB, 0), 0);
    co_model_steps(&m, node, 120);
    co_reopen_device(node, c);
    co_model_steps(&m, node, 40);
    assert_int_equal(blk_co_write(node, 2 * MIB - 1, "ab", 2, 0), -EIO);
    assert_int_equal(blk_co_truncate(node, 4 * MIB, false, "off", &error), -EINVAL);
    assert_error(&error, "Cannot grow device files");
    assert_int_equal(blk_co_truncate(node, MIB, true, "off", &error), -ENOTSUP);
    assert_error(&error, "Cannot resize device files");
    assert_int_equal(blk_co_truncate(node, MIB, false, "full", &error), -ENOTSUP);
    assert_error(&error, "Unsupported preallocation mode 'full'");
    assert_int_equal(blk_co_truncate(node, MIB, false, "off", &error), 0);
    assert_int_equal(blk_node_size(node), 2 * MIB);
    assert_int_equal(blk_co_node_unref(node), 0);
    model_finish(&m);
    free(line);
    return 0;
}

static void devices_match_the_model(void **state)
{
    static const uint32_t blocks[] = { 512, 4096 };

    model_seed();
    for (size_t b = 0; b < ARRAY_SIZE(blocks); b++) {
        struct device d;
        char options[16];
        snprintf(options, sizeof(options), "-b %u", blocks[b]);
        SKIP_WITHOUT_LOOP(&d, 2 * MIB, options);
        for (size_t i = 0; i < 2 * ARRAY_SIZE(caches); i++) {
            struct device_case c = { d.name, caches[i / 2], i % 2 ? "threads" : "io_uring", blocks[b] };
            run_co(state, co_device_model, &c);
        }
        device_detach(&d);
    }
}

static int co_device_names(void *arg)
{
    const char *name = arg;
    char *line = xasprintf("driver=file,filename=%s", name),
         *text = xasprintf("'file' driver requires '%s' to be a regular file", name);
    struct error *error = NULL;
    struct opts *opts = opts_new();

    co_assert_refused(line, 0, text);
    struct blk_node *node = blk_co_open(name, NULL, 0, NULL);
    assert_non_null(node);
    assert_string_equal(node->file->driver->name, "host_device");
    assert_int_equal(blk_co_node_unref(node), 0);

    /* The first sector of what another format left there is gone, and only that. */
    uint8_t buffer[1024];
    opts_set(opts, "driver", "host_device");
    opts_set(opts, "filename", name);
    node = blk_co_open(NULL, opts, BLK_O_RDWR, NULL);
    memset(buffer, 0xff, 1024);
    assert_int_equal(blk_co_write(node, 0, buffer, 1024, 0), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    assert_int_equal(blk_co_create("raw", name, NULL, MIB, &error), 0);
    node = blk_co_open(NULL, opts, 0, NULL);
    assert_int_equal(blk_co_read(node, 0, buffer, 1024), 0);
    assert_true(buffer[0] == 0 && buffer[511] == 0 && buffer[512] == 0xff);
    assert_int_equal(blk_co_node_unref(node), 0);
    assert_true(blk_co_create("raw", name, NULL, 64 * MIB, &error) < 0);
    assert_error(&error, "Cannot grow device files");
    opts_free(opts);
    free(text);
    free(line);
    return 0;
}

static void devices_are_known_by_their_kind(void **state)
{
    struct device d;

    SKIP_WITHOUT_LOOP(&d, 2 * MIB, "");
    run_co(state, co_device_names, d.name);
    device_detach(&d);
}

static int co_read_only_device(void *arg)
{
    char *line = xasprintf("driver=host_device,filename=%s", (char *)arg);

    co_assert_refused(line, BLK_O_RDWR, "The device is not writable: Permission denied");
    struct blk_node *node = co_open_line(line, BLK_O_RDWR | BLK_O_AUTO_RDONLY, NULL);
    assert_non_null(node);
    assert_false(blk_node_writable(node));
    assert_int_equal(blk_co_write(node, 0, "x", 1, 0), -EPERM);
    assert_int_equal(blk_co_node_unref(node), 0);

    /* And so does what lies above it. */
    struct error *error = NULL;
    assert_null(blk_co_open(arg, NULL, BLK_O_RDWR, &error));
    assert_error(&error, "The device is not writable: Permission denied");
    node = blk_co_open(arg, NULL, BLK_O_RDWR | BLK_O_AUTO_RDONLY, NULL);
    assert_non_null(node);
    assert_string_equal(node->driver->name, "raw");
    assert_false(blk_node_writable(node));
    assert_int_equal(blk_co_write(node, 0, "x", 1, 0), -EPERM);
    assert_int_equal(blk_co_node_unref(node), 0);
    free(line);
    return 0;
}

static void a_read_only_device_falls_back_where_allowed(void **state)
{
    struct device d;

    SKIP_WITHOUT_LOOP(&d, 2 * MIB, "-r");
    run_co(state, co_read_only_device, d.name);
    device_detach(&d);
}

/* ---- file systems ---- */

/* The last block of a file is read where the file ends within it. */
static coroutine_fn void co_odd_end(const char *path, unsigned flags, const char *aio)
{
    char *line = xasprintf("driver=file,filename=%s,aio=%s", path, aio);
    uint8_t *buffer = aligned_alloc(4096, 8192);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_non_null(buffer);
    memset(buffer, 7, 5000);
    assert_int_equal(write(fd, buffer, 5000), 5000);
    close(fd);
    struct blk_node *node = co_open_line(line, flags, NULL);
    assert_non_null(node);
    memset(buffer, 0xff, 8192);
    assert_int_equal(blk_co_read(node, 0, buffer, 8192), 0);
    for (unsigned i = 0; i < 8192; i++)
        assert_int_equal(buffer[i], i < 5000 ? 7 : 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    free(buffer);
    free(line);
}

static int co_file_system_model(void *arg)
{
    char *path = path_in(arg, "image");

    for (size_t i = 0; i < 2 * ARRAY_SIZE(caches); i++) {
        char *line = xasprintf("driver=file,filename=%s,aio=%s", path, i % 2 ? "threads" : "io_uring");
        struct model m;
        model_init(&m, MIB, true);
        make_file(path, MIB);
        struct blk_node *node = co_open_line(line, caches[i / 2] | BLK_O_RDWR | BLK_O_UNMAP, NULL);
        assert_non_null(node);
        if (caches[i / 2] & BLK_O_DIRECT)
            assert_true(node->limits.request_alignment >= 512 && node->limits.request_alignment <= 4096);
        if (i % 4 == 0)
            node->driver->grow_ahead(node, &(struct blk_ahead){ 0 });
        co_model_steps(&m, node, 60);
        assert_int_equal(blk_co_node_unref(node), 0);
        co_odd_end(path, caches[i / 2], i % 2 ? "threads" : "io_uring");
        model_finish(&m);
        free(line);
    }
    unlink(path);
    free(path);
    return 0;
}

static void file_system_test(void **state, const char *type, const char *make, const char *block)
{
    struct device d;
    char *folder = path_in(disk_folder, "mounted"), *made;

    if (!(made = output_of("command -v %.*s", (int)strcspn(make, " "), make))) {
        print_message("needs the program '%.*s'\n", (int)strcspn(make, " "), make);
        skip();
    }
    free(made);
    SKIP_WITHOUT_LOOP(&d, 400ull * MIB, block);
    made = output_of("%s %s >/dev/null && echo made", make, d.name);
    assert_non_null(made);
    assert_int_equal(mkdir(folder, 0700), 0);
    bool mounted = mount(d.name, folder, type, 0, NULL) == 0;
    assert_true(mounted || errno == ENODEV || errno == EPERM);
    if (mounted) {
        run_co(state, co_file_system_model, folder);
        assert_int_equal(umount(folder), 0);
    }
    rmdir(folder);
    device_detach(&d);
    free(folder);
    free(made);
    if (!mounted) {
        print_message("needs a kernel with %s, and to be allowed to mount\n", type);
        skip();
    }
}

#define FILE_SYSTEM_TEST(test, type, make, block) \
    static void test(void **state) \
    { \
        model_seed(); \
        file_system_test(state, type, make, block); \
    }
FILE_SYSTEM_TEST(ext4_matches_the_model, "ext4", "mkfs.ext4 -q -F", "")
FILE_SYSTEM_TEST(ext4_on_4k_blocks_matches_the_model, "ext4", "mkfs.ext4 -q -F", "-b 4096")
FILE_SYSTEM_TEST(xfs_matches_the_model, "xfs", "mkfs.xfs -q -f", "")
FILE_SYSTEM_TEST(xfs_on_4k_blocks_matches_the_model, "xfs", "mkfs.xfs -q -f", "-b 4096")
FILE_SYSTEM_TEST(btrfs_matches_the_model, "btrfs", "mkfs.btrfs -q -f", "")
FILE_SYSTEM_TEST(ext2_matches_the_model, "ext2", "mkfs.ext2 -q -F", "")

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(devices_match_the_model),
        LOOP_TEST(devices_are_known_by_their_kind),
        LOOP_TEST(a_read_only_device_falls_back_where_allowed),
        LOOP_TEST(ext4_matches_the_model),
        LOOP_TEST(ext4_on_4k_blocks_matches_the_model),
        LOOP_TEST(xfs_matches_the_model),
        LOOP_TEST(xfs_on_4k_blocks_matches_the_model),
        LOOP_TEST(btrfs_matches_the_model),
        LOOP_TEST(ext2_matches_the_model),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
