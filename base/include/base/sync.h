/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Locks that coroutines wait for without blocking their loop. All of them work across loops (threads), are fair (first
 * come, first served, but that who waits for a mutex may be overtaken until it has been woken and has come), and never
 * allocate: a waiter is a struct on the waiting coroutine's stack. A lock is released by the coroutine that took it,
 * though maybe after yields. Zero-initialised memory is NOT enough: use the _init functions.
 */
#pragma once

#include <base/compiler.h>
#include <base/list.h>
#include <pthread.h>
#include <stdbool.h>

struct co;

struct co_mutex {
    pthread_spinlock_t guard; /* protects all below; held for a few instructions */
    bool locked;
    bool first_is_awake; /* it was woken, and is on its way: nobody else is, until it has come */
    bool hand_over;      /* it came too late: it gets the lock from who has it */
    struct co *owner;    /* for assertions */
    struct list waiters;
};
void co_mutex_init(struct co_mutex *m);
void co_mutex_finish(struct co_mutex *m); /* must be unlocked */
coroutine_fn void co_mutex_lock(struct co_mutex *m);
bool co_mutex_try_lock(struct co_mutex *m); /* in a coroutine, but does not yield */
void co_mutex_unlock(struct co_mutex *m);   /* does not yield; wakes the first waiter */

/* Condition: a queue of sleeping coroutines. */
struct co_cond {
    pthread_spinlock_t guard;
    struct list waiters;
};
void co_cond_init(struct co_cond *c);
void co_cond_finish(struct co_cond *c); /* nobody may wait */
/* Releases m (if not NULL), sleeps until signalled, takes m again. */
coroutine_fn void co_cond_wait(struct co_cond *c, struct co_mutex *m);
/* The same where a pthread mutex guards the state: it is released while asleep. */
coroutine_fn void co_cond_wait_pthread(struct co_cond *c, pthread_mutex_t *m);
void co_cond_signal(struct co_cond *c);    /* wakes the first waiter; any thread, in or outside a coroutine */
void co_cond_broadcast(struct co_cond *c); /* wakes all */

/* Readers and writers; fair: a reader that comes after a waiting writer waits. */
struct co_rwlock {
    pthread_spinlock_t guard;
    unsigned readers;
    bool writer;
    struct list waiters;
};
void co_rwlock_init(struct co_rwlock *l);
void co_rwlock_finish(struct co_rwlock *l);
coroutine_fn void co_rwlock_read(struct co_rwlock *l);
coroutine_fn void co_rwlock_write(struct co_rwlock *l);
void co_rwlock_unlock(struct co_rwlock *l); /* either kind */
