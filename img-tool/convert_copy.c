/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The copying of convert: several coroutines, on a loop a processor, each take the next unit of the target (claims.h).
 * One finds by block status what the source has there, reads it, looks for runs of zeroes, and writes it. What is all
 * zeroes, or left to a backing image, is no more than a note in a list of chunks.
 *
 * Where the order of writes decides where things come to lie (a format that allocates clusters), workers write in the
 * order of what they took, so that the same source always makes the same file: the one whose unit begins where all is
 * written has the turn. With -W, or when nothing is allocated, nobody waits. The first error stops all: nobody takes a
 * unit or a turn afterwards.
 */
#include "convert.h"

#include <base/checked.h>
#include <base/crew.h>
#include <base/sync.h>
#include <block/iov.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Less than this is copied on one loop. */
#define SPREAD_MIN ((uint64_t)4 * CLAIM_UNIT)

enum { MAX_CHUNKS = 64 };

enum chunk_kind { CHUNK_SKIP, CHUNK_ZERO, CHUNK_DATA };

/* A part of one extent of one source, but for what shares a compressed cluster. Chunks do not cross the end of the
 * target's backing image. */
struct chunk {
    enum chunk_kind kind;
    uint64_t offset, length; /* in the target */
};

struct convert_worker {
    struct convert *convert;
    struct convert_worker *next;
    uint8_t *buffer;    /* CLAIM_UNIT bytes: of chunks with data, each at its place in the unit */
    struct claim claim; /* what it has taken */
    struct chunk chunks[MAX_CHUNKS];
    unsigned chunk_count;
    struct blk_status status; /* of [status_start, status_start + status.length) */
    uint64_t status_start;
    uint64_t waits_for;  /* its turn comes when all before this is written; under convert->lock */
    struct co_cond turn; /* it has come, or convert->ret is set */
};

/* The first error stops all, and is the one that is told: `doing` what, up to the word before `offset`; NULL: it has
 * been told. */
static void fail(struct convert *c, int ret, const char *doing, uint64_t offset)
{
    pthread_mutex_lock(&c->lock);
    if (c->ret == 0 && doing)
        error_report("error while %s %" PRIu64 ": %s", doing, offset, strerror(-ret));
    if (c->ret == 0)
        c->ret = ret;
    claims_stop(&c->claims);
    for (struct convert_worker *worker = c->first_worker; worker; worker = worker->next)
        co_cond_broadcast(&worker->turn);
    pthread_mutex_unlock(&c->lock);
}

static const struct convert_source *source_at(const struct convert *c, uint64_t offset)
{
    const struct convert_source *source = c->sources;
    while (offset >= source->start + source->size)
        source++;
    return source;
}

/* ---- what there is to copy ---- */

/* Block status of the target's offset, of which w->status is kept as long as it covers it. */
static coroutine_fn int co_look_up(struct convert_worker *w, const struct convert_source *source, uint64_t offset)
{
    struct convert *c = w->convert;

    if (offset >= w->status_start && offset < w->status_start + w->status.length)
        return 0;
    int ret = blk_co_status(blk_front_node(source->front), c->base, offset - source->start,
                            source->start + source->size - offset, &w->status);
    if (ret < 0 && c->salvage) {
        warn_report("error while reading block status at offset %" PRIu64 ": %s", offset, strerror(-ret));
        w->status = (struct blk_status){ .data = true,
                                         .present = true,
                                         .length = MIN(source->start + source->size - offset, (uint64_t)65536) };
    } else if (ret < 0) {
        fail(c, ret, "reading block status at offset", offset);
        return ret;
    }
    w->status_start = offset;
    return 0;
}

static enum chunk_kind kind_of(const struct convert *c, const struct blk_status *status, uint64_t offset)
{
    if (c->base && !status->present && !status->past_end && offset < c->base_size)
        return CHUNK_SKIP; /* the target's backing image has it */
    if (status->zero || !status->data)
        return CHUNK_ZERO;
    return CHUNK_DATA;
}

