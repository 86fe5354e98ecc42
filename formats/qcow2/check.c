/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Check: counts every reference to every cluster and compares with the refcounts, in QEMU's words.
 *
 * Everything is read from the file itself, through no cache, and nothing that is read is trusted: what lies outside
 * the file is an error and is not followed. Counts take a few bits for each cluster that the file holds (counts.c), so
 * memory is bounded by the file's size.
 *
 * survey.c looks at tables first, many at a time. What it found nothing wrong with is done; the rest is gone through
 * here, one after the other, so that all that is said has the order of the tables.
 */
#include "check.h"

#include "bitmap.h"
#include "l2.h"
#include "overlap.h"
#include "refcount.h"
#include "snapshot.h"
#include "survey.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void qcow2_check_say(const struct qcow2_checker *c, bool error, const char *fmt, ...)
{
    char line[512];
    va_list args;

    if (!c->check->report)
        return;
    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    c->check->report(c->check, error, line);
}

void qcow2_checker_finish(struct qcow2_checker *c)
{
    qcow2_counts_finish(&c->counts);
    free(c->not_tables);
    c->not_tables = NULL;
    c->not_tables_clusters = 0;
}

/* ---- counting ---- */

/* One reference to each cluster of [offset, offset + length). */
static void count_as(struct qcow2_checker *c, uint64_t offset, uint64_t length, bool as_table)
{
    const struct qcow2 *s = c->s;
    uint64_t end = 0, file_size = blk_node_size(s->node->file);

    if (length == 0)
        return;
    if (!checked_add(offset, length, &end) || end > INT64_MAX ||
        (end > file_size && align_up(end, s->cluster_size) - file_size >= s->cluster_size)) {
        c->check->corruptions++;
        qcow2_check_say(c, true,
                        "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
                        "offset 0x%" PRIx64 " size 0x%" PRIx64,
                        offset, length);
        return;
    }
    uint64_t first = offset >> s->cluster_bits, behind = MIN(div_round_up(end, s->cluster_size), c->clusters);
    if (first < behind)
        qcow2_references_add(c, first, behind - first, as_table);
}

static void count(struct qcow2_checker *c, uint64_t offset, uint64_t length) { count_as(c, offset, length, false); }

/* May a repair write to the table? If an entry takes it for data, that would change what the guest reads. */
static bool may_mend(const struct qcow2_checker *c, uint64_t table)
{
    uint64_t cluster = table >> c->s->cluster_bits;

    return qcow2_in_cluster(c->s, table) == 0 && cluster < c->not_tables_clusters &&
           !(c->not_tables[cluster / 64] >> cluster % 64 & 1);
}

static void count_compressed(struct qcow2_checker *c, struct qcow2_entry entry, uint64_t index, bool statistics)
{
    uint64_t offset, length;

    if (qcow2_entry_copied(entry)) {
        unsigned x = 62 - (c->s->cluster_bits - 8);
        qcow2_check_say(c, true, "ERROR: coffset=0x%" PRIx64 ": copied flag must never be set for compressed clusters",
                        entry.word & ((UINT64_C(1) << x) - 1));
        c->check->corruptions++;
        entry = qcow2_entry_with_copied(entry, false);
    }
    if (c->s->external) {
        qcow2_check_say(c, true, "ERROR compressed cluster %" PRIu64 " with data file, entry=0x%" PRIx64, index,
                        entry.word);
        c->check->corruptions++;
        return;
    }
    if (entry.subclusters) {
        qcow2_check_say(c, true,
                        "ERROR compressed cluster %" PRIu64 " with non-zero subcluster allocation bitmap, "
                        "entry=0x%" PRIx64,
                        index, entry.word);
        c->check->corruptions++;
        return;
    }
    qcow2_entry_compressed_place(entry, c->s->cluster_bits, &offset, &length);
    count(c, offset, length);
    if (statistics) {
        c->check->allocated_clusters++;
        c->check->compressed_clusters++;
        c->check->fragmented_clusters++; /* by nature */
    }
}

