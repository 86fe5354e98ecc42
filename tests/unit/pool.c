/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The worker pool: every work is done once, on a worker, reported on its loop; it grows to 64 and shrinks when idle. */
#include "unit.h"

#include "../../base/pool_internal.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/pool.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

struct test_work {
    struct pool_work work;
    pthread_t submitter;
    unsigned worked;
    unsigned *left;
};

static void do_work(struct pool_work *work)
{
    struct test_work *w = container_of(work, struct test_work, work);
    assert_false(pthread_equal(pthread_self(), w->submitter));
    assert_true(signals_are_blocked());
    w->worked++;
}

static void work_done(struct pool_work *work)
{
    struct test_work *w = container_of(work, struct test_work, work);
    assert_true(pthread_equal(pthread_self(), w->submitter));
    assert_int_equal(w->worked, 1);
    --*w->left;
}

static void test_every_work_is_done(void **state)
{
    enum { COUNT = 20000 };
    struct loop *loop = test_loop(state);
    struct test_work *works = calloc(COUNT, sizeof(*works));
    unsigned left = COUNT;
    for (int i = 0; i < COUNT; i++) {
        works[i] = (struct test_work){
            .work.work = do_work, .work.done = work_done, .submitter = pthread_self(), .left = &left
        };
        pool_submit(&works[i].work);
    }
    assert_int_equal(left, COUNT);
    while (left)
        loop_step(loop, true);
    assert_in_range(pool_thread_count(), 1, 64);
    free(works);
}

static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_cond = PTHREAD_COND_INITIALIZER;
static unsigned at_gate;
static bool gate_open;

static void wait_at_gate(struct pool_work *work)
{
    struct test_work *w = container_of(work, struct test_work, work);
    pthread_mutex_lock(&gate_lock);
    at_gate++;
    pthread_cond_broadcast(&gate_cond);
    while (!gate_open)
        pthread_cond_wait(&gate_cond, &gate_lock);
    pthread_mutex_unlock(&gate_lock);
    w->worked++;
}

/* 64 blocking works run side by side; the 65th waits for one of them; idle threads leave. */
static void test_grows_and_shrinks(void **state)
{
    struct test_work works[65];
    unsigned left = 65;
    at_gate = 0;
    gate_open = false;
    pool_set_idle_timeout_ms(100);
    for (int i = 0; i < 65; i++) {
        works[i] = (struct test_work){
            .work.work = wait_at_gate, .work.done = work_done, .submitter = pthread_self(), .left = &left
        };
        pool_submit(&works[i].work);
    }
    pthread_mutex_lock(&gate_lock);
    while (at_gate < 64)
        pthread_cond_wait(&gate_cond, &gate_lock);
    pthread_mutex_unlock(&gate_lock);
    assert_int_equal(pool_thread_count(), 64);
    pthread_mutex_lock(&gate_lock);
    assert_int_equal(at_gate, 64);
    gate_open = true;
    pthread_cond_broadcast(&gate_cond);
    pthread_mutex_unlock(&gate_lock);
    while (left)
        loop_step(test_loop(state), true);
    for (int i = 0; i < 200 && pool_thread_count() > 0; i++)
        usleep(100000);
    assert_int_equal(pool_thread_count(), 0);
    pool_set_idle_timeout_ms(10000);
}

static int fails(void *arg)
{
    usleep(1000);
    return -EIO;
}

static int runs_in_pool(void *arg)
{
    assert_int_equal(pool_co_run(fails, arg), -EIO);
    ++*(unsigned *)arg;
    return 0;
}

static void runs_alone(void *arg) { runs_in_pool(arg); }

static void test_coroutine_waits_for_its_result(void **state)
{
    unsigned passed = 0;
    for (int i = 0; i < 200; i++)
        co_start(runs_alone, &passed);
    while (passed < 200)
        loop_step(test_loop(state), true);
    assert_int_equal(co_run(test_loop(state), runs_in_pool, &passed), 0);
}

static void submits_and_leaves(void *arg)
{
    struct test_work *w = arg;
    w->submitter = pthread_self();
    pool_submit(&w->work);
}

/* A loop that is asked to leave waits for its work. */
static void test_stop_waits_for_work(void **state)
{
    for (int i = 0; i < 50; i++) {
        unsigned left = 1;
        struct test_work w = { .work.work = do_work, .work.done = work_done, .left = &left };
        struct loop *other = loop_thread_start("other", NULL);
        co_start_on(other, submits_and_leaves, &w);
        loop_thread_stop(other);
        assert_int_equal(left, 0);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(test_every_work_is_done),
        LOOP_TEST(test_grows_and_shrinks),
        LOOP_TEST(test_coroutine_waits_for_its_result),
        LOOP_TEST(test_stop_waits_for_work),
    };
    return run_on_both_backends(tests);
}
