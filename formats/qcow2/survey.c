/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The first look of check at L2 tables and refcount blocks: several at a time, on all processors. It only counts, and
 * says nothing. A table that check has anything to say of is left as it is, for check to go through in its turn: so
 * whatever is said, counted as wrong or mended comes in the order of the tables, and is the work of one.
 *
 * Nothing of a table is counted before all of it was seen. What it refers to is kept meanwhile, as runs of clusters, in
 * the memory of the entries that say so.
 */
#include "survey.h"

#include "l2.h"
#include "refcount.h"

#include <base/crew.h>

#include <pthread.h>

#define WORKERS 16u
/* So few bytes are read before other loops have begun. */
#define SPREAD_MIN (UINT64_C(1) << 20)

struct survey {
    struct qcow2_checker *c;
    const uint64_t *l1; /* big-endian */
    bool active;        /* it is that of the disk as it is now */
    uint64_t count;     /* tables */
    /* A finding. The buffer is a cluster. */
    coroutine_fn int16_t (*co_look)(struct survey *survey, uint64_t index, uint64_t *buffer);
    bool ends_at_error;
    atomic_uint_least64_t next;
    int16_t *findings;
    pthread_mutex_t lock; /* the counts, the set not_tables, and the statistics */
};

/* ---- a crew that shares the tables out ---- */

static coroutine_fn int co_work(void *arg, size_t number)
{
    struct survey *survey = arg;
    const struct qcow2 *s = survey->c->s;
    AUTO_FREE uint64_t *buffer = blk_buffer_alloc(s->node->file, s->cluster_size);
    uint64_t index;

    (void)number;
    if (!buffer)
        return -ENOMEM;
    while ((index = atomic_fetch_add(&survey->next, 1)) < survey->count) {
        int16_t finding = survey->findings[index] = survey->co_look(survey, index, buffer);
        if (finding < 0 && survey->ends_at_error)
            atomic_store(&survey->next, survey->count); /* those before this one have been taken */
    }
    return 0;
}

static coroutine_fn int co_survey(struct survey *survey, int16_t **findings)
{
    *findings = survey->findings = calloc(MAX(survey->count, UINT64_C(1)), sizeof(**findings));
    if (!survey->findings)
        return -ENOMEM;
    pthread_mutex_init(&survey->lock, NULL);
    bool spread = survey->count > SPREAD_MIN >> survey->c->s->cluster_bits;
    int ret = spread ? co_crew_spread(WORKERS, WORKERS, co_work, survey) : co_crew(1, 1, co_work, survey);
    pthread_mutex_destroy(&survey->lock);
    return ret;
}

/* ---- references ---- */

/* Clusters in a row, in the place of an entry: not more than these bits have room for. */
#define RUN_FIRST_BITS 48u
#define RUN_COUNT_MAX (UINT64_C(1) << (64 - RUN_FIRST_BITS) >> 1)

struct run {
    uint64_t first, count;
};

static uint64_t pack_run(struct run run) { return run.count << RUN_FIRST_BITS | run.first; }
static struct run unpack_run(uint64_t packed)
{
    return (struct run){ packed & ((UINT64_C(1) << RUN_FIRST_BITS) - 1), packed >> RUN_FIRST_BITS };
}

/* What a table refers to, while it is turned into this. */
struct digest {
    uint64_t *runs; /* packed; the table's own memory */
    size_t count;
    struct run last; /* not there yet */
    struct blk_check statistics;
    uint64_t next; /* behind the last data cluster: bytes; 0: none yet */
};

static inline void add_run(struct digest *d, struct run run)
{
    if (d->last.first + d->last.count == run.first && d->last.count + run.count <= RUN_COUNT_MAX) {
        d->last.count += run.count;
        return;
    }
    if (d->last.count)
        d->runs[d->count++] = pack_run(d->last);
    d->last = run;
}