/* An L2 table that was mended; not where the table itself lies over other metadata. */
static coroutine_fn int co_write_table(struct qcow2_checker *c, uint64_t table, const uint64_t *buffer)
{
    struct qcow2 *s = c->s;

    co_mutex_lock(&s->lock);
    int ret = qcow2_co_check_overlap(s, table, s->cluster_size, QCOW2_REGION_L2);
    co_mutex_unlock(&s->lock);
    return ret < 0 ? ret : blk_co_write(s->node->file, table, buffer, s->cluster_size, 0);
}

static bool holds_data(const struct qcow2_checker *c, struct qcow2_entry entry)
{
    return c->s->extended ? qcow2_entry_allocated(entry) : !qcow2_entry_zero_flag(entry);
}

/* A cluster without data needs no place: one that cannot be right is simply dropped. */
static bool mend_place(const struct qcow2_checker *c, struct qcow2_entry entry, uint64_t *slot)
{
    bool data = holds_data(c, entry), mend = (c->fix & BLK_FIX_ERRORS) && slot && !data;
    struct qcow2_entry mended = { c->s->extended ? 0 : QCOW2_ZERO, entry.subclusters };

    qcow2_check_say(c, !mend, "%s offset=%" PRIx64 ": %s is not properly aligned; L2 entry corrupted.",
                    mend ? "Repairing" : "ERROR", qcow2_entry_host(entry),
                    data ? "Data cluster" : "Preallocated cluster");
    c->check->corruptions += !mend;
    c->check->corruptions_fixed += mend;
    if (mend)
        qcow2_entry_store(slot, 0, mended, qcow2_layout(c->s));
    return mend;
}

static void say_bad_subclusters(struct qcow2_checker *c, struct qcow2_entry entry)
{
    if (qcow2_entry_has_cluster(entry))
        qcow2_check_say(c, true,
                        "ERROR offset=%" PRIx64 ": Allocated cluster has corrupted subcluster allocation bitmap",
                        qcow2_entry_host(entry));
    else
        qcow2_check_say(c, true, "ERROR: Unallocated cluster has non-zero subcluster allocation map");
    c->check->corruptions++;
}

/* Entry `index` of `table`; returns whether it was changed. `mendable`: it may be. */
static bool count_entry(struct qcow2_checker *c, uint64_t *table, uint64_t index, bool mendable, uint64_t *next,
                        bool statistics)
{
    uint64_t *slot = &table[c->s->extended ? index * 2 : index];
    struct qcow2_entry entry = qcow2_entry_load(slot, 0, qcow2_layout(c->s));
    uint64_t offset = qcow2_entry_host(entry);
    enum qcow2_kind kind = qcow2_entry_kind(entry);

    if (kind == QCOW2_IS_COMPRESSED) {
        count_compressed(c, entry, index, statistics);
        return false;
    }
    if (qcow2_entry_reserved_bits(entry)) {
        qcow2_check_say(c, true, "ERROR found l2 entry with reserved bits set: %" PRIx64, be64toh(*slot));
        c->check->corruptions++;
    }
    if (c->s->extended && !qcow2_entry_subclusters_valid(entry))
        say_bad_subclusters(c, entry);
    if (!qcow2_entry_has_cluster(entry))
        return false;
    if (qcow2_in_cluster(c->s, offset) && mend_place(c, entry, mendable ? slot : NULL))
        return true;
    if (statistics) {
        c->check->allocated_clusters++;
        if (*next && offset != *next)
            c->check->fragmented_clusters++;
        *next = offset + c->s->cluster_size;
    }
    if (!c->s->external)
        count(c, offset, c->s->cluster_size);
    return false;
}

/* What the survey found something in. */
static coroutine_fn int co_count_l2(struct qcow2_checker *c, uint64_t table, uint64_t *buffer, bool active, int finding)
{
    bool changed = false, mendable = active && may_mend(c, table);
    uint64_t next = 0;
    int ret = finding < 0 ? finding : blk_co_read(c->s->node->file, table, buffer, c->s->cluster_size);

    if (ret < 0) {
        qcow2_check_say(c, true, "ERROR: I/O error in check_refcounts_l2");
        c->check->check_errors++;
        return ret;
    }
    for (uint64_t i = 0; i < UINT64_C(1) << c->s->l2_bits; i++)
        changed |= count_entry(c, buffer, i, mendable, &next, active);
    return changed ? co_write_table(c, table, buffer) : 0;
}

