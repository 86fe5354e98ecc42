/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Other options of an image that is there: version, size, width of refcounts, lazy refcounts, the external data file.
 *
 * Each is changed in the header's first sector once all that it needs is durable, one after the other; what version 2
 * does not have is gone before the header says so.
 */
#include "bitmaps.h"
#include "check.h"
#include "commit.h"
#include "create_options.h"
#include "dirty.h"
#include "driver.h"
#include "expand.h"
#include "header.h"
#include "relayout.h"
#include "request.h"

#include <base/error.h>
#include <stdlib.h>
#include <string.h>

struct wish {
    const char *backing_name, *backing_format, *compat, *data_file;
    bool data_file_raw, lazy;
    uint64_t refcount_bits, size;
    bool lazy_given, bits_given, size_given, raw_given;
    uint32_t version;
};

/* In the order in which help sorts them. */
const struct opt_desc qcow2_amend_options[] = {
    { .name = "backing_file",
      .type = OPT_STRING,
      .help = "File name of a base image",
      .at = OPT_AT(struct wish, backing_name) },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .help = "Image format of the base image",
      .at = OPT_AT(struct wish, backing_format) },
    { .name = "compat",
      .type = OPT_STRING,
      .help = "Compatibility level (v2 [0.10] or v3 [1.1])",
      .at = OPT_AT(struct wish, compat) },
    { .name = "data_file",
      .type = OPT_STRING,
      .help = "File name of an external data file",
      .at = OPT_AT(struct wish, data_file) },
    { .name = "data_file_raw",
      .type = OPT_BOOL,
      .help = "The external data file must stay valid as a raw image",
      .at = OPT_AT(struct wish, data_file_raw) },
    { .name = "encrypt.iter-time",
      .type = OPT_NUMBER,
      .flags = OPT_MISSING,
      .help = "Time to spend in PBKDF in milliseconds" },
    { .name = "encrypt.keyslot",
      .type = OPT_NUMBER,
      .flags = OPT_MISSING,
      .help = "Select a single keyslot to modify explicitly" },
    { .name = "encrypt.new-secret",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "New secret to set in the matching keyslots. Empty string to erase" },
    { .name = "encrypt.old-secret",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "Select all keyslots that match this password" },
    { .name = "encrypt.state",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "Select new state of affected keyslots (active/inactive)" },
    { .name = "lazy_refcounts",
      .type = OPT_BOOL,
      .help = "Postpone refcount updates",
      .at = OPT_AT(struct wish, lazy) },
    { .name = "refcount_bits",
      .type = OPT_NUMBER,
      .help = "Width of a reference count entry in bits",
      .at = OPT_AT(struct wish, refcount_bits) },
    { .name = "size", .type = OPT_SIZE, .help = "Virtual disk size", .at = OPT_AT(struct wish, size) },
    { 0 },
};

/* ---- what is wished, and whether it can be ---- */

static int wish_version(struct wish *w, const struct qcow2 *s, struct error **errp)
{
    w->version = w->compat ? qcow2_version_of(w->compat) : s->header.version;
    return w->version ? 0 : error_set(errp, -EINVAL, "Unknown compatibility level %s", w->compat);
}

static bool is_other(const char *wished, const char *now) { return strcmp(wished ? wished : "", now ? now : "") != 0; }

