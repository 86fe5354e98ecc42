/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The model of overlapping requests (overlap_model.h): for each sector, a short list of changes. */
#include "overlap_model.h"
#include "crash_model.h"

#include <base/compiler.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define UNDER_WAY UINT64_MAX

void overlap_init(struct overlap_model *m, uint64_t sectors)
{
    *m = (struct overlap_model){ .clock = 1, .sector_count = sectors, .next_value = 1 };
    pthread_mutex_init(&m->lock, NULL);
    m->sectors = xcalloc(sectors, sizeof(*m->sectors));
    for (uint64_t i = 0; i < sectors; i++)
        m->sectors[i].count = 1; /* zeroes, since before the first clock */
}

void overlap_finish(struct overlap_model *m)
{
    free(m->sectors);
    pthread_mutex_destroy(&m->lock);
}

/* Is `old` overwritten for every read that starts at `time` or later? */
static bool overwritten(const struct overlap_sector *s, const struct overlap_change *old, uint64_t time)
{
    for (unsigned i = 0; i < s->count; i++) {
        if (s->changes[i].start > old->end && s->changes[i].end < time)
            return true;
    }
    return false;
}

static uint64_t oldest_under_way(const struct overlap_model *m)
{
    uint64_t oldest = m->clock;

    for (unsigned i = 0; i < OVERLAP_WORKERS; i++) {
        if (m->started[i] && m->started[i] < oldest)
            oldest = m->started[i];
    }
    return oldest;
}

static void forget(struct overlap_sector *s, uint64_t oldest)
{
    for (unsigned i = 0; i < s->count;) {
        if (overwritten(s, &s->changes[i], oldest))
            s->changes[i] = s->changes[--s->count];
        else
            i++;
    }
}

/* Lock held. Room for one more change in each sector? Counts whom the request meets. */
static bool make_room(struct overlap_model *m, const struct overlap_request *r, bool *meets)
{
    uint64_t oldest = oldest_under_way(m);

    for (uint64_t i = r->first; i < r->first + r->count; i++) {
        struct overlap_sector *s = &m->sectors[i];
        forget(s, oldest);
        if (s->count == OVERLAP_CHANGES)
            return false;
        for (unsigned j = 0; j < s->count; j++)
            *meets = *meets || s->changes[j].end == UNDER_WAY;
    }
    return true;
}

bool overlap_begin(struct overlap_model *m, struct overlap_request *r, bool zero)
{
    bool meets = false;

    pthread_mutex_lock(&m->lock);
    bool room = make_room(m, r, &meets);
    if (room) {
        m->overlapping += meets;
        r->start = m->started[r->worker] = ++m->clock;
        r->value = r->change && !zero ? m->next_value++ : 0;
        for (uint64_t i = r->first; r->change && i < r->first + r->count; i++) {
            struct overlap_sector *s = &m->sectors[i];
            s->changes[s->count++] = (struct overlap_change){ r->value, r->start, UNDER_WAY };
        }
    }
    pthread_mutex_unlock(&m->lock);
    return room;
}

void overlap_end_change(struct overlap_model *m, const struct overlap_request *r)
{
    pthread_mutex_lock(&m->lock);
    uint64_t end = ++m->clock;
    for (uint64_t i = r->first; i < r->first + r->count; i++) {
        struct overlap_sector *s = &m->sectors[i];
        for (unsigned j = 0; j < s->count; j++) {
            if (s->changes[j].start == r->start)
                s->changes[j].end = end;
        }
    }
    m->started[r->worker] = 0;
    pthread_mutex_unlock(&m->lock);
}

static bool holds(uint32_t value, uint64_t sector, const uint8_t *content)
{
    uint8_t wanted[512] = { 0 };

    if (value)
        crash_stamp(wanted, value, sector);
    return memcmp(wanted, content, sizeof(wanted)) == 0;
}

/* A host's page cache copies a sector word by word: a read beside a write may find the beginning of one content and the
 * end of the other. Each word must still be of a change that counts, and one of these must be under way with the
 * read. */
static bool is_mixture(const struct overlap_sector *s, const struct overlap_request *r, uint64_t sector,
                       const uint8_t *content)
{
    bool beside = false;

    for (unsigned word = 0; word < 512 / 8; word++) {
        bool good = false;
        for (unsigned i = 0; i < s->count; i++) { /* all: several may have put the same there */
            uint8_t wanted[512] = { 0 };
            if (s->changes[i].value)
                crash_stamp(wanted, s->changes[i].value, sector);
            bool fits = !overwritten(s, &s->changes[i], r->start) &&
                        memcmp(wanted + word * 8, content + word * 8, 8) == 0;
            good = good || fits;
            beside = beside || (fits && s->changes[i].end > r->start);
        }
        if (!good)
            return false;
    }
    return beside;
}

/* Two changes that overlapped leave either; which, is certain once a read has seen it after both. Lock held. */
static void settle(const struct overlap_model *m, const struct overlap_request *r, uint64_t sector,
                   const uint8_t *content)
{
    struct overlap_sector *s = &m->sectors[sector];
    uint64_t oldest = MIN(oldest_under_way(m), r->start);
    unsigned kept = 0;

    for (unsigned i = 0; i < s->count; i++) {
        if (s->changes[i].end >= oldest)
            return;
    }
    while (!holds(s->changes[kept].value, sector, content))
        kept++;
    s->changes[0] = s->changes[kept];
    s->count = 1;
}

bool overlap_end_read(struct overlap_model *m, const struct overlap_request *r, const uint8_t *content, uint64_t *bad)
{
    bool good = true;

    pthread_mutex_lock(&m->lock);
    for (uint64_t i = 0; i < r->count && good; i++) {
        const struct overlap_sector *s = &m->sectors[r->first + i];
        good = false;
        for (unsigned j = 0; j < s->count && !good; j++)
            good = holds(s->changes[j].value, r->first + i, content + i * 512) &&
                   !overwritten(s, &s->changes[j], r->start);
        good = good || is_mixture(s, r, r->first + i, content + i * 512);
        if (!good)
            *bad = r->first + i;
    }
    m->started[r->worker] = 0;
    for (uint64_t i = 0; i < r->count && good; i++)
        settle(m, r, r->first + i, content + i * 512);
    pthread_mutex_unlock(&m->lock);
    return good;
}

void overlap_explain(struct overlap_model *m, uint64_t sector, const uint8_t *content, FILE *out)
{
    uint64_t word;

    memcpy(&word, content, sizeof(word));
    fprintf(out, "sector %" PRIu64 " begins %016" PRIx64 "; changes of it:\n", sector, word);
    pthread_mutex_lock(&m->lock);
    const struct overlap_sector *s = &m->sectors[sector];
    for (unsigned i = 0; i < s->count; i++)
        fprintf(out, "  value %" PRIu32 " clock %" PRIu64 "-%" PRIu64 "%s\n", s->changes[i].value, s->changes[i].start,
                s->changes[i].end, holds(s->changes[i].value, sector, content) ? " <- this" : "");
    pthread_mutex_unlock(&m->lock);
}