/* A whole tree: the L1 table (big-endian, in memory), its L2 tables, their clusters. */
static coroutine_fn int co_count_l1(struct qcow2_checker *c, const uint64_t *l1, uint64_t l1_offset, uint32_t l1_size,
                                    bool active)
{
    AUTO_FREE uint64_t *buffer = malloc(c->s->cluster_size);
    AUTO_FREE int16_t *findings = NULL;
    int ret = buffer ? qcow2_co_survey_references(c, l1, l1_size, active, &findings) : -ENOMEM;

    if (ret == 0)
        count(c, l1_offset, (uint64_t)l1_size * 8);
    for (uint32_t i = 0; i < l1_size && ret == 0; i++) {
        uint64_t entry = be64toh(l1[i]), table = entry & QCOW2_OFFSET_MASK;
        if (entry & QCOW2_L1_RESERVED) {
            qcow2_check_say(c, true, "ERROR found L1 entry with reserved bits set: %" PRIx64, entry);
            c->check->corruptions++;
        }
        if (table == 0)
            continue;
        count_as(c, table, c->s->cluster_size, qcow2_in_cluster(c->s, table) == 0);
        if (qcow2_in_cluster(c->s, table)) {
            qcow2_check_say(c, true, "ERROR l2_offset=%" PRIx64 ": Table is not cluster aligned; L1 entry corrupted",
                            table);
            c->check->corruptions++;
        }
        /* Past the end there are only zeroes, which refer to nothing. */
        if (findings[i])
            ret = co_count_l2(c, table, buffer, active, findings[i]);
    }
    return ret;
}

static coroutine_fn int co_count_snapshot(struct qcow2_checker *c, const struct qcow2_snapshot *sn)
{
    uint64_t bytes = (uint64_t)sn->l1_size * 8;

    if (qcow2_in_cluster(c->s, sn->l1_offset)) {
        qcow2_check_say(c, true,
                        "ERROR snapshot %s (%s) l1_offset=%#" PRIx64
                        ": L1 table is not cluster aligned; snapshot table entry "
                        "corrupted",
                        sn->id, sn->name, sn->l1_offset);
        c->check->corruptions++;
        return 0;
    }
    if (bytes > QCOW2_MAX_L1_BYTES || !qcow2_snapshot_l1_valid(c->s, sn)) {
        qcow2_check_say(c, true,
                        "ERROR snapshot %s (%s) l1_size=%#" PRIx32
                        ": L1 table is too large; snapshot table entry corrupted",
                        sn->id, sn->name, sn->l1_size);
        c->check->corruptions++;
        return 0;
    }
    uint64_t *l1 = calloc(1, bytes + 1);
    int ret = l1 ? 0 : -ENOMEM;
    if (ret == 0 && bytes)
        ret = blk_co_read(c->s->node->file, sn->l1_offset, l1, bytes);
    if (ret == 0)
        ret = co_count_l1(c, l1, sn->l1_offset, sn->l1_size, false);
    free(l1);
    return ret;
}

static coroutine_fn int co_count_bitmap(struct qcow2_checker *c, uint64_t offset, uint64_t bytes)
{
    uint64_t *table = NULL;

    count(c, offset, bytes);
    if (bytes > QCOW2_MAX_BITMAP_TABLE) {
        qcow2_check_say(c, true, "ERROR bitmap table at %#" PRIx64 " is too large: %" PRIu64 " bytes", offset, bytes);
        c->check->corruptions++;
        return 0;
    }
    table = malloc(bytes + 1);
    if (!table)
        return -ENOMEM;
    int ret = blk_co_read(c->s->node->file, offset, table, bytes);
    for (uint64_t i = 0; ret == 0 && i < bytes / 8; i++) {
        uint64_t cluster = be64toh(table[i]) & QCOW2_OFFSET_MASK;
        if (cluster)
            count(c, cluster, c->s->cluster_size);
    }
    free(table);
    return ret;
}

