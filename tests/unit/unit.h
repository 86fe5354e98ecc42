/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For unit tests that run on a loop: a fresh one for each test, first on io_uring, then on poll(2). */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <base/loop.h>
#include <stdio.h>
#include <stdlib.h>

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

#define LOOP_TEST(name) cmocka_unit_test_setup_teardown(name, loop_setup, loop_teardown)

/* The number of failed tests. */
#define run_on_both_backends(tests) \
    ({ \
        unsetenv("VMM_NO_URING"); \
        int failed_ = cmocka_run_group_tests_name("io_uring", tests, NULL, NULL); \
        setenv("VMM_NO_URING", "1", 1); \
        failed_ + cmocka_run_group_tests_name("poll", tests, NULL, NULL); \
    })
