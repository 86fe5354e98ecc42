/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sharing out a range: a single word says how much of it is taken. */
#include "claims.h"

#include <base/checked.h>
#include <base/compiler.h>

void claims_init(struct claims *claims, uint64_t offset, uint64_t end)
{
    atomic_init(&claims->next, offset);
    claims->end = end;
}

bool claims_take(struct claims *claims, struct claim *claim)
{
    uint64_t next = atomic_load_explicit(&claims->next, memory_order_relaxed);

    do {
        if (next >= claims->end)
            return false;
        *claim = (struct claim){ next, next + MIN((uint64_t)CLAIM_UNIT, claims->end - next) };
    } while (!atomic_compare_exchange_weak(&claims->next, &next, claim->end));
    return true;
}

void claims_fit(struct claims *claims, struct claim *claim, uint64_t end)
{
    uint64_t next = claim->end;

    if (end != next && atomic_compare_exchange_strong(&claims->next, &next, end))
        claim->end = end;
}

void claims_stop(struct claims *claims) { atomic_store(&claims->next, UINT64_MAX); }
