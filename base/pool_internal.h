/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the pool's own test looks at. Any thread. */
#pragma once

#include <stdint.h>

unsigned pool_thread_count(void);
/* For threads that become idle after the call. */
void pool_set_idle_timeout_ms(uint64_t ms);
