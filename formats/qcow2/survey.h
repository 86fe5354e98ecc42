/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * survey.c: check looks at all tables of a kind on all processors, and is told which of them it must go through itself.
 *
 * The caller frees *findings, which has one for each table: 0: all of it was fine, and is counted if it was to be
 * counted; QCOW2_ODD: nothing of it is counted, and there is something to say; -errno: it could not be read. For tables
 * of entries the survey ends at the first of these; those before it are all done. All return 0 or -ENOMEM.
 */
#pragma once

#include "check.h"

#define QCOW2_ODD 1

/* Counts what the L2 tables of an L1 table (big-endian, in memory) refer to, and for the statistics if it is active. */
coroutine_fn int qcow2_co_survey_references(struct qcow2_checker *c, const uint64_t *l1, uint32_t l1_size, bool active,
                                            int16_t **findings);
/* Do the first `count` refcount blocks say what was counted? Lock held. */
coroutine_fn int qcow2_co_survey_refcounts(struct qcow2_checker *c, uint64_t count, int16_t **findings);
/* Are the COPIED flags of the active L2 tables right? After refcounts and counts were compared. */
coroutine_fn int qcow2_co_survey_copied(struct qcow2_checker *c, int16_t **findings);