static coroutine_fn int co_count_bitmaps(struct qcow2_checker *c)
{
    struct qcow2 *s = c->s;
    struct qcow2_bitmap bitmap;
    uint64_t size = s->bitmap_directory_size, at = 0, number = 0;
    AUTO_FREE uint8_t *directory = NULL;

    if (!qcow2_has_bitmaps(s))
        return 0;
    count(c, s->bitmap_directory_offset, size);
    int ret = qcow2_co_bitmap_directory(s, &directory);
    if (ret == -EFBIG) {
        qcow2_check_say(c, true, "ERROR bitmap directory at %#" PRIx64 " is too large: %" PRIu64 " bytes",
                        s->bitmap_directory_offset, size);
        c->check->corruptions++;
        return 0;
    }
    for (; ret == 0 && qcow2_bitmap_next(directory, size, &at, &bitmap); number++)
        ret = co_count_bitmap(c, bitmap.table_offset, (uint64_t)bitmap.table_entries * 8);
    if (ret == 0 && number != s->bitmap_count) {
        qcow2_check_say(c, true, "ERROR bitmap directory at %#" PRIx64 " has %" PRIu64 " whole entries, not %" PRIu32,
                        s->bitmap_directory_offset, number, s->bitmap_count);
        c->check->corruptions++;
    }
    return ret;
}

/* A rebuild follows: nobody shall try to load it. */
static void forget_refblock(struct qcow2_checker *c, uint64_t index)
{
    if (c->fix & BLK_FIX_ERRORS)
        c->s->reftable[index] = 0;
}

static void count_refblock(struct qcow2_checker *c, uint64_t index)
{
    uint64_t entry = be64toh(c->s->reftable[index]), offset = entry & ~QCOW2_REFTABLE_RESERVED;
    uint64_t cluster = offset >> c->s->cluster_bits;

    if (entry & QCOW2_REFTABLE_RESERVED) {
        qcow2_check_say(c, true, "ERROR refcount table entry %" PRIu64 " has reserved bits set", index);
        c->check->corruptions++;
        c->rebuild = true;
        forget_refblock(c, index);
        return;
    }
    if (offset == 0)
        return;
    if (qcow2_in_cluster(c->s, offset)) {
        qcow2_check_say(
            c, true, "ERROR refcount block %" PRIu64 " is not cluster aligned; refcount table entry corrupted", index);
        c->check->corruptions++;
        c->rebuild = true;
        forget_refblock(c, index);
        return;
    }
    if (cluster >= c->clusters) {
        qcow2_check_say(c, true, "ERROR refcount block %" PRIu64 " is outside image", index);
        c->check->corruptions++;
        c->rebuild = true;
        forget_refblock(c, index);
        return;
    }
    count(c, offset, c->s->cluster_size);
    if (qcow2_references(c, cluster) != 1) {
        qcow2_check_say(c, true, "ERROR refcount block %" PRIu64 " refcount=%" PRIu64, index,
                        qcow2_references(c, cluster));
        c->check->corruptions++;
        c->rebuild = true;
    }
}

coroutine_fn int qcow2_co_count_references(struct qcow2_checker *c)
{
    struct qcow2 *s = c->s;

    c->rebuild = c->compared = false;
    qcow2_counts_finish(&c->counts);
    c->clusters = div_round_up(blk_node_size(s->node->file), s->cluster_size);
    int ret = qcow2_counts_init(&c->counts, c->clusters);
    if (ret < 0)
        return ret;
    count(c, 0, s->cluster_size);
    ret = co_count_l1(c, (const uint64_t *)(const void *)s->l1, s->header.l1_offset, s->l1_size, true);
    for (uint32_t i = 0; i < s->header.snapshot_count && ret == 0; i++)
        ret = co_count_snapshot(c, &s->snapshots[i]);
    count(c, s->header.snapshots_offset, s->snapshots_length);
    if (ret == 0)
        ret = co_count_bitmaps(c);
    count(c, s->reftable_offset, s->reftable_entries * 8);
    for (uint64_t i = 0; i < s->reftable_entries && ret == 0; i++)
        count_refblock(c, i);
    return ret == 0 && c->counts.failed ? -ENOMEM : ret;
}

