/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Epochs: when is it safe to reuse what a request in flight may still be looking at?
 *
 * A request that follows a mapping (a cluster's place, a cached L2 slice) does so between epoch_enter() and
 * epoch_exit(), on one loop and in one domain: the place where it came in, such as a disk's front end. Whoever takes
 * such a thing out of use first makes it unreachable for new requests, then calls epoch_retire(), and reuses it only
 * once epoch_passed() says, of every domain whose requests could have reached it, that those in flight then have ended.
 * A request that hangs in one domain holds up no other.
 *
 * Enter and exit are plain increments on a record of the loop's own, no atomic read-modify-write: once an iteration a
 * loop publishes, for each domain in which it has requests, the epoch of the oldest.
 *
 * Never wait for anything that may itself wait for an epoch (a tracked range, a lock, epoch_wait()) between enter and
 * exit.
 */
#pragma once

#include <base/list.h>
#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

struct loop;
struct epoch_domain;

/* With one reference; the last one gone frees it. Requests in flight hold references of their own. Any thread. */
struct epoch_domain *epoch_domain_new(void);
struct epoch_domain *epoch_domain_ref(struct epoch_domain *domain);
void epoch_domain_unref(struct epoch_domain *domain);

/* On the loop's thread, from a callback or coroutine on it. Returns a token for epoch_exit() on the same loop: the
 * counter that counts it. */
unsigned *epoch_enter(struct epoch_domain *domain, struct loop *loop);
static inline void epoch_exit(unsigned *token)
{
    assert(*token);
    --*token;
}

/* Ends the present epoch, which is the same one for all domains, and returns its number. Any thread. What was made
 * unreachable before this call is out of sight of every request that enters after it. */
uint64_t epoch_retire(void);
/* Have all requests of the domain that had entered when `epoch` was retired ended? Any thread; never blocks. Loops that
 * sleep with nothing in flight do not hold it up. */
bool epoch_passed(struct epoch_domain *domain, uint64_t epoch);

struct epoch_waiter {
    /* Called once, on any thread, when the epoch has passed. The waiter is the owner's again. Must not block. */
    void (*passed)(struct epoch_waiter *waiter);
    struct list link; /* these below are the domain's */
    uint64_t epoch;
};
/* Asks for a call of waiter->passed. True: the epoch has passed already and no call comes. Any thread, which must not
 * be between enter and exit in this domain itself if it then waits. The caller holds a reference on the domain until
 * the call has come. */
bool epoch_wait(struct epoch_domain *domain, uint64_t epoch, struct epoch_waiter *waiter);
