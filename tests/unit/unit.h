/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For unit tests that run on a loop: a fresh one for each test, first on io_uring, then on poll(2). */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <base/loop.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

/* A template for mkdtemp() or mkostemp(), on the disk or in memory, in the folders that tests/run removes. */
static inline void test_template(char name[PATH_MAX], bool in_memory)
{
    const char *folder = getenv(in_memory ? "TEST_SHM" : "TEST_TMP");

    if (!folder)
        folder = in_memory ? "/dev/shm" : getenv("TMPDIR");
    snprintf(name, PATH_MAX, "%s/vmm-unit-XXXXXX", folder ? folder : "/var/tmp");
}

static inline struct loop *test_loop(void **state) { return *state; }

static inline int loop_setup(void **state)
{
    *state = loop_new(NULL);
    return *state ? 0 : -1;
}

static inline int loop_teardown(void **state)
{
    loop_free(*state);
    return 0;
}

/* Signals go to the main thread; only faults of this thread's own come here. */
static inline bool signals_are_blocked(void)
{
    static const int others[] = { SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGCHLD, SIGWINCH };
    sigset_t blocked;

    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        if (!sigismember(&blocked, others[i]))
            return false;
    }
    return !sigismember(&blocked, SIGSEGV) && !sigismember(&blocked, SIGBUS);
}

/* For tests of what only the io_uring of a loop has. */
#define SKIP_WITHOUT_RING(loop) \
    do { \
        if (!loop_ring(loop)) { \
            print_message("needs a kernel with io_uring\n"); \
            skip(); \
        } \
    } while (0)

#define LOOP_TEST(name) cmocka_unit_test_setup_teardown(name, loop_setup, loop_teardown)

/* The number of failed tests. */
#define run_on_both_backends(tests) \
    ({ \
        unsetenv("VMM_NO_URING"); \
        int failed_ = cmocka_run_group_tests_name("io_uring", tests, NULL, NULL); \
        setenv("VMM_NO_URING", "1", 1); \
        failed_ + cmocka_run_group_tests_name("poll", tests, NULL, NULL); \
    })
