/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The header: parsing it from a file's first bytes, building a new one, changing fields in place.
 *
 * Nothing here trusts a number: a field is used only after its own check, and every failure names the field in QEMU's
 * words. A field of an open image changes through sector0, the header's first 512 bytes as on disk, which is written
 * whole: one sector, so a power cut leaves the old header or the new one. What this program does not know in it stays
 * as it was.
 */
#include "header.h"

#include <string.h>

static void read_v3_fields(const uint8_t *data, struct qcow2_header *h)
{
    h->incompatible = load_be64(data + 72);
    h->compatible = load_be64(data + 80);
    h->autoclear = load_be64(data + 88);
    h->refcount_order = load_be32(data + 96);
    h->header_length = load_be32(data + 100);
}

static void read_fields(const uint8_t *data, struct qcow2_header *h)
{
    h->version = load_be32(data + 4);
    h->backing_offset = load_be64(data + 8);
    h->backing_length = load_be32(data + 16);
    h->cluster_bits = load_be32(data + 20);
    h->size = load_be64(data + 24);
    h->crypt_method = load_be32(data + 32);
    h->l1_size = load_be32(data + 36);
    h->l1_offset = load_be64(data + 40);
    h->reftable_offset = load_be64(data + 48);
    h->reftable_clusters = load_be32(data + 56);
    h->snapshot_count = load_be32(data + 60);
    h->snapshots_offset = load_be64(data + 64);
}

/* A table of `count` entries of `entry` bytes at `offset`: aligned, not too large, and its end fits. */
static int check_table(const struct qcow2_header *h, uint64_t offset, uint64_t count, uint64_t entry,
                       uint64_t max_bytes, const char *name, struct error **errp)
{
    uint64_t bytes = 0, end = 0;

    if (!checked_mul(count, entry, &bytes) || bytes > max_bytes)
        return error_set(errp, -EFBIG, "%s too large", name);
    if (!checked_add(offset, bytes, &end) || end > INT64_MAX || !is_aligned(offset, UINT64_C(1) << h->cluster_bits))
        return error_set(errp, -EINVAL, "%s offset invalid", name);
    return 0;
}

static int check_tables(const struct qcow2_header *h, bool for_check, struct error **errp)
{
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;
    bool extended = h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
    unsigned l1_shift = h->cluster_bits + h->cluster_bits - qcow2_entry_shift(extended);

    if (h->reftable_clusters == 0 && !for_check)
        return error_set(errp, -EINVAL, "Image does not contain a reference count table");
    int ret = check_table(h, h->reftable_offset, h->reftable_clusters, cluster_size, QCOW2_MAX_REFTABLE_BYTES,
                          "Reference count table", errp);
    if (ret == 0)
        ret = check_table(h, h->snapshots_offset, h->snapshot_count, 40, 40u * QCOW2_MAX_SNAPSHOTS, "Snapshot table",
                          errp);
    if (ret == 0)
        ret = check_table(h, h->l1_offset, h->l1_size, 8, QCOW2_MAX_L1_BYTES, "Active L1 table", errp);
    if (ret < 0)
        return ret;
    uint64_t l1_entries = div_round_up(h->size, UINT64_C(1) << l1_shift);
    if (h->size > INT64_MAX || l1_entries > INT32_MAX)
        return error_set(errp, -EFBIG, "Image is too big");
    if (h->l1_size < l1_entries)
        return error_set(errp, -EINVAL, "L1 table is too small");
    return 0;
}

static int check_compression(const struct qcow2_header *h, struct error **errp)
{
    bool bit = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;

    if (h->compression > QCOW2_ZSTD)
        return error_set(errp, -ENOTSUP, "qcow2: unknown compression type: %u", h->compression);
    if (h->compression == QCOW2_ZLIB && bit)
        return error_set(errp, -EINVAL, "qcow2: Compression type incompatible feature bit must not be set");
    if (h->compression != QCOW2_ZLIB && !bit)
        return error_set(errp, -EINVAL, "qcow2: Compression type incompatible feature bit must be set");
    return 0;
}