static int refuse(const struct wish *w, const struct qcow2 *s, struct opts *opts, struct error **errp)
{
    for (const struct opt_desc *desc = qcow2_amend_options; desc->name; desc++) {
        if ((desc->flags & OPT_MISSING) && opts_has(opts, desc->name))
            return error_set(errp, -EINVAL, "Can't amend encryption options - encryption not present");
    }
    if (w->data_file && !s->external)
        return error_set(errp, -EINVAL, "data-file can only be set for images that use an external data file");
    if (w->data_file_raw && !qcow2_data_is_raw(s))
        return error_set(errp, -EINVAL, "data-file-raw cannot be set on existing images");
    if ((w->backing_name || w->backing_format) &&
        (is_other(w->backing_name, s->backing_name) || is_other(w->backing_format, s->backing_format)))
        return error_set(errp, -EINVAL, "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
    return 0;
}

static int check_width(const struct wish *w, const struct qcow2 *s, struct error **errp)
{
    uint64_t now = UINT64_C(1) << s->header.refcount_order;

    if (!qcow2_check_refcount_bits(w->refcount_bits, errp))
        return -EINVAL;
    if (w->version >= 3 || w->refcount_bits == 16)
        return 0;
    if (w->version < s->header.version && w->refcount_bits == now)
        return error_set(errp, -ENOTSUP, "compat=0.10 requires refcount_bits=16");
    return error_set(errp, -EINVAL,
                     "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or "
                     "greater)");
}

static int check_downgrade(const struct qcow2 *s, struct error **errp)
{
    uint64_t others = s->header.incompatible & ~(uint64_t)QCOW2_INCOMPAT_DIRTY;

    if (s->external)
        return error_set(errp, -ENOTSUP, "Cannot downgrade an image with a data file");
    if (others)
        return error_set(errp, -ENOTSUP, "Cannot downgrade an image with incompatible features %#" PRIx64 " set",
                         others);
    /* Version 2 does not say how large a snapshot's disk is. */
    for (uint32_t i = 0; i < s->header.snapshot_count; i++) {
        uint64_t size = s->snapshots[i].disk_size;
        if (size && size != s->header.size)
            return error_set(errp, -ENOTSUP, "Internal snapshots prevent downgrade of image");
    }
    return 0;
}

static int read_wish(struct wish *w, struct qcow2 *s, struct opts *opts, struct error **errp)
{
    w->lazy_given = opts_has(opts, "lazy_refcounts");
    w->size_given = opts_has(opts, "size");
    w->bits_given = opts_has(opts, "refcount_bits");
    w->raw_given = opts_has(opts, "data_file_raw");
    int ret = opts_read(opts, qcow2_amend_options, w, errp);

    if (ret >= 0)
        ret = wish_version(w, s, errp);
    if (ret >= 0)
        ret = refuse(w, s, opts, errp);
    if (!w->bits_given)
        w->refcount_bits = UINT64_C(1) << s->header.refcount_order;
    if (ret >= 0)
        ret = check_width(w, s, errp);
    if (ret >= 0 && w->version < 3 && w->lazy)
        ret = error_set(errp, -EINVAL,
                        "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or "
                        "greater)");
    if (ret >= 0 && w->version < s->header.version)
        ret = check_downgrade(s, errp);
    return ret < 0 ? ret : 0;
}

/* ---- changing ---- */

static coroutine_fn int co_set_lazy(struct qcow2 *s, bool lazy, struct error **errp)
{
    int ret = qcow2_co_settle_all(s);
    uint64_t bits = s->header.compatible & ~(uint64_t)QCOW2_COMPAT_LAZY_REFCOUNTS;

    if (ret == 0 && !lazy)
        ret = qcow2_co_clear_dirty_bit(s);
    co_mutex_lock(&s->lock);
    if (ret == 0) {
        bits |= lazy ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0;
        qcow2_header_set64(s, QCOW2_AT_COMPATIBLE, bits);
        ret = qcow2_co_header_write(s);
        if (ret < 0)
            qcow2_header_set64(s, QCOW2_AT_COMPATIBLE, s->header.compatible);
        else
            s->header.compatible = bits;
    }
    if (ret == 0)
        s->lazy_refcounts = lazy;
    co_mutex_unlock(&s->lock);
    return ret < 0 ? error_set_errno(errp, ret, "Could not %s lazy refcounts", lazy ? "enable" : "disable") : 0;
}

/* From now on the data file need not be the disk's raw image. */
static coroutine_fn int co_end_raw(struct qcow2 *s, struct error **errp)
{
    uint64_t bits = s->header.autoclear & ~(uint64_t)QCOW2_AUTOCLEAR_RAW_DATA;

    co_mutex_lock(&s->lock);
    qcow2_header_set64(s, QCOW2_AT_AUTOCLEAR, bits);
    int ret = qcow2_co_header_write(s);
    if (ret < 0)
        qcow2_header_set64(s, QCOW2_AT_AUTOCLEAR, s->header.autoclear);
    else
        s->header.autoclear = bits;
    co_mutex_unlock(&s->lock);
    return ret < 0 ? error_set_errno(errp, ret, "Could not write the image's header") : 0;
}

/* Version 2 knows neither zero clusters nor features. */
static coroutine_fn int co_downgrade(struct qcow2 *s, struct error **errp)
{
    int ret = qcow2_co_expand_zeroes(s);

    if (ret < 0)
        return error_set_errno(errp, ret, "Failed to turn zero into data clusters");
    ret = co_set_lazy(s, false, errp);
    if (ret == 0 && s->header.snapshot_count && (ret = qcow2_co_expand_snapshots(s, errp)) < 0)
        return error_set_errno(errp, ret, "Failed to turn zero into data clusters");
    if (ret == 0)
        ret = qcow2_co_bitmaps_drop(s, errp);
    if (ret < 0)
        return ret;
    if (s->header.incompatible & QCOW2_INCOMPAT_DIRTY)
        return error_set(errp, -EIO, "The image is marked dirty: repair it first (check -r all)");
    return qcow2_co_change_version(s, 2, errp);
}

static coroutine_fn int co_amend(struct qcow2 *s, const struct wish *w, struct error **errp)
{
    unsigned order = log2_floor(w->refcount_bits);
    int ret = 0;

    if (w->version > s->header.version)
        ret = qcow2_co_change_version(s, w->version, errp);
    if (ret == 0 && order != s->header.refcount_order)
        ret = qcow2_co_change_refcount_width(s, order, errp);
    if (ret == 0 && w->data_file)
        ret = qcow2_co_change_data_name(s, w->data_file, errp);
    if (ret == 0 && w->raw_given && !w->data_file_raw && qcow2_data_is_raw(s))
        ret = co_end_raw(s, errp);
    if (ret == 0 && w->size_given)
        ret = qcow2_co_truncate(s->node, w->size, false, "off", errp);
    if (ret == 0 && w->lazy_given && w->lazy != (bool)(s->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS))
        ret = co_set_lazy(s, w->lazy, errp);
    if (ret == 0 && w->version < s->header.version)
        ret = co_downgrade(s, errp);
    return ret;
}

coroutine_fn int qcow2_co_amend(struct blk_node *node, struct opts *opts, struct error **errp)
{
    struct qcow2 *s = node->state;
    struct wish w = { 0 };
    int ret = read_wish(&w, s, opts, errp);

    if (ret == 0 && atomic_load(&s->corrupt))
        return error_set(errp, -EIO, "The image is marked corrupt");
    return ret == 0 ? co_amend(s, &w, errp) : ret;
}
