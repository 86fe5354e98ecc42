/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Byte order at odd addresses, and a reader that never passes the end of its buffer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <base/endian.h>

#include <stdlib.h>

static const uint8_t BYTES[] = { 0x00, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef };

static void loads(void **state)
{
    assert_int_equal(load_be16(BYTES + 1), 0x0123);
    assert_int_equal(load_le16(BYTES + 1), 0x2301);
    assert_int_equal(load_be32(BYTES + 1), 0x01234567);
    assert_int_equal(load_le32(BYTES + 1), 0x67452301);
    assert_true(load_be64(BYTES + 1) == UINT64_C(0x0123456789abcdef));
    assert_true(load_le64(BYTES + 1) == UINT64_C(0xefcdab8967452301));
}

static void stores(void **state)
{
    uint8_t out[9] = { 0 };
    store_be64(out + 1, UINT64_C(0x0123456789abcdef));
    assert_memory_equal(out, BYTES, sizeof(out));
    store_le64(out + 1, UINT64_C(0xefcdab8967452301));
    assert_memory_equal(out, BYTES, sizeof(out));
    store_be32(out + 1, 0x01234567);
    store_le32(out + 5, 0xefcdab89);
    assert_memory_equal(out, BYTES, sizeof(out));
    store_be16(out + 1, 0x0123);
    store_le16(out + 3, 0x6745);
    assert_memory_equal(out, BYTES, sizeof(out));
}

static void reader_reads_in_order(void **state)
{
    struct byte_reader r = { .data = BYTES + 1, .length = 8 };
    assert_int_equal(byte_reader_be16(&r), 0x0123);
    assert_int_equal(byte_reader_le16(&r), 0x6745);
    assert_int_equal(byte_reader_be32(&r), 0x89abcdef);
    assert_false(r.failed);
    assert_int_equal(r.offset, 8);
    assert_non_null(byte_reader_take(&r, 0));
    assert_false(r.failed);
}

/* The buffer is exactly as long as it says, on the heap, so that a sanitizer sees one byte too many. */
static void reader_stops_at_the_end(void **state)
{
    for (size_t length = 0; length < 8; length++) {
        uint8_t *data = malloc(length + !length);
        assert_non_null(data);
        memset(data, 0xff, length);
        struct byte_reader r = { .data = data, .length = length };
        assert_true(byte_reader_be64(&r) == 0);
        assert_true(r.failed);
        assert_int_equal(byte_reader_le16(&r), 0); /* stays failed although two bytes may be there */
        assert_true(r.failed);
        struct byte_reader huge = { .data = data, .length = length };
        assert_null(byte_reader_take(&huge, SIZE_MAX));
        assert_true(huge.failed);
        free(data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads),
        cmocka_unit_test(stores),
        cmocka_unit_test(reader_reads_in_order),
        cmocka_unit_test(reader_stops_at_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
