/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Locks of coroutines. Each is a spin-locked guard around a few fields and a queue of waiters, which lie on the waiting
 * coroutines' stacks. Whoever releases a rwlock hands it over: it takes the first waiters off the queue, makes them the
 * holders, lets go of the guard, and wakes them. So nobody overtakes, and a woken coroutine has the lock without
 * looking again.
 *
 * A mutex is not handed over at first. Between a wake-up and the moment the woken one runs, on another loop or behind
 * what its own loop is doing, many times the work that the lock protects could be done; if nobody could do it, all
 * would queue, each would be woken, and loops would mostly wait for each other. So the first waiter is woken, and the
 * lock is free until it comes. If it was overtaken, it goes back to the front, and gets the lock from whoever has it.
 *
 * Invariant: a waiter is off every queue before it is woken, and the guard is not touched after that wake: the woken
 * one may end, or free the lock.
 */
#include <base/coroutine.h>
#include <base/sync.h>

#include <assert.h>

struct waiter {
    struct list link;
    struct co *co;
    bool writer; /* of a rwlock */
};

static struct waiter *first_waiter(struct list *waiters) { return list_first(waiters, struct waiter, link); }

/* Wakes all of a list that nobody else sees. */
static void wake_all(struct list *waiters)
{
    struct waiter *waiter, *next;
    list_for_each_safe(waiter, next, waiters, link)
        co_wake(waiter->co); /* its stack may be gone now; `next` is still asleep */
}

/* ---- mutex ---- */

void co_mutex_init(struct co_mutex *m)
{
    pthread_spin_init(&m->guard, PTHREAD_PROCESS_PRIVATE);
    m->locked = m->first_is_awake = m->hand_over = false;
    m->owner = NULL;
    list_init(&m->waiters);
}

void co_mutex_finish(struct co_mutex *m)
{
    assert(!m->locked && list_empty(&m->waiters));
    pthread_spin_destroy(&m->guard);
}

/* Guard held: it is the caller's if nobody has it. */
static bool take(struct co_mutex *m, struct co *co)
{
    if (m->locked)
        return false;
    m->locked = true;
    m->owner = co;
    return true;
}

bool co_mutex_try_lock(struct co_mutex *m)
{
    assert(co_self());
    pthread_spin_lock(&m->guard);
    bool got = take(m, co_self());
    pthread_spin_unlock(&m->guard);
    return got;
}

coroutine_fn void co_mutex_lock(struct co_mutex *m)
{
    struct waiter waiter = { .co = co_self() };
    assert(waiter.co);
    pthread_spin_lock(&m->guard);
    assert(m->owner != waiter.co);
    if (take(m, waiter.co)) {
        pthread_spin_unlock(&m->guard);
        return;
    }
    list_append(&m->waiters, &waiter.link);
    for (;;) {
        pthread_spin_unlock(&m->guard);
        co_yield();
        pthread_spin_lock(&m->guard);
        if (m->owner == waiter.co)
            break;
        m->first_is_awake = false;
        if (take(m, waiter.co))
            break;
        list_prepend(&m->waiters, &waiter.link);
        m->hand_over = true;
    }
    pthread_spin_unlock(&m->guard);
}

void co_mutex_unlock(struct co_mutex *m)
{
    struct co *next = NULL;
    pthread_spin_lock(&m->guard);
    assert(m->locked && m->owner == co_self());
    if (!list_empty(&m->waiters) && !m->first_is_awake) {
        struct waiter *waiter = first_waiter(&m->waiters);
        list_remove(&waiter->link);
        next = waiter->co;
    }
    m->owner = m->hand_over ? next : NULL;
    m->locked = m->owner != NULL;
    if (next)
        m->first_is_awake = !m->hand_over;
    m->hand_over = false;
    pthread_spin_unlock(&m->guard);
    if (next)
        co_wake(next);
}

/* ---- condition ---- */

