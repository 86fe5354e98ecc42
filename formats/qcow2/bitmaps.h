/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* bitmaps.c: the image's dirty bitmaps, from when it is opened to when it is closed. Nothing is in flight; lock not
 * held.
 */
#pragma once

#include "state.h"

/* At opening: a list of what the directory names (block/bitmap.h), without bits. */
coroutine_fn int qcow2_co_bitmaps_open(struct qcow2 *s, struct error **errp);
/* The image becomes one that is written: bits are in memory, and the directory on disk says that it is not to be
 * believed, before anything else changes. */
coroutine_fn int qcow2_co_bitmaps_begin(struct qcow2 *s, struct error **errp);
/* The image was written until now: bitmaps as they are in memory, durable, and believed again. If this fails the image
 * has the old ones, which say that they say nothing. */
coroutine_fn int qcow2_co_bitmaps_store(struct qcow2 *s, struct error **errp);
/* All of them go: version 2 has none. */
coroutine_fn int qcow2_co_bitmaps_drop(struct qcow2 *s, struct error **errp);
/* For compact: bitmaps that reach to this cluster or behind it are stored anew, where there is room first. *moved: some
 * were. Those that say nothing stay where they are. */
coroutine_fn int qcow2_co_bitmaps_move(struct qcow2 *s, uint64_t cluster, bool *moved, struct error **errp);
void qcow2_bitmaps_free(struct qcow2 *s);
/* What info says of them; NULL: there are none. */
json_t *qcow2_bitmaps_json(const struct qcow2 *s);
