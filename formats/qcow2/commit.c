/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Group commit: the one way by which changed metadata reaches the file. commit.h has the rules W1 to W10.
 *
 * A commit copies what is dirty under the lock, then writes without it:
 *   phase 0  new refcount blocks (and a moved refcount table with all that counts it), flush, then the header that
 *            names a moved table (W1);
 *   phase 1  refcounts that went up, refcount table entries of new blocks; flush: now these and all guest data that was
 *            written before the copy are durable (W2, W3);
 *   phase 2  L2 slices and L1 entries of the copy; flush.
 * Only then are clusters whose entries went away passed on (W5, free.c).
 *
 * One commit runs at a time. A flush needs one that starts after it came; all that come during a commit share the next
 * (W7).
 */
#include "commit.h"

#include "dirty.h"
#include "driver.h"
#include "free.h"
#include "header.h"
#include "refcount.h"
#include "writeback.h"

#include <base/crew.h>
#include <base/testpoint.h>
#include <string.h>

/* With lazy refcounts: as many dirty blocks are written although nobody needs it, to bound memory. */
#define LAZY_DIRTY_MAX 64u

struct commit {
    struct qcow2_writeback new_blocks, moved_table, refcounts, table_sectors, mapping;
    struct qcow2_slice **slices;
    size_t slice_count;
    bool l1, moved;
    bool named; /* the moved table may be in force: the header that names it may be on disk */
    uint64_t table_offset, table_entries;
    struct qcow2_limbo *limbo;
};

static bool refcounts_wanted(const struct qcow2 *s)
{
    return !s->lazy_refcounts || s->closing || s->reftable_moved || s->refblock_dirty_count > LAZY_DIRTY_MAX;
}

static bool anything_to_do(const struct qcow2 *s)
{
    return s->dirty_count || s->l1_dirty_count || s->freed.count || s->reftable_moved || !list_empty(&s->limbo) ||
           s->punch_set.count || (s->refblock_dirty_count && refcounts_wanted(s)) || atomic_load(&s->header_unsure);
}

/* ---- copying ---- */

/* Parts of a table, `unit` bytes each: bit 0 dirty, bit 1 in the running commit. */
static int capture_parts(struct qcow2_writeback *wb, uint8_t *flags, uint32_t unit, const void *memory, uint64_t bytes,
                         uint64_t offset)
{
    for (uint64_t i = 0; i * unit < bytes; i++) {
        if (!(flags[i] & 1))
            continue;
        int ret = qcow2_writeback_add(wb, offset + i * unit, (const uint8_t *)memory + i * unit, unit);
        if (ret < 0)
            return ret;
        flags[i] = 2;
    }
    return 0;
}

/* Returns how many parts are dirty afterwards. */
static uint32_t release_parts(uint8_t *flags, uint32_t unit, uint64_t bytes, bool ok)
{
    uint32_t dirty = 0;

    for (uint64_t i = 0; i * unit < bytes; i++) {
        if (flags[i] == 2)
            flags[i] = ok ? 0 : 1;
        flags[i] &= 1;
        dirty += flags[i];
    }
    return dirty;
}

static int capture_refcounts(struct qcow2 *s, struct commit *c)
{
    struct qcow2_refblock *block;
    int ret = 0;

    list_for_each(block, &s->refblock_list, link) {
        if (!block->dirty)
            continue;
        if (block->fresh)
            ret = qcow2_writeback_add(&c->new_blocks, block->host_offset, block->data, (uint32_t)s->cluster_size);
        else
            ret = qcow2_writeback_add(&c->refcounts, block->host_offset + block->dirty_start,
                                      block->data + block->dirty_start, block->dirty_end - block->dirty_start);
        if (ret < 0)
            return ret;
        block->dirty = false;
        block->committing = true;
        s->refblock_dirty_count--;
    }
    if (!s->reftable_moved)
        return capture_parts(&c->table_sectors, s->reftable_dirty, BLK_SECTOR_SIZE, s->reftable,
                             s->reftable_entries * 8, s->reftable_offset);
    c->moved = true;
    c->table_offset = s->reftable_offset;
    c->table_entries = s->reftable_entries;
    s->reftable_moved = false;
    memset(s->reftable_dirty, 0, div_round_up(s->reftable_entries * 8, BLK_SECTOR_SIZE));
    return qcow2_writeback_add(&c->moved_table, s->reftable_offset, s->reftable, (uint32_t)(s->reftable_entries * 8));
}

