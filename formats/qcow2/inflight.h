/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* inflight.c: slow requests, by guest cluster. */
#pragma once

#include "state.h"

/* Waits until [first, last] (exclusive: shortened to what is free) can be registered. Returns true at once where it
 * could, false after a wait: look everything up again. Lock held. */
coroutine_fn bool qcow2_co_inflight_begin(struct qcow2 *s, struct qcow2_inflight *entry);
void qcow2_inflight_end(struct qcow2 *s, struct qcow2_inflight *entry);
