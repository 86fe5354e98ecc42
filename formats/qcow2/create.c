/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Creating an image: options, layout, first metadata.
 *
 * The layout is header, refcount table, refcount blocks, L1 table, one after the other, and each of them counted. What
 * the file held before is made unreadable first, durably, and the header's first sector comes last: a create that was
 * cut off leaves a file that is no qcow2 image, or the old one untouched, never a mixture. With preallocation the
 * finished image is opened and its clusters are allocated like any others.
 */
#include "driver.h"
#include "header.h"
#include "refcount.h"
#include "truncate.h"

#include <string.h>

static const char *const preallocation_words[] = { "off", "metadata", "falloc", "full", NULL };

struct plan {
    /* Options. */
    const char *backing_name, *backing_format, *prealloc, *compat, *compression;
    uint64_t cluster_size, refcount_bits;
    bool lazy, data_file_raw;
    /* Layout. */
    struct qcow2_header header;
    uint64_t reftable_clusters, refblocks, l1_clusters;
};

/* In the order in which create tells them (help sorts by name). */
const struct opt_desc qcow2_create_options[] = {
    { .name = "encryption",
      .type = OPT_BOOL,
      .flags = OPT_MISSING,
      .help = "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)" },
    { .name = "encrypt.format",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "Encrypt the image, format choices: 'aes', 'luks'" },
    { .name = "encrypt.key-secret",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "ID of secret providing qcow AES key or LUKS passphrase" },
    { .name = "encrypt.cipher-alg",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "Name of encryption cipher algorithm" },
    { .name = "encrypt.cipher-mode",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "Name of encryption cipher mode" },
    { .name = "encrypt.ivgen-alg", .type = OPT_STRING, .flags = OPT_MISSING, .help = "Name of IV generator algorithm" },
    { .name = "encrypt.ivgen-hash-alg",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "Name of IV generator hash algorithm" },
    { .name = "encrypt.hash-alg",
      .type = OPT_STRING,
      .flags = OPT_MISSING,
      .help = "Name of encryption hash algorithm" },
    { .name = "encrypt.iter-time",
      .type = OPT_NUMBER,
      .flags = OPT_MISSING,
      .help = "Time to spend in PBKDF in milliseconds" },
    { .name = "cluster_size",
      .type = OPT_SIZE,
      .def = "65536",
      .help = "qcow2 cluster size",
      .at = OPT_AT(struct plan, cluster_size) },
    { .name = "extended_l2", .type = OPT_BOOL, .flags = OPT_MISSING, .def = "off", .help = "Extended L2 tables" },
    { .name = "preallocation",
      .type = OPT_STRING,
      .help = "Preallocation mode (allowed values: off, metadata, falloc, full)",
      .at = OPT_AT(struct plan, prealloc) },
    { .name = "compression_type",
      .type = OPT_STRING,
      .def = "zlib",
      .help = "Compression method used for image cluster compression",
      .at = OPT_AT(struct plan, compression) },
    { .name = "size", .type = OPT_SIZE, .help = "Virtual disk size" },
    { .name = "compat",
      .type = OPT_STRING,
      .help = "Compatibility level (v2 [0.10] or v3 [1.1])",
      .at = OPT_AT(struct plan, compat) },
    { .name = "backing_file",
      .type = OPT_STRING,
      .help = "File name of a base image",
      .at = OPT_AT(struct plan, backing_name) },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .help = "Image format of the base image",
      .at = OPT_AT(struct plan, backing_format) },
    { .name = "data_file", .type = OPT_STRING, .flags = OPT_MISSING, .help = "File name of an external data file" },
    { .name = "data_file_raw",
      .type = OPT_BOOL,
      .flags = OPT_MISSING,
      .help = "The external data file must stay valid as a raw image",
      .at = OPT_AT(struct plan, data_file_raw) },
    { .name = "lazy_refcounts",
      .type = OPT_BOOL,
      .def = "off",
      .help = "Postpone refcount updates",
      .at = OPT_AT(struct plan, lazy) },
    { .name = "refcount_bits",
      .type = OPT_NUMBER,
      .def = "16",
      .help = "Width of a reference count entry in bits",
      .at = OPT_AT(struct plan, refcount_bits) },
    { 0 },
};

/* ---- options ---- */

