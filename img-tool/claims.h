/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A range of bytes that workers on several loops share out among them, in order. There is no lock: a worker that waited
 * for another would sleep and be woken for each piece, which costs more than the piece.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What a worker takes at a time. */
enum { CLAIM_UNIT = 2 << 20 };

struct claims {
    _Atomic(uint64_t) next; /* nobody has anything from here on */
    uint64_t end;
};

/* [offset, end): one worker's */
struct claim {
    uint64_t offset, end;
};

/* Before the workers start. */
void claims_init(struct claims *claims, uint64_t offset, uint64_t end);
/* The next unit, or what is left of it; false: there is none. Any thread. */
bool claims_take(struct claims *claims, struct claim *claim);
/* The claim ends at `end` instead: later because what follows is like it (a hole, say), or earlier. Nothing changes if
 * another worker has taken what follows meanwhile. Any thread. */
void claims_fit(struct claims *claims, struct claim *claim, uint64_t end);
/* Nobody takes any more. Any thread. */
void claims_stop(struct claims *claims);