static int check_lengths(const struct qcow2_header *h, struct error **errp)
{
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return error_set(errp, -EINVAL, "Unsupported cluster size: 2^%" PRIu32, h->cluster_bits);
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;
    if (h->header_length < QCOW2_V3_HEADER_LENGTH && h->version >= 3)
        return error_set(errp, -EINVAL, "qcow2 header too short");
    if (h->header_length > cluster_size)
        return error_set(errp, -EINVAL, "qcow2 header exceeds cluster size");
    if (h->backing_offset > cluster_size)
        return error_set(errp, -EINVAL, "Invalid backing file offset");
    return 0;
}

/* The backing name lies between the header's end and the first cluster's end. */
static int check_backing(const struct qcow2_header *h, struct error **errp)
{
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;

    if (h->backing_offset == 0)
        return 0;
    if (h->backing_length > QCOW2_MAX_BACKING_NAME || h->backing_length > cluster_size - h->backing_offset)
        return error_set(errp, -EINVAL, "Backing file name too long");
    return 0;
}

int qcow2_header_parse(const uint8_t *data, size_t length, struct qcow2_header *h, struct error **errp)
{
    memset(h, 0, sizeof(*h));
    if (length < 8 || load_be32(data) != QCOW2_MAGIC)
        return error_set(errp, -EINVAL, "Image is not in qcow2 format");
    h->version = load_be32(data + 4);
    if (h->version < 2 || h->version > 3)
        return error_set(errp, -ENOTSUP, "Unsupported qcow2 version %" PRIu32, h->version);
    if (length < QCOW2_V2_HEADER_LENGTH || (h->version == 3 && length < QCOW2_V3_HEADER_LENGTH))
        return error_set(errp, -EINVAL, "qcow2 header too short");
    read_fields(data, h);
    if (h->version == 3) {
        read_v3_fields(data, h);
    } else {
        h->refcount_order = QCOW2_V2_REFCOUNT_ORDER;
        h->header_length = QCOW2_V2_HEADER_LENGTH;
    }
    if (h->version == 3 && h->header_length > QCOW2_V3_HEADER_LENGTH && length > QCOW2_V3_HEADER_LENGTH)
        h->compression = data[QCOW2_V3_HEADER_LENGTH];
    return check_lengths(h, errp);
}

int qcow2_header_validate(const struct qcow2_header *h, bool for_check, struct error **errp)
{
    int ret = check_compression(h, errp);

    if (ret < 0)
        return ret;
    if (h->refcount_order > 6)
        return error_set(errp, -EINVAL, "Reference count entry width too large; may not exceed 64 bits");
    if (h->crypt_method > 2)
        return error_set(errp, -EINVAL, "Unsupported encryption method %" PRIu32, h->crypt_method);
    ret = check_tables(h, for_check, errp);
    return ret < 0 ? ret : check_backing(h, errp);
}

/* ---- extensions ---- */

static int take_extension(uint32_t type, const uint8_t *data, uint32_t length, struct qcow2_extensions *ext,
                          struct error **errp)
{
    switch (type) {
    case QCOW2_EXT_BACKING_FORMAT:
        if (length >= sizeof(ext->backing_format))
            return error_set(errp, -EINVAL, "ERROR: ext_backing_format: len=%" PRIu32 " too large (>=%zu)", length,
                             sizeof(ext->backing_format));
        memcpy(ext->backing_format, data, length);
        ext->backing_format[length] = 0;
        return 0;
    case QCOW2_EXT_FEATURE_TABLE:
        ext->feature_table = data;
        ext->feature_table_length = length;
        return 0;
    case QCOW2_EXT_BITMAPS:
        if (length != 24)
            return error_set(errp, -EINVAL, "bitmaps_ext: Invalid extension length");
        ext->bitmaps = true;
        ext->bitmap_count = load_be32(data);
        ext->bitmap_directory_size = load_be64(data + 8);
        ext->bitmap_directory_offset = load_be64(data + 16);
        return 0;
    case QCOW2_EXT_CRYPTO: ext->crypto = true; return 0;
    case QCOW2_EXT_DATA_FILE:
        ext->data_name = data;
        ext->data_name_length = length;
        return 0;
    default: return 0; /* unknown ones stay where they are */
    }
}