/* What follows is false if there is something to say of the entry. */
static bool digest_compressed(const struct qcow2_checker *c, struct digest *d, struct qcow2_entry entry)
{
    unsigned bits = c->s->cluster_bits;
    uint64_t offset, length;

    if (c->s->external || entry.subclusters || qcow2_entry_copied(entry))
        return false;
    qcow2_entry_compressed_place(entry, bits, &offset, &length);
    uint64_t first = offset >> bits, last = (offset + length - 1) >> bits;
    if (last >= MIN(c->clusters, UINT64_C(1) << RUN_FIRST_BITS))
        return false;
    add_run(d, (struct run){ first, last - first + 1 });
    d->statistics.allocated_clusters++;
    d->statistics.compressed_clusters++;
    d->statistics.fragmented_clusters++;
    return true;
}

static inline bool digest_entry(const struct qcow2_checker *c, struct digest *d, struct qcow2_entry entry)
{
    const struct qcow2 *s = c->s;
    uint64_t offset = qcow2_entry_host(entry), cluster = offset >> s->cluster_bits;

    if (qcow2_entry_kind(entry) == QCOW2_IS_COMPRESSED)
        return digest_compressed(c, d, entry);
    if (qcow2_entry_reserved_bits(entry) || (s->extended && !qcow2_entry_subclusters_valid(entry)))
        return false;
    if (!qcow2_entry_has_cluster(entry))
        return true;
    if (qcow2_in_cluster(s, offset) || (!s->external && cluster >= c->clusters))
        return false;
    d->statistics.allocated_clusters++;
    d->statistics.fragmented_clusters += d->next && offset != d->next;
    d->next = offset + s->cluster_size;
    if (!s->external)
        add_run(d, (struct run){ cluster, 1 });
    return true;
}

/* An L2 table becomes the runs that it refers to; false, and it is lost, if there is something to say of it. */
static bool digest_table(const struct qcow2_checker *c, struct digest *d, uint64_t *table)
{
    struct qcow2_layout layout = qcow2_layout(c->s);
    uint64_t entries = UINT64_C(1) << c->s->l2_bits;

    *d = (struct digest){ .runs = table };
    for (uint64_t i = 0; i < entries; i++) { /* d->count <= i: what is overwritten was read */
        if (!digest_entry(c, d, qcow2_entry_load(table, i, layout)))
            return false;
    }
    if (d->last.count)
        d->runs[d->count++] = pack_run(d->last);
    return true;
}

static void count_digest(struct survey *survey, const struct digest *d)
{
    struct blk_check *check = survey->c->check;

    pthread_mutex_lock(&survey->lock);
    for (size_t i = 0; i < d->count; i++) {
        struct run run = unpack_run(d->runs[i]);
        qcow2_references_add(survey->c, run.first, run.count, false);
    }
    if (survey->active) {
        check->allocated_clusters += d->statistics.allocated_clusters;
        check->fragmented_clusters += d->statistics.fragmented_clusters;
        check->compressed_clusters += d->statistics.compressed_clusters;
    }
    pthread_mutex_unlock(&survey->lock);
}

/* Where the L2 table lies that an L1 entry names; 0: there is none, or it has nothing but zeroes. */
static uint64_t table_of(const struct survey *survey, uint64_t index)
{
    uint64_t table = be64toh(survey->l1[index]) & QCOW2_OFFSET_MASK;

    return table < blk_node_size(survey->c->s->node->file) ? table : 0;
}

/* 0 or a finding: a table that lies badly is odd whatever is in it. */
static coroutine_fn int16_t co_read_table(const struct survey *survey, uint64_t table, uint64_t *buffer)
{
    const struct qcow2 *s = survey->c->s;
    int ret = blk_co_read(s->node->file, table, buffer, s->cluster_size);

    if (ret < 0)
        return (int16_t)ret;
    return qcow2_in_cluster(s, table) ? QCOW2_ODD : 0;
}

static coroutine_fn int16_t co_look_references(struct survey *survey, uint64_t index, uint64_t *buffer)
{
    uint64_t table = table_of(survey, index);
    struct digest digest;

    if (table == 0)
        return 0;
    int16_t finding = co_read_table(survey, table, buffer);
    if (finding == 0 && !digest_table(survey->c, &digest, buffer))
        finding = QCOW2_ODD;
    if (finding == 0)
        count_digest(survey, &digest);
    return finding;
}

