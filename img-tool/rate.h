/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* -r: no more than so many bytes a second, on the average since the first. Main loop only. */
#pragma once

#include <base/compiler.h>
#include <stdint.h>

struct rate {
    uint64_t limit; /* bytes a second; 0: none */
    uint64_t started_ns, done;
};
/* So many bytes have been copied: sleeps until they may have been. */
coroutine_fn void co_rate_keep(struct rate *rate, uint64_t bytes);
