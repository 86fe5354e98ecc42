/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opening and closing an image.
 *
 * The header is parsed and refused before anything else is read; tables are read with sizes that were bounded first. A
 * writable open clears the autoclear bits that we do not maintain, and repairs an image whose dirty bit says that its
 * refcounts may be stale. Close writes everything back, and clears the dirty bit last.
 */
#include "bitmaps.h"
#include "cacheclean.h"
#include "commit.h"
#include "compress.h"
#include "dirty.h"
#include "driver.h"
#include "header.h"
#include "l2.h"
#include "options.h"
#include "overlap.h"
#include "refcount.h"
#include "reopen.h"
#include "snapshot.h"
#include "truncate.h"
#include "check.h"

#include <string.h>

/* ---- header ---- */

/* Clusters that wait to be given back to the host: some 8 MiB of memory. */
#define MAX_PUNCH (256u * 1024)

static void init_state(struct qcow2 *s, struct blk_node *node)
{
    s->node = node;
    co_mutex_init(&s->lock);
    co_cond_init(&s->header_written);
    co_cond_init(&s->loaded);
    co_cond_init(&s->commit_done);
    co_cond_init(&s->decoded_ready);
    co_cond_init(&s->file_extended);
    list_init(&s->slices);
    list_init(&s->limbo_slices);
    list_init(&s->dirty_slices);
    list_init(&s->loading);
    list_init(&s->making);
    list_init(&s->refblock_list);
    list_init(&s->limbo);
    list_init(&s->inflight);
    list_init(&s->decoded);
    qcow2_commit_init(s);
    s->max_punch = MAX_PUNCH;
}

static int refuse_features(const struct qcow2_header *h, const struct qcow2_extensions *ext, struct error **errp)
{
    int ret = qcow2_features_check(h->incompatible & ~QCOW2_INCOMPAT_KNOWN, ext, errp);

    if (ret < 0)
        return ret;
    if (h->crypt_method == 1 || h->crypt_method == 2)
        return error_set(errp, -ENOTSUP, "Unsupported qcow2 feature(s): encryption (%s)",
                         h->crypt_method == 1 ? "aes" : "luks");
    return 0;
}

static char *take_text(const uint8_t *text, size_t length)
{
    char *copy = text ? calloc(1, length + 1) : NULL;

    if (copy)
        memcpy(copy, text, length);
    return copy;
}

/* Of an image whose header says so; it may leave open which file that is. */
static int take_data_name(struct qcow2 *s, const struct qcow2_extensions *ext)
{
    s->external = s->header.incompatible & QCOW2_INCOMPAT_DATA_FILE;
    if (!s->external || ext->data_name_length == 0)
        return 0;
    s->data_name = take_text(ext->data_name, ext->data_name_length);
    return s->data_name ? 0 : -ENOMEM;
}

static int take_backing_name(struct qcow2 *s, const uint8_t *data, size_t length)
{
    const struct qcow2_header *h = &s->header;

    if (h->backing_offset == 0 || h->backing_length == 0)
        return 0;
    s->backing_name = calloc(1, (size_t)h->backing_length + 1);
    if (!s->backing_name)
        return -ENOMEM;
    if (range_inside(h->backing_offset, h->backing_length, length))
        memcpy(s->backing_name, data + h->backing_offset, h->backing_length);
    return 0;
}

