/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opening and closing an image.
 *
 * The header is parsed and refused before anything else is read; tables are read with sizes that were bounded first. A
 * writable open clears the autoclear bits that we do not maintain, and repairs an image whose dirty bit says that its
 * refcounts may be stale. Close writes everything back, and clears the dirty bit last.
 */
#include "qcow2.h"

#include "check.h"

#include <string.h>

#define DEFAULT_L2_CACHE "33554432"
#define DEFAULT_REFCOUNT_CACHE (8u << 20)
#define MIN_REFBLOCKS 4u
#define SLICE_BYTES 4096u

const struct opt_desc qcow2_options[] = {
    { .name = "lazy-refcounts", .type = OPT_BOOL, .flags = OPT_REOPEN, .help = "postpone refcount updates" },
    { .name = "pass-discard-request",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "pass guest discards on to the host (default: as discard=)" },
    { .name = "overlap-check",
      .type = OPT_STRING,
      .flags = OPT_REOPEN,
      .help = "which metadata is protected from being overwritten: none, constant, cached, all (default: cached)" },
    { .name = "overlap-check.template",
      .type = OPT_STRING,
      .flags = OPT_REOPEN,
      .help = "the same; the keys below change it" },
    { .name = "overlap-check.main-header", .type = OPT_BOOL, .flags = OPT_REOPEN, .help = "the header (constant)" },
    { .name = "overlap-check.active-l1",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "the active L1 table (constant)" },
    { .name = "overlap-check.active-l2", .type = OPT_BOOL, .flags = OPT_REOPEN, .help = "active L2 tables (cached)" },
    { .name = "overlap-check.refcount-table",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "the refcount table (constant)" },
    { .name = "overlap-check.refcount-block",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "refcount blocks (cached)" },
    { .name = "overlap-check.snapshot-table",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "the table of snapshots (constant)" },
    { .name = "overlap-check.inactive-l1",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "L1 tables of snapshots (cached)" },
    { .name = "overlap-check.inactive-l2",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "L2 tables of snapshots (all)" },
    { .name = "overlap-check.bitmap-directory",
      .type = OPT_BOOL,
      .flags = OPT_REOPEN,
      .help = "the directory of bitmaps (constant)" },
    { .name = "cache-size",
      .type = OPT_SIZE,
      .flags = OPT_REOPEN,
      .help = "largest memory for L2 tables and refcount blocks together" },
    { .name = "l2-cache-size",
      .type = OPT_SIZE,
      .flags = OPT_REOPEN,
      .def = DEFAULT_L2_CACHE,
      .help = "largest memory for L2 tables" },
    { .name = "l2-cache-entry-size",
      .type = OPT_SIZE,
      .flags = OPT_REOPEN,
      .help = "bytes of an L2 table that are loaded at once" },
    { .name = "cache-clean-interval",
      .type = OPT_NUMBER,
      .flags = OPT_REOPEN,
      .def = "600",
      .help = "seconds after which what nobody used leaves these caches; 0 for never" },
    { .name = "refcount-cache-size",
      .type = OPT_SIZE,
      .flags = OPT_REOPEN,
      .help = "largest memory for refcount blocks" },
    { 0 },
};

/* ---- header ---- */

static void init_state(struct qcow2 *s, struct blk_node *node)
{
    s->node = node;
    co_mutex_init(&s->lock);
    co_cond_init(&s->loaded);
    co_cond_init(&s->inflight_done);
    co_cond_init(&s->commit_done);
    co_cond_init(&s->decoded_ready);
    list_init(&s->slices);
    list_init(&s->limbo_slices);
    list_init(&s->dirty_slices);
    list_init(&s->loading);
    list_init(&s->refblock_list);
    list_init(&s->limbo);
    list_init(&s->inflight);
    list_init(&s->decoded);
}

static int refuse_features(const struct qcow2_header *h, const struct qcow2_extensions *ext, struct error **errp)
{
    int ret = qcow2_features_check(h->incompatible & ~QCOW2_INCOMPAT_KNOWN, ext, errp);

    if (ret < 0)
        return ret;
    if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return error_set(errp, -ENOTSUP, "Unsupported qcow2 feature(s): external data file");
    if (h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2)
        return error_set(errp, -ENOTSUP, "Unsupported qcow2 feature(s): extended L2 entries");
    if (h->crypt_method == 1 || h->crypt_method == 2)
        return error_set(errp, -ENOTSUP, "Unsupported qcow2 feature(s): encryption (%s)",
                         h->crypt_method == 1 ? "aes" : "luks");
    return 0;
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
static coroutine_fn int co_read_header(struct qcow2 *s, struct error **errp)
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
        ret = qcow2_header_validate(&s->header, errp);
    if (ret == 0)
        ret = take_backing_name(s, data, length);
    memcpy(s->backing_format, ext.backing_format, sizeof(s->backing_format));
    s->bitmap_directory_offset = ext.bitmaps ? ext.bitmap_directory_offset : 0;
    s->bitmap_directory_size = ext.bitmaps ? ext.bitmap_directory_size : 0;
    s->bitmap_count = ext.bitmaps ? ext.bitmap_count : 0;
    return ret;
}

