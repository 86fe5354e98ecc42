/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Epochs. For each domain in which a loop ever had a request it has a record with two counters of requests in flight:
 * those that count as entered in the record's present epoch, and those of the one before. Between callbacks the loop
 * publishes the epoch of the oldest as `oldest`, and moves on to the global epoch when the older counter is empty. A
 * record with nothing in flight says EPOCH_QUIESCENT, and its loop need not run.
 *
 * Why a thing that is reused after epoch_passed(d, e), for each domain d that could reach it, is out of everybody's
 * sight:
 * (1) A request that counts as entered in epoch v > e: its loop read the global epoch as v by an acquire load before
 *     the request entered. The read-modify-write of epoch_retire(), which made e + 1 of e, comes after the thing was
 *     made unreachable and releases; so the request sees it unreachable.
 * (2) A request that counts as entered in v <= e, in a record that had published some epoch <= v when it entered, and
 *     since then nothing later than v: `oldest` <= v <= e, so epoch_passed(d, e) is false until the request has left
 *     and the loop has published again. That store releases and epoch_passed()'s load acquires: the request's last look
 *     comes before the reuse.
 * (3) A request that enters by a quiescent record, or by one that it makes, first stores v in `oldest`, then runs a
 *     full fence, then looks. epoch_passed() runs a full fence after the thing was made unreachable and before it loads
 * the
 *     record and its `oldest`. One fence comes first: if the loop's, epoch_passed() sees v and (2) holds; if the other,
 *     the request sees it unreachable.
 * The waiters' count is checked by the same pair of fences: a loop stores `oldest`, fences, looks for waiters; a waiter
 * registers, fences, looks at every `oldest`. So a waiter sees the advance or is seen by the loop that made it.
 *
 * A record that is on its loop's list of pinned ones holds a reference on its domain. A slot's record stays with the
 * domain when the loop ends; the next loop with that slot goes on using it.
 */
#include "coroutine_internal.h"
#include "epoch_internal.h"
#include "loop_internal.h"

#include <base/compiler.h>
#include <base/epoch.h>
#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define EPOCH_QUIESCENT UINT64_MAX

struct epoch_record {
    struct epoch_domain *domain;
    struct list link;                     /* the loop's `pinned`, or nowhere */
    bool pinned;                          /* is `oldest` something else than EPOCH_QUIESCENT? */
    unsigned present;                     /* index of the counter that new requests go to */
    unsigned count[2];                    /* requests in flight */
    uint64_t epoch[2];                    /* that they count as having entered in */
    _Alignas(64) _Atomic uint64_t oldest; /* published: no request in flight entered before this epoch */
};

struct epoch_domain {
    atomic_uint references;
    _Atomic uint64_t safe;    /* all epochs up to this one have passed; a cache that only grows */
    atomic_uint waiter_count; /* entries of `waiters`, read without the lock */
    pthread_mutex_t lock;     /* guards `waiters` and the growth of `safe`; held for a few instructions */
    struct list waiters;
    _Atomic(struct epoch_record *) records[EPOCH_LOOPS]; /* by the loop's slot; set once, by that loop */
};

static _Atomic uint64_t epoch_global = 1;

static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;
static bool slot_taken[EPOCH_LOOPS];
static atomic_uint slots_ever; /* slots below it have been used */

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

/* ---- domains ---- */

struct epoch_domain *epoch_domain_new(void)
{
    struct epoch_domain *domain = xcalloc(1, sizeof(*domain));

    atomic_init(&domain->references, 1);
    pthread_mutex_init(&domain->lock, NULL);
    list_init(&domain->waiters);
    return domain;
}

struct epoch_domain *epoch_domain_ref(struct epoch_domain *domain)
{
    atomic_fetch_add_explicit(&domain->references, 1, memory_order_relaxed);
    return domain;
}

void epoch_domain_unref(struct epoch_domain *domain)
{
    if (atomic_fetch_sub_explicit(&domain->references, 1, memory_order_acq_rel) > 1)
        return;
    assert(list_empty(&domain->waiters));
    for (unsigned i = 0; i < EPOCH_LOOPS; i++)
        free(atomic_load_explicit(&domain->records[i], memory_order_relaxed));
    pthread_mutex_destroy(&domain->lock);
    free(domain);
}

/* ---- what is safe ---- */

/* With the domain's lock held. Returns the last epoch that has passed. */
static uint64_t update_safe(struct epoch_domain *domain)
{
    uint64_t oldest = atomic_load_explicit(&epoch_global, memory_order_acquire);

    full_fence();
    unsigned slots = atomic_load_explicit(&slots_ever, memory_order_acquire);
    for (unsigned i = 0; i < slots; i++) {
        struct epoch_record *record = atomic_load_explicit(&domain->records[i], memory_order_acquire);
        uint64_t published = record ? atomic_load_explicit(&record->oldest, memory_order_acquire) : EPOCH_QUIESCENT;
        if (published < oldest)
            oldest = published;
    }
    if (oldest - 1 > atomic_load_explicit(&domain->safe, memory_order_relaxed))
        atomic_store_explicit(&domain->safe, oldest - 1, memory_order_release);
    return atomic_load_explicit(&domain->safe, memory_order_relaxed);
}

uint64_t epoch_retire(void) { return atomic_fetch_add_explicit(&epoch_global, 1, memory_order_seq_cst); }

