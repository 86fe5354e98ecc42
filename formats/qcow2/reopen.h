/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* open.c: what reopening does as opening and closing do. */
#pragma once

#include "state.h"

/* Clears the bits whose meaning is not kept true while the image is written, and repairs a dirty image. Locks are
 * held. */
coroutine_fn int qcow2_co_prepare_writing(struct qcow2 *s, unsigned flags, struct error **errp);
