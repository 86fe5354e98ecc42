/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The file driver opens its file anew: other cache modes, read-only and back, aio, locking. How it is open is read from
 * /proc/self/fdinfo; what is locked, from another descriptor.
 */
#include "file.h"
#include "image_locks.h"

#include <block/change.h>
#include <dirent.h>
#include <sys/syscall.h>

/* ---- the host's open(), in front of the C library's ---- */

static int opens_left = -1; /* then there are no descriptors; -1: there always are */

int open(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode = 0;

    if (opens_left >= 0 && opens_left-- == 0) {
        errno = EMFILE;
        return -1;
    }
    if (flags & O_CREAT) {
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

/* ---- how it is open ---- */

/* The open flags of the only descriptor on the file but `except`. Fails if there are more. */
static int flags_of(const char *path, int except)
{
    DIR *folder = opendir("/proc/self/fd");
    char link[64], target[256];
    int found = -1;

    for (struct dirent *entry; (entry = readdir(folder));) {
        snprintf(link, sizeof(link), "/proc/self/fd/%.16s", entry->d_name);
        ssize_t length = readlink(link, target, sizeof(target) - 1);
        if (length < 0 || (target[length] = '\0', strcmp(target, path) != 0) || atoi(entry->d_name) == except)
            continue;
        if (found >= 0)
            fail_msg("%s is open twice", path);
        found = fcntl(atoi(entry->d_name), F_GETFL);
    }
    closedir(folder);
    return found;
}

static void assert_open(const char *path, int except, int flags)
{
    assert_int_equal(flags_of(path, except) & (O_ACCMODE | O_DIRECT | O_DSYNC | O_NONBLOCK), flags);
}

static coroutine_fn int co_reopen(struct blk_node *node, unsigned set, unsigned clear, struct error **errp)
{
    struct blk_reopen item = { .node = node, .set = set, .clear = clear };

    return blk_co_reopen(&item, 1, errp);
}

/* ---- modes ---- */

static const unsigned read_perm = BLK_PERM_CONSISTENT_READ, change_perm = BLK_PERM_WRITE | BLK_PERM_RESIZE;

static int co_modes_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = aligned_alloc(4096, 4096);

    co_test_file_begin(&file, disk_folder, MIB, NULL, 0);
    struct blk_front *front = blk_front_new("reader", file.node, read_perm, BLK_PERM_ALL, NULL);
    assert_non_null(front);
    int other = open(file.path, O_RDWR | O_CLOEXEC);
    static const struct {
        unsigned set, clear;
        int flags;
    } steps[] = {
        { BLK_O_DIRECT, 0, O_RDWR | O_DIRECT },
        { BLK_O_DSYNC, 0, O_RDWR | O_DIRECT | O_DSYNC },
        { 0, BLK_O_DIRECT, O_RDWR | O_DSYNC },
        { 0, BLK_O_DSYNC | BLK_O_RDWR, O_RDONLY },
        { BLK_O_DIRECT | BLK_O_AIO_THREADS, 0, O_RDONLY | O_DIRECT },
        { BLK_O_RDWR, 0, O_RDWR | O_DIRECT },
        { 0, BLK_O_RDWR | BLK_O_AIO_THREADS, O_RDONLY | O_DIRECT },
        { BLK_O_RDWR, BLK_O_DIRECT, O_RDWR },
    };
    for (unsigned i = 0; i < 2 * ARRAY_SIZE(steps); i++) {
        unsigned step = i % ARRAY_SIZE(steps);
        assert_int_equal(co_reopen(file.node, steps[step].set, steps[step].clear, NULL), 0);
        assert_open(file.path, other, steps[step].flags);
        assert_held(other, read_perm, 0);
        bool direct = steps[step].flags & O_DIRECT;
        assert_true(direct ? file.node->limits.request_alignment >= 512 : file.node->limits.request_alignment == 1);
        memset(buffer, (int)i + 1, 4096);
        int ret = blk_co_write(file.node, i * 4 * KIB, buffer, 4096, 0);
        bool writable = (steps[step].flags & O_ACCMODE) == O_RDWR;
        assert_int_equal(ret, writable ? 0 : -EPERM);
        assert_int_equal(blk_co_flush(file.node), 0);
        assert_int_equal(blk_front_co_read(front, i * 4 * KIB, buffer, 4096), 0);
        assert_int_equal(buffer[7], writable ? i + 1 : 0);
    }
    assert_int_equal(blk_co_front_free(front), 0);
    assert_held(other, 0, 0);
    close(other);
    co_test_file_end(&file);
    free(buffer);
    return 0;
}

static void a_file_is_opened_in_another_mode(void **state) { run_co(state, co_modes_test, NULL); }

/* The descriptor of a mode has the number of one that was closed: no loop goes on with that. */
static int co_numbers_test(void *arg)
{
    struct test_file file;
    char c;

    co_test_file_begin(&file, disk_folder, MIB, NULL, 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(co_reopen(file.node, 0, BLK_O_RDWR, NULL), 0);
        assert_int_equal(blk_co_read(file.node, 0, &c, 1), 0);
        assert_int_equal(co_reopen(file.node, BLK_O_RDWR, 0, NULL), 0);
        assert_int_equal(blk_co_write(file.node, 0, "x", 1, 0), 0);
        assert_int_equal(co_reopen(file.node, BLK_O_DSYNC, 0, NULL), 0);
        assert_int_equal(blk_co_write(file.node, 0, "x", 1, 0), 0);
        assert_int_equal(co_reopen(file.node, 0, BLK_O_DSYNC, NULL), 0);
        assert_int_equal(blk_co_write(file.node, 0, "x", 1, 0), 0);
    }
    co_test_file_end(&file);
    return 0;
}

static void numbers_of_descriptors_come_again(void **state) { run_co(state, co_numbers_test, NULL); }

/* ---- locks ---- */

static int co_locks_test(void *arg)
{
    struct test_file file;

    co_test_file_begin(&file, disk_folder, MIB, NULL, 0);
    struct blk_front *front = blk_front_new("writer", file.node, read_perm | change_perm, read_perm, NULL);
    assert_non_null(front);
    int other = open(file.path, O_RDWR | O_CLOEXEC);
    const unsigned unshared = BLK_PERM_ALL & ~read_perm;

    for (int i = 0; i < 4; i++) {
        assert_held(other, read_perm | change_perm, unshared);
        assert_int_equal(co_reopen(file.node, i % 2 ? 0 : BLK_O_DIRECT, i % 2 ? BLK_O_DIRECT : 0, NULL), 0);
    }
    /* A permission that goes after a reopen goes from the new descriptor. */
    assert_int_equal(co_reopen(file.node, BLK_O_DIRECT | BLK_O_NO_LOCK, 0, NULL), 0);
    assert_held(other, 0, 0);
    assert_int_equal(co_reopen(file.node, 0, BLK_O_NO_LOCK, NULL), 0);
    assert_held(other, read_perm | change_perm, unshared);

    /* Somebody came while it was not locked. */
    assert_int_equal(co_reopen(file.node, BLK_O_NO_LOCK, 0, NULL), 0);
    struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1 };
    struct error *error = NULL;
    assert_int_equal(fcntl(other, F_OFD_SETLK, &lock), 0);
    assert_true(co_reopen(file.node, 0, BLK_O_DIRECT | BLK_O_NO_LOCK, &error) < 0);
    char *words = xasprintf("Failed to get \"write\" lock\nIs another process using the image [%s]?", file.path);
    assert_error(&error, words);
    assert_open(file.path, other, O_RDWR | O_DIRECT);
    assert_held(other, 0, 0);
    lock.l_type = F_UNLCK;
    assert_int_equal(fcntl(other, F_OFD_SETLK, &lock), 0);
    assert_int_equal(co_reopen(file.node, 0, BLK_O_NO_LOCK, NULL), 0);
    assert_held(other, read_perm | change_perm, unshared);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_held(other, 0, 0);
    close(other);
    co_test_file_end(&file);
    free(words);
    return 0;
}