/* Options whose features do not exist here yet are refused by name, never ignored. */
static int refuse_missing(const struct plan *p, struct opts *opts, struct error **errp)
{
    int ret = 0;

    if (p->data_file_raw && !opts_has(opts, "data_file"))
        return error_set(errp, -EINVAL, "data-file-raw requires data-file");
    for (const struct opt_desc *desc = qcow2_create_options; ret >= 0 && desc->name; desc++) {
        bool asked = opts_has(opts, desc->name);
        if (!(desc->flags & OPT_MISSING))
            continue;
        if (desc->type == OPT_BOOL)
            ret = opts_bool(opts, qcow2_create_options, desc->name, &asked, errp);
        if (ret >= 0 && asked)
            return error_set(errp, -ENOTSUP, "Creating qcow2 images with '%s' is not supported", desc->name);
    }
    return ret < 0 ? ret : 0;
}

static int plan_version(struct plan *p, struct error **errp)
{
    if (strcmp(p->compat, "0.10") == 0 || strcmp(p->compat, "v2") == 0)
        p->header.version = 2;
    else if (strcmp(p->compat, "1.1") == 0 || strcmp(p->compat, "v3") == 0)
        p->header.version = 3;
    else
        return error_set(errp, -EINVAL, "Parameter 'version' does not accept value '%s'", p->compat);
    if (strcmp(p->compression, "zstd") == 0) {
        p->header.compression = QCOW2_ZSTD;
        p->header.incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    } else if (strcmp(p->compression, "zlib") != 0) {
        return error_set(errp, -EINVAL, "Parameter 'compression-type' does not accept value '%s'", p->compression);
    }
    return 0;
}

