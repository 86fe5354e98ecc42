/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The limit on a copy's speed. */
#include "rate.h"

#include <base/coroutine.h>
#include <base/loop.h>

coroutine_fn void co_rate_keep(struct rate *rate, uint64_t bytes)
{
    uint64_t now = loop_now_ns();

    if (!rate->limit)
        return;
    if (!rate->started_ns)
        rate->started_ns = now;
    rate->done += bytes;
    uint64_t due = rate->started_ns + (uint64_t)((double)rate->done * 1e9 / (double)rate->limit);
    if (due > now)
        co_sleep_ns(due - now);
}