/* Parses header and extensions out of the file's first cluster. */
static coroutine_fn int co_read_header(struct qcow2 *s, unsigned flags, struct error **errp)
{
    struct blk_node *file = s->node->file;
    size_t length = (size_t)MIN(blk_node_size(file), UINT64_C(1) << QCOW2_MAX_CLUSTER_BITS);
    AUTO_FREE uint8_t *data = NULL;
    struct qcow2_extensions ext;
    int ret = blk_co_read(file, 0, s->sector0, sizeof(s->sector0));

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read qcow2 header");
    ret = qcow2_header_parse(s->sector0, MIN(length, sizeof(s->sector0)), &s->header, errp);
    if (ret < 0)
        return ret;
    /* What the file does not have reads as zeroes, as a host file's end does. */
    length = (size_t)1 << s->header.cluster_bits;
    data = malloc(length);
    if (!data)
        return -ENOMEM;
    ret = blk_co_read(file, 0, data, length);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read qcow2 header");
    if (s->header.incompatible & ~QCOW2_INCOMPAT_KNOWN)
        qcow2_extensions_parse(&s->header, data, length, &ext, NULL);
    else
        ret = qcow2_extensions_parse(&s->header, data, length, &ext, errp);
    if (ret == 0)
        ret = refuse_features(&s->header, &ext, errp);
    if (ret == 0 && ext.crypto)
        ret = error_set(errp, -EINVAL, "CRYPTO header extension only expected with LUKS encryption method");
    if (ret == 0)
        ret = qcow2_header_validate(&s->header, flags & BLK_O_CHECK, errp);
    if (ret == 0)
        ret = take_backing_name(s, data, length);
    if (ret == 0)
        ret = take_data_name(s, &ext);
    memcpy(s->backing_format, ext.backing_format, sizeof(s->backing_format));
    s->bitmap_directory_offset = ext.bitmaps ? ext.bitmap_directory_offset : 0;
    s->bitmap_directory_size = ext.bitmaps ? ext.bitmap_directory_size : 0;
    s->bitmap_count = ext.bitmaps ? ext.bitmap_count : 0;
    return ret;
}

/* ---- tables ---- */

static void derive(struct qcow2 *s, bool for_check)
{
    const struct qcow2_header *h = &s->header;

    s->cluster_bits = h->cluster_bits;
    s->cluster_size = UINT64_C(1) << h->cluster_bits;
    const struct blk_limits *limits = &s->node->file->limits;
    uint32_t physical = MIN(limits->physical_block, 4096u), block = MAX(limits->request_alignment, physical);
    block = MAX(block, BLK_SECTOR_SIZE);
    s->write_unit = (uint32_t)MIN((uint64_t)block, s->cluster_size);
    s->extended = h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
    s->l2_bits = h->cluster_bits - qcow2_entry_shift(s->extended);
    s->sub_bits = s->extended ? h->cluster_bits - log2_floor(QCOW2_SUBCLUSTERS) : h->cluster_bits;
    s->l1_shift = s->cluster_bits + s->l2_bits;
    s->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
    s->l1_size = h->l1_size;
    s->reftable_offset = h->reftable_offset;
    s->reftable_entries = ((uint64_t)h->reftable_clusters << h->cluster_bits) / 8;
    /* Where the header is there is no table: a check takes it as lost. */
    if (for_check && h->reftable_offset == 0)
        s->reftable_entries = 0;
    s->reftable_disk_entries = s->reftable_entries;
}

static coroutine_fn int co_read_tables(struct qcow2 *s, struct error **errp)
{
    uint64_t l1_bytes = (uint64_t)s->l1_size * 8, l1_memory = qcow2_l1_memory(s, s->l1_size);
    uint64_t reftable_bytes = s->reftable_entries * 8;

    s->l1 = calloc(1, l1_memory);
    s->l1_dirty = calloc(1, l1_memory / s->write_unit);
    s->dir = calloc(MAX((size_t)s->l1_size, (size_t)1), sizeof(*s->dir));
    s->reftable = calloc(1, reftable_bytes);
    s->reftable_dirty = calloc(1, reftable_bytes / BLK_SECTOR_SIZE);
    s->refblocks = calloc(s->reftable_entries, sizeof(*s->refblocks));
    if (!s->l1 || !s->l1_dirty || !s->dir || !s->reftable || !s->reftable_dirty || !s->refblocks)
        return error_set(errp, -ENOMEM, "Not enough memory for the L1 table and the refcount table");
    int ret = l1_bytes ? blk_co_read(s->node->file, s->header.l1_offset, (void *)s->l1, l1_bytes) : 0;
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read L1 table");
    blk_co_event(s->node->file, BLK_EVENT_REFTABLE_LOAD);
    ret = blk_co_read(s->node->file, s->reftable_offset, s->reftable, reftable_bytes);
    return ret < 0 ? error_set_errno(errp, ret, "Could not initialize refcount handling") : 0;
}

/* ---- the whole ---- */

/* The name is relative to where this program runs, as for QEMU, and not to the image. It is a path, whatever it looks
 * like: an image that comes from somebody else reaches no server, and gives no options. */