static void the_new_descriptor_holds_the_locks(void **state) { run_co(state, co_locks_test, NULL); }

/* ---- failures ---- */

static int co_failure_test(void *arg)
{
    struct test_file file;
    struct error *error = NULL;
    char *second_path = path_in(disk_folder, "second");

    co_test_file_begin(&file, disk_folder, MIB, NULL, 0);
    make_file(second_path, MIB);
    struct blk_node *second = co_open_file(second_path, NULL, BLK_O_RDWR, NULL);
    struct blk_front *front = blk_front_new("writer", file.node, read_perm | change_perm, read_perm, NULL);
    assert_non_null(front);
    int other = open(file.path, O_RDWR | O_CLOEXEC);

    /* The first could, for the second there is no descriptor left. */
    struct blk_reopen items[] = { { .node = file.node, .set = BLK_O_DIRECT }, { .node = second, .set = BLK_O_DIRECT } };
    opens_left = 1;
    int ret = blk_co_reopen(items, 2, &error);
    opens_left = -1;
    assert_int_equal(ret, -EMFILE);
    char *words = xasprintf("Could not open '%s': Too many open files", second_path);
    assert_error(&error, words);
    free(words);
    assert_open(file.path, other, O_RDWR);
    assert_held(other, read_perm | change_perm, BLK_PERM_ALL & ~read_perm);
    assert_int_equal(file.node->limits.request_alignment, 1);
    assert_int_equal(blk_co_write(file.node, 0, "x", 1, 0), 0);

    /* Its name has been given to another file: the node goes on with its own. */
    char *moved = path_in(disk_folder, "moved");
    assert_int_equal(rename(file.path, moved), 0);
    make_file(file.path, 4096);
    assert_int_equal(co_reopen(file.node, BLK_O_DIRECT, 0, NULL), 0);
    assert_open(moved, other, O_RDWR | O_DIRECT);
    assert_int_equal(blk_node_size(file.node), MIB);
    unlink(moved);
    assert_int_equal(co_reopen(file.node, 0, BLK_O_DIRECT, NULL), 0);

    close(other);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(blk_co_node_unref(second), 0);
    unlink(second_path);
    free(second_path);
    free(moved);
    co_test_file_end(&file);
    return 0;
}