coroutine_fn int qcow2_co_find_tables(struct qcow2_checker *c)
{
    struct blk_check silent = { 0 };
    struct qcow2_checker first = { .s = c->s, .check = &silent };

    first.not_tables_clusters = div_round_up(blk_node_size(c->s->node->file), c->s->cluster_size);
    first.not_tables = calloc(first.not_tables_clusters / 64 + 1, sizeof(*first.not_tables));
    if (!first.not_tables)
        return -ENOMEM;
    int ret = qcow2_co_count_references(&first);
    qcow2_counts_finish(&first.counts);
    c->not_tables = first.not_tables;
    c->not_tables_clusters = first.not_tables_clusters;
    return ret;
}

/* ---- comparing ---- */

static void say_no_refcount(struct qcow2_checker *c, uint64_t cluster, int error)
{
    qcow2_check_say(c, true, "Can't get refcount for cluster %" PRIu64 ": %s", cluster, strerror(-error));
    c->check->check_errors++;
    qcow2_counts_doubt(&c->counts, cluster);
}

static coroutine_fn void co_compare_one(struct qcow2_checker *c, uint64_t cluster, unsigned fix)
{
    uint64_t refcount = 0, found = qcow2_references(c, cluster);
    int ret = qcow2_co_refcount(c->s, cluster, &refcount);

    if (ret < 0) {
        say_no_refcount(c, cluster, ret);
        return;
    }
    if (refcount || found)
        c->check->image_end_offset = (cluster + 1) << c->s->cluster_bits;
    if (refcount == found)
        return;
    qcow2_counts_doubt(&c->counts, cluster);
    bool leak = refcount > found, mend = fix & (leak ? BLK_FIX_LEAKS : BLK_FIX_ERRORS);
    if (refcount == 0)
        c->rebuild = true;
    qcow2_check_say(c, !leak, "%s cluster %" PRIu64 " refcount=%" PRIu64 " reference=%" PRIu64,
                    mend   ? "Repairing"
                    : leak ? "Leaked"
                           : "ERROR",
                    cluster, refcount, found);
    if (mend && qcow2_co_refcount_change(c->s, cluster, found) == 0) {
        c->check->leaks_fixed += leak;
        c->check->corruptions_fixed += !leak;
        return;
    }
    c->check->leaks += leak;
    c->check->corruptions += !leak;
}

/* The clusters that a refcount block counts, [first, end). */
static coroutine_fn void co_compare_block(struct qcow2_checker *c, uint64_t first, uint64_t end, int finding,
                                          unsigned fix)
{
    if (finding == 0) {
        uint64_t used = qcow2_counts_end(&c->counts, first, end);
        if (used > first)
            c->check->image_end_offset = used << c->s->cluster_bits;
        return;
    }
    /* The block was read for the first of its clusters; for each of the others that is tried again. */
    if (finding < 0)
        say_no_refcount(c, first++, finding);
    for (uint64_t i = first; i < end; i++)
        co_compare_one(c, i, fix);
}

coroutine_fn int qcow2_co_compare_refcounts(struct qcow2_checker *c, unsigned fix)
{
    struct qcow2 *s = c->s;
    uint64_t blocks = MIN(div_round_up(c->clusters, UINT64_C(1) << s->refblock_bits), s->reftable_entries);
    AUTO_FREE int16_t *findings = NULL;

    c->check->image_end_offset = s->cluster_size;
    co_mutex_lock(&s->lock);
    int ret = qcow2_co_survey_refcounts(c, blocks, &findings);
    for (uint64_t i = 0; i < blocks && ret == 0; i++)
        co_compare_block(c, i << s->refblock_bits, MIN((i + 1) << s->refblock_bits, c->clusters), findings[i], fix);
    /* What no block counts has no references, or too many. */
    uint64_t cluster = MIN(blocks << s->refblock_bits, c->clusters);
    while (ret == 0 && (cluster = qcow2_counts_first(&c->counts, cluster, c->clusters)) < c->clusters)
        co_compare_one(c, cluster++, fix);
    co_mutex_unlock(&s->lock);
    c->compared = ret == 0;
    return ret;
}

/* ---- the COPIED flags ---- */

