/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* relayout.c: the first cluster, laid out anew. */
#pragma once

#include "state.h"

/* The header is one of version 2 or 3 from now on; or nothing has changed. Nothing is in flight, and nothing is in use
 * that version 2 does not have. */
coroutine_fn int qcow2_co_change_version(struct qcow2 *s, uint32_t version, struct error **errp);
/* The extension for dirty bitmaps; count 0: none. The autoclear bit goes with it. Lock not held. */
coroutine_fn int qcow2_co_change_bitmaps(struct qcow2 *s, uint32_t count, uint64_t size, uint64_t offset,
                                         struct error **errp);
/* The name of the external data file; empty: none, so that it has to be named at each opening. Drained. */
coroutine_fn int qcow2_co_change_data_name(struct qcow2 *s, const char *name, struct error **errp);
