/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The model of allowed content (crash_model.h): for each sector, straight through the operations that touch it. */
#include "crash_model.h"

#include <base/compiler.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void crash_model_init(struct crash_model *m, uint64_t sectors)
{
    *m = (struct crash_model){ .sectors = sectors };
    m->initial = xcalloc(sectors, 512);
}

void crash_model_finish(struct crash_model *m)
{
    for (size_t i = 0; i < m->count; i++)
        free(m->ops[i]);
    free(m->ops);
    free(m->initial);
}

struct crash_op *crash_model_add(struct crash_model *m, uint64_t first, uint64_t count)
{
    struct crash_op *op = xcalloc(1, sizeof(*op));

    if (m->count == m->capacity) {
        m->capacity = m->capacity ? m->capacity * 2 : 64;
        m->ops = xrealloc(m->ops, m->capacity * sizeof(*m->ops));
    }
    *op = (struct crash_op){ .first = first, .count = count, .value = m->count + 1, .end = CRASH_NEVER };
    m->ops[m->count++] = op;
    return op;
}

void crash_stamp(uint8_t *sector, uint64_t value, uint64_t number)
{
    for (unsigned i = 0; i < 64; i++) {
        uint64_t word = (value << 32) ^ (number << 8) ^ i ^ UINT64_C(0xc3a5000000000000);
        memcpy(sector + i * 8, &word, 8);
    }
}

static bool covers(const struct crash_op *op, uint64_t sector)
{
    return op->kind != CRASH_FLUSH && sector >= op->first && sector - op->first < op->count;
}

static bool holds(const struct crash_op *op, const uint8_t *content, uint64_t sector)
{
    uint8_t wanted[512] = { 0 };

    if (op->kind == CRASH_WRITE)
        crash_stamp(wanted, op->value, sector);
    if (op->kind == CRASH_FILL)
        memset(wanted, (int)(op->value & 0xff), sizeof(wanted));
    return memcmp(wanted, content, 512) == 0;
}

/* The latest start of a flush that is acknowledged by `time`, CRASH_NEVER where there is none. */
static uint64_t last_flush(const struct crash_model *m, uint64_t time)
{
    uint64_t start = CRASH_NEVER;

    for (size_t i = 0; i < m->count; i++) {
        const struct crash_op *op = m->ops[i];
        if (op->kind == CRASH_FLUSH && !op->failed && op->end <= time && (start == CRASH_NEVER || op->start > start))
            start = op->start;
    }
    return start;
}

static bool guaranteed(const struct crash_op *op, uint64_t time, uint64_t flush_start)
{
    return !op->failed && op->end <= time && (op->fua || (flush_start != CRASH_NEVER && op->end <= flush_start));
}

/* Operations submitted before this clock... the newest guaranteed one's start: what ended before it is overwritten
 * for good. */
static uint64_t horizon(const struct crash_model *m, uint64_t sector, uint64_t time, uint64_t flush_start)
{
    uint64_t start = 0;

    for (size_t i = 0; i < m->count; i++) {
        const struct crash_op *op = m->ops[i];
        if (covers(op, sector) && guaranteed(op, time, flush_start) && op->start > start)
            start = op->start;
    }
    return start;
}

static bool sector_allowed(const struct crash_model *m, const uint8_t *content, uint64_t sector, uint64_t time,
                           uint64_t flush_start)
{
    uint64_t start = horizon(m, sector, time, flush_start);

    if (start == 0 && memcmp(content, m->initial + sector * 512, 512) == 0)
        return true;
    for (size_t i = m->count; i-- > 0;) {
        const struct crash_op *op = m->ops[i];
        if (covers(op, sector) && op->start < time && op->end > start && holds(op, content, sector))
            return true;
    }
    return false;
}

bool crash_model_allows_sector(const struct crash_model *m, const uint8_t *content, uint64_t sector, uint64_t time)
{
    return sector_allowed(m, content + sector * 512, sector, time, last_flush(m, time));
}

bool crash_model_knows(const struct crash_model *m, const uint8_t *content, uint64_t sector)
{
    if (memcmp(content + sector * 512, m->initial + sector * 512, 512) == 0)
        return true;
    for (size_t i = 0; i < m->count; i++) {
        if (covers(m->ops[i], sector) && holds(m->ops[i], content + sector * 512, sector))
            return true;
    }
    return false;
}

bool crash_model_allows(const struct crash_model *m, const uint8_t *content, uint64_t time, uint64_t *bad)
{
    uint64_t flush_start = last_flush(m, time);

    for (uint64_t i = 0; i < m->sectors; i++) {
        if (!sector_allowed(m, content + i * 512, i, time, flush_start)) {
            *bad = i;
            return false;
        }
    }
    return true;
}

void crash_model_explain(const struct crash_model *m, const uint8_t *content, uint64_t time, uint64_t sector, FILE *out)
{
    uint64_t word, flush_start = last_flush(m, time);

    memcpy(&word, content + sector * 512, 8);
    fprintf(out, "sector %" PRIu64 " begins %016" PRIx64 " (initially %02x); operations on it:\n", sector, word,
            m->initial[sector * 512]);
    for (size_t i = 0; i < m->count; i++) {
        const struct crash_op *op = m->ops[i];
        if (!covers(op, sector) && op->kind != CRASH_FLUSH)
            continue;
        fprintf(out, "  %s value %" PRIu64 " sectors %" PRIu64 "+%" PRIu64 " clock %" PRIu64 "-%" PRIu64 "%s%s%s%s\n",
                op->kind == CRASH_WRITE  ? "write"
                : op->kind == CRASH_FILL ? "fill "
                : op->kind == CRASH_ZERO ? "zero "
                                         : "flush",
                op->value, op->first, op->count, op->start, op->end, op->fua ? " fua" : "", op->failed ? " failed" : "",
                guaranteed(op, time, flush_start) && op->kind != CRASH_FLUSH ? " guaranteed" : "",
                op->kind != CRASH_FLUSH && holds(op, content + sector * 512, sector) ? " <- this" : "");
    }
}
