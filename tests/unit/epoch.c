/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Epochs: single steps on one loop, and a torture: loops follow a pointer to a cell and look at it for some iterations,
 * writers replace the cell, wait for the epoch, and overwrite it. Any look at an overwritten cell is a failure (and
 * under ThreadSanitizer any overwrite that does not come after the last look, for cells are plain memory).
 */
#include "unit.h"

#include "../../base/loop_internal.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/epoch.h>
#include <base/pool.h>
#include <unistd.h>

static struct epoch_domain *domain;

static int setup(void **state)
{
    domain = epoch_domain_new();
    return loop_setup(state);
}

static int teardown(void **state)
{
    loop_teardown(state);
    epoch_domain_unref(domain);
    return 0;
}

struct sleeper {
    struct epoch_waiter waiter;
    struct co *co;
};

static void wake_sleeper(struct epoch_waiter *waiter) { co_wake(container_of(waiter, struct sleeper, waiter)->co); }

static coroutine_fn void co_wait_for_epoch(uint64_t epoch)
{
    struct sleeper sleeper = { .waiter.passed = wake_sleeper, .co = co_self() };
    if (!epoch_wait(domain, epoch, &sleeper.waiter))
        co_yield();
}

static void test_quiescent_loops_hold_nothing_up(void **state)
{
    struct loop *loop = test_loop(state);
    assert_true(epoch_passed(domain, epoch_retire()));
    loop_step(loop, false);
    assert_true(epoch_passed(domain, epoch_retire()));
}

static void test_request_holds_its_epoch(void **state)
{
    struct loop *loop = test_loop(state);
    unsigned *first = epoch_enter(domain, loop); /* before the first iteration */
    uint64_t retired = epoch_retire();
    assert_false(epoch_passed(domain, retired));
    loop_step(loop, false);
    assert_false(epoch_passed(domain, retired));

    /* A later request does not keep the earlier epoch. */
    unsigned *second = epoch_enter(domain, loop);
    loop_step(loop, false);
    epoch_exit(first);
    loop_step(loop, false);
    assert_true(epoch_passed(domain, retired));
    uint64_t later = epoch_retire();
    assert_false(epoch_passed(domain, later));
    epoch_exit(second);
    loop_step(loop, false);
    assert_true(epoch_passed(domain, later));
}

/* Requests that overlap without end do not hold an epoch up for ever. */
static void test_overlapping_requests_pass(void **state)
{
    struct loop *loop = test_loop(state);
    unsigned *tokens[2];
    tokens[0] = epoch_enter(domain, loop);
    uint64_t retired = epoch_retire();
    int passed_after = -1;
    for (int i = 1; i < 20; i++) {
        tokens[i % 2] = epoch_enter(domain, loop);
        loop_step(loop, false);
        epoch_exit(tokens[(i + 1) % 2]);
        loop_step(loop, false);
        if (passed_after < 0 && epoch_passed(domain, retired))
            passed_after = i;
    }
    assert_in_range(passed_after, 1, 3);
    epoch_exit(tokens[1]);
}

/* A request that hangs in one domain holds up nothing in another, whichever loop it is on. */
static void test_domains_are_apart(void **state)
{
    struct loop *loop = test_loop(state);
    struct epoch_domain *other = epoch_domain_new();
    unsigned *token = epoch_enter(other, loop);
    loop_step(loop, false);
    uint64_t retired = epoch_retire();
    assert_true(epoch_passed(domain, retired));
    assert_false(epoch_passed(other, retired));
    unsigned *mine = epoch_enter(domain, loop);
    retired = epoch_retire();
    assert_false(epoch_passed(domain, retired));
    epoch_exit(mine);
    loop_step(loop, false);
    assert_true(epoch_passed(domain, retired));
    assert_false(epoch_passed(other, retired));
    epoch_exit(token);
    /* Its last user is gone before the loop has published that: the record keeps it for so long. */
    epoch_domain_unref(other);
    loop_step(loop, false);
}

struct waiting {
    uint64_t epoch;
    bool passed;
};

static void waits(void *arg)
{
    struct waiting *w = arg;
    co_wait_for_epoch(w->epoch);
    assert_true(epoch_passed(domain, w->epoch));
    w->passed = true;
}

