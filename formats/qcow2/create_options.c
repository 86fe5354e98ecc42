/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The options that an image is created with, and what of them goes together. */
#include "create_options.h"

#include "driver.h"

#include <string.h>

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
      .at = OPT_AT(struct qcow2_plan, cluster_size) },
    { .name = "extended_l2",
      .type = OPT_BOOL,
      .def = "off",
      .help = "Extended L2 tables",
      .at = OPT_AT(struct qcow2_plan, extended_l2) },
    { .name = "preallocation",
      .type = OPT_STRING,
      .help = "Preallocation mode (allowed values: off, metadata, falloc, full)",
      .at = OPT_AT(struct qcow2_plan, prealloc) },
    { .name = "compression_type",
      .type = OPT_STRING,
      .def = "zlib",
      .help = "Compression method used for image cluster compression",
      .at = OPT_AT(struct qcow2_plan, compression) },
    { .name = "size", .type = OPT_SIZE, .help = "Virtual disk size" },
    { .name = "compat",
      .type = OPT_STRING,
      .help = "Compatibility level (v2 [0.10] or v3 [1.1])",
      .at = OPT_AT(struct qcow2_plan, compat) },
    { .name = "backing_file",
      .type = OPT_STRING,
      .help = "File name of a base image",
      .at = OPT_AT(struct qcow2_plan, backing_name) },
    { .name = "backing_fmt",
      .type = OPT_STRING,
      .help = "Image format of the base image",
      .at = OPT_AT(struct qcow2_plan, backing_format) },
    { .name = "data_file",
      .type = OPT_STRING,
      .help = "File name of an external data file",
      .at = OPT_AT(struct qcow2_plan, data_file) },
    { .name = "data_file_raw",
      .type = OPT_BOOL,
      .help = "The external data file must stay valid as a raw image",
      .at = OPT_AT(struct qcow2_plan, data_file_raw) },
    { .name = "lazy_refcounts",
      .type = OPT_BOOL,
      .def = "off",
      .help = "Postpone refcount updates",
      .at = OPT_AT(struct qcow2_plan, lazy) },
    { .name = "refcount_bits",
      .type = OPT_NUMBER,
      .def = "16",
      .help = "Width of a reference count entry in bits",
      .at = OPT_AT(struct qcow2_plan, refcount_bits) },
    { 0 },
};

uint32_t qcow2_version_of(const char *compat)
{
    if (strcmp(compat, "0.10") == 0 || strcmp(compat, "v2") == 0)
        return 2;
    return strcmp(compat, "1.1") == 0 || strcmp(compat, "v3") == 0 ? 3 : 0;
}

bool qcow2_check_cluster_size(uint64_t cluster_size, struct error **errp)
{
    if (is_power_of_two(cluster_size) && cluster_size >= 512 && cluster_size <= (2u << 20))
        return true;
    error_set(errp, -EINVAL, "Cluster size must be a power of two between 512 and 2048k");
    return false;
}

bool qcow2_check_refcount_bits(uint64_t bits, struct error **errp)
{
    if (is_power_of_two(bits) && bits <= 64)
        return true;
    error_set(errp, -EINVAL, "Refcount width must be a power of two and may not exceed 64 bits");
    return false;
}

bool qcow2_l1_entries(uint64_t size, unsigned cluster_bits, bool extended, uint64_t *entries)
{
    if (size > INT64_MAX - BLK_SECTOR_SIZE)
        return false;
    *entries = div_round_up(align_up(size, BLK_SECTOR_SIZE), UINT64_C(1)
                                                                 << (cluster_bits * 2 - qcow2_entry_shift(extended)));
    return *entries <= QCOW2_MAX_L1_BYTES / 8;
}

int qcow2_plan_read(struct qcow2_plan *plan, struct opts *opts, struct error **errp)
{
    int ret;

    *plan = (struct qcow2_plan){ .compat = "1.1", .prealloc = "off" };
    ret = opts_read(opts, qcow2_create_options, plan, errp);
    return ret < 0 ? ret : 0;
}

