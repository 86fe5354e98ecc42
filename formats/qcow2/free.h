/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* free.c: the end of the way from "in use" to "free". */
#pragma once

#include "state.h"

/* Gives back what is in limbo and no request can see any more; `wait`: all of it. Lock held; given up and taken
 * again. */
coroutine_fn void qcow2_co_reap(struct qcow2 *s, bool wait);
