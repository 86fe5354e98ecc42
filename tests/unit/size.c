/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sizes: the expected values were taken from the installed qemu-img 7.2 (`create` for reading, `info` for printing).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <base/compiler.h>
#include <base/size.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

static void parses(void **state)
{
    static const struct {
        const char *text;
        char suffix;
        uint64_t bytes;
    } cases[] = {
        { "0", 'B', 0 },
        { "1", 'B', 1 },
        { "010", 'B', 10 },
        { "08", 'B', 8 },
        { "1b", 'B', 1 },
        { "1B", 'M', 1 },
        { "1k", 'B', 1024 },
        { "1K", 'B', 1024 },
        { "3M", 'B', 3 << 20 },
        { "2g", 'B', UINT64_C(2) << 30 },
        { "1T", 'B', UINT64_C(1) << 40 },
        { "1P", 'B', UINT64_C(1) << 50 },
        { "7E", 'B', UINT64_C(7) << 60 },
        { "1.5k", 'B', 1536 },
        { "1.0", 'B', 1 },
        { "1.", 'B', 1 },
        { "1.k", 'B', 1024 },
        { "0.3k", 'B', 307 },
        { "1.3k", 'B', 1331 },
        { "1.999999999k", 'B', 2048 },
        { "3.14159T", 'B', 3454214734705 },
        { "1.5E", 'B', 1729382256910270464 },
        { " 1M", 'B', 1 << 20 },
        { "\t1M", 'B', 1 << 20 },
        { "+1M", 'B', 1 << 20 },
        { "0x1000", 'B', 4096 },
        { "0X10", 'M', 16 },
        { "0x1b", 'B', 27 },
        { "0x10B", 'B', 267 },
        { "0x1E", 'B', 30 },
        { "512", 'M', UINT64_C(512) << 20 },
        { "1.5", 'M', 3 << 19 },
        { "64k", 'M', 65536 },
        { "0.0001k", 'B', 0 },
        { "9223372036854775807", 'B', INT64_MAX },
        { "0x7fffffffffffffff", 'B', INT64_MAX },
        { "00000000000000000000000000000001k", 'B', 1024 },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t bytes = 12345;
        int ret = size_parse(cases[i].text, cases[i].suffix, &bytes);
        if (ret || bytes != cases[i].bytes)
            fail_msg("'%s': got %d and %" PRIu64 ", expected %" PRIu64, cases[i].text, ret, bytes, cases[i].bytes);
    }
}

static void refuses(void **state)
{
    static const struct {
        const char *text;
        int error;
    } cases[] = {
        { "", -EINVAL },
        { " ", -EINVAL },
        { "k", -EINVAL },
        { ".5k", -EINVAL },
        { "abc", -EINVAL },
        { "1x", -EINVAL },
        { "1kk", -EINVAL },
        { "1Mb", -EINVAL },
        { "1 k", -EINVAL },
        { "1k ", -EINVAL },
        { "1e3", -EINVAL },
        { "1.5e1k", -EINVAL },
        { "1.5", -EINVAL },
        { "1.5B", -EINVAL },
        { "1.+5k", -EINVAL },
        { "1.-5k", -EINVAL },
        { "1..5k", -EINVAL },
        { "1,5k", -EINVAL },
        { "inf", -EINVAL },
        { "nan", -EINVAL },
        { "0x", -EINVAL },
        { "0xgg", -EINVAL },
        { "0x1.8k", -EINVAL },
        { "0x10kk", -EINVAL },
        { "0xk", -EINVAL },
        { "0x7fffffffffffffffk", -ERANGE },
        { "00x10", -EINVAL },
        { "--1", -EINVAL },
        { "+-1", -EINVAL },
        { "-", -EINVAL },
        { "18446744073709551616x", -EINVAL },
        { "-1", -ERANGE },
        { "-1k", -ERANGE },
        { "-0x1", -ERANGE },
        { "8E", -ERANGE },
        { "16E", -ERANGE },
        { "100000E", -ERANGE },
        { "9223372036854775808", -ERANGE },
        { "18446744073709551615", -ERANGE },
        { "18446744073709551616", -ERANGE },
        { "18446744073709551617", -ERANGE },
        { "0x8000000000000000", -ERANGE },
        { "0x10000000000000000", -ERANGE },
        { "7.9999999999999999999E", -ERANGE },
        { "99999999999999999999999999999999999999999999999", -ERANGE },
        { "18446744073709551615.5k", -ERANGE },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t bytes = 12345;
        int ret = size_parse(cases[i].text, 'B', &bytes);
        if (ret != cases[i].error)
            fail_msg("'%s': got %d and %" PRIu64 ", expected %d", cases[i].text, ret, bytes, cases[i].error);
        assert_int_equal(bytes, 12345);
    }
}

static void formats(void **state)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        { 0, "0 B" },
        { 1, "1 B" },
        { 512, "512 B" },
        { 999, "999 B" },
        { 1000, "0.977 KiB" },
        { 1024, "1 KiB" },
        { 1536, "1.5 KiB" },
        { 10752, "10.5 KiB" },
        { 102912, "100 KiB" },
        { 103424, "101 KiB" },
        { 196608, "192 KiB" },
        { 200704, "196 KiB" },
        { 1022976, "999 KiB" },
        { 1023488, "1e+03 KiB" },
        { 1024000, "0.977 MiB" },
        { 1047552, "0.999 MiB" },
        { 1048064, "1 MiB" },
        { 1049088, "1 MiB" },
        { 1060352, "1.01 MiB" },
        { 1000000000, "954 MiB" },
        { 1048570368, "1e+03 MiB" },
        { 1072693248, "0.999 GiB" },
        { 1073741824, "1 GiB" },
        { 1610612736, "1.5 GiB" },
        { 1181116416, "1.1 GiB" },
        { 1234567890432, "1.12 TiB" },
        { UINT64_C(1) << 50, "1 PiB" },
        { UINT64_C(1) << 60, "1 EiB" },
        { 7000000000000000000, "6.07 EiB" },
        { UINT64_MAX, "16 EiB" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char buf[32];
        assert_ptr_equal(size_format(cases[i].bytes, buf, sizeof(buf)), buf);
        assert_string_equal(buf, cases[i].text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parses),
        cmocka_unit_test(refuses),
        cmocka_unit_test(formats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