coroutine_fn int qcow2_co_survey_references(struct qcow2_checker *c, const uint64_t *l1, uint32_t l1_size, bool active,
                                            int16_t **findings)
{
    struct survey survey = { .c = c, .l1 = l1, .count = l1_size, .active = active };

    survey.co_look = co_look_references;
    survey.ends_at_error = true;
    return co_survey(&survey, findings);
}

/* ---- refcounts ---- */

/* The block's content, which may not be on disk yet; no block counts 0 for all. An odd one: *finding. */
static coroutine_fn const uint8_t *co_block(const struct survey *survey, uint64_t index, uint64_t *buffer,
                                            int16_t *finding)
{
    const struct qcow2 *s = survey->c->s;
    uint64_t offset = be64toh(s->reftable[index]) & ~QCOW2_REFTABLE_RESERVED;

    *finding = 0;
    if (offset == 0)
        return NULL;
    if (s->refblocks[index])
        return s->refblocks[index]->data;
    if (qcow2_in_cluster(s, offset)) {
        *finding = QCOW2_ODD;
        return NULL;
    }
    blk_co_event(s->node->file, BLK_EVENT_REFBLOCK_LOAD);
    *finding = (int16_t)blk_co_read(s->node->file, offset, buffer, s->cluster_size);
    return (const uint8_t *)buffer;
}

static coroutine_fn int16_t co_look_refcounts(struct survey *survey, uint64_t index, uint64_t *buffer)
{
    const struct qcow2_checker *c = survey->c;
    uint64_t first = index << c->s->refblock_bits, end = MIN((index + 1) << c->s->refblock_bits, c->clusters);
    unsigned order = c->s->header.refcount_order;
    bool usual = order == 4;
    int16_t finding;
    const uint8_t *block = co_block(survey, index, buffer, &finding);

    if (finding)
        return finding;
    if (!block)
        return qcow2_counts_first(&c->counts, first, end) < end ? QCOW2_ODD : 0;
    for (uint64_t i = first; i < end; i++) {
        uint64_t refcount = usual ? load_be16(block + 2 * (i - first)) : qcow2_refcount_get(block, order, i - first);
        if (refcount != qcow2_references(c, i))
            return QCOW2_ODD;
    }
    return 0;
}

coroutine_fn int qcow2_co_survey_refcounts(struct qcow2_checker *c, uint64_t count, int16_t **findings)
{
    struct survey survey = { .c = c, .count = count, .co_look = co_look_refcounts };

    return co_survey(&survey, findings);
}

/* ---- the COPIED flags ---- */

static coroutine_fn int16_t co_look_copied(struct survey *survey, uint64_t index, uint64_t *buffer)
{
    const struct qcow2_checker *c = survey->c;
    struct qcow2_layout layout = qcow2_layout(c->s);
    uint64_t table = table_of(survey, index), refcount;

    if (table == 0)
        return 0;
    int16_t finding = co_read_table(survey, table, buffer);
    for (uint64_t i = 0; finding == 0 && i < UINT64_C(1) << c->s->l2_bits; i++) {
        struct qcow2_entry entry = qcow2_entry_load(buffer, i, layout);
        if (!qcow2_entry_has_cluster(entry))
            continue;
        bool known = qcow2_compared_refcount(c, qcow2_entry_host(entry) >> c->s->cluster_bits, &refcount);
        bool alone = c->s->external || refcount == 1; /* an external data file has no refcounts */
        if ((!known && !c->s->external) || alone != qcow2_entry_copied(entry))
            finding = QCOW2_ODD;
    }
    return finding;
}

coroutine_fn int qcow2_co_survey_copied(struct qcow2_checker *c, int16_t **findings)
{
    const uint64_t *l1 = (const uint64_t *)(const void *)c->s->l1;
    struct survey survey = { .c = c, .l1 = l1, .count = c->s->l1_size, .active = true };

    survey.co_look = co_look_copied;
    survey.ends_at_error = true;
    return co_survey(&survey, findings);
}
