/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stackful coroutines: straight-line code for what waits more than once.
 *
 * A coroutine belongs to the loop that it was started on (its home) and only ever runs on that loop's thread. Stacks
 * come from a pool, have a guard page below, and are told to ASan, TSan and Valgrind. A yield is ended by exactly one
 * co_wake(), from any thread; a wake that comes before the yield is kept. Nothing else resumes a coroutine: no
 * spurious wake-ups.
 *
 * Functions that may yield are marked coroutine_fn and have co_ in their name (base/compiler.h).
 */
#pragma once

#include <base/compiler.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct co;
struct loop;

/* Starts fn(arg) on the calling thread's loop. Runs at once, in the caller's place, until its first yield: the caller
 * continues then. May be called inside or outside a coroutine. */
void co_start(void (*fn)(void *arg), void *arg);
/* The same on another loop. Any thread. */
void co_start_on(struct loop *loop, void (*fn)(void *arg), void *arg);
/* For main() and tests: runs fn(arg) in a coroutine and iterates the loop until it has returned; returns its result.
 * Not from within a coroutine. */
int co_run(struct loop *loop, int (*fn)(void *arg), void *arg);

struct co *co_self(void); /* NULL outside coroutines */
struct loop *co_home(const struct co *co);

/* Sleeps until co_wake(). */
coroutine_fn void co_yield(void);
/* Ends the (present or next) yield of `co`: it goes to the end of its home loop's queue. Any thread. */
void co_wake(struct co *co);
/* Lets the loop do other things, then goes on. */
coroutine_fn void co_relax(void);
coroutine_fn void co_sleep_ns(uint64_t ns);

/* Counts, for tests that show that a path needs no coroutine: those ever started in this process; those alive. */
uint64_t co_count_started(void);
uint64_t co_count_alive(void);