static void a_reopen_that_fails_leaves_all_as_it_was(void **state) { run_co(state, co_failure_test, NULL); }

/* ---- with a file that is grown ahead ---- */

static uint64_t host_size(const struct test_file *file)
{
    struct stat st;

    assert_int_equal(stat(file->path, &st), 0);
    return (uint64_t)st.st_size;
}

static int co_ahead_test(void *arg)
{
    struct test_file file;
    uint8_t *buffer = aligned_alloc(4096, 4096);

    memset(buffer, 3, 4096);
    co_test_file_begin(&file, disk_folder, 0, NULL, 0);
    file.node->driver->grow_ahead(file.node, &ahead_hole);
    for (uint64_t i = 1; i < 4; i++) {
        assert_int_equal(blk_co_write(file.node, (i - 1) * 4096, buffer, 4096, 0), 0);
        assert_true(host_size(&file) >= 16 * MIB);
        if (i > 1)
            assert_int_equal(co_reopen(file.node, i == 2 ? BLK_O_DIRECT : 0, i == 3 ? BLK_O_DIRECT : 0, NULL), 0);
        assert_int_equal(blk_node_size(file.node), i * 4096);
        assert_int_equal(co_reopen(file.node, 0, BLK_O_RDWR, NULL), 0);
        assert_int_equal(host_size(&file), i * 4096);
        assert_int_equal(blk_node_size(file.node), i * 4096);
        assert_int_equal(co_reopen(file.node, BLK_O_RDWR, 0, NULL), 0);
    }
    co_test_file_end(&file);
    free(buffer);
    return 0;
}

static void read_only_cuts_off_what_was_grown_ahead(void **state) { run_co(state, co_ahead_test, NULL); }

/* ---- while loops send requests ---- */

#define LOOPS 2u
#define BLOCK 4096u
#define BLOCKS 64u

struct writer {
    struct blk_front *front;
    struct loop *loop;
    unsigned index;
    atomic_bool *stop;
    atomic_uint *left;
    uint8_t value[BLOCKS];
    struct co *main;
};

static coroutine_fn void writer_co(void *arg)
{
    struct writer *w = arg;
    uint8_t *buffer = aligned_alloc(BLOCK, BLOCK);

    for (unsigned i = 0; i < 200 || !atomic_load(w->stop); i++) {
        unsigned block = i * 7 % BLOCKS;
        uint64_t offset = ((uint64_t)block * LOOPS + w->index) * BLOCK;
        assert_int_equal(blk_front_co_read(w->front, offset, buffer, BLOCK), 0);
        assert_true(buffer[0] == w->value[block] && memcmp(buffer, buffer + 1, BLOCK - 1) == 0);
        w->value[block] = (uint8_t)(i + 1);
        memset(buffer, w->value[block], BLOCK);
        assert_int_equal(blk_front_co_write(w->front, offset, buffer, BLOCK, 0), 0);
    }
    free(buffer);
    if (atomic_fetch_sub(w->left, 1) == 1)
        co_wake(w->main);
}

static int co_load_test(void *arg)
{
    struct test_file file;
    struct writer writers[LOOPS];
    atomic_bool stop = false;
    atomic_uint left = LOOPS;

    co_test_file_begin(&file, disk_folder, MIB, NULL, 0);
    struct blk_front *front = blk_front_new("writers", file.node, read_perm | BLK_PERM_WRITE, BLK_PERM_ALL, NULL);
    assert_non_null(front);
    for (unsigned i = 0; i < LOOPS; i++) {
        writers[i] = (struct writer){ .front = front, .index = i, .stop = &stop, .left = &left, .main = co_self() };
        writers[i].loop = loop_thread_start("writer", NULL);
        co_start_on(writers[i].loop, writer_co, &writers[i]);
    }
    for (unsigned i = 0; i < 40; i++) {
        static const unsigned modes[] = { BLK_O_DIRECT, BLK_O_DSYNC, BLK_O_DIRECT | BLK_O_DSYNC, 0 };
        unsigned mode = modes[i % 4] | (i % 3 ? 0 : BLK_O_AIO_THREADS);
        assert_int_equal(co_reopen(file.node, mode, ~mode & (BLK_O_DIRECT | BLK_O_DSYNC | BLK_O_AIO_THREADS), NULL), 0);
        co_sleep_ns(1000000);
    }
    atomic_store(&stop, true);
    co_yield();
    for (unsigned i = 0; i < LOOPS; i++)
        loop_thread_stop(writers[i].loop);
    assert_int_equal(blk_co_front_free(front), 0);
    co_test_file_end(&file);
    return 0;
}

static void requests_go_on_meanwhile(void **state) { run_co(state, co_load_test, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(a_file_is_opened_in_another_mode),
        LOOP_TEST(the_new_descriptor_holds_the_locks),
        LOOP_TEST(a_reopen_that_fails_leaves_all_as_it_was),
        LOOP_TEST(read_only_cuts_off_what_was_grown_ahead),
        LOOP_TEST(requests_go_on_meanwhile),
        LOOP_TEST(numbers_of_descriptors_come_again),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
