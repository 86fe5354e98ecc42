/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Numbers that the commands of io read and print: sizes, patterns, speeds, dumps. The layouts are qemu-io's, digit
 * for digit. */
#include "io.h"

#include "../size_arg.h"

#include <base/checked.h>
#include <base/size.h>

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

bool io_number(const char *text, uint64_t *out)
{
    int ret = size_parse(text, 'B', out);
    if (ret == 0)
        return true;
    if (ret == -ERANGE && !strchr(text, '-'))
        printf("Parsing error: argument too large -- %s\n", text);
    else
        printf("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n", text);
    return false;
}

bool io_sectors(uint64_t offset, uint64_t length)
{
    bool whole = is_aligned(offset, BLK_SECTOR_SIZE);

    if (whole && is_aligned(length, BLK_SECTOR_SIZE))
        return true;
    printf("%" PRIu64 " is not a sector-aligned value for '%s'\n", whole ? length : offset, whole ? "count" : "offset");
    return false;
}

bool io_length(const char *text, uint64_t *out)
{
    if (!io_number(text, out))
        return false;
    if (*out > IO_MAX_LENGTH) {
        printf("length cannot exceed %d, given %s\n", IO_MAX_LENGTH, text);
        return false;
    }
    return true;
}

bool io_pattern(const char *text, uint8_t *out)
{
    uint64_t value;
    if (!img_number_arg(text, 0xff, &value)) {
        printf("%s is not a valid pattern byte\n", text);
        return false;
    }
    *out = (uint8_t)value;
    return true;
}

/* Cuts off a fraction that is all zeroes. */
static void drop_zero_fraction(char *text)
{
    char *dot = strchr(text, '.');
    if (dot && strspn(dot + 1, "0") == strlen(dot + 1))
        *dot = '\0';
}

char *io_size_text(double size, char *buf, size_t buf_size)
{
    static const char *const units[] = { "EiB", "PiB", "TiB", "GiB", "MiB", "KiB" };
    double unit = 1152921504606846976.0;
    char number[64];
    for (size_t i = 0; i < ARRAY_SIZE(units); i++, unit /= 1024) {
        if (size >= unit) {
            snprintf(number, sizeof(number), "%.3f", size / unit);
            drop_zero_fraction(number);
            snprintf(buf, buf_size, "%s %s", number, units[i]);
            return buf;
        }
    }
    snprintf(number, sizeof(number), "%f", size);
    drop_zero_fraction(number);
    snprintf(buf, buf_size, "%s bytes", number);
    return buf;
}

static void format_time(uint64_t ns, bool full, char *buf, size_t size)
{
    uint64_t seconds = ns / 1000000000;
    unsigned hundredths = (unsigned)(ns % 1000000000 / 10000000);
    if (full || seconds >= 60)
        snprintf(buf, size, "%" PRIu64 ":%02u:%02u.%02u", seconds / 3600, (unsigned)(seconds / 60 % 60),
                 (unsigned)(seconds % 60), hundredths);
    else
        snprintf(buf, size, "%02" PRIu64 ".%02u sec", seconds, hundredths);
}

void io_report(const struct io_report *report)
{
    char time[64], length[64], speed[64];
    if (report->quiet)
        return;
    uint64_t ns = MAX(loop_now_ns() - report->start_ns, (uint64_t)1);
    double per_second = 1e9 / (double)ns, bytes = (double)report->length * per_second;
    format_time(ns, report->csv, time, sizeof(time));
    if (report->csv) {
        printf("%" PRIu64 ",1,%s,%.3f,%.3f\n", report->length, time, bytes, per_second);
        return;
    }
    printf("%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", report->verb, report->length, report->length,
           report->offset);
    printf("%s, 1 ops; %s (%s/sec and %.4f ops/sec)\n", io_size_text((double)report->length, length, sizeof(length)),
           time, io_size_text(bytes, speed, sizeof(speed)), per_second);
}

void io_dump(const uint8_t *data, uint64_t offset, uint64_t length)
{
    for (uint64_t at = 0; at < length; at += 16) {
        uint64_t count = MIN(length - at, (uint64_t)16);
        printf("%08" PRIx64 ":  ", offset + at);
        for (uint64_t i = 0; i < count; i++)
            printf("%02x ", data[at + i]);
        putchar(' ');
        for (uint64_t i = 0; i < count; i++)
            putchar(isalnum(data[at + i]) ? data[at + i] : '.');
        putchar('\n');
    }
}

bool io_check_pattern(const uint8_t *data, uint8_t pattern, uint64_t length)
{
    return length == 0 || (data[0] == pattern && !memcmp(data, data + 1, length - 1));
}