static void test_waiter_is_woken(void **state)
{
    struct loop *loop = test_loop(state);
    unsigned *token = epoch_enter(domain, loop);
    struct waiting w = { .epoch = epoch_retire() };
    co_start(waits, &w);
    for (int i = 0; i < 5; i++)
        loop_step(loop, false);
    assert_false(w.passed);
    epoch_exit(token);
    for (int i = 0; i < 5 && !w.passed; i++)
        loop_step(loop, false);
    assert_true(w.passed);
}

/* ---- torture ---- */

enum { READER_LOOPS = 3, READERS = 16, CELLS = 8, REPLACEMENTS = 100, LOOKS = 50000 };

struct cell {
    unsigned long value; /* LIVE while it may be seen */
    char fill[56];
};

#define LIVE 0x11d3ul
#define DEAD 0xdeadul

static struct cell *places[CELLS];
static bool stop;
static unsigned long looks;

static void look_for_a_while(void *arg)
{
    struct loop *loop = loop_current();
    unsigned seed = (unsigned)(uintptr_t)co_self() * 2654435761u;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        seed = seed * 1103515245 + 12345;
        unsigned *token = epoch_enter(domain, loop);
        struct cell *cell = __atomic_load_n(&places[(seed >> 8) % CELLS], __ATOMIC_ACQUIRE);
        assert_int_equal(cell->value, LIVE);
        for (unsigned i = (seed >> 16) % 4; i; i--) {
            co_relax();
            assert_int_equal(cell->value, LIVE);
        }
        epoch_exit(token);
        __atomic_fetch_add(&looks, 1, __ATOMIC_RELAXED);
        if ((seed >> 20) % 8 == 0)
            co_sleep_ns(20000); /* lets the loop become quiescent */
        else if ((seed >> 20) % 2)
            co_relax();
    }
}

static struct cell *new_cell(void)
{
    struct cell *cell = malloc(sizeof(*cell));
    cell->value = LIVE;
    return cell;
}

static int replace_cells(void *arg)
{
    for (unsigned i = 0; i < REPLACEMENTS || __atomic_load_n(&looks, __ATOMIC_RELAXED) < LOOKS; i++) {
        struct cell *cell = new_cell();
        /* Release: the new cell's content goes with it. */
        struct cell *old = __atomic_exchange_n(&places[i % CELLS], cell, __ATOMIC_ACQ_REL);
        co_wait_for_epoch(epoch_retire());
        old->value = DEAD;
        free(old);
        co_relax(); /* an epoch that has passed already does not yield */
    }
    return 0;
}

static void replace_there(void *arg)
{
    replace_cells(NULL);
    __atomic_fetch_sub((int *)arg, 1, __ATOMIC_RELEASE);
}

static void test_nothing_is_reused_too_early(void **state)
{
    struct loop *loops[READER_LOOPS];
    int left = READER_LOOPS;
    stop = false;
    looks = 0;
    for (int i = 0; i < CELLS; i++)
        places[i] = new_cell();
    for (int i = 0; i < READER_LOOPS; i++) {
        loops[i] = loop_thread_start("reader", NULL);
        for (int n = 0; n < READERS; n++)
            co_start_on(loops[i], look_for_a_while, NULL);
        co_start_on(loops[i], replace_there, &left); /* writers among the readers, and one on this loop */
    }
    co_run(test_loop(state), replace_cells, NULL);
    while (__atomic_load_n(&left, __ATOMIC_ACQUIRE))
        usleep(1000);
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    for (int i = 0; i < READER_LOOPS; i++)
        loop_thread_stop(loops[i]);
    for (int i = 0; i < CELLS; i++)
        free(places[i]);
}

#define EPOCH_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        EPOCH_TEST(test_quiescent_loops_hold_nothing_up),
        EPOCH_TEST(test_request_holds_its_epoch),
        EPOCH_TEST(test_overlapping_requests_pass),
        EPOCH_TEST(test_domains_are_apart),
        EPOCH_TEST(test_waiter_is_woken),
        EPOCH_TEST(test_nothing_is_reused_too_early),
    };
    return run_on_both_backends(tests);
}