int qcow2_extensions_parse(const struct qcow2_header *h, const uint8_t *data, size_t length,
                           struct qcow2_extensions *ext, struct error **errp)
{
    size_t end = h->backing_offset ? MIN((size_t)h->backing_offset, length) : length;
    size_t at = h->header_length;

    memset(ext, 0, sizeof(*ext));
    while (at < end) {
        if (end - at < 8)
            return at + 8 > length ? 0 : error_set(errp, -EINVAL, "Header extension too large");
        uint32_t type = load_be32(data + at), ext_length = load_be32(data + at + 4);
        at += 8;
        if (type == QCOW2_EXT_END)
            return 0;
        if (ext_length > end - at)
            return error_set(errp, -EINVAL, "Header extension too large");
        int ret = take_extension(type, data + at, ext_length, ext, errp);
        if (ret < 0)
            return ret;
        at += align_up(ext_length, 8);
    }
    return 0;
}

/* A feature table's entry is 48 bytes: type (0 incompatible), bit, name padded with zeroes. */
#define FEATURE_ENTRY 48u

int qcow2_features_check(uint64_t unknown, const struct qcow2_extensions *ext, struct error **errp)
{
    char names[512] = "";
    size_t used = 0;

    if (unknown == 0)
        return 0;
    for (size_t at = 0; at + FEATURE_ENTRY <= ext->feature_table_length; at += FEATURE_ENTRY) {
        const uint8_t *entry = ext->feature_table + at;
        if (entry[0] != 0 || entry[1] > 63 || !(unknown & (UINT64_C(1) << entry[1])))
            continue;
        int n = snprintf(names + used, sizeof(names) - used, "%s%.46s", used ? ", " : "", (const char *)entry + 2);
        used = MIN(used + (size_t)n, sizeof(names) - 1);
        unknown &= ~(UINT64_C(1) << entry[1]);
    }
    if (unknown)
        snprintf(names + used, sizeof(names) - used, "%sUnknown incompatible feature: %" PRIx64, used ? ", " : "",
                 unknown);
    return error_set(errp, -ENOTSUP, "Unsupported qcow2 feature(s): %s", names);
}

/* ---- building ---- */

static const struct {
    uint8_t type, bit;
    const char *name;
} features[] = {
    { 0, 0, "dirty bit" },        { 0, 1, "corrupt bit" },         { 0, 2, "external data file" },
    { 0, 3, "compression type" }, { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
    { 2, 0, "bitmaps" },          { 2, 1, "raw external data" },
};

static void store_fields(const struct qcow2_header *h, uint8_t *out)
{
    store_be32(out, QCOW2_MAGIC);
    store_be32(out + 4, h->version);
    store_be64(out + 8, h->backing_offset);
    store_be32(out + 16, h->backing_length);
    store_be32(out + 20, h->cluster_bits);
    store_be64(out + 24, h->size);
    store_be32(out + 32, h->crypt_method);
    store_be32(out + 36, h->l1_size);
    store_be64(out + 40, h->l1_offset);
    store_be64(out + 48, h->reftable_offset);
    store_be32(out + 56, h->reftable_clusters);
    store_be32(out + 60, h->snapshot_count);
    store_be64(out + 64, h->snapshots_offset);
    if (h->version < 3)
        return;
    store_be64(out + 72, h->incompatible);
    store_be64(out + 80, h->compatible);
    store_be64(out + 88, h->autoclear);
    store_be32(out + 96, h->refcount_order);
    store_be32(out + 100, h->header_length);
    out[104] = h->compression;
}

static size_t put_extension(uint8_t *out, size_t at, uint32_t type, const void *data, size_t length)
{
    store_be32(out + at, type);
    store_be32(out + at + 4, (uint32_t)length);
    if (data)
        memcpy(out + at + 8, data, length);
    return at + 8 + align_up(length, 8);
}

static size_t put_features(uint8_t *out, size_t at)
{
    size_t next = put_extension(out, at, QCOW2_EXT_FEATURE_TABLE, NULL, ARRAY_SIZE(features) * FEATURE_ENTRY);

    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        uint8_t *entry = out + at + 8 + i * FEATURE_ENTRY;
        entry[0] = features[i].type;
        entry[1] = features[i].bit;
        memcpy(entry + 2, features[i].name, strlen(features[i].name));
    }
    return next;
}