/* ---- options ---- */

static int take_sizes(struct qcow2 *s, struct opts *opts, struct error **errp)
{
    uint64_t l2 = 0, total = 0, refcount = DEFAULT_REFCOUNT_CACHE, slice = MIN((uint64_t)SLICE_BYTES, s->cluster_size);
    int have_total = opts_size(opts, qcow2_options, "cache-size", &total, errp);
    int have_l2 = have_total < 0 ? have_total : opts_size(opts, qcow2_options, "l2-cache-size", &l2, errp);
    int have_refcount = have_l2 < 0 ? have_l2 : opts_size(opts, qcow2_options, "refcount-cache-size", &refcount, errp);
    int have_slice = have_refcount < 0 ? have_refcount
                                       : opts_size(opts, qcow2_options, "l2-cache-entry-size", &slice, errp);

    if (have_slice < 0)
        return have_slice;
    if (have_total && have_l2 && have_refcount)
        return error_set(errp, -EINVAL,
                         "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
    if (have_total && have_l2 && l2 > total)
        return error_set(errp, -EINVAL, "l2-cache-size may not exceed cache-size");
    if (have_total && have_refcount && refcount > total)
        return error_set(errp, -EINVAL, "refcount-cache-size may not exceed cache-size");
    if (!is_power_of_two(slice) || slice < 512 || slice > s->cluster_size)
        return error_set(errp, -EINVAL,
                         "L2 cache entry size must be a power of two between 512 and the cluster size (%" PRIu64 ")",
                         s->cluster_size);
    if (have_total && have_l2)
        refcount = total - l2;
    else if (have_total)
        l2 = have_refcount ? total - refcount : total - total / 8;
    s->slice_bits = log2_floor(slice) - 3;
    s->max_slices = (size_t)MAX(l2 / slice, UINT64_C(8));
    s->max_refblocks = (size_t)MAX(refcount / s->cluster_size, MIN_REFBLOCKS);
    return 0;
}

static int take_options(struct qcow2 *s, struct opts *opts, unsigned flags, struct error **errp)
{
    int ret = take_sizes(s, opts, errp);

    s->lazy_refcounts = s->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
    s->discard_to_host = flags & BLK_O_UNMAP;
    if (ret >= 0)
        ret = opts_bool(opts, qcow2_options, "lazy-refcounts", &s->lazy_refcounts, errp);
    if (ret >= 0)
        ret = opts_bool(opts, qcow2_options, "pass-discard-request", &s->discard_to_host, errp);
    if (ret >= 0)
        ret = qcow2_overlap_options(s, opts, errp);
    if (ret >= 0)
        ret = qcow2_clean_options(s, opts, errp);
    if (ret < 0)
        return ret;
    if (s->lazy_refcounts && s->header.version < 3)
        return error_set(errp, -EINVAL,
                         "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
    return 0;
}

/* ---- tables ---- */

static void derive(struct qcow2 *s)
{
    const struct qcow2_header *h = &s->header;

    s->cluster_bits = h->cluster_bits;
    s->cluster_size = UINT64_C(1) << h->cluster_bits;
    s->l2_bits = h->cluster_bits - 3;
    s->l1_shift = s->cluster_bits + s->l2_bits;
    s->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
    s->l1_size = h->l1_size;
    s->reftable_offset = h->reftable_offset;
    s->reftable_entries = ((uint64_t)h->reftable_clusters << h->cluster_bits) / 8;
    s->reftable_disk_entries = s->reftable_entries;
}

static coroutine_fn int co_read_tables(struct qcow2 *s, struct error **errp)
{
    uint64_t l1_bytes = (uint64_t)s->l1_size * 8, l1_memory = align_up(MAX(l1_bytes, UINT64_C(1)), BLK_SECTOR_SIZE);
    uint64_t reftable_bytes = s->reftable_entries * 8;

    s->l1 = calloc(1, l1_memory);
    s->l1_dirty = calloc(1, l1_memory / BLK_SECTOR_SIZE);
    s->dir = calloc(MAX((size_t)s->l1_size, (size_t)1), sizeof(*s->dir));
    s->reftable = calloc(1, reftable_bytes);
    s->reftable_dirty = calloc(1, reftable_bytes / BLK_SECTOR_SIZE);
    s->refblocks = calloc(s->reftable_entries, sizeof(*s->refblocks));
    if (!s->l1 || !s->l1_dirty || !s->dir || !s->reftable || !s->reftable_dirty || !s->refblocks)
        return error_set(errp, -ENOMEM, "Not enough memory for the L1 table and the refcount table");
    int ret = l1_bytes ? blk_co_read(s->node->file, s->header.l1_offset, (void *)s->l1, l1_bytes) : 0;
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read L1 table");
    ret = blk_co_read(s->node->file, s->reftable_offset, s->reftable, reftable_bytes);
    return ret < 0 ? error_set_errno(errp, ret, "Could not initialize refcount handling") : 0;
}

int qcow2_collect_metadata(struct qcow2 *s)
{
    int ret = 0;

    qcow2_set_finish(&s->l2_set);
    qcow2_set_finish(&s->refblock_set);
    for (uint32_t i = 0; i < s->l1_size && ret == 0; i++) {
        uint64_t table = qcow2_l1_entry(s, i) & QCOW2_OFFSET_MASK;
        if (table && qcow2_in_cluster(s, table) == 0)
            ret = qcow2_set_add(&s->l2_set, table >> s->cluster_bits);
    }
    for (uint64_t i = 0; i < s->reftable_entries && ret == 0; i++) {
        uint64_t block = be64toh(s->reftable[i]) & ~QCOW2_REFTABLE_RESERVED;
        if (block && qcow2_in_cluster(s, block) == 0)
            ret = qcow2_set_add(&s->refblock_set, block >> s->cluster_bits);
    }
    return ret;
}

/* ---- the whole ---- */

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
        error_prepend(errp, "Could not open backing file: ");
    free(full);
    return ret;
}

static void set_limits(struct qcow2 *s)
{
    struct blk_limits *limits = &s->node->limits;

    *limits = s->node->file->limits;
    limits->request_alignment = 1;
    limits->max_transfer = 0;
    limits->zeroes_alignment = limits->discard_alignment = s->cluster_size;
    limits->max_zeroes = limits->max_discard = 0;
    limits->opt_io = (uint32_t)s->cluster_size;
    atomic_store(&s->node->size, align_down(s->header.size, BLK_SECTOR_SIZE));
}

/* Bits whose meaning we do not keep true while we write. */
static coroutine_fn int co_prepare_writing(struct qcow2 *s, unsigned flags, struct error **errp)
{
    int ret = 0;

    if (s->header.incompatible & QCOW2_INCOMPAT_CORRUPT) {
        if (!(flags & BLK_O_CHECK))
            return error_set(errp, -EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
        return 0;
    }
    /* A check changes no data, and minds bitmaps as they are. */
    uint64_t kept = flags & BLK_O_CHECK ? s->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS : 0;
    if (s->header.autoclear != kept) {
        s->header.autoclear = kept;
        qcow2_header_set64(s, QCOW2_AT_AUTOCLEAR, kept);
        ret = qcow2_co_header_write(s);
        if (ret < 0)
            return error_set_errno(errp, ret, "Could not update qcow2 header");
    }
    if ((s->header.incompatible & QCOW2_INCOMPAT_DIRTY) && !(flags & BLK_O_CHECK)) {
        ret = qcow2_co_repair_dirty(s);
        if (ret < 0)
            return error_set_errno(errp, ret, "Could not repair dirty image");
    }
    return 0;
}

static coroutine_fn void co_free_state(struct qcow2 *s)
{
    qcow2_slices_free(s);
    qcow2_decoded_free(s);
    qcow2_refcounts_free(s);
    qcow2_snapshots_free(s);
    qcow2_set_finish(&s->l2_set);
    qcow2_set_finish(&s->refblock_set);
    qcow2_set_finish(&s->inactive_l2_set);
    while (!list_empty(&s->limbo)) {
        struct qcow2_limbo *limbo = list_first(&s->limbo, struct qcow2_limbo, link);
        list_remove(&limbo->link);
        free(limbo->freed.extents);
        free(limbo);
    }
    free(s->freed.extents);
    free(s->l1);
    free(s->l1_dirty);
    free(s->backing_name);
    co_mutex_finish(&s->lock);
    co_cond_finish(&s->loaded);
    co_cond_finish(&s->inflight_done);
    co_cond_finish(&s->commit_done);
    co_cond_finish(&s->decoded_ready);
}

static coroutine_fn int co_open_image(struct qcow2 *s, struct opts *opts, unsigned flags, struct error **errp)
{
    int ret = co_read_header(s, errp);

    if (ret < 0)
        return ret;
    derive(s);
    ret = take_options(s, opts, flags, errp);
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
    s->fresh_from = div_round_up(blk_node_size(s->node->file), s->cluster_size);
    struct blk_node *protocol = blk_node_protocol(s->node->file);
    s->host_grows = protocol && (protocol->driver->flags & BLK_DRIVER_GROWS);
    ret = co_open_backing(s, opts, flags, errp);
    if (ret < 0)
        return ret;
    set_limits(s);
    return blk_node_writable(s->node) ? co_prepare_writing(s, flags, errp) : 0;
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
        co_free_state(s);
    } else {
        qcow2_clean_start(s);
    }
    return ret;
}

/* Everything is written; the refcounts on disk are true again. */
static coroutine_fn int co_clear_dirty_bit(struct qcow2 *s)
{
    if (!s->dirty_bit)
        return 0;
    s->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
    qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
    return qcow2_co_header_write(s);
}

coroutine_fn int qcow2_co_close(struct blk_node *node)
{
    struct qcow2 *s = node->state;
    int ret = 0;

    qcow2_co_stop_background(s);
    if (blk_node_writable(node) && !atomic_load(&s->corrupt)) {
        ret = qcow2_co_settle(s);
        if (ret == 0)
            ret = co_clear_dirty_bit(s);
    }
    co_free_state(s);
    return ret;
}
