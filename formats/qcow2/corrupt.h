/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* corrupt.c: the image contradicts itself. */
#pragma once

#include "state.h"

/* Says so (once), and on a writable image sets the corrupt bit and refuses writes from now on. Returns -EIO. Lock
 * held, given up while the header is written: no pointer into the caches is good afterwards. */
coroutine_fn int qcow2_co_mark_corrupt(struct qcow2 *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
