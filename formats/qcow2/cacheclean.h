/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cacheclean.c. All on the home loop. */
#pragma once

#include "state.h"

void qcow2_clean_start(struct qcow2 *s);
/* Lock not held, s->closing set. */
coroutine_fn void qcow2_co_clean_stop(struct qcow2 *s);
