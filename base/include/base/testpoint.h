/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Test points: named places between two steps, at which a test can make whoever comes by wait. So the bad order of two
 * threads or coroutines happens each time and not by luck. docs/testing.md lists the points.
 *
 * A point that nobody has set costs one load of a word that is hardly ever written, and a branch that is always
 * predicted. There are none between blk_submit() and the driver on the mapped path: a test holds a mapped request in
 * its protocol node instead (tests/lib/memory_node.h).
 *
 * VMM_TEST_POINTS="qcow2-link=sleep:20ms,block-drain-held=sleep:1s" in the environment delays whole programs.
 */
#pragma once

#include <base/compiler.h>
#include <stdatomic.h>
#include <stdbool.h>

/* ---- in the code under test ---- */

extern atomic_bool testpoints_in_use;

void testpoint_reached(const char *name);
coroutine_fn void testpoint_co_reached(const char *name);

/* Anywhere: a test can only block the thread here, or note that it came by. */
static inline void testpoint(const char *name)
{
    if (unlikely(atomic_load_explicit(&testpoints_in_use, memory_order_relaxed)))
        testpoint_reached(name);
}

/* The coroutine may sleep here: no spinlock or pthread mutex is held. */
static inline coroutine_fn void testpoint_co(const char *name)
{
    if (unlikely(atomic_load_explicit(&testpoints_in_use, memory_order_relaxed)))
        testpoint_co_reached(name);
}

/* ---- in tests; any thread ---- */

/* Calls fn(arg) at the point: at one of testpoint_co() fn may yield. NULL: no more. */
void testpoint_call(const char *name, void (*fn)(void *arg), void *arg);
/* Whoever comes to the point waits there until testpoint_release(). */
void testpoint_hold(const char *name);
void testpoint_release(const char *name);
/* Sleeps until somebody waits at the point. It is held. */
coroutine_fn void testpoint_co_wait_held(const char *name);
/* How often it was reached since testpoint_reset(), while any point was in use. */
unsigned testpoint_count(const char *name);
/* Nothing is set any more; nobody waits at a point. */
void testpoint_reset(void);