/* Compressed clusters are written whole: a chunk ends with one of them, or is one, whatever different things it has. */
static void end_with_cluster(const struct convert *c, struct chunk *chunk)
{
    uint64_t end = chunk->offset + chunk->length, whole = align_down(end, c->compress);

    if (end == c->total)
        return;
    if (whole > chunk->offset) {
        chunk->length = whole - chunk->offset;
    } else {
        chunk->length = MIN(c->compress, c->total - chunk->offset);
        chunk->kind = CHUNK_DATA;
    }
}

/* The chunk at `offset`, as long as the extent is. */
static coroutine_fn int co_chunk_at(struct convert_worker *w, uint64_t offset, struct chunk *chunk)
{
    struct convert *c = w->convert;
    const struct convert_source *source = source_at(c, offset);
    int ret = co_look_up(w, source, offset);

    if (ret < 0)
        return ret;
    chunk->offset = offset;
    chunk->length = w->status_start + w->status.length - offset;
    if (c->has_backing && offset < c->base_size)
        chunk->length = MIN(chunk->length, c->base_size - offset);
    chunk->kind = kind_of(c, &w->status, offset);
    if (c->compress)
        end_with_cluster(c, chunk);
    return 0;
}

static bool is_copied(const struct convert *c, const struct chunk *chunk)
{
    return chunk->kind == CHUNK_DATA || (chunk->kind == CHUNK_ZERO && !c->target_zero);
}

/* How much is to be copied, for progress. */
static coroutine_fn int co_count(struct convert_worker *w)
{
    struct convert *c = w->convert;

    for (uint64_t offset = 0; offset < c->total;) {
        struct chunk chunk;
        int ret = co_chunk_at(w, offset, &chunk);
        if (ret < 0)
            return ret;
        if (is_copied(c, &chunk))
            c->to_do += chunk.length;
        offset += chunk.length;
    }
    return 0;
}

/* A hole is taken whole, whatever its size; what needs a buffer, a unit at a time. */
static bool is_light(const struct convert *c, const struct chunk *chunk)
{
    return chunk->kind == CHUNK_SKIP || (chunk->kind == CHUNK_ZERO && c->sparse);
}

/* ---- writing ---- */

static coroutine_fn int co_write_zeroes(struct convert *c, uint64_t offset, uint64_t length)
{
    if (c->sparse) {
        if (c->target_zero && (!c->has_backing || offset >= c->base_size)) /* chunks do not cross base_size */
            return 0;
        return blk_front_co_write_zeroes(c->target, offset, length, BLK_REQ_MAY_UNMAP);
    }
    /* -S 0: fully allocated, so zeroes are data. */
    void *zeroes = blk_buffer_alloc(blk_front_node(c->target), length);
    if (!zeroes)
        return -ENOMEM;
    memset(zeroes, 0, length);
    int ret = blk_front_co_write(c->target, offset, zeroes, length, c->compress ? BLK_REQ_COMPRESSED : 0);
    free(zeroes);
    return ret;
}

/* The length of the run at data that is all zeroes, or all to be written, in steps of c->sparse. */
static uint64_t run_length(const struct convert *c, const uint8_t *data, uint64_t length, bool *zero)
{
    if (!c->sparse) {
        *zero = false;
        return length;
    }
    uint64_t run = MIN(c->sparse, length);
    *zero = buffer_is_zero(data, run);
    while (run < length) {
        uint64_t step = MIN(c->sparse, length - run);
        if (buffer_is_zero(data + run, step) != *zero)
            break;
        run += step;
    }
    return run;
}

static coroutine_fn int co_write_data(struct convert *c, uint64_t offset, const uint8_t *data, uint64_t length)
{
    while (length) {
        bool zero;
        uint64_t run = run_length(c, data, length, &zero);
        int ret = zero ? co_write_zeroes(c, offset, run)
                       : blk_front_co_write(c->target, offset, data, run, c->compress ? BLK_REQ_COMPRESSED : 0);
        if (ret < 0)
            return ret;
        offset += run;
        data += run;
        length -= run;
    }
    return 0;
}

