/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Epochs: when is it safe to reuse what a request in flight may still be looking at?
 *
 * A request that follows a mapping (a cluster's place, a cached L2 slice) does so between epoch_enter() and
 * epoch_exit(), on one loop. Whoever takes such a thing out of use first makes it unreachable for new requests, then
 * calls epoch_retire(), and reuses it only once epoch_passed() says that every request that was in flight then has
 * ended. Enter and exit are plain increments on the loop's own record, no atomic read-modify-write: a loop publishes the epoch of
 * its oldest request once an iteration.
 *
 * Never wait for anything that may itself wait for an epoch (a tracked range, a lock, epoch_co_wait()) between
 * enter and exit.
 */
#pragma once

#include <base/compiler.h>
#include <stdbool.h>
#include <stdint.h>

struct loop;

/* On the loop's thread, from a callback or coroutine on it. Returns a token for epoch_exit() on the same loop. */
unsigned epoch_enter(struct loop *loop);
void epoch_exit(struct loop *loop, unsigned token);

/* Ends the present epoch and returns its number. Any thread. What was made unreachable before this call is out of sight
 * of every request that enters after it. */
uint64_t epoch_retire(void);
/* Have all requests that had entered when `epoch` was retired ended? Any thread; never blocks. Loops that sleep with
 * nothing in flight do not hold it up. */
bool epoch_passed(uint64_t epoch);
/* Sleeps until epoch_passed(epoch). The caller must not be between enter and exit itself. */
coroutine_fn void epoch_co_wait(uint64_t epoch);
