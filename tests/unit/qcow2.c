/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The parts of qcow2 that need no image: header and extensions, refcounts of every width, sets of clusters,
 * compressed clusters. */
#include "compress.h"
#include "header.h"
#include "refcount.h"
#include "unit.h"

#include <string.h>
#include <zlib.h>
#include <zstd.h>

/* ---- refcounts ---- */

static uint64_t mix(uint64_t x)
{
    x = (x + UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xbf58476d1ce4e5b9);
    return x ^ (x >> 29);
}

static void refcounts_of_every_width(void **state)
{
    static uint8_t block[512];
    static uint64_t model[4096];

    for (unsigned order = 0; order <= 6; order++) {
        uint64_t count = sizeof(block) * 8 >> order, max = qcow2_refcount_max(order);
        memset(block, 0, sizeof(block));
        memset(model, 0, sizeof(model));
        for (unsigned i = 0; i < 20000; i++) {
            uint64_t index = mix(i) % count, value = mix(i + 77) & max;
            qcow2_refcount_set(block, order, index, value);
            model[index] = value;
        }
        for (uint64_t i = 0; i < count; i++)
            assert_int_equal(qcow2_refcount_get(block, order, i), model[i]);
    }
    /* As the specification packs them: the first in the least significant bits; wide ones big-endian. */
    memset(block, 0, sizeof(block));
    qcow2_refcount_set(block, 1, 1, 3);
    assert_int_equal(block[0], 0x0c);
    qcow2_refcount_set(block, 4, 1, 0x1234);
    assert_true(block[2] == 0x12 && block[3] == 0x34);
}

/* ---- sets ---- */

static void sets_hold_what_was_added_and_not_removed(void **state)
{
    struct qcow2_set set = { 0 };
    static bool model[5000];

    for (unsigned i = 0; i < 40000; i++) {
        uint64_t cluster = 1 + mix(i) % 4999;
        if (mix(i + 5) % 2) {
            assert_int_equal(qcow2_set_add(&set, cluster << 7), 0);
            model[cluster] = true;
        } else {
            qcow2_set_remove(&set, cluster << 7);
            model[cluster] = false;
        }
    }
    size_t count = 0;
    for (uint64_t i = 1; i < 5000; i++) {
        assert_int_equal(qcow2_set_has(&set, i << 7), model[i]);
        count += model[i];
    }
    assert_int_equal(set.count, count);
    assert_false(qcow2_set_has(&set, 3));
    qcow2_set_finish(&set);
}

/* ---- header ---- */

static struct qcow2_header sound_header(void)
{
    return (struct qcow2_header){
        .version = 3,
        .cluster_bits = 16,
        .size = 10u << 20,
        .l1_size = 1,
        .l1_offset = 0x30000,
        .reftable_offset = 0x10000,
        .reftable_clusters = 1,
        .refcount_order = 4,
    };
}

static void a_built_header_parses_to_the_same(void **state)
{
    static uint8_t out[65536];
    struct qcow2_header h = sound_header(), parsed;
    struct qcow2_extensions ext;

    assert_int_equal(
        qcow2_header_build(&h, &(struct qcow2_names){ "base.qcow2", "qcow2", NULL }, out, sizeof(out), NULL), 0);
    assert_int_equal(qcow2_header_parse(out, sizeof(out), &parsed, NULL), 0);
    assert_int_equal(qcow2_header_validate(&parsed, false, NULL), 0);
    assert_int_equal(qcow2_extensions_parse(&parsed, out, sizeof(out), &ext, NULL), 0);
    assert_memory_equal(&h, &parsed, sizeof(h));
    assert_string_equal(ext.backing_format, "qcow2");
    assert_memory_equal(out + parsed.backing_offset, "base.qcow2", 10);
    assert_int_equal(parsed.backing_length, 10);
    assert_int_equal(ext.feature_table_length, 8 * 48);
}

static void unknown_features_have_their_names(void **state)
{
    static uint8_t out[65536];
    struct qcow2_header h = sound_header();
    struct qcow2_extensions ext;
    struct error *error = NULL;

    assert_int_equal(qcow2_header_build(&h, &(struct qcow2_names){ 0 }, out, sizeof(out), NULL), 0);
    out[112 + 8 + 48 + 1] = 9; /* "corrupt bit" is now the name of bit 9 */
    assert_int_equal(qcow2_extensions_parse(&h, out, sizeof(out), &ext, NULL), 0);
    assert_int_equal(qcow2_features_check(0, &ext, &error), 0);
    assert_int_equal(qcow2_features_check(1u << 9 | 1u << 12, &ext, &error), -ENOTSUP);
    assert_string_equal(error_text(error),
                        "Unsupported qcow2 feature(s): corrupt bit, Unknown incompatible feature: 1000");
    error_free(error);
}