/* Of an extension with this text; there is none without a text. */
static size_t extension_size(size_t length) { return length ? 8 + align_up(length, 8) : 0; }

int qcow2_header_build(struct qcow2_header *h, const struct qcow2_names *names, uint8_t *out, size_t out_size,
                       struct error **errp)
{
    size_t name_length = names->backing ? strlen(names->backing) : 0;
    size_t format_length = names->backing_format ? strlen(names->backing_format) : 0;
    size_t data_length = names->data ? strlen(names->data) : 0;
    /* A version 3 header of ours is 112 bytes: the compression type and its padding. */
    h->header_length = h->version >= 3 ? QCOW2_V3_HEADER_LENGTH + 8 : QCOW2_V2_HEADER_LENGTH;
    size_t at = h->header_length;
    size_t table = h->version >= 3 ? 8 + ARRAY_SIZE(features) * FEATURE_ENTRY : 0;
    size_t required = at + 8 + name_length + extension_size(format_length) + extension_size(data_length);

    if (name_length > QCOW2_MAX_BACKING_NAME)
        return error_set(errp, -EINVAL, "Backing file name too long");
    if (format_length >= 16)
        return error_set(errp, -EINVAL, "Backing format name '%s' is too long", names->backing_format);
    if (required > out_size)
        return error_set(errp, -ENOSPC, "The header does not fit into one cluster of %zu bytes; use larger clusters",
                         out_size);
    if (format_length)
        at = put_extension(out, at, QCOW2_EXT_BACKING_FORMAT, names->backing_format, format_length);
    if (data_length)
        at = put_extension(out, at, QCOW2_EXT_DATA_FILE, names->data, data_length);
    if (table &&
        required + table <= out_size) /* only names: in tiny clusters with a long backing name it has no place */
        at = put_features(out, at);
    at = put_extension(out, at, QCOW2_EXT_END, NULL, 0);
    h->backing_offset = name_length ? at : 0;
    h->backing_length = (uint32_t)name_length;
    if (name_length)
        memcpy(out + at, names->backing, name_length);
    store_fields(h, out);
    return 0;
}

/* ---- changing ---- */

void qcow2_header_set32(struct qcow2 *s, enum qcow2_header_field at, uint32_t value)
{
    store_be32(s->sector0 + at, value);
}
void qcow2_header_set64(struct qcow2 *s, enum qcow2_header_field at, uint64_t value)
{
    store_be64(s->sector0 + at, value);
}

coroutine_fn int qcow2_co_header_write(struct qcow2 *s)
{
    uint8_t sector[BLK_SECTOR_SIZE];

    while (s->header_writing)
        co_cond_wait(&s->header_written, &s->lock);
    s->header_writing = true;
    memcpy(sector, s->sector0, sizeof(sector));
    co_mutex_unlock(&s->lock);
    int ret = blk_co_write(s->node->file, 0, sector, sizeof(sector), 0);
    if (ret == 0)
        ret = blk_co_flush(s->node->file);
    co_mutex_lock(&s->lock);
    s->header_writing = false;
    co_cond_broadcast(&s->header_written);
    atomic_store_explicit(&s->header_unsure, ret < 0, memory_order_release);
    if (ret < 0)
        atomic_store_explicit(&s->need_commit, true, memory_order_release);
    return ret;
}
