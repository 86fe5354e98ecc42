/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Coroutines: start, yield, wake (before, after, from other threads), nesting, sleep, registers, many stacks. */
#include "unit.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <fenv.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void steps_while(struct loop *loop, const int *value, int is)
{
    while (__atomic_load_n(value, __ATOMIC_RELAXED) == is)
        loop_step(loop, true);
}

/* ---- the order of things ---- */

static char trace[64];

static void mark(char c)
{
    size_t used = strlen(trace);
    trace[used] = c;
    trace[used + 1] = 0;
}

static struct co *inner_co;

static void inner(void *arg)
{
    assert_ptr_not_equal(co_self(), arg);
    inner_co = co_self();
    mark('b');
    co_yield();
    mark('f');
}

static void outer(void *arg)
{
    mark('a');
    co_start(inner, co_self());
    mark('c');
    co_relax();
    mark('e');
    co_wake(inner_co);
    co_yield();
    mark('g');
    *(struct co **)arg = NULL;
}

static void outer_started(void *arg)
{
    *(struct co **)arg = co_self();
    outer(arg);
}

static void test_runs_at_once_until_it_yields(void **state)
{
    struct loop *loop = test_loop(state);
    struct co *co = NULL;
    uint64_t started = co_count_started(), alive = co_count_alive();
    trace[0] = 0;
    assert_null(co_self());
    co_start(outer_started, &co);
    mark('d');
    assert_null(co_self());
    assert_non_null(co);
    assert_ptr_equal(co_home(co), loop);
    assert_int_equal(co_count_started() - started, 2);
    assert_int_equal(co_count_alive() - alive, 2);
    while (co_count_alive() - alive == 2)
        loop_step(loop, true);
    assert_string_equal(trace, "abcdef");
    assert_non_null(co); /* it does not go on without a wake */
    co_wake(co);
    while (co)
        loop_step(loop, true);
    assert_string_equal(trace, "abcdefg");
    assert_int_equal(co_count_alive(), alive);
}

/* ---- wakes ---- */

static void yields_three_times(void *arg)
{
    int *passed = arg;
    co_wake(co_self()); /* before the yield */
    co_yield();
    ++*passed;
    co_wake(co_self()); /* two before two yields */
    co_wake(co_self());
    co_yield();
    ++*passed;
    co_yield();
    ++*passed;
}

static void test_wakes_before_the_yield_are_kept(void **state)
{
    struct loop *loop = test_loop(state);
    int passed = 0;
    co_start(yields_three_times, &passed);
    assert_int_equal(passed, 0);
    while (passed < 3)
        loop_step(loop, true);
}

enum { WAKES = 20000, WOKEN = 8 };

struct woken {
    struct co *co;
    int passed;
};

static void yields_many_times(void *arg)
{
    struct woken *w = arg;
    w->co = co_self();
    for (int i = 0; i < WAKES; i++) {
        co_yield();
        w->passed++;
    }
    w->co = NULL;
}

static void *wake_many(void *arg)
{
    struct co **cos = arg;
    for (int i = 0; i < WAKES; i++) {
        for (int n = 0; n < WOKEN; n++)
            co_wake(cos[n]);
    }
    return NULL;
}

static void test_wakes_from_another_thread_are_exact(void **state)
{
    struct loop *loop = test_loop(state);
    struct woken woken[WOKEN] = { 0 };
    struct co *cos[WOKEN];
    pthread_t thread;
    for (int i = 0; i < WOKEN; i++) {
        co_start(yields_many_times, &woken[i]);
        cos[i] = woken[i].co;
    }
    pthread_create(&thread, NULL, wake_many, cos);
    for (int i = 0; i < WOKEN; i++) {
        while (woken[i].passed < WAKES)
            loop_step(loop, true);
    }
    pthread_join(thread, NULL);
    loop_step(loop, false);
    for (int i = 0; i < WOKEN; i++)
        assert_int_equal(woken[i].passed, WAKES);
}

/* ---- co_run, co_start_on, co_sleep_ns ---- */

static int sleeps(void *arg)
{
    uint64_t start = loop_now_ns();
    co_sleep_ns(20000000);
    assert_true(loop_now_ns() - start >= 20000000);
    return *(int *)arg;
}

static void test_co_run_returns_the_result(void **state)
{
    int value = -42;
    assert_int_equal(co_run(test_loop(state), sleeps, &value), -42);
}

struct remote {
    struct loop *expected;
    struct co *waiter;
};

static void runs_there(void *arg)
{
    struct remote *r = arg;
    assert_ptr_equal(loop_current(), r->expected);
    co_sleep_ns(1000000);
    assert_ptr_equal(loop_current(), r->expected);
    co_wake(r->waiter);
}

static int starts_there(void *arg)
{
    for (int i = 0; i < 100; i++) {
        struct remote r = { .expected = arg, .waiter = co_self() };
        co_start_on(arg, runs_there, &r);
        co_yield();
    }
    return 0;
}

static void test_start_on_another_loop(void **state)
{
    struct loop *other = loop_thread_start("other", NULL);
    assert_non_null(other);
    assert_int_equal(co_run(test_loop(state), starts_there, other), 0);
    loop_thread_stop(other);
}

static void sleeps_long(void *arg)
{
    co_sleep_ns(100000000);
    *(int *)arg = 1;
}