static void headers_cut_short_are_refused(void **state)
{
    static uint8_t out[512];
    struct qcow2_header h = sound_header(), parsed;
    struct qcow2_extensions ext;

    h.cluster_bits = 9;
    assert_int_equal(qcow2_header_build(&h, &(struct qcow2_names){ 0 }, out, sizeof(out), NULL), 0);
    for (size_t length = 0; length < QCOW2_V3_HEADER_LENGTH; length++) {
        struct error *error = NULL;
        uint8_t *exact = malloc(length + 1); /* ASan sees a read past it */
        memcpy(exact, out, length);
        assert_int_equal(qcow2_header_parse(exact, length, &parsed, &error), -EINVAL);
        assert_non_null(error);
        error_free(error);
        free(exact);
    }
    assert_int_equal(qcow2_header_parse(out, QCOW2_V3_HEADER_LENGTH, &parsed, NULL), 0);
    parsed.header_length = 112;
    for (size_t length = 104; length < 512; length++) {
        uint8_t *exact = malloc(length);
        memcpy(exact, out, length);
        qcow2_extensions_parse(&parsed, exact, length, &ext, NULL);
        free(exact);
    }
}

/* Each line: a field's offset, its width, a value, the error. */
static void wrong_fields_are_named(void **state)
{
    static const struct {
        unsigned at, width;
        uint64_t value;
        const char *error;
    } cases[] = {
        { 4, 4, 9, "Unsupported qcow2 version 9" },
        { 20, 4, 8, "Unsupported cluster size: 2^8" },
        { 20, 4, 200, "Unsupported cluster size: 2^200" },
        { 24, 8, UINT64_C(1) << 40, "L1 table is too small" },
        { 24, 8, UINT64_MAX, "Image is too big" },
        { 36, 4, 0xffffffff, "Active L1 table too large" },
        { 40, 8, 0x30200, "Active L1 table offset invalid" },
        { 40, 8, UINT64_C(0xffffffffffff0000), "Active L1 table offset invalid" },
        { 48, 8, 1, "Reference count table offset invalid" },
        { 56, 4, 0, "Image does not contain a reference count table" },
        { 56, 4, 0xffffffff, "Reference count table too large" },
        { 60, 4, 70000, "Snapshot table too large" },
        { 96, 4, 7, "Reference count entry width too large; may not exceed 64 bits" },
        { 100, 4, 103, "qcow2 header too short" },
        { 100, 4, 65537, "qcow2 header exceeds cluster size" },
    };
    static uint8_t out[65536];

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct qcow2_header h = sound_header(), parsed;
        struct error *error = NULL;
        memset(out, 0, sizeof(out));
        assert_int_equal(qcow2_header_build(&h, &(struct qcow2_names){ 0 }, out, sizeof(out), NULL), 0);
        if (cases[i].width == 4)
            store_be32(out + cases[i].at, (uint32_t)cases[i].value);
        else
            store_be64(out + cases[i].at, cases[i].value);
        int ret = qcow2_header_parse(out, sizeof(out), &parsed, &error);
        if (ret == 0)
            ret = qcow2_header_validate(&parsed, false, &error);
        assert_true(ret < 0);
        assert_string_equal(error_text(error), cases[i].error);
        error_free(error);
    }
}

/* ---- compressed clusters ---- */

static void place_of_a_compressed_cluster(void **state)
{
    uint64_t offset, length;

    /* 64 KiB clusters: 54 bits of offset, then the number of further sectors. */
    qcow2_entry_compressed_place((struct qcow2_entry){ QCOW2_COMPRESSED | UINT64_C(3) << 54 | 0x50123, 0 }, 16, &offset,
                                 &length);
    assert_int_equal(offset, 0x50123);
    assert_int_equal(length, 4 * 512 - 0x123);
    qcow2_entry_compressed_place((struct qcow2_entry){ QCOW2_COMPRESSED | UINT64_C(1) << 61 | 0x200, 0 }, 9, &offset,
                                 &length);
    assert_int_equal(offset, 0x200);
    assert_int_equal(length, 1024);
}

static size_t deflate_raw(const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length)
{
    z_stream z = {
        .next_in = (Bytef *)(uintptr_t)in, .avail_in = (uInt)in_length, .next_out = out, .avail_out = (uInt)out_length
    };

    assert_int_equal(deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return out_length - z.avail_out;
}

static void clusters_decompress_or_fail(void **state)
{
    static uint8_t in[65536], packed[80000], out[65536];

    for (size_t i = 0; i < sizeof(in); i++)
        in[i] = (uint8_t)(mix(i / 9) >> 7);
    for (enum qcow2_compression how = QCOW2_ZLIB; how <= QCOW2_ZSTD; how++) {
        size_t length = how == QCOW2_ZLIB ? deflate_raw(in, sizeof(in), packed, sizeof(packed))
                                          : ZSTD_compress(packed, sizeof(packed), in, sizeof(in), 3);
        memset(packed + length, 0xee, 100); /* what follows in the last sector */
        memset(out, 0, sizeof(out));
        assert_int_equal(qcow2_decompress(how, packed, length + 100, out, sizeof(out)), 0);
        assert_memory_equal(in, out, sizeof(in));
        assert_int_equal(qcow2_decompress(how, packed, length / 2, out, sizeof(out)), -EIO);
        assert_int_equal(qcow2_decompress(how, in, sizeof(in), out, sizeof(out)), -EIO);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refcounts_of_every_width),          cmocka_unit_test(sets_hold_what_was_added_and_not_removed),
        cmocka_unit_test(a_built_header_parses_to_the_same), cmocka_unit_test(unknown_features_have_their_names),
        cmocka_unit_test(headers_cut_short_are_refused),     cmocka_unit_test(wrong_fields_are_named),
        cmocka_unit_test(place_of_a_compressed_cluster),     cmocka_unit_test(clusters_decompress_or_fail),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
