/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the first sectors of a sound image must hold, in a fuzz target: an array, and for each sector whether it is
 * known. A request that fails for lack of space leaves what it touched unknown; any other failure is a fault.
 */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ORACLE_BYTES (1u << 20)
#define ORACLE_SECTORS (ORACLE_BYTES / 512)

enum oracle_known { ORACLE_UNKNOWN, ORACLE_KNOWN, ORACLE_OR_ZERO /* discarded */ };

struct oracle {
    bool active;
    uint8_t data[ORACLE_BYTES];
    uint8_t known[ORACLE_SECTORS];
};

__attribute__((noreturn)) static inline void oracle_fail(const char *what)
{
    fprintf(stderr, "oracle: %s\n", what);
    abort();
}

static inline void oracle_start(struct oracle *o, const uint8_t *content, uint64_t length)
{
    o->active = true;
    memcpy(o->data, content, length);
    memset(o->known, ORACLE_UNKNOWN, sizeof(o->known));
    memset(o->known, ORACLE_KNOWN, length / 512);
}

static inline void oracle_result(struct oracle *o, int ret)
{
    if (!o->active || ret == 0)
        return;
    if (ret != -ENOSPC && ret != -EFBIG) {
        fprintf(stderr, "oracle: a sound image fails: %s\n", strerror(-ret));
        abort();
    }
    o->active = false; /* what was in memory only may be lost */
}

static inline void oracle_set(struct oracle *o, uint64_t offset, uint64_t length, enum oracle_known known)
{
    for (uint64_t at = offset / 512; at * 512 < offset + length && at < ORACLE_SECTORS; at++)
        o->known[at] = (uint8_t)known;
}

/* data NULL: zeroes. */
static inline void oracle_written(struct oracle *o, uint64_t offset, uint64_t length, const uint8_t *data, int ret)
{
    oracle_result(o, ret);
    oracle_set(o, offset, length, ret < 0 ? ORACLE_UNKNOWN : ORACLE_KNOWN);
    for (uint64_t i = 0; i < length && offset + i < ORACLE_BYTES; i++)
        o->data[offset + i] = data ? data[i] : 0;
}

/* Whole clusters become zeroes, the rest stays. */
static inline void oracle_discarded(struct oracle *o, uint64_t offset, uint64_t length, int ret)
{
    oracle_result(o, ret);
    for (uint64_t at = offset / 512; at * 512 < offset + length && at < ORACLE_SECTORS; at++)
        o->known[at] = (uint8_t)(ret == 0 && o->known[at] != ORACLE_UNKNOWN ? ORACLE_OR_ZERO : ORACLE_UNKNOWN);
}

static inline void oracle_resized(struct oracle *o, uint64_t old, int ret, uint64_t now)
{
    if (ret == -ENOTSUP || ret == -EINVAL)
        return; /* refused, as with snapshots in version 2 */
    oracle_result(o, ret);
    if (ret < 0)
        return;
    if (now > old)
        oracle_written(o, old, now - old, NULL, 0);
    else
        oracle_set(o, now, old - now, ORACLE_UNKNOWN);
}

static inline void oracle_read(struct oracle *o, uint64_t offset, uint64_t length, const uint8_t *content, int ret)
{
    static const uint8_t zeroes[512];

    oracle_result(o, ret);
    for (uint64_t at = 0; o->active && ret == 0 && at + 512 <= length && offset + at < ORACLE_BYTES; at += 512) {
        uint8_t *known = &o->known[(offset + at) / 512];
        bool same = memcmp(content + at, o->data + offset + at, 512) == 0;
        bool zero = memcmp(content + at, zeroes, 512) == 0;
        if ((*known == ORACLE_KNOWN && !same) || (*known == ORACLE_OR_ZERO && !same && !zero)) {
            fprintf(stderr, "oracle: at %llu: ", (unsigned long long)(offset + at));
            oracle_fail("a sound image holds something else");
        }
        memcpy(o->data + offset + at, content + at, 512);
        *known = ORACLE_KNOWN;
    }
}