static int capture_mapping(struct qcow2 *s, struct commit *c)
{
    c->slices = malloc((s->dirty_count + 1) * sizeof(struct qcow2_slice *));
    if (!c->slices)
        return -ENOMEM;
    while (!list_empty(&s->dirty_slices)) {
        struct qcow2_slice *slice = list_first(&s->dirty_slices, struct qcow2_slice, dirty_link);
        int ret = qcow2_writeback_add(&c->mapping, slice->host_offset, (const void *)slice->words,
                                      (uint32_t)qcow2_slice_bytes(s));
        if (ret < 0)
            return ret;
        list_remove(&slice->dirty_link);
        slice->dirty = false;
        slice->committing = true;
        c->slices[c->slice_count++] = slice;
        s->dirty_count--;
    }
    if (s->l1_dirty_count == 0)
        return 0;
    s->l1_dirty_count = 0;
    c->l1 = true;
    return capture_parts(&c->mapping, s->l1_dirty, s->write_unit, (const void *)s->l1, (uint64_t)s->l1_size * 8,
                         s->header.l1_offset);
}

static int capture(struct qcow2 *s, struct commit *c)
{
    int ret = 0;

    c->limbo = xcalloc(1, sizeof(*c->limbo));
    c->limbo->freed = s->freed;
    c->limbo->epoch = epoch_retire();
    s->freed = (struct qcow2_freed){ 0 };
    if (refcounts_wanted(s))
        ret = capture_refcounts(s, c);
    if (ret == 0)
        ret = capture_mapping(s, c);
    if (ret == 0)
        ret = qcow2_writeback_copy(&c->new_blocks, s->node->file);
    if (ret == 0)
        ret = qcow2_writeback_copy(&c->moved_table, s->node->file);
    if (ret == 0)
        ret = qcow2_writeback_copy(&c->refcounts, s->node->file);
    if (ret == 0)
        ret = qcow2_writeback_copy(&c->table_sectors, s->node->file);
    return ret < 0 ? ret : qcow2_writeback_copy(&c->mapping, s->node->file);
}

/* ---- writing ---- */

struct flush {
    struct blk_node *nodes[2];
};

static coroutine_fn int co_flush_node(void *arg, size_t index)
{
    const struct flush *flush = arg;

    return blk_co_flush(flush->nodes[index]);
}

/* Metadata and guest data, wherever they are. */
static coroutine_fn int co_flush_all(struct qcow2 *s)
{
    struct flush flush = { { s->node->file, qcow2_data_file(s) } };
    size_t count = s->external ? 2 : 1;

    return co_crew(count, (unsigned)count, co_flush_node, &flush);
}

static coroutine_fn int co_name_table(struct qcow2 *s, const struct commit *c)
{
    co_mutex_lock(&s->lock);
    s->header.reftable_offset = c->table_offset;
    s->header.reftable_clusters = (uint32_t)(c->table_entries * 8 >> s->cluster_bits);
    qcow2_header_set64(s, QCOW2_AT_REFTABLE_OFFSET, s->header.reftable_offset);
    qcow2_header_set32(s, QCOW2_AT_REFTABLE_CLUSTERS, s->header.reftable_clusters);
    int ret = qcow2_co_header_write(s);
    co_mutex_unlock(&s->lock);
    return ret;
}

/* W1 */
static coroutine_fn int co_phase_0(struct qcow2 *s, struct commit *c)
{
    struct blk_node *file = s->node->file;

    blk_co_event(file, c->moved ? BLK_EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS : BLK_EVENT_REFBLOCK_ALLOC_WRITE);
    int ret = qcow2_co_writeback_write(&c->new_blocks, file);
    if (c->moved)
        blk_co_event(file, BLK_EVENT_REFBLOCK_ALLOC_WRITE_TABLE);
    if (ret == 0)
        ret = qcow2_co_writeback_write(&c->moved_table, file);
    /* The table's clusters may be counted by blocks that were there before. */
    if (ret == 0 && c->moved)
        ret = qcow2_co_writeback_write(&c->refcounts, file);
    if (ret == 0)
        ret = blk_co_flush(file);
    if (ret < 0 || !c->moved)
        return ret;
    c->named = true;
    blk_co_event(file, BLK_EVENT_REFBLOCK_ALLOC_SWITCH_TABLE);
    return co_name_table(s, c);
}

/* W8 */
static coroutine_fn int co_make_header_sure(struct qcow2 *s, const struct commit *c)
{
    if (!atomic_load(&s->header_unsure) || c->moved) /* phase 0 writes it */
        return 0;
    co_mutex_lock(&s->lock);
    int ret = qcow2_co_header_write(s);
    co_mutex_unlock(&s->lock);
    return ret;
}

