/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Private to the files of check: what one pass over an image counts. check.c walks all that refers to clusters and
 * compares with the refcounts, survey.c takes the first look for it; check_repair.c mends.
 */
#pragma once

#include "counts.h"
#include "state.h"

struct qcow2_checker {
    struct qcow2 *s;
    struct blk_check *check;
    unsigned fix;
    struct qcow2_counts counts; /* references found, by cluster; doubted where a refcount was not the same */
    uint64_t clusters;          /* of the file: they have a count */
    bool compared;              /* all these with the refcounts */
    bool rebuild;               /* the refcount structures themselves are damaged */
    /* For a repair, a bit a cluster: something names it that does not take it for an L2 table. NULL: not collected. */
    uint64_t *not_tables;
    uint64_t not_tables_clusters; /* for so many */
};

static inline uint64_t qcow2_references(const struct qcow2_checker *c, uint64_t cluster)
{
    return qcow2_counts_get(&c->counts, cluster);
}
/* If there is no memory for a higher count, c->counts.failed says so. */
static inline void qcow2_references_set(struct qcow2_checker *c, uint64_t cluster, uint64_t count)
{
    qcow2_counts_set(&c->counts, cluster, count);
}
/* One more reference to each of these clusters of the file. */
static inline void qcow2_references_add(struct qcow2_checker *c, uint64_t first, uint64_t count, bool as_table)
{
    qcow2_counts_add(&c->counts, first, count);
    for (uint64_t i = first; !as_table && i < first + count && i < c->not_tables_clusters; i++)
        c->not_tables[i / 64] |= UINT64_C(1) << i % 64;
}
/* The refcount of a cluster, without a look at its block: known if it was compared, and is what was counted. */
static inline bool qcow2_compared_refcount(const struct qcow2_checker *c, uint64_t cluster, uint64_t *refcount)
{
    bool known = c->compared && cluster < c->clusters && !qcow2_counts_doubted(&c->counts, cluster);

    *refcount = known ? qcow2_references(c, cluster) : 0;
    return known;
}
void qcow2_checker_finish(struct qcow2_checker *c);

__attribute__((format(printf, 3, 4))) void qcow2_check_say(const struct qcow2_checker *c, bool error, const char *fmt,
                                                           ...);

/* Before a repair: finds what is named as an L2 table and as something else too, which is never written to. */
coroutine_fn int qcow2_co_find_tables(struct qcow2_checker *c);
/* Counts all references of the image. 0 or -errno: the image could not be read, or memory. */
coroutine_fn int qcow2_co_count_references(struct qcow2_checker *c);
/* Compares the counts with the refcounts; mends what `fix` (BLK_FIX_*) allows. */
coroutine_fn int qcow2_co_compare_refcounts(struct qcow2_checker *c, unsigned fix);
/* The COPIED flags of the active tables. */
coroutine_fn int qcow2_co_check_copied(struct qcow2_checker *c, unsigned fix);

/* ---- rebuild.c ---- */

/* Refcount table and blocks anew, where nothing is; then the old ones are leaks. */
coroutine_fn int qcow2_co_rebuild_refcounts(struct qcow2_checker *c);
/* The same lower down in the file, if that makes it shorter (*lower); the old ones are free then. The references have
 * just been counted, and are not true any more. Nothing is in flight, and everything is settled. */
coroutine_fn int qcow2_co_pack_refcounts(struct qcow2_checker *c, bool *lower);
/* All refcounts become of 1 << order bits. If it fails they are as they were, or the error says that only leaks are
 * left. Nothing is in flight. */
coroutine_fn int qcow2_co_change_refcount_width(struct qcow2 *s, unsigned order, struct error **errp);

/* ---- check_repair.c ---- */

/* The image was not closed: its refcounts may be stale. Silent. */
coroutine_fn int qcow2_co_repair_dirty(struct qcow2 *s);
