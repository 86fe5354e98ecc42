/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Many pieces of work that wait, a few at a time. */
#pragma once

#include <base/compiler.h>
#include <stddef.h>

/* Calls co_one(arg, index) for each index below `count`, at most `workers` at a time, all on the caller's loop. After
 * the first error no more are begun; returns it when the last has ended. */
coroutine_fn int co_crew(size_t count, unsigned workers, coroutine_fn int (*co_one)(void *arg, size_t index),
                         void *arg);
/* The same on several loops, one a processor: the caller's and others that last as long as the call. co_one is called
 * on any of them, by several at once. */
coroutine_fn int co_crew_spread(size_t count, unsigned workers, coroutine_fn int (*co_one)(void *arg, size_t index),
                                void *arg);
/* fn(arg), which takes a processor or waits for the host for some ten microseconds: in the pool. On a loop of a crew
 * that has every processor, handing it over would only cost: it runs here and now. */
coroutine_fn int co_crew_do(int (*fn)(void *arg), void *arg);