static coroutine_fn int co_write_chunk(struct convert_worker *w, const struct chunk *chunk)
{
    struct convert *c = w->convert;
    int ret = 0;

    if (chunk->kind == CHUNK_DATA)
        ret = co_write_data(c, chunk->offset, w->buffer + (chunk->offset - w->claim.offset), chunk->length);
    else if (chunk->kind == CHUNK_ZERO)
        ret = co_write_zeroes(c, chunk->offset, chunk->length);
    if (ret < 0)
        fail(c, ret, "writing at byte", chunk->offset);
    return ret;
}

/* Until all before the worker's claim is written. */
static coroutine_fn int co_wait_turn(struct convert_worker *w)
{
    struct convert *c = w->convert;

    if (c->out_of_order)
        return c->ret;
    pthread_mutex_lock(&c->lock);
    w->waits_for = w->claim.offset;
    while (c->written < w->waits_for && c->ret == 0)
        co_cond_wait_pthread(&w->turn, &c->lock);
    pthread_mutex_unlock(&c->lock);
    return c->ret;
}

/* The claim is in the target: the worker that has what follows may write. */
static void pass_turn(const struct convert_worker *w)
{
    struct convert *c = w->convert;

    if (c->out_of_order)
        return;
    pthread_mutex_lock(&c->lock);
    c->written = w->claim.end;
    for (struct convert_worker *other = c->first_worker; other; other = other->next) {
        if (other->waits_for == c->written)
            co_cond_signal(&other->turn);
    }
    pthread_mutex_unlock(&c->lock);
}

/* ---- reading ---- */

/* Sector by sector, so that only what cannot be read is lost. */
static coroutine_fn void co_salvage(const struct convert_source *source, uint64_t offset, uint64_t length,
                                    uint8_t *buffer)
{
    for (uint64_t at = 0; at < length; at += BLK_SECTOR_SIZE) {
        uint64_t size = MIN(length - at, (uint64_t)BLK_SECTOR_SIZE);
        int ret = blk_front_co_read(source->front, offset - source->start + at, buffer + at, size);
        if (ret < 0) {
            warn_report("error while reading offset %" PRIu64 ": %s", offset + at, strerror(-ret));
            memset(buffer + at, 0, size);
        }
    }
}

static coroutine_fn int co_read_chunk(struct convert_worker *w, const struct chunk *chunk)
{
    struct convert *c = w->convert;
    uint64_t offset = chunk->offset, end = offset + chunk->length;
    uint8_t *buffer = w->buffer + (offset - w->claim.offset);
    int ret = 0;

    while (ret == 0 && offset < end) {
        const struct convert_source *source = source_at(c, offset);
        uint64_t length = MIN(end, source->start + source->size) - offset;
        ret = blk_front_co_read(source->front, offset - source->start, buffer, length);
        if (ret < 0 && c->salvage) {
            co_salvage(source, offset, length, buffer);
            ret = 0;
        }
        offset += length;
        buffer += length;
    }
    if (ret < 0)
        fail(c, ret, "reading at byte", chunk->offset);
    return ret;
}

/* The claim goes on to where the chunk at its end does: to a whole unit, as compressed clusters are not shared. */
static void fit_claim(struct convert_worker *w, uint64_t end)
{
    uint64_t whole = end == w->convert->total ? end : align_down(end, CLAIM_UNIT);

    if (whole > w->claim.end)
        claims_fit(&w->convert->claims, &w->claim, whole);
}

