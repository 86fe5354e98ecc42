/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Crews of coroutines, on one loop and on several: each task is done once, and the first error ends it. */
#include "unit.h"

#include <base/coroutine.h>
#include <base/crew.h>
#include <base/loop.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define TASKS 2000u

struct tasks {
    atomic_uint done[TASKS], running, most;
    size_t fails_at; /* TASKS: none */
};

static coroutine_fn int co_one(void *arg, size_t index)
{
    struct tasks *t = arg;
    unsigned running = atomic_fetch_add(&t->running, 1) + 1, most = atomic_load(&t->most);

    while (running > most && !atomic_compare_exchange_weak(&t->most, &most, running))
        ;
    atomic_fetch_add(&t->done[index], 1);
    /* Who comes after the one that fails takes so long that all of them cannot be done before the error is known. */
    if (index > t->fails_at)
        co_sleep_ns(5000000);
    else if (index % 64 == 0)
        co_sleep_ns(10000);
    atomic_fetch_sub(&t->running, 1);
    return index == t->fails_at ? -EIO : 0;
}

typedef coroutine_fn int co_crew_fn(size_t count, unsigned workers, coroutine_fn int (*co_one)(void *arg, size_t index),
                                    void *arg);

static coroutine_fn void co_check(co_crew_fn *co_run_crew, size_t count, unsigned workers)
{
    static struct tasks t;

    t = (struct tasks){ .fails_at = TASKS };
    assert_int_equal(co_run_crew(count, workers, co_one, &t), 0);
    for (size_t i = 0; i < TASKS; i++)
        assert_int_equal(atomic_load(&t.done[i]), i < count);
    assert_int_equal(atomic_load(&t.running), 0);
    assert_true(atomic_load(&t.most) <= workers);
}

static coroutine_fn void co_check_error(co_crew_fn *co_run_crew)
{
    static struct tasks t;

    t = (struct tasks){ .fails_at = TASKS / 2 };
    assert_int_equal(co_run_crew(TASKS, 4, co_one, &t), -EIO);
    for (size_t i = 0; i <= TASKS / 2; i++)
        assert_int_equal(atomic_load(&t.done[i]), 1);
    assert_int_equal(atomic_load(&t.done[TASKS - 1]), 0);
    assert_int_equal(atomic_load(&t.running), 0);
}

static coroutine_fn int co_on_one_loop(void *arg)
{
    (void)arg;
    co_check(co_crew, TASKS, 8);
    co_check(co_crew, 1, 8);
    co_check(co_crew, 0, 8);
    co_check_error(co_crew);
    return 0;
}

static coroutine_fn int co_on_several_loops(void *arg)
{
    (void)arg;
    for (unsigned round = 0; round < 20; round++) {
        co_check(co_crew_spread, TASKS, 8);
        co_check(co_crew_spread, 3, 8);
        co_check(co_crew_spread, 1, 8);
        co_check(co_crew_spread, 0, 8);
        co_check_error(co_crew_spread);
    }
    return 0;
}

/* ---- work that is handed over, or not ---- */

struct seen {
    atomic_uint here, elsewhere;
};

struct where {
    pthread_t asker;
    struct seen *seen;
};

static int look_where(void *arg)
{
    struct where *where = arg;

    atomic_fetch_add(pthread_equal(pthread_self(), where->asker) ? &where->seen->here : &where->seen->elsewhere, 1);
    return 7;
}

static coroutine_fn int co_do_one(void *arg, size_t index)
{
    struct where where = { pthread_self(), arg };

    (void)index;
    return co_crew_do(look_where, &where) == 7 ? 0 : -EIO;
}

static coroutine_fn int co_do_work(void *arg)
{
    struct seen seen = { 0 };

    (void)arg;
    assert_int_equal(co_crew(10, 2, co_do_one, &seen), 0); /* one loop: others can help */
    assert_int_equal(seen.here, 0);
    assert_int_equal(seen.elsewhere, 10);
    assert_int_equal(co_crew_spread(10, 8, co_do_one, &seen), 0);
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 1)
        assert_int_equal(seen.here, 10);
    assert_int_equal(co_crew(10, 2, co_do_one, &seen), 0); /* it is over */
    assert_int_equal(seen.here + seen.elsewhere, 30);
    assert_in_range(seen.elsewhere, 20, 30);
    return 0;
}

static void run(coroutine_fn int (*co_test)(void *arg))
{
    struct loop *loop = loop_new(NULL);

    assert_non_null(loop);
    assert_int_equal(co_run(loop, co_test, NULL), 0);
    loop_free(loop);
}

static void on_one_loop(void **state) { run(co_on_one_loop); }
static void on_several_loops(void **state) { run(co_on_several_loops); }
static void work_is_handed_over_by_one_loop(void **state) { run(co_do_work); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_one_loop),
        cmocka_unit_test(on_several_loops),
        cmocka_unit_test(work_is_handed_over_by_one_loop),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