void co_cond_init(struct co_cond *c)
{
    pthread_spin_init(&c->guard, PTHREAD_PROCESS_PRIVATE);
    list_init(&c->waiters);
}

void co_cond_finish(struct co_cond *c)
{
    assert(list_empty(&c->waiters));
    pthread_spin_destroy(&c->guard);
}

static void enqueue(struct co_cond *c, struct waiter *waiter)
{
    waiter->co = co_self();
    assert(waiter->co);
    pthread_spin_lock(&c->guard);
    list_append(&c->waiters, &waiter->link);
    pthread_spin_unlock(&c->guard);
}

/* On the queue before the lock is released: a signal given under the lock afterwards finds us. One that comes before
 * the yield is kept. */
coroutine_fn void co_cond_wait(struct co_cond *c, struct co_mutex *m)
{
    struct waiter waiter;
    enqueue(c, &waiter);
    if (m)
        co_mutex_unlock(m);
    co_yield();
    if (m)
        co_mutex_lock(m);
}

coroutine_fn void co_cond_wait_pthread(struct co_cond *c, pthread_mutex_t *m)
{
    struct waiter waiter;
    enqueue(c, &waiter);
    pthread_mutex_unlock(m);
    co_yield();
    pthread_mutex_lock(m);
}

void co_cond_signal(struct co_cond *c)
{
    struct co *co = NULL;
    pthread_spin_lock(&c->guard);
    if (!list_empty(&c->waiters)) {
        struct waiter *waiter = first_waiter(&c->waiters);
        list_remove(&waiter->link);
        co = waiter->co;
    }
    pthread_spin_unlock(&c->guard);
    if (co)
        co_wake(co);
}

void co_cond_broadcast(struct co_cond *c)
{
    struct list all;
    list_init(&all);
    pthread_spin_lock(&c->guard);
    list_splice(&all, &c->waiters);
    pthread_spin_unlock(&c->guard);
    wake_all(&all);
}

/* ---- readers and writers ---- */

void co_rwlock_init(struct co_rwlock *l)
{
    pthread_spin_init(&l->guard, PTHREAD_PROCESS_PRIVATE);
    l->readers = 0;
    l->writer = false;
    list_init(&l->waiters);
}

void co_rwlock_finish(struct co_rwlock *l)
{
    assert(!l->readers && !l->writer && list_empty(&l->waiters));
    pthread_spin_destroy(&l->guard);
}

static bool admit(struct co_rwlock *l, bool writer)
{
    if (l->writer || (writer && l->readers))
        return false;
    if (writer)
        l->writer = true;
    else
        l->readers++;
    return true;
}

static coroutine_fn void co_rwlock_take(struct co_rwlock *l, bool writer)
{
    struct waiter waiter = { .co = co_self(), .writer = writer };
    assert(waiter.co);
    pthread_spin_lock(&l->guard);
    bool got = list_empty(&l->waiters) && admit(l, writer);
    if (!got)
        list_append(&l->waiters, &waiter.link);
    pthread_spin_unlock(&l->guard);
    if (!got)
        co_yield();
}

coroutine_fn void co_rwlock_read(struct co_rwlock *l) { co_rwlock_take(l, false); }

coroutine_fn void co_rwlock_write(struct co_rwlock *l) { co_rwlock_take(l, true); }

void co_rwlock_unlock(struct co_rwlock *l)
{
    struct list admitted;
    list_init(&admitted);
    pthread_spin_lock(&l->guard);
    assert(l->writer || l->readers);
    if (l->writer)
        l->writer = false;
    else
        l->readers--;
    while (!list_empty(&l->waiters) && admit(l, first_waiter(&l->waiters)->writer)) {
        struct waiter *waiter = first_waiter(&l->waiters);
        list_remove(&waiter->link);
        list_append(&admitted, &waiter->link);
    }
    pthread_spin_unlock(&l->guard);
    wake_all(&admitted);
}
