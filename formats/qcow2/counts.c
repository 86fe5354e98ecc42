/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A count for each cluster of a file. They lie in chunks of 16384 clusters. A chunk whose counts are all 0 takes no
 * memory, so that a sparse file costs what it holds; others begin with two bits a cluster, which is enough for an image
 * with two snapshots, and grow twice as wide whenever a count has no room.
 *
 * A run of clusters is counted by whole words. That carries nothing from one count into the next as long as the highest
 * bit of each is clear; otherwise they are counted one by one.
 */
#include "counts.h"

#include <base/checked.h>
#include <base/compiler.h>

#include <errno.h>
#include <stdlib.h>

#define CHUNK (UINT64_C(1) << QCOW2_COUNTS_CHUNK_BITS)
#define FIRST_ORDER 1u
#define LAST_ORDER 5u

static unsigned per_word(const struct qcow2_counts_chunk *chunk) { return 64u >> chunk->order; }
static uint64_t max_of(const struct qcow2_counts_chunk *chunk) { return (UINT64_C(1) << (1u << chunk->order)) - 1; }
/* 1 in each count of a word. */
static uint64_t ones_of(const struct qcow2_counts_chunk *chunk) { return UINT64_MAX / max_of(chunk); }
static size_t words_of(const struct qcow2_counts_chunk *chunk) { return (size_t)(CHUNK << chunk->order) / 64; }

int qcow2_counts_init(struct qcow2_counts *counts, uint64_t clusters)
{
    *counts = (struct qcow2_counts){ .chunk_count = div_round_up(clusters, CHUNK) };
    if (counts->chunk_count > SIZE_MAX / sizeof(*counts->chunks))
        return -ENOMEM;
    counts->chunks = calloc(MAX(counts->chunk_count, UINT64_C(1)), sizeof(*counts->chunks));
    return counts->chunks ? 0 : -ENOMEM;
}

void qcow2_counts_finish(struct qcow2_counts *counts)
{
    for (uint64_t i = 0; counts->chunks && i < counts->chunk_count; i++)
        free(counts->chunks[i].words);
    free(counts->chunks);
    *counts = (struct qcow2_counts){ 0 };
}

static uint64_t get(const struct qcow2_counts_chunk *chunk, uint64_t index)
{
    uint64_t place = index << chunk->order;

    return chunk->words[place / 64] >> place % 64 & max_of(chunk);
}

static void put(struct qcow2_counts_chunk *chunk, uint64_t index, uint64_t value)
{
    uint64_t place = index << chunk->order, *word = &chunk->words[place / 64];

    *word = (*word & ~(max_of(chunk) << place % 64)) | value << place % 64;
}

/* Twice as wide; or, if there is nothing yet, as wide as most chunks stay. */
static bool widen(struct qcow2_counts_chunk *chunk)
{
    struct qcow2_counts_chunk wider = { .order = FIRST_ORDER, .doubted = chunk->doubted };

    if (chunk->words)
        wider.order = (uint8_t)(chunk->order + 1);
    wider.words = calloc(words_of(&wider), sizeof(*wider.words));
    if (!wider.words)
        return false;
    for (uint64_t i = 0; chunk->words && i < CHUNK; i++)
        put(&wider, i, get(chunk, i));
    free(chunk->words);
    *chunk = wider;
    return true;
}

static bool put_wide(struct qcow2_counts_chunk *chunk, uint64_t index, uint64_t value)
{
    while (!chunk->words || value > max_of(chunk)) {
        if (chunk->words && chunk->order == LAST_ORDER)
            value = QCOW2_COUNTS_MAX;
        else if (!widen(chunk))
            return false;
    }
    put(chunk, index, value);
    return true;
}

static bool add_one(struct qcow2_counts_chunk *chunk, uint64_t index)
{
    uint64_t place = index << chunk->order, max = max_of(chunk), *word = &chunk->words[place / 64];

    if ((*word >> place % 64 & max) == max)
        return put_wide(chunk, index, max + 1);
    *word += UINT64_C(1) << place % 64;
    return true;
}

/* Whole words of counts that all have room for one more; how many counts these are. */
static uint64_t add_words(struct qcow2_counts_chunk *chunk, uint64_t index, uint64_t count)
{
    uint64_t per = per_word(chunk), ones = ones_of(chunk), tops = ones << ((1u << chunk->order) - 1), done = 0;
    uint64_t *word = &chunk->words[index / per];

    if (index % per)
        return 0;
    for (; count - done >= per && !(*word & tops); done += per)
        *word++ += ones;
    return done;
}

static bool add_in_chunk(struct qcow2_counts_chunk *chunk, uint64_t index, uint64_t count)
{
    if (!chunk->words && !widen(chunk))
        return false;
    for (uint64_t end = index + count; index < end;) {
        uint64_t done = end - index > 1 ? add_words(chunk, index, end - index) : 0;
        if (done == 0 && !add_one(chunk, index))
            return false;
        index += MAX(done, UINT64_C(1));
    }
    return true;
}

void qcow2_counts_add(struct qcow2_counts *counts, uint64_t first, uint64_t count)
{
    while (count > 0) {
        uint64_t index = first % CHUNK, here = MIN(count, CHUNK - index);
        if (!add_in_chunk(&counts->chunks[first / CHUNK], index, here))
            counts->failed = true;
        first += here;
        count -= here;
    }
}

void qcow2_counts_set(struct qcow2_counts *counts, uint64_t cluster, uint64_t value)
{
    struct qcow2_counts_chunk *chunk = &counts->chunks[cluster / CHUNK];

    if (!chunk->words && value == 0)
        return;
    if (!put_wide(chunk, cluster % CHUNK, value))
        counts->failed = true;
}

uint64_t qcow2_counts_first(const struct qcow2_counts *counts, uint64_t first, uint64_t end)
{
    while (first < end) {
        const struct qcow2_counts_chunk *chunk = &counts->chunks[first / CHUNK];
        uint64_t step = chunk->words ? 1 : CHUNK - first % CHUNK;
        if (chunk->words && get(chunk, first % CHUNK))
            return first;
        if (chunk->words && first % per_word(chunk) == 0 && !chunk->words[first % CHUNK / per_word(chunk)])
            step = per_word(chunk);
        first += step;
    }
    return end;
}

uint64_t qcow2_counts_end(const struct qcow2_counts *counts, uint64_t first, uint64_t end)
{
    while (end > first) {
        const struct qcow2_counts_chunk *chunk = &counts->chunks[(end - 1) / CHUNK];
        if (chunk->words && get(chunk, (end - 1) % CHUNK))
            return end;
        end -= chunk->words ? 1 : (end - 1) % CHUNK + 1;
        end = MAX(end, first);
    }
    return first;
}