static coroutine_fn int co_open_data_file(struct qcow2 *s, struct opts *opts, unsigned flags, struct error **errp)
{
    bool given = opts_has(opts, "data-file") || opts_has_prefix(opts, "data-file");

    if (!s->external && given)
        return error_set(errp, -EINVAL, "'data-file' can only be set for images with an external data file");
    if (!s->external)
        return 0;
    if (flags & BLK_O_NO_IO) {
        opts_free(opts_take_prefix(opts, "data-file"));
        free(opts_take(opts, "data-file"));
        return 0;
    }
    if (!s->data_name && !given)
        return error_set(errp, -EINVAL, "'data-file' is required for this image");
    AUTO_FREE char *path = s->data_name ? blk_path_as_file(s->data_name) : NULL;
    return blk_co_open_child(s->node, "data-file", opts, path, flags, false, errp);
}

static coroutine_fn int co_open_backing(struct qcow2 *s, struct opts *opts, unsigned flags, struct error **errp)
{
    char *full = NULL;

    if (flags & BLK_O_NO_BACKING)
        return 0;
    if (s->backing_name && !opts_has(opts, "backing")) {
        full = blk_path_combine(blk_node_protocol(s->node)->filename, s->backing_name);
        if (s->backing_format[0] && !opts_has(opts, "backing.driver"))
            opts_set(opts, "backing.driver", s->backing_format);
    }
    int ret = blk_co_open_child(s->node, "backing", opts, full, flags, true, errp);
    if (ret < 0)
        error_prepend_once(errp, "Could not open backing file: ");
    free(full);
    return ret;
}

/* The file is grown ahead while it is written: what is past the last cluster in use is not looked at, however long the
 * host's file is. NULL: none is any more. */
static void grow_ahead(struct qcow2 *s, struct blk_node *file)
{
    static const struct blk_ahead hole = { .allocate = false };

    if (file == s->grown_ahead)
        return;
    if (s->grown_ahead)
        s->grown_ahead->driver->grow_ahead(s->grown_ahead, NULL);
    s->grown_ahead = file && file->driver->grow_ahead ? file : NULL;
    if (s->grown_ahead)
        s->grown_ahead->driver->grow_ahead(s->grown_ahead, &hole);
}

void qcow2_child_changed(struct blk_node *node)
{
    struct qcow2 *s = node->state;
    struct blk_limits *limits = &node->limits;

    *limits = qcow2_data_file(s)->limits;
    limits->request_alignment = 1;
    limits->max_transfer = 0;
    limits->zeroes_alignment = (uint32_t)qcow2_sub_size(s);
    limits->discard_alignment = s->cluster_size;
    limits->max_zeroes = limits->max_discard = 0;
    limits->opt_io = (uint32_t)s->cluster_size;
    /* What another file holds past its clusters in use is not known. */
    s->fresh_from = MAX(s->fresh_from, div_round_up(blk_node_size(node->file), s->cluster_size));
    grow_ahead(s, blk_node_writable(node) ? node->file : NULL);
}