static coroutine_fn int co_write_out(struct qcow2 *s, struct commit *c)
{
    int ret = co_make_header_sure(s, c);

    testpoint_co("qcow2-commit-phase-0");
    if (ret == 0 && (c->new_blocks.count || c->moved))
        ret = co_phase_0(s, c);
    testpoint_co("qcow2-commit-phase-1");
    if (c->refcounts.count)
        blk_co_event(s->node->file, BLK_EVENT_REFBLOCK_UPDATE_PART);
    if (ret == 0 && !c->moved)
        ret = qcow2_co_writeback_write(&c->refcounts, s->node->file);
    if (c->table_sectors.count)
        blk_co_event(s->node->file, BLK_EVENT_REFBLOCK_ALLOC_HOOKUP);
    /* W4: no sector of the table lands before those in front of it. */
    if (ret == 0)
        ret = qcow2_co_writeback_write_in_order(&c->table_sectors, s->node->file);
    if (ret == 0)
        ret = co_flush_all(s); /* W2, W3 */
    testpoint_co("qcow2-commit-phase-2");
    if (c->slice_count)
        blk_co_event(s->node->file, BLK_EVENT_L2_UPDATE);
    if (c->l1)
        blk_co_event(s->node->file, BLK_EVENT_L1_UPDATE);
    if (ret == 0 && c->mapping.count) {
        ret = qcow2_co_writeback_write(&c->mapping, s->node->file);
        if (ret == 0)
            ret = blk_co_flush(s->node->file);
    }
    return ret;
}

/* ---- afterwards ---- */

static void settle_slices(struct qcow2 *s, struct commit *c, bool ok)
{
    for (size_t i = 0; i < c->slice_count; i++) {
        struct qcow2_slice *slice = c->slices[i];
        slice->committing = false;
        if (slice->dirty)
            continue;
        if (ok) {
            atomic_store_explicit(&slice->unstable, false, memory_order_release);
        } else {
            slice->dirty = true;
            list_append(&s->dirty_slices, &slice->dirty_link);
            s->dirty_count++;
        }
    }
    if (c->l1)
        s->l1_dirty_count = release_parts(s->l1_dirty, s->write_unit, (uint64_t)s->l1_size * 8, ok);
}

static void settle_refcounts(struct qcow2 *s, struct commit *c, bool ok)
{
    struct qcow2_refblock *block;

    list_for_each(block, &s->refblock_list, link) {
        if (!block->committing)
            continue;
        block->committing = false;
        if (!ok) {
            qcow2_refblock_dirty(s, block, 0, (uint32_t)s->cluster_size);
        } else {
            block->fresh = false;
        }
    }
    release_parts(s->reftable_dirty, BLK_SECTOR_SIZE, s->reftable_entries * 8, ok);
    /* Once it may be in force it has not moved any more: what changes in it now lands in order (W4). */
    if (c->moved && !c->named)
        s->reftable_moved = true;
}

static void settle_freed(struct qcow2 *s, struct commit *c, bool ok)
{
    struct qcow2_limbo *limbo = c->limbo;

    if (ok && limbo->freed.count) { /* W5 */
        list_append(&s->limbo, &limbo->link);
        return;
    }
    for (size_t i = 0; i < limbo->freed.count; i++)
        qcow2_freed_add(&s->freed, limbo->freed.extents[i].cluster, limbo->freed.extents[i].count,
                        limbo->freed.extents[i].by);
    free(limbo->freed.extents);
    free(limbo);
}

static coroutine_fn void co_run_commit(struct qcow2 *s)
{
    struct commit c = { 0 };
    uint64_t number = ++s->commits_started;

    s->commit_running = true;
    int ret = atomic_load(&s->corrupt) ? -EIO : capture(s, &c);
    co_mutex_unlock(&s->lock);
    if (ret == 0)
        ret = co_write_out(s, &c);
    testpoint_co("qcow2-commit-written");
    co_mutex_lock(&s->lock);
    if (c.limbo) {
        settle_slices(s, &c, ret == 0);
        settle_refcounts(s, &c, ret == 0);
        settle_freed(s, &c, ret == 0);
    }
    qcow2_writeback_finish(&c.new_blocks);
    qcow2_writeback_finish(&c.moved_table);
    qcow2_writeback_finish(&c.refcounts);
    qcow2_writeback_finish(&c.table_sectors);
    qcow2_writeback_finish(&c.mapping);
    free(c.slices);
    s->commits_done = number;
    if (ret == 0)
        s->commit_succeeded = number;
    else
        s->commit_error = ret;
    s->commit_running = false;
    atomic_store_explicit(&s->need_commit,
                          s->dirty_count || s->l1_dirty_count || s->reftable_moved || atomic_load(&s->header_unsure),
                          memory_order_release);
    co_cond_broadcast(&s->commit_done);
    qcow2_co_reap(s, false);
    if (!list_empty(&s->limbo))
        qcow2_note_dirty(s);
}

