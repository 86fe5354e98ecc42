/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For unit tests that open images: folders to put them into, opening by one line of options, errors word for word. */
#pragma once

#include "unit.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <block/front.h>
#include <block/image.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

/* A folder on the disk and one in memory; made by image_tests_begin(). */
static char disk_folder[PATH_MAX], memory_folder[PATH_MAX];

static inline int image_tests_begin(void)
{
    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    test_template(disk_folder, false);
    test_template(memory_folder, true);
    return mkdtemp(disk_folder) && mkdtemp(memory_folder) ? 0 : -1;
}

static inline bool on_tmpfs(const char *folder)
{
    struct statfs fs;

    assert_int_equal(statfs(folder, &fs), 0);
    return fs.f_type == TMPFS_MAGIC;
}

/* For tests of what only a file on a disk has; TMPDIR may lie in memory. */
#define SKIP_WITHOUT_DISK() \
    do { \
        if (on_tmpfs(disk_folder)) { \
            print_message("needs a test folder that is not on tmpfs\n"); \
            skip(); \
        } \
    } while (0)

/* A test that passed has removed its files. */
static inline int image_tests_end(int failed)
{
    if ((rmdir(disk_folder) < 0 || rmdir(memory_folder) < 0) && !failed) {
        fprintf(stderr, "files are left in %s or %s\n", disk_folder, memory_folder);
        return 1;
    }
    return failed;
}

static inline char *path_in(const char *folder, const char *name) { return xasprintf("%s/%s", folder, name); }

static inline void make_file(const char *path, uint64_t size)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
}

static inline void assert_error(struct error **error, const char *text)
{
    assert_non_null(*error);
    assert_string_equal(error_text(*error), text);
    error_free(*error);
    *error = NULL;
}

/* Opens by "driver=…,filename=…". */
static inline coroutine_fn struct blk_node *co_open_line(const char *line, unsigned flags, struct error **errp)
{
    struct opts *opts = opts_new();

    assert_int_equal(opts_parse(opts, line, NULL, 0, NULL), 0);
    struct blk_node *node = blk_co_open(NULL, opts, flags, errp);
    opts_free(opts);
    return node;
}

/* The same, if it is sure to open. */
static inline coroutine_fn struct blk_node *co_open_words(const char *line, unsigned flags)
{
    struct error *error = NULL;
    struct blk_node *node = co_open_line(line, flags, &error);

    if (!node)
        fail_msg("%s", error_text(error));
    return node;
}

/* A user who reads and writes. */
static inline struct blk_front *test_front(struct blk_node *node)
{
    struct blk_front *front = blk_front_new("test", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL,
                                            NULL);

    assert_non_null(front);
    return front;
}

static inline coroutine_fn void co_assert_refused(const char *line, unsigned flags, const char *text)
{
    struct error *error = NULL;

    assert_null(co_open_line(line, flags, &error));
    assert_error(&error, text);
}

static inline void run_co(void **state, int (*fn)(void *arg), void *arg)
{
    assert_int_equal(co_run(test_loop(state), fn, arg), 0);
}

/* `name` is a coroutine and a test of its own. */
#define TEST_CO(name) \
    static int co_##name(void *arg); \
    static void name(void **state) { run_co(state, co_##name, NULL); } \
    static coroutine_fn int co_##name(void *arg __attribute__((unused)))
