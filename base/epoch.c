/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Epochs. Each loop has two counters of requests in flight: those that count as entered in its present epoch, and those
 * of the one before. Between callbacks it publishes the epoch of the oldest as `oldest`, and moves on to the global
 * epoch where the older counter is empty. A loop with nothing in flight publishes EPOCH_QUIESCENT and need not run.
 *
 * Why a thing that is reused after epoch_passed(e) is out of everybody's sight:
 * (1) A request that counts as entered in epoch v > e: its loop read the global epoch as v by an acquire load before
 *     the request entered. The read-modify-write of epoch_retire(), which made e + 1 of e, comes after the thing was
 *     made unreachable and releases; so the request sees it unreachable.
 * (2) A request that counts as entered in v <= e, in a loop that had published some epoch <= v when it entered, and
 *     since then nothing later than v: `oldest` <= v <= e, so epoch_passed(e) is false until the request has left and
 *     the loop has published again. That store releases and epoch_passed()'s load acquires: the request's last look
 *     comes before the reuse.
 * (3) A request that enters a quiescent loop first stores v in `oldest`, then runs a full fence, then looks.
 *     epoch_passed() runs a full fence after the thing was made unreachable and before it loads `oldest`. One fence
 *     comes first: if the loop's, epoch_passed() sees v and (2) holds; if the other, the request sees it unreachable.
 * The waiters' count is checked by the same pair of fences: a loop stores `oldest`, fences, looks for waiters; a waiter
 * registers, fences, looks at every `oldest`. So a waiter sees the advance or is seen by the loop that made it.
 */
#include "coroutine_internal.h"
#include "epoch_internal.h"

#include <base/epoch.h>
#include <base/loop.h>
#include <assert.h>
#include <pthread.h>

struct epoch_waiter {
    struct list link;
    struct co *co;
    uint64_t epoch;
};

static _Atomic uint64_t epoch_global = 1;
static _Atomic uint64_t epoch_safe; /* all epochs up to this one have passed; a cache that only grows */
static atomic_uint epoch_waiters;   /* entries of `waiters`, read without the lock */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the two lists; held for a few instructions */
static struct list records = { &records, &records };
static struct list waiters = { &waiters, &waiters };

/* ThreadSanitizer does not know fences; a read-modify-write on one shared word orders at least as much. */
static inline void full_fence(void)
{
#ifdef CO_TSAN
    static atomic_uint word;
    atomic_fetch_add_explicit(&word, 1, memory_order_seq_cst);
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

/* ---- what is safe ---- */

/* With the lock held. Returns the last epoch that has passed. */
static uint64_t update_safe(void)
{
    uint64_t oldest = atomic_load_explicit(&epoch_global, memory_order_acquire);
    struct epoch_loop *record;
    full_fence();
    list_for_each(record, &records, link) {
        uint64_t published = atomic_load_explicit(&record->oldest, memory_order_acquire);
        if (published < oldest)
            oldest = published;
    }
    if (oldest - 1 > atomic_load_explicit(&epoch_safe, memory_order_relaxed))
        atomic_store_explicit(&epoch_safe, oldest - 1, memory_order_release);
    return atomic_load_explicit(&epoch_safe, memory_order_relaxed);
}

uint64_t epoch_retire(void) { return atomic_fetch_add_explicit(&epoch_global, 1, memory_order_seq_cst); }

bool epoch_passed(uint64_t epoch)
{
    if (epoch <= atomic_load_explicit(&epoch_safe, memory_order_acquire))
        return true;
    pthread_mutex_lock(&lock);
    uint64_t safe = update_safe();
    pthread_mutex_unlock(&lock);
    return epoch <= safe;
}

static void wake_waiters(void)
{
    struct epoch_waiter *waiter, *next;
    pthread_mutex_lock(&lock);
    uint64_t safe = update_safe();
    list_for_each_safe(waiter, next, &waiters, link) {
        if (waiter->epoch > safe)
            continue;
        list_remove(&waiter->link);
        atomic_fetch_sub_explicit(&epoch_waiters, 1, memory_order_relaxed);
        co_wake(waiter->co); /* its stack, with the waiter on it, may be gone now */
    }
    pthread_mutex_unlock(&lock);
}

coroutine_fn void epoch_co_wait(uint64_t epoch)
{
    struct epoch_waiter waiter = { .co = co_self(), .epoch = epoch };
    if (epoch_passed(epoch))
        return;
    pthread_mutex_lock(&lock);
    list_append(&waiters, &waiter.link);
    atomic_fetch_add_explicit(&epoch_waiters, 1, memory_order_relaxed);
    bool passed = epoch <= update_safe(); /* fences */
    if (passed) {
        list_remove(&waiter.link);
        atomic_fetch_sub_explicit(&epoch_waiters, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&lock);
    if (!passed)
        co_yield();
}

/* ---- a loop's record ---- */

void epoch_loop_init(struct epoch_loop *record)
{
    atomic_store_explicit(&record->oldest, EPOCH_QUIESCENT, memory_order_relaxed);
    pthread_mutex_lock(&lock);
    list_append(&records, &record->link);
    pthread_mutex_unlock(&lock);
}

void epoch_loop_finish(struct epoch_loop *record)
{
    epoch_publish(record);
    assert(!record->pinned);
    pthread_mutex_lock(&lock);
    list_remove(&record->link);
    pthread_mutex_unlock(&lock);
}

static void publish(struct epoch_loop *record, uint64_t oldest)
{
    if (oldest == atomic_load_explicit(&record->oldest, memory_order_relaxed))
        return;
    atomic_store_explicit(&record->oldest, oldest, memory_order_release);
    full_fence();
    if (atomic_load_explicit(&epoch_waiters, memory_order_relaxed))
        wake_waiters();
}

void epoch_publish_pinned(struct epoch_loop *record)
{
    unsigned present = record->present, other = present ^ 1;
    if (!record->count[present] && !record->count[other]) {
        record->pinned = false;
        publish(record, EPOCH_QUIESCENT);
        return;
    }
    if (record->count[other]) {
        assert(record->epoch[other] == atomic_load_explicit(&record->oldest, memory_order_relaxed));
        return; /* the oldest is still there */
    }
    uint64_t global = atomic_load_explicit(&epoch_global, memory_order_acquire);
    if (global > record->epoch[present]) {
        record->present = other;
        record->epoch[other] = global;
    }
    publish(record, record->epoch[present]);
}

static __attribute__((noinline)) void pin(struct epoch_loop *record)
{
    uint64_t global = atomic_load_explicit(&epoch_global, memory_order_acquire);
    record->epoch[record->present] = global;
    record->pinned = true;
    atomic_store_explicit(&record->oldest, global, memory_order_release);
    full_fence(); /* (3) */
}

unsigned epoch_enter(struct loop *loop)
{
    struct epoch_loop *record = loop_epoch(loop);
    if (__builtin_expect(!record->pinned, 0))
        pin(record);
    record->count[record->present]++;
    return record->present;
}

void epoch_exit(struct loop *loop, unsigned token)
{
    struct epoch_loop *record = loop_epoch(loop);
    assert(record->count[token]);
    record->count[token]--;
}