bool epoch_passed(struct epoch_domain *domain, uint64_t epoch)
{
    if (epoch <= atomic_load_explicit(&domain->safe, memory_order_acquire))
        return true;
    pthread_mutex_lock(&domain->lock);
    uint64_t safe = update_safe(domain);
    pthread_mutex_unlock(&domain->lock);
    return epoch <= safe;
}

static void call_waiters(struct epoch_domain *domain)
{
    struct epoch_waiter *waiter, *next;
    struct list passed = { &passed, &passed };

    pthread_mutex_lock(&domain->lock);
    uint64_t safe = update_safe(domain);
    list_for_each_safe(waiter, next, &domain->waiters, link) {
        if (waiter->epoch > safe)
            continue;
        list_remove(&waiter->link);
        list_append(&passed, &waiter->link);
        atomic_fetch_sub_explicit(&domain->waiter_count, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&domain->lock);
    list_for_each_safe(waiter, next, &passed, link)
        waiter->passed(waiter); /* it may be gone after this; `next` is not called yet */
}

bool epoch_wait(struct epoch_domain *domain, uint64_t epoch, struct epoch_waiter *waiter)
{
    if (epoch_passed(domain, epoch))
        return true;
    waiter->epoch = epoch;
    pthread_mutex_lock(&domain->lock);
    list_append(&domain->waiters, &waiter->link);
    atomic_fetch_add_explicit(&domain->waiter_count, 1, memory_order_relaxed);
    bool passed = epoch <= update_safe(domain); /* fences */
    if (passed) {
        list_remove(&waiter->link);
        atomic_fetch_sub_explicit(&domain->waiter_count, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&domain->lock);
    return passed;
}

/* ---- a loop's records ---- */

bool epoch_loop_init(struct epoch_loop *loop)
{
    unsigned slot = 0;

    list_init(&loop->pinned);
    pthread_mutex_lock(&slots_lock);
    while (slot < EPOCH_LOOPS && slot_taken[slot])
        slot++;
    if (slot < EPOCH_LOOPS)
        slot_taken[slot] = true;
    if (slot < EPOCH_LOOPS && slot >= atomic_load_explicit(&slots_ever, memory_order_relaxed))
        atomic_store_explicit(&slots_ever, slot + 1, memory_order_seq_cst);
    pthread_mutex_unlock(&slots_lock);
    loop->slot = slot;
    return slot < EPOCH_LOOPS;
}

void epoch_loop_finish(struct epoch_loop *loop)
{
    epoch_publish(loop);
    assert(list_empty(&loop->pinned));
    pthread_mutex_lock(&slots_lock);
    slot_taken[loop->slot] = false;
    pthread_mutex_unlock(&slots_lock);
}

static void publish(struct epoch_record *record, uint64_t oldest)
{
    struct epoch_domain *domain = record->domain;

    if (oldest == atomic_load_explicit(&record->oldest, memory_order_relaxed))
        return;
    atomic_store_explicit(&record->oldest, oldest, memory_order_release);
    full_fence();
    if (atomic_load_explicit(&domain->waiter_count, memory_order_relaxed))
        call_waiters(domain);
}

static void unpin(struct epoch_record *record)
{
    struct epoch_domain *domain = record->domain;

    record->pinned = false;
    list_remove(&record->link);
    publish(record, EPOCH_QUIESCENT);
    epoch_domain_unref(domain);
}

static void publish_record(struct epoch_record *record)
{
    unsigned present = record->present, other = present ^ 1;

    if (!record->count[present] && !record->count[other]) {
        unpin(record);
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

void epoch_publish_pinned(struct epoch_loop *loop)
{
    struct epoch_record *record, *next;

    list_for_each_safe(record, next, &loop->pinned, link)
        publish_record(record);
}

static struct epoch_record *record_new(struct epoch_domain *domain, unsigned slot)
{
    struct epoch_record *record = aligned_alloc(_Alignof(struct epoch_record), sizeof(*record));

    if (!record)
        abort();
    memset(record, 0, sizeof(*record));
    record->domain = domain;
    list_init(&record->link);
    atomic_init(&record->oldest, EPOCH_QUIESCENT);
    atomic_store_explicit(&domain->records[slot], record, memory_order_release);
    return record;
}

static __attribute__((noinline)) struct epoch_record *pin(struct epoch_domain *domain, struct loop *loop)
{
    struct epoch_loop *epochs = &loop->epoch;
    struct epoch_record *record = atomic_load_explicit(&domain->records[epochs->slot], memory_order_relaxed);
    uint64_t global = atomic_load_explicit(&epoch_global, memory_order_acquire);

    if (!record)
        record = record_new(domain, epochs->slot);
    epoch_domain_ref(domain);
    list_append(&epochs->pinned, &record->link);
    record->epoch[record->present] = global;
    record->pinned = true;
    atomic_store_explicit(&record->oldest, global, memory_order_release);
    full_fence(); /* (3) */
    return record;
}

unsigned *epoch_enter(struct epoch_domain *domain, struct loop *loop)
{
    unsigned slot = loop->epoch.slot;
    struct epoch_record *record = atomic_load_explicit(&domain->records[slot], memory_order_relaxed);

    if (unlikely(!record || !record->pinned))
        record = pin(domain, loop);
    unsigned *count = &record->count[record->present];
    ++*count;
    return count;
}
