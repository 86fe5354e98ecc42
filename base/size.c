/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sizes as people write and read them: `1.5G` in, `1.5 GiB` out.
 *
 * The whole part is exact integer arithmetic; only a fraction goes through a double and is rounded to the nearest byte.
 * A result is below 2^63 always, so that a caller may use it as an offset without another check.
 */
#include <base/checked.h>
#include <base/size.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char SUFFIXES[] = "BKMGTPE";

/* Power of 1024 that a suffix stands for, or -1. */
static int suffix_power(char suffix)
{
    const char *at = suffix ? strchr(SUFFIXES, toupper((unsigned char)suffix)) : NULL;
    return at ? (int)(at - SUFFIXES) : -1;
}

/* `text` is the whole, for the warning; `digits` are those behind 0x. B and E are digits here, never suffixes. */
static int parse_hex(const char *text, const char *digits, bool negative, uint64_t *out)
{
    uint64_t value = 0;
    const char *p = digits;
    for (; isxdigit((unsigned char)*p); p++) {
        /* Keep looking at the rest: a text that is no number is EINVAL, however large its beginning. */
        if (value >> 60)
            value = UINT64_MAX;
        else
            value = value << 4 |
                    (uint64_t)(isdigit((unsigned char)*p) ? *p - '0' : tolower((unsigned char)*p) - 'a' + 10);
    }
    int power = *p ? suffix_power(*p) : 0;
    if (p == digits || power < 0 || (*p && p[1]))
        return -EINVAL;
    if (*p && !negative)
        warn_report("Using a multiplier suffix on hex numbers is deprecated: %s", text);
    if (!checked_mul(value, UINT64_C(1) << (10 * power), &value) || value > INT64_MAX || negative)
        return -ERANGE;
    *out = value;
    return 0;
}

/* Reads digits; saturates at UINT64_MAX. Returns the first character that is none. */
static const char *parse_whole(const char *p, uint64_t *out)
{
    uint64_t value = 0;
    for (; isdigit((unsigned char)*p); p++) {
        if (!checked_mul(value, 10, &value) || !checked_add(value, (uint64_t)(*p - '0'), &value))
            value = UINT64_MAX / 10 * 10; /* stays out of range whatever follows */
    }
    *out = value;
    return p;
}

/* Reads ".ddd" if there is one. Digits only: no locale, no exponent, no sign. 17 digits are all that a double holds. */
static const char *parse_fraction(const char *p, double *out)
{
    uint64_t numerator = 0, denominator = 1;
    if (*p == '.') {
        for (p++; isdigit((unsigned char)*p); p++) {
            if (denominator < UINT64_C(100000000000000000)) {
                numerator = numerator * 10 + (uint64_t)(*p - '0');
                denominator *= 10;
            }
        }
    }
    *out = (double)numerator / (double)denominator;
    return p;
}

int size_parse(const char *text, char default_suffix, uint64_t *out)
{
    const char *whole_text = text;
    while (isspace((unsigned char)*text))
        text++;
    bool negative = *text == '-';
    if (*text == '+' || *text == '-')
        text++;
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X'))
        return parse_hex(whole_text, text + 2, negative, out);
    if (!isdigit((unsigned char)*text))
        return -EINVAL;

    uint64_t whole;
    double fraction;
    const char *p = parse_fraction(parse_whole(text, &whole), &fraction);
    int power = suffix_power(*p ? *p : default_suffix);
    if (power < 0 || (*p && p[1]))
        return -EINVAL;
    if (power == 0 && fraction > 0) /* there are no parts of a byte */
        return -EINVAL;

    uint64_t unit = UINT64_C(1) << (10 * power), value;
    if (!checked_mul(whole, unit, &value) || !checked_add(value, (uint64_t)(fraction * (double)unit + 0.5), &value) ||
        value > INT64_MAX || negative)
        return -ERANGE;
    *out = value;
    return 0;
}

char *size_format(uint64_t bytes, char *buf, size_t buf_size)
{
    static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    size_t power = 0;
    double value = (double)bytes;
    /* Up to 999 of a unit, so that three digits do; 999.5 and more become "1e+03", as people know it from QEMU. */
    while (value >= 1000 && power + 1 < sizeof(names) / sizeof(names[0])) {
        value /= 1024;
        power++;
    }
    snprintf(buf, buf_size, "%.3g %s", value, names[power]);
    return buf;
}