/* Fills the list from *offset on: to the end of the claim, or until it is full. *offset is then where it ends. */
static coroutine_fn int co_gather(struct convert_worker *w, uint64_t *offset)
{
    struct convert *c = w->convert;

    for (w->chunk_count = 0; *offset < w->claim.end && w->chunk_count < MAX_CHUNKS; w->chunk_count++) {
        struct chunk *chunk = &w->chunks[w->chunk_count];
        int ret = co_chunk_at(w, *offset, chunk);
        if (ret < 0)
            return ret;
        if (is_light(c, chunk))
            fit_claim(w, chunk->offset + chunk->length);
        chunk->length = MIN(chunk->length, w->claim.end - chunk->offset);
        if (chunk->kind == CHUNK_DATA)
            ret = co_read_chunk(w, chunk);
        if (ret < 0)
            return ret;
        *offset += chunk->length;
    }
    return 0;
}

/* ---- workers ---- */

static void count_chunk(struct convert *c, const struct chunk *chunk)
{
    pthread_mutex_lock(&c->lock);
    if (c->progress == PROGRESS_OFF || is_copied(c, chunk)) {
        c->done += chunk->length;
        progress_update(c->done, c->to_do);
    }
    pthread_mutex_unlock(&c->lock);
}

static coroutine_fn int co_write_chunks(struct convert_worker *w)
{
    struct convert *c = w->convert;
    int ret = co_wait_turn(w);

    for (unsigned i = 0; i < w->chunk_count && ret == 0; i++) {
        const struct chunk *chunk = &w->chunks[i];
        ret = co_write_chunk(w, chunk);
        if (ret < 0)
            break;
        count_chunk(c, chunk);
        if (!is_light(c, chunk))
            co_rate_keep(&c->rate, chunk->length);
    }
    return ret;
}

static coroutine_fn int co_copy_claim(struct convert_worker *w)
{
    int ret = 0;

    for (uint64_t offset = w->claim.offset; offset < w->claim.end && ret == 0;) {
        ret = co_gather(w, &offset);
        if (ret == 0)
            ret = co_write_chunks(w);
    }
    if (ret == 0)
        pass_turn(w);
    return ret;
}

static coroutine_fn int co_take_claims(struct convert_worker *w)
{
    struct convert *c = w->convert;
    int ret = 0;

    w->buffer = blk_buffer_alloc(blk_front_node(c->target), CLAIM_UNIT);
    if (!w->buffer) {
        error_report("Out of memory");
        fail(c, -ENOMEM, NULL, 0);
        return -ENOMEM;
    }
    while (ret == 0 && claims_take(&c->claims, &w->claim))
        ret = co_copy_claim(w);
    free(w->buffer);
    return ret;
}

static coroutine_fn int co_worker(void *arg, size_t number)
{
    struct convert_worker *workers = arg;

    return co_take_claims(&workers[number]);
}

/* A limited speed is one loop's to keep; and what is little is copied before others have begun. */
static coroutine_fn void co_run_workers(struct convert *c, struct convert_worker *workers)
{
    claims_init(&c->claims, 0, c->total);
    if (c->rate.limit || c->to_do <= SPREAD_MIN)
        co_crew(c->workers, c->workers, co_worker, workers);
    else
        co_crew_spread(c->workers, c->workers, co_worker, workers);
}

coroutine_fn int convert_co_copy(struct convert *c)
{
    struct convert_worker *workers = xcalloc(c->workers, sizeof(*workers));

    pthread_mutex_init(&c->lock, NULL);
    for (unsigned i = 0; i < c->workers; i++) {
        workers[i].convert = c;
        workers[i].next = c->first_worker;
        co_cond_init(&workers[i].turn);
        c->first_worker = &workers[i];
    }
    /* Counting asks for the whole block status once more. If nobody watches, progress is of the disk. */
    if (c->progress == PROGRESS_OFF)
        c->to_do = c->total;
    else
        co_count(&workers[0]);
    progress_work_begins();
    if (c->ret == 0)
        co_run_workers(c, workers);
    for (unsigned i = 0; i < c->workers; i++)
        co_cond_finish(&workers[i].turn);
    pthread_mutex_destroy(&c->lock);
    free(workers);
    return c->ret;
}