/* Bits whose meaning we do not keep true while we write. */
coroutine_fn int qcow2_co_prepare_writing(struct qcow2 *s, unsigned flags, struct error **errp)
{
    int ret = 0;

    if (s->header.incompatible & QCOW2_INCOMPAT_CORRUPT) {
        if (!(flags & BLK_O_CHECK))
            return error_set(errp, -EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
        return 0;
    }
    uint64_t ours = (s->external ? QCOW2_AUTOCLEAR_RAW_DATA : 0) | QCOW2_AUTOCLEAR_BITMAPS;
    uint64_t kept = s->header.autoclear & ours;
    if (s->header.autoclear != kept) {
        co_mutex_lock(&s->lock);
        s->header.autoclear = kept;
        qcow2_header_set64(s, QCOW2_AT_AUTOCLEAR, kept);
        ret = qcow2_co_header_write(s);
        co_mutex_unlock(&s->lock);
        if (ret < 0)
            return error_set_errno(errp, ret, "Could not update qcow2 header");
    }
    if ((s->header.incompatible & QCOW2_INCOMPAT_DIRTY) && !(flags & BLK_O_CHECK)) {
        ret = qcow2_co_repair_dirty(s);
        if (ret < 0)
            return error_set_errno(errp, ret, "Could not repair dirty image");
    }
    if (flags & BLK_O_CHECK) /* it changes no data, and minds bitmaps as they are */
        return 0;
    qcow2_co_cut_hole(s);
    return qcow2_co_bitmaps_begin(s, errp);
}

static coroutine_fn void co_free_state(struct qcow2 *s)
{
    qcow2_bitmaps_free(s);
    qcow2_slices_free(s);
    qcow2_decoded_free(s);
    qcow2_refcounts_free(s);
    qcow2_snapshots_free(s);
    qcow2_set_finish(&s->l2_set);
    qcow2_set_finish(&s->refblock_set);
    qcow2_set_finish(&s->punch_set);
    qcow2_set_finish(&s->inactive_l2_set);
    free(s->inactive_l1);
    while (!list_empty(&s->limbo)) {
        struct qcow2_limbo *limbo = list_first(&s->limbo, struct qcow2_limbo, link);
        list_remove(&limbo->link);
        free(limbo->freed.extents);
        free(limbo);
    }
    free(s->freed.extents);
    free(s->to_punch.extents);
    free(s->l1);
    free(s->l1_dirty);
    free(s->backing_name);
    free(s->data_name);
    co_mutex_finish(&s->lock);
    co_cond_finish(&s->header_written);
    co_cond_finish(&s->loaded);
    co_cond_finish(&s->commit_done);
    co_cond_finish(&s->decoded_ready);
    co_cond_finish(&s->file_extended);
}

static coroutine_fn int co_open_image(struct qcow2 *s, struct opts *opts, unsigned flags, struct error **errp)
{
    int ret = co_read_header(s, flags, errp);

    if (ret < 0)
        return ret;
    derive(s, flags & BLK_O_CHECK);
    ret = qcow2_options_take(s, opts, flags, errp);
    if (ret < 0)
        return ret;
    s->slice_shift = s->slice_bits + s->cluster_bits;
    ret = co_read_tables(s, errp);
    if (ret == 0)
        ret = qcow2_co_snapshots_read(s, errp);
    if (ret == 0)
        ret = qcow2_collect_metadata(s);
    if (ret == 0)
        ret = qcow2_co_overlap_read(s, errp);
    if (ret < 0)
        return ret;
    ret = co_open_data_file(s, opts, flags, errp);
    if (ret == 0)
        ret = co_open_backing(s, opts, flags, errp);
    if (ret < 0)
        return ret;
    atomic_store(&s->node->size, align_down(s->header.size, BLK_SECTOR_SIZE));
    qcow2_child_changed(s->node);
    ret = flags & BLK_O_CHECK ? 0 : qcow2_co_bitmaps_open(s, errp);
    if (ret < 0)
        return ret;
    return blk_node_writable(s->node) ? qcow2_co_prepare_writing(s, flags, errp) : 0;
}

coroutine_fn int qcow2_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct qcow2 *s = node->state;
    int ret = blk_co_open_child(node, "file", opts, node->filename, flags, false, errp);

    if (ret < 0)
        return ret;
    init_state(s, node);
    ret = co_open_image(s, opts, flags, errp);
    if (ret < 0) {
        qcow2_co_stop_background(s);
        qcow2_co_clean_stop(s);
        grow_ahead(s, NULL);
        co_free_state(s);
    } else {
        qcow2_clean_start(s);
    }
    return ret;
}

coroutine_fn int qcow2_co_close(struct blk_node *node)
{
    struct qcow2 *s = node->state;
    int ret = 0;

    qcow2_co_stop_background(s);
    qcow2_co_clean_stop(s);
    if (blk_node_writable(node) && !atomic_load(&s->corrupt)) {
        int stored = node->open_flags & BLK_O_CHECK ? 0 : qcow2_co_bitmaps_store(s, NULL);
        ret = qcow2_co_settle(s);
        if (ret == 0)
            ret = qcow2_co_clear_dirty_bit(s);
        ret = ret < 0 ? ret : stored;
    }
    grow_ahead(s, NULL);
    co_free_state(s);
    return ret;
}