/* A thread that is asked to leave finishes what its coroutines do. */
static void test_stop_waits_for_coroutines(void **state)
{
    struct loop *other = loop_thread_start("other", NULL);
    int done = 0;
    co_start_on(other, sleeps_long, &done);
    loop_thread_stop(other);
    assert_int_equal(done, 1);
}

/* ---- stacks and registers ---- */

static __attribute__((noinline)) unsigned deep(unsigned depth, unsigned seed)
{
    volatile unsigned char frame[4096];
    for (size_t i = 0; i < sizeof(frame); i += 512)
        frame[i] = (unsigned char)(seed + depth);
    if (depth % 8 == 0)
        co_relax();
    unsigned below = depth ? deep(depth - 1, seed) : 0;
    for (size_t i = 0; i < sizeof(frame); i += 512)
        assert_int_equal(frame[i], (unsigned char)(seed + depth));
    return below + frame[0];
}

static void uses_its_stack(void *arg)
{
    static unsigned seed;
    unsigned mine = seed++;
    unsigned expected = 0;
    for (unsigned depth = 0; depth <= 40; depth++)
        expected += (unsigned char)(mine + depth);
    assert_int_equal(deep(40, mine), expected);
    --*(int *)arg;
}

static void test_many_stacks(void **state)
{
    /* More than both pools keep; twice, so that reused stacks are seen too. */
    for (int round = 0; round < 2; round++) {
        int left = 500;
        for (int i = 0; i < 500; i++)
            co_start(uses_its_stack, &left);
        while (left)
            loop_step(test_loop(state), true);
    }
}

#define THIRD_NEAREST 0x1.5555555555555p-2
#define THIRD_UPWARD 0x1.5555555555556p-2

static double third(void)
{
    volatile double one = 1.0, three = 3.0;
    return one / three;
}

static void rounds_its_own_way(void *arg)
{
    *(struct co **)arg = co_self();
    fesetround(FE_UPWARD);
    assert_true(third() == THIRD_UPWARD);
    co_yield();
    assert_int_equal(fegetround(), FE_UPWARD);
    assert_true(third() == THIRD_UPWARD);
    fesetround(FE_TONEAREST);
    *(struct co **)arg = NULL;
}

/* The floating-point mode is a register that a call keeps, so a yield does: both of x86's, which libm and SSE use. */
static void test_keeps_the_rounding_mode(void **state)
{
    struct co *co = NULL;
    co_start(rounds_its_own_way, &co);
    assert_int_equal(fegetround(), FE_TONEAREST);
    assert_true(third() == THIRD_NEAREST);
    co_wake(co);
    while (co)
        loop_step(test_loop(state), true);
    assert_int_equal(fegetround(), FE_TONEAREST);
    assert_true(third() == THIRD_NEAREST);
}

static __attribute__((noinline)) unsigned overflow(unsigned depth)
{
    volatile unsigned char frame[1024];
    frame[0] = (unsigned char)depth;
    return frame[0] + (depth ? overflow(depth - 1) : 0) + frame[0];
}

static void overflows(void *arg) { overflow(1u << 20); }

/* The process ends by a signal (or a sanitizer's report), it does not go on. */
static void test_overflow_ends_the_process(void **state)
{
    loop_free(test_loop(state)); /* fork is for loops not supported: the child makes its own */
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        close(STDERR_FILENO);
        loop_new(NULL);
        co_start(overflows, NULL);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0));
    *state = loop_new(NULL);
}

/* Where the mapping that holds `address` begins, and whether the one that ends there may not be touched. */
static bool guarded_below(uintptr_t address)
{
    uintptr_t start, end, guard_end = 0;
    char rights[5], line[512];
    bool found = false;
    FILE *maps = fopen("/proc/self/maps", "re");

    assert_non_null(maps);
    while (!found && fgets(line, sizeof(line), maps)) {
        assert_int_equal(sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &start, &end, rights), 3);
        found = address >= start && address < end;
        if (!found && strcmp(rights, "---p") == 0)
            guard_end = end;
    }
    fclose(maps);
    assert_true(found);
    return guard_end == start;
}

static void looks_below(void *arg) { *(bool *)arg = guarded_below((uintptr_t)__builtin_frame_address(0)); }

/* An overflow by a little hits the guard page, and not what happens to be mapped below. */
static void test_a_guard_page_lies_below_the_stack(void **state)
{
    bool guarded = false;

    co_start(looks_below, &guarded);
    assert_true(guarded);
}

static void relaxes(void *arg)
{
    for (int i = 0; i < 100; i++)
        co_relax();
    ++*(int *)arg;
}

static void test_relax_lets_timers_run(void **state)
{
    int done = 0;
    co_start(relaxes, &done);
    steps_while(test_loop(state), &done, 0);
    assert_int_equal(done, 1);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(test_runs_at_once_until_it_yields),
        LOOP_TEST(test_wakes_before_the_yield_are_kept),
        LOOP_TEST(test_wakes_from_another_thread_are_exact),
        LOOP_TEST(test_co_run_returns_the_result),
        LOOP_TEST(test_start_on_another_loop),
        LOOP_TEST(test_stop_waits_for_coroutines),
        LOOP_TEST(test_many_stacks),
        LOOP_TEST(test_keeps_the_rounding_mode),
        LOOP_TEST(test_overflow_ends_the_process),
        LOOP_TEST(test_a_guard_page_lies_below_the_stack),
        LOOP_TEST(test_relax_lets_timers_run),
    };
    return run_on_both_backends(tests);
}
