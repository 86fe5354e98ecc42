/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* expand.c: zero clusters of snapshots, which version 2 does not have. */
#pragma once

#include "state.h"

/* No L2 table has a zero cluster any more. Nothing is in flight. Lock not held. If it fails some may have gone: nothing
 * that is shown has changed. */
coroutine_fn int qcow2_co_expand_snapshots(struct qcow2 *s, struct error **errp);