static coroutine_fn uint64_t co_refcount_of(struct qcow2_checker *c, uint64_t offset)
{
    uint64_t refcount;

    if (qcow2_compared_refcount(c, offset >> c->s->cluster_bits, &refcount))
        return refcount;
    co_mutex_lock(&c->s->lock);
    int ret = qcow2_co_refcount(c->s, offset >> c->s->cluster_bits, &refcount);
    co_mutex_unlock(&c->s->lock);
    return ret < 0 ? UINT64_MAX : refcount;
}

static coroutine_fn bool co_check_l2_entry(struct qcow2_checker *c, uint64_t *slot, unsigned fix)
{
    struct qcow2_entry entry = qcow2_entry_load(slot, 0, qcow2_layout(c->s));

    if (!qcow2_entry_has_cluster(entry))
        return false;
    /* An external data file has no refcounts: each of its clusters belongs to one entry. */
    uint64_t refcount = c->s->external ? 1 : co_refcount_of(c, qcow2_entry_host(entry));
    if (refcount == UINT64_MAX || (refcount == 1) == qcow2_entry_copied(entry))
        return false;
    qcow2_check_say(c, !(fix & BLK_FIX_ERRORS), "%s OFLAG_COPIED data cluster: l2_entry=%" PRIx64 " refcount=%" PRIu64,
                    fix & BLK_FIX_ERRORS ? "Repairing" : "ERROR", be64toh(*slot), refcount);
    if (!(fix & BLK_FIX_ERRORS)) {
        c->check->corruptions++;
        return false;
    }
    qcow2_entry_store(slot, 0, qcow2_entry_with_copied(entry, refcount == 1), qcow2_layout(c->s));
    c->check->corruptions_fixed++;
    return true;
}

static coroutine_fn int co_check_table(struct qcow2_checker *c, uint64_t table, uint64_t *buffer, unsigned fix,
                                       int finding)
{
    struct qcow2 *s = c->s;
    bool changed = false;
    int ret = finding < 0 ? finding : blk_co_read(s->node->file, table, buffer, s->cluster_size);

    if (!may_mend(c, table))
        fix = 0;
    for (uint64_t i = 0; ret == 0 && i < UINT64_C(1) << s->l2_bits; i++)
        changed |= co_check_l2_entry(c, &buffer[s->extended ? i * 2 : i], fix);
    return ret == 0 && changed ? co_write_table(c, table, buffer) : ret;
}

static coroutine_fn void co_check_l1_entry(struct qcow2_checker *c, uint32_t index, uint64_t entry, unsigned fix)
{
    uint64_t refcount = co_refcount_of(c, entry & QCOW2_OFFSET_MASK);

    if (refcount == UINT64_MAX || (refcount == 1) == ((entry & QCOW2_COPIED) != 0))
        return;
    qcow2_check_say(c, !(fix & BLK_FIX_ERRORS),
                    "%s OFLAG_COPIED L2 cluster: l1_index=%" PRIu32 " l1_entry=%" PRIx64 " refcount=%" PRIu64,
                    fix & BLK_FIX_ERRORS ? "Repairing" : "ERROR", index, entry, refcount);
    if (!(fix & BLK_FIX_ERRORS)) {
        c->check->corruptions++;
        return;
    }
    co_mutex_lock(&c->s->lock);
    qcow2_l1_set(c->s, index, refcount == 1 ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED);
    co_mutex_unlock(&c->s->lock);
    c->check->corruptions_fixed++;
}

coroutine_fn int qcow2_co_check_copied(struct qcow2_checker *c, unsigned fix)
{
    struct qcow2 *s = c->s;
    AUTO_FREE uint64_t *buffer = malloc(s->cluster_size);
    AUTO_FREE int16_t *findings = NULL;
    int ret = buffer ? qcow2_co_survey_copied(c, &findings) : -ENOMEM;

    for (uint32_t i = 0; i < s->l1_size && ret == 0; i++) {
        uint64_t entry = qcow2_l1_entry(s, i), table = entry & QCOW2_OFFSET_MASK;
        if (table == 0)
            continue;
        co_check_l1_entry(c, i, entry, fix);
        if (findings[i])
            ret = co_check_table(c, table, buffer, fix, findings[i]);
    }
    return ret;
}
