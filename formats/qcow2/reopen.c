/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reopening an image: other options, read-only and read-write, while it stays open. Nothing is in flight.
 *
 * The options are read into a state of their own, as at opening, and change places with those in force. Everything
 * dirty is written before, with the old options: an image that becomes read-only leaves nothing behind, its dirty bit
 * included. One that becomes writable is marked and repaired as one that is opened, once the file below is writable
 * too.
 */
#include "reopen.h"

#include "bitmaps.h"
#include "cacheclean.h"
#include "commit.h"
#include "dirty.h"
#include "driver.h"
#include "l2.h"
#include "options.h"
#include "overlap.h"
#include <base/compiler.h>

coroutine_fn int qcow2_co_reopen_prepare(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct qcow2 *s = node->state, *next = xcalloc(1, sizeof(*next));
    int ret = 0;

    next->header = s->header;
    next->cluster_bits = s->cluster_bits;
    next->cluster_size = s->cluster_size;
    ret = qcow2_options_take(next, opts, flags, errp);
    if (ret == 0 && blk_node_writable(node) && !atomic_load(&s->corrupt)) {
        ret = qcow2_co_settle_all(s);
        if (ret == 0 && !(flags & BLK_O_RDWR))
            ret = qcow2_co_bitmaps_store(s, errp);
        if (ret == 0 && !(flags & BLK_O_RDWR))
            ret = qcow2_co_clear_dirty_bit(s);
        if (ret < 0 && !(errp && *errp))
            error_set_errno(errp, ret, "Could not write back the metadata of '%s'", node->name);
    }
    /* Of a corrupt image memory may be the only true copy. */
    if (ret == 0 && next->slice_bits != s->slice_bits && s->dirty_count)
        ret = error_set(errp, -EIO, "The image is marked corrupt");
    if (ret < 0) {
        free(next);
        return ret;
    }
    s->reopening = next;
    return 0;
}

/* What was found sound under other options, or before the file was cut, is looked at again when it is used next. */
static void judge_anew(struct qcow2 *s)
{
    struct qcow2_refblock *block;

    qcow2_slices_forget(s);
    s->free_bytes = 0;
    s->l1_checked = s->reftable_checked = false;
    list_for_each(block, &s->refblock_list, link)
        block->checked = false;
}

void qcow2_reopen_switch(struct blk_node *node)
{
    struct qcow2 *s = node->state, *next = s->reopening;

    if (s->slice_bits != next->slice_bits)
        qcow2_slices_reset(s); /* all are clean, and have another size from now on */
    SWAP(s->slice_bits, next->slice_bits);
    s->slice_shift = s->slice_bits + s->cluster_bits;
    SWAP(s->max_slices, next->max_slices);
    SWAP(s->max_refblocks, next->max_refblocks);
    SWAP(s->lazy_refcounts, next->lazy_refcounts);
    for (size_t i = 0; i < ARRAY_SIZE(s->pass_discard); i++)
        SWAP(s->pass_discard[i], next->pass_discard[i]);
    SWAP(s->discard_keeps_place, next->discard_keeps_place);
    SWAP(s->overlap_check, next->overlap_check);
    SWAP(s->clean_interval, next->clean_interval);
    qcow2_child_changed(node);
    judge_anew(s);
}

coroutine_fn int qcow2_co_reopen_begin(struct blk_node *node, unsigned old_flags, struct error **errp)
{
    struct qcow2 *s = node->state;
    int ret = qcow2_co_overlap_read(s, errp);

    if (ret == 0 && blk_node_writable(node) && !(old_flags & BLK_O_RDWR))
        ret = qcow2_co_prepare_writing(s, node->open_flags, errp);
    judge_anew(s);
    return ret;
}

coroutine_fn void qcow2_co_reopen_clean(struct blk_node *node)
{
    struct qcow2 *s = node->state;

    free(s->reopening);
    s->reopening = NULL;
    /* It was to become read-only, and has not: its bitmaps are in use again. */
    if (blk_node_writable(node) && !atomic_load(&s->corrupt))
        qcow2_co_bitmaps_begin(s, NULL);
    qcow2_co_clean_stop(s);
    qcow2_clean_start(s);
}
