/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Worker pool: threads for blocking calls and CPU-heavy work, started as needed (up to 64), ended when idle for 10 s.
 */
#pragma once

#include <base/compiler.h>
#include <base/loop.h>

struct pool_work {
    void (*work)(struct pool_work *w); /* in a worker thread */
    void (*done)(struct pool_work *w); /* on the loop that submitted it */
    struct loop *loop;                 /* these below are the pool's */
    struct pool_work *next;
    struct loop_post post;
};
/* On a loop's thread. *w stays in place until done is called. No allocation. */
void pool_submit(struct pool_work *w);

/* Runs fn(arg) in a worker, sleeps meanwhile, returns its result. */
coroutine_fn int pool_co_run(int (*fn)(void *arg), void *arg);
