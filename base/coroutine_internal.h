/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A coroutine, its stack and the context switch. The struct lies at the top of its own stack's mapping, so that
 * starting a coroutine takes one pooled object and no malloc.
 *
 *     guard page | stack, grows down … | struct co
 */
#pragma once

#include <base/coroutine.h>
#include <base/list.h>
#include <base/loop.h>
#include <stdatomic.h>

#if defined(__SANITIZE_ADDRESS__)
#define CO_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define CO_TSAN 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define CO_TSAN 1
#endif
#endif

#if !defined(CO_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define CO_UCONTEXT 1
#endif

#ifdef CO_UCONTEXT
#include <ucontext.h>
struct co_context {
    ucontext_t uc;
};
#else
/* Where a context sleeps: its stack pointer; all registers that a call keeps are on the stack (switch_*.S). */
struct co_context {
    void *sp;
};
#endif

struct co {
    struct co_context context; /* the coroutine, while it sleeps */
    struct co_context back;    /* who resumed it, while it runs */
    struct co *caller;         /* the coroutine that resumed it, or NULL */
    struct loop *home;
    void (*fn)(void *arg);
    void *arg;
    bool asleep; /* in co_yield(), or not entered yet */
    bool ended;
    atomic_uint wakes;     /* not yet consumed; above 0: `task` or `post` is queued */
    struct loop_task task; /* queued by the home thread */
    struct loop_post post; /* queued by another thread */
    struct list link;      /* in loop->coroutines; in a pool: the pool's */

    char *map; /* the mapping: guard page, stack, this struct */
    size_t map_size;
    char *stack; /* lowest usable byte */
    size_t stack_size;
    unsigned valgrind_id;
    void *fake_stack;       /* ASan: the coroutine's, while it sleeps */
    const void *back_stack; /* ASan: the resumer's stack */
    size_t back_stack_size;
    void *fiber, *back_fiber; /* TSan */
};

/* coroutine_stack.c: pooled stacks; a loop's own few first, then a shared list, then the kernel. */
struct co_pool {
    struct list free;
    unsigned count;
};
void co_pool_init(struct co_pool *pool);
void co_pool_finish(struct co_pool *pool);
/* Only map, map_size, stack, stack_size and valgrind_id are set. Never NULL. */
struct co *co_stack_get(struct co_pool *pool);
void co_stack_put(struct co_pool *pool, struct co *co);

/* coroutine_switch.c */
void co_switch_prepare(struct co *co, void (*entry)(struct co *co)); /* `entry` never returns */
void co_switch_in(struct co *co);      /* by the resumer: runs the coroutine until it switches out */
void co_switch_entered(struct co *co); /* first thing in `entry` */
void co_switch_out(struct co *co);     /* by the coroutine: back to its resumer */
void co_switch_out_last(struct co *co) __attribute__((noreturn));
void co_switch_forget(struct co *co); /* by the resumer, after the last switch */
