/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Test points: nothing happens at one that nobody set; functions are called; coroutines and threads are held and let
 * go. */
#include "unit.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/testpoint.h>
#include <pthread.h>

static void note(void *arg) { ++*(unsigned *)arg; }

static void a_point_calls_what_was_set(void **state)
{
    unsigned called = 0;

    testpoint("one");
    testpoint_call("one", note, &called);
    testpoint("one");
    testpoint("two");
    testpoint("one");
    assert_int_equal(called, 2);
    assert_int_equal(testpoint_count("one"), 2);
    assert_int_equal(testpoint_count("two"), 1);
    testpoint_call("one", NULL, NULL);
    testpoint("one");
    assert_int_equal(called, 2);
    testpoint_reset();
    testpoint("one");
    assert_int_equal(testpoint_count("one"), 0);
    testpoint_reset();
}

static unsigned passed;

static coroutine_fn void co_pass(void *arg)
{
    testpoint_co("gate");
    passed++;
}

static coroutine_fn int co_holding(void *arg)
{
    passed = 0;
    testpoint_hold("gate");
    co_start(co_pass, NULL);
    co_start(co_pass, NULL);
    testpoint_co_wait_held("gate");
    for (unsigned i = 0; i < 10; i++)
        co_relax();
    assert_int_equal(passed, 0);
    testpoint_release("gate");
    while (passed < 2)
        co_relax();
    co_start(co_pass, NULL); /* the gate is open */
    assert_int_equal(passed, 3);
    testpoint_reset();
    return 0;
}

static void coroutines_are_held(void **state) { assert_int_equal(co_run(test_loop(state), co_holding, NULL), 0); }

static atomic_uint thread_passed;

static void *pass_in_thread(void *arg)
{
    testpoint("gate");
    atomic_fetch_add(&thread_passed, 1);
    return NULL;
}

static coroutine_fn int co_holding_thread(void *arg)
{
    pthread_t thread;

    testpoint_hold("gate");
    assert_int_equal(pthread_create(&thread, NULL, pass_in_thread, NULL), 0);
    testpoint_co_wait_held("gate");
    co_sleep_ns(1000000);
    assert_int_equal(atomic_load(&thread_passed), 0);
    testpoint_release("gate");
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&thread_passed), 1);
    testpoint_reset();
    return 0;
}

static void threads_are_held(void **state) { assert_int_equal(co_run(test_loop(state), co_holding_thread, NULL), 0); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_point_calls_what_was_set),
        LOOP_TEST(coroutines_are_held),
        LOOP_TEST(threads_are_held),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