/* Lock held. */
static coroutine_fn int co_commit_locked(struct qcow2 *s)
{
    uint64_t wanted = s->commits_started + 1; /* W7 */

    while (s->commits_done < wanted) {
        if (s->commit_running)
            co_cond_wait(&s->commit_done, &s->lock);
        else
            co_run_commit(s);
    }
    return s->commit_succeeded >= wanted ? 0 : s->commit_error;
}

coroutine_fn int qcow2_co_commit(struct qcow2 *s)
{
    co_mutex_lock(&s->lock);
    int ret = co_commit_locked(s);
    co_mutex_unlock(&s->lock);
    return ret;
}

coroutine_fn int qcow2_co_flush(struct blk_node *node)
{
    struct qcow2 *s = node->state;

    blk_co_event(node->file, BLK_EVENT_FLUSH_TO_OS);
    if (!atomic_load_explicit(&s->need_commit, memory_order_acquire))
        return blk_co_flush(qcow2_data_file(s));
    return qcow2_co_commit(s);
}

/* Clusters that are on their way to be free. */
static uint64_t becoming_free(const struct qcow2 *s) { return s->freeing + s->punch_set.count; }

coroutine_fn int qcow2_co_make_room(struct qcow2 *s)
{
    uint64_t before = becoming_free(s);
    int ret = 0;

    if (before == 0)
        return -ENOSPC;
    if (s->freed.count || s->commit_running)
        ret = co_commit_locked(s);
    if (ret < 0)
        return ret;
    s->reap_error = 0;
    qcow2_co_reap(s, true);
    return becoming_free(s) < before ? 0 : s->reap_error;
}

coroutine_fn int qcow2_co_settle(struct qcow2 *s)
{
    int ret, failed = 0;

    co_mutex_lock(&s->lock);
    for (;;) {
        ret = co_commit_locked(s);
        if (ret < 0 || failed < 0)
            break;
        s->reap_error = 0;
        qcow2_co_reap(s, true);
        failed = s->reap_error; /* a leak, but no reason to leave others: the rest is committed still */
        if (failed == 0 && !anything_to_do(s))
            break;
    }
    co_mutex_unlock(&s->lock);
    return ret < 0 ? ret : failed;
}

coroutine_fn int qcow2_co_settle_all(struct qcow2 *s)
{
    bool lazy = s->lazy_refcounts;

    s->lazy_refcounts = false;
    int ret = qcow2_co_settle(s);
    s->lazy_refcounts = lazy;
    return ret;
}

/* ---- without being asked ---- */

static coroutine_fn void co_background_commit(void *arg)
{
    struct qcow2 *s = arg;

    co_mutex_lock(&s->lock);
    if (!s->closing && !atomic_load(&s->drained)) {
        if (anything_to_do(s))
            co_commit_locked(s); /* an error stays with the dirty state: the next flush meets it */
        qcow2_co_reap(s, false);
    }
    s->background = false;
    co_cond_broadcast(&s->commit_done);
    co_mutex_unlock(&s->lock);
}

coroutine_fn void qcow2_co_throttle(struct qcow2 *s)
{
    if (qcow2_too_dirty(s))
        co_commit_locked(s);
}

void qcow2_commit_init(struct qcow2 *s) { s->co_background_commit = co_background_commit; }

/* ---- under the dirty bit ---- */

coroutine_fn int qcow2_co_marked_begin(struct qcow2 *s, struct error **errp)
{
    if (atomic_load(&s->corrupt))
        return error_set(errp, -EIO, "The image is marked corrupt");
    int ret = qcow2_co_settle(s);
    co_mutex_lock(&s->lock);
    if (ret == 0)
        ret = qcow2_co_set_dirty_bit(s);
    co_mutex_unlock(&s->lock);
    return ret < 0 ? error_set_errno(errp, ret, "Could not write the image's metadata") : 0;
}

coroutine_fn int qcow2_co_marked_end(struct qcow2 *s)
{
    int ret = qcow2_co_settle_all(s);

    return ret == 0 && !s->lazy_refcounts ? qcow2_co_clear_dirty_bit(s) : ret;
}