static int plan_widths(struct plan *p, struct error **errp)
{
    if (!is_power_of_two(p->cluster_size) || p->cluster_size < 512 || p->cluster_size > (2u << 20))
        return error_set(errp, -EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    if (!is_power_of_two(p->refcount_bits) || p->refcount_bits > 64)
        return error_set(errp, -EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
    if (p->header.version < 3 && p->lazy)
        return error_set(
            errp, -EINVAL,
            "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)");
    if (p->header.version < 3 && p->refcount_bits != 16)
        return error_set(
            errp, -EINVAL,
            "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 "
            "or greater)");
    if (p->header.version < 3 && p->header.compression != QCOW2_ZLIB)
        return error_set(errp, -EINVAL,
                         "Non-zlib compression type is only supported with compatibility level 1.1 and above "
                         "(use version=v3 or greater)");
    p->header.cluster_bits = log2_floor(p->cluster_size);
    p->header.refcount_order = log2_floor(p->refcount_bits);
    p->header.compatible = p->lazy ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0;
    return 0;
}

static int plan_backing(struct plan *p, struct error **errp)
{
    if (p->backing_name && !*p->backing_name)
        p->backing_name = NULL;
    bool known = false;
    for (size_t i = 0; preallocation_words[i]; i++)
        known = known || strcmp(preallocation_words[i], p->prealloc) == 0;
    if (!known)
        return error_set(errp, -EINVAL, "Parameter 'preallocation' does not accept value '%s'", p->prealloc);
    if (p->backing_format && !p->backing_name)
        return error_set(errp, -EINVAL, "Backing format cannot be used without backing file");
    if (p->backing_name && strcmp(p->prealloc, "off") != 0)
        return error_set(errp, -EINVAL,
                         "Backing file and preallocation can only be used at the same time if extended_l2 is on");
    return 0;
}

/* ---- layout ---- */

static int lay_out(struct plan *p, uint64_t size, struct error **errp)
{
    struct qcow2_header *h = &p->header;
    unsigned l1_shift = h->cluster_bits * 2 - 3;
    uint64_t per_block = (p->cluster_size * 8) >> h->refcount_order, total;

    if (size > INT64_MAX - BLK_SECTOR_SIZE || div_round_up(size, UINT64_C(1) << l1_shift) > QCOW2_MAX_L1_BYTES / 8)
        return error_set(errp, -EFBIG,
                         "The image size is too large for file format 'qcow2' (try using a larger cluster size)");
    h->size = align_up(size, BLK_SECTOR_SIZE);
    h->l1_size = (uint32_t)div_round_up(h->size, UINT64_C(1) << l1_shift);
    p->l1_clusters = div_round_up((uint64_t)h->l1_size * 8, p->cluster_size);
    p->refblocks = p->reftable_clusters = 1;
    for (;;) {
        total = 1 + p->reftable_clusters + p->refblocks + p->l1_clusters;
        if (p->refblocks * per_block < total)
            p->refblocks++;
        else if (p->reftable_clusters * p->cluster_size < p->refblocks * 8)
            p->reftable_clusters++;
        else
            break;
    }
    h->reftable_offset = p->cluster_size;
    h->reftable_clusters = (uint32_t)p->reftable_clusters;
    h->l1_offset = (1 + p->reftable_clusters + p->refblocks) * p->cluster_size;
    return 0;
}

/* Table, blocks and L1 table: everything but the header. */
static coroutine_fn int co_write_tables(struct blk_node *file, const struct plan *p)
{
    uint64_t total = 1 + p->reftable_clusters + p->refblocks + p->l1_clusters;
    uint64_t per_block = (p->cluster_size * 8) >> p->header.refcount_order;
    uint64_t length = (p->reftable_clusters + p->refblocks) * p->cluster_size;
    uint8_t *buffer = blk_buffer_alloc(file, length);
    int ret;

    if (!buffer)
        return -ENOMEM;
    memset(buffer, 0, length);
    for (uint64_t i = 0; i < p->refblocks; i++)
        store_be64(buffer + i * 8, (1 + p->reftable_clusters + i) * p->cluster_size);
    for (uint64_t i = 0; i < total; i++) {
        uint64_t block = p->reftable_clusters + i / per_block;
        qcow2_refcount_set(buffer + block * p->cluster_size, p->header.refcount_order, i % per_block, 1);
    }
    ret = blk_co_write(file, p->cluster_size, buffer, length, 0);
    free(buffer);
    /* The L1 table is all zeroes; its end is also the end of the file. */
    if (ret == 0 && p->header.l1_size)
        ret = blk_co_write_zeroes(file, p->header.l1_offset, (uint64_t)p->header.l1_size * 8, 0);
    return ret;
}

/* No old header may survive next to new tables. */
static coroutine_fn int co_forget_old(struct blk_node *file)
{
    static const uint8_t zeroes[BLK_SECTOR_SIZE];

    if (blk_node_size(file) == 0)
        return 0;
    int ret = blk_co_write(file, 0, zeroes, sizeof(zeroes), 0);
    return ret < 0 ? ret : blk_co_flush(file);
}

/* The magic number is in the first sector: without it nobody looks at the others. */
static coroutine_fn int co_write_header(struct blk_node *file, const uint8_t *head)
{
    int ret = blk_co_write(file, 0, head, BLK_SECTOR_SIZE, 0);

    return ret < 0 ? ret : blk_co_flush(file);
}

static coroutine_fn int co_write_image(struct blk_node *file, struct plan *p, struct error **errp)
{
    AUTO_FREE uint8_t *head = calloc(1, p->cluster_size);

    if (!head)
        return -ENOMEM;
    int ret = qcow2_header_build(&p->header, p->backing_name, p->backing_format, head, p->cluster_size, errp);
    if (ret < 0)
        return ret;
    ret = co_forget_old(file);
    if (ret == 0)
        ret = co_write_tables(file, p);
    if (ret == 0 && p->cluster_size > BLK_SECTOR_SIZE)
        ret = blk_co_write(file, BLK_SECTOR_SIZE, head + BLK_SECTOR_SIZE, p->cluster_size - BLK_SECTOR_SIZE, 0);
    if (ret == 0)
        ret = blk_co_flush(file);
    if (ret == 0)
        ret = co_write_header(file, head);
    return ret < 0 ? error_set_errno(errp, ret, "Could not write qcow2 metadata") : 0;
}

/* Opens the finished image over the same file node and allocates everything. */
static coroutine_fn int co_preallocate(struct blk_node *file, const struct plan *p, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "file", file->name);
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING, errp);
    opts_free(opts);
    if (!node)
        return -EIO;
    int ret = qcow2_co_preallocate(node->state, 0, p->header.size, p->prealloc, errp);
    int close_ret = blk_co_node_unref(node);
    if (ret == 0 && close_ret < 0)
        ret = error_set_errno(errp, close_ret, "Could not write qcow2 metadata");
    return ret;
}

coroutine_fn int qcow2_co_create(struct blk_create *create, struct error **errp)
{
    struct opts *opts = create->options ? opts_clone(create->options) : opts_new();
    struct plan p = { .compat = "1.1", .prealloc = "off" };
    int ret = opts_read(opts, qcow2_create_options, &p, errp);

    if (ret >= 0)
        ret = plan_version(&p, errp);
    if (ret >= 0)
        ret = plan_widths(&p, errp);
    if (ret >= 0)
        ret = plan_backing(&p, errp);
    if (ret >= 0)
        ret = refuse_missing(&p, opts, errp);
    if (ret >= 0)
        ret = lay_out(&p, create->size, errp);
    if (ret >= 0)
        ret = co_write_image(create->file, &p, errp);
    if (ret >= 0 && strcmp(p.prealloc, "off") != 0)
        ret = co_preallocate(create->file, &p, errp);
    opts_free(opts);
    return ret < 0 ? ret : 0;
}
