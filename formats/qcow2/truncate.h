/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* truncate.c: what creating an image, VM state and opening need of it. */
#pragma once

#include "state.h"

/* Clusters for all of [offset, end) that has none. prealloc: "metadata", "falloc", "full". Nothing is in flight. */
coroutine_fn int qcow2_co_preallocate(struct qcow2 *s, uint64_t offset, uint64_t end, const char *prealloc,
                                      struct error **errp);

/* A larger L1 table. Nothing is in flight. Lock not held. -EFBIG: larger than the format allows. */
coroutine_fn int qcow2_co_grow_l1(struct qcow2 *s, uint64_t entries);

/*
 * Cuts off what the file has past the last cluster in use, if it is a hole: a writer that was killed leaves one,
 * because its file was grown ahead. A cluster that is in use though its refcount says that it is not reads the same
 * afterwards: as zeroes. Best effort. The caller holds the permission to resize, and nobody uses the image yet.
 */
coroutine_fn void qcow2_co_cut_hole(struct qcow2 *s);

/* The same for all that is past the last cluster in use, whatever it holds: nothing is in flight, and everything is
 * settled. A host that does not grow keeps its size. */
coroutine_fn int qcow2_co_cut_file(struct qcow2 *s);
