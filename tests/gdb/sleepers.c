/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For the test of vmm-gdb.py: a process with coroutines asleep at known places, that aborts where gdb looks. */
#include <base/coroutine.h>
#include <base/loop.h>
#include <base/sync.h>

#include <stdlib.h>

static struct co_mutex mutex;

static __attribute__((noinline)) void waits_for_ever(int depth)
{
    if (depth)
        waits_for_ever(depth - 1);
    else
        co_yield();
    __asm__ volatile(""); /* no tail call: each level has a frame; also below */
}

static void deep_sleeper(void *arg) { waits_for_ever(3); }

static void lock_holder(void *arg)
{
    co_mutex_lock(&mutex);
    co_sleep_ns(UINT64_C(1) << 60);
}

static void lock_waiter(void *arg)
{
    co_mutex_lock(&mutex);
    __asm__ volatile("");
}

int main(void)
{
    struct loop *loop = loop_new(NULL);
    co_mutex_init(&mutex);
    co_start(deep_sleeper, NULL);
    co_start(lock_holder, NULL);
    co_start(lock_waiter, NULL);
    loop_step(loop, false);
    abort();
}