/* Options whose features do not exist here yet are refused by name, never ignored. */
static int refuse_missing(const struct qcow2_plan *p, struct opts *opts, struct error **errp)
{
    int ret = 0;

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

static int plan_version(struct qcow2_plan *p, struct error **errp)
{
    p->header.version = qcow2_version_of(p->compat);
    if (p->header.version == 0)
        return error_set(errp, -EINVAL, "Parameter 'version' does not accept value '%s'", p->compat);
    if (strcmp(p->compression, "zstd") == 0) {
        p->header.compression = QCOW2_ZSTD;
        p->header.incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    } else if (strcmp(p->compression, "zlib") != 0) {
        return error_set(errp, -EINVAL, "Parameter 'compression-type' does not accept value '%s'", p->compression);
    }
    return 0;
}

static int plan_widths(struct qcow2_plan *p, struct error **errp)
{
    if (!qcow2_check_cluster_size(p->cluster_size, errp) || !qcow2_check_refcount_bits(p->refcount_bits, errp))
        return -EINVAL;
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
    if (p->extended_l2 && p->header.version < 3)
        return error_set(errp, -EINVAL,
                         "Extended L2 entries are only supported with compatibility level 1.1 and above (use "
                         "version=v3 or greater)");
    if (p->extended_l2 && p->cluster_size < QCOW2_SUBCLUSTERS * BLK_SECTOR_SIZE)
        return error_set(errp, -EINVAL,
                         "Extended L2 entries are only supported with cluster sizes of at least %u bytes",
                         QCOW2_SUBCLUSTERS * BLK_SECTOR_SIZE);
    p->header.incompatible |= p->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0;
    p->header.cluster_bits = log2_floor(p->cluster_size);
    p->header.refcount_order = log2_floor(p->refcount_bits);
    p->header.compatible = p->lazy ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0;
    return 0;
}

static int plan_backing(struct qcow2_plan *p, struct error **errp)
{
    if (p->backing_name && !*p->backing_name)
        p->backing_name = NULL;
    if (!blk_is_preallocation(p->prealloc))
        return error_set(errp, -EINVAL, "Parameter 'preallocation' does not accept value '%s'", p->prealloc);
    if (p->backing_format && !p->backing_name)
        return error_set(errp, -EINVAL, "Backing format cannot be used without backing file");
    if (p->backing_name && strcmp(p->prealloc, "off") != 0 && !p->extended_l2)
        return error_set(errp, -EINVAL,
                         "Backing file and preallocation can only be used at the same time if extended_l2 is on");
    return 0;
}

static int plan_data_file(struct qcow2_plan *p, struct error **errp)
{
    if (p->data_file_raw && !p->data_file)
        return error_set(errp, -EINVAL, "data-file-raw requires data-file");
    if (p->data_file_raw && p->backing_name)
        return error_set(errp, -EINVAL, "Backing file and data-file-raw cannot be used at the same time");
    if (!p->data_file)
        return 0;
    if (p->header.version < 3)
        return error_set(errp, -EINVAL,
                         "External data files are only supported with compatibility level 1.1 and above (use "
                         "version=v3 or greater)");
    p->header.incompatible |= QCOW2_INCOMPAT_DATA_FILE;
    p->header.autoclear |= p->data_file_raw ? QCOW2_AUTOCLEAR_RAW_DATA : 0;
    if (p->data_file_raw && strcmp(p->prealloc, "off") == 0)
        p->prealloc = "metadata"; /* what is written to the raw disk shows here */
    return 0;
}

int qcow2_plan_check(struct qcow2_plan *p, struct opts *opts, struct error **errp)
{
    int ret = plan_version(p, errp);

    if (ret == 0)
        ret = plan_widths(p, errp);
    if (ret == 0)
        ret = plan_backing(p, errp);
    if (ret == 0)
        ret = plan_data_file(p, errp);
    return ret == 0 ? refuse_missing(p, opts, errp) : ret;
}
