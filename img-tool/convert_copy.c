/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The copying of convert: several coroutines, on a loop a processor, each take the next chunk of the source by block
 * status, read it, look for runs of zeroes, and write it.
 *
 * A chunk lies within one extent of one source, but for what shares a compressed cluster. Chunks are taken in order
 * under `lock`; writes wait for their turn unless -W. The first error stops all: nobody takes a chunk or a turn
 * afterwards.
 */
#include "convert.h"
#include "progress.h"

#include <base/checked.h>
#include <base/crew.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Less than this is copied on one loop. */
#define SPREAD_MIN ((uint64_t)4 * CONVERT_BUFFER)

enum chunk_kind { CHUNK_SKIP, CHUNK_ZERO, CHUNK_DATA };

struct chunk {
    enum chunk_kind kind;
    uint64_t offset, length; /* in the target */
};

/* The first error stops all, and is the one that is told: `doing` what, at `offset`; NULL: it has been told. */
static coroutine_fn void co_fail(struct convert *c, int ret, const char *doing, uint64_t offset)
{
    co_mutex_lock(&c->lock);
    if (c->ret == 0 && doing)
        error_report("error while %s at byte %" PRIu64 ": %s", doing, offset, strerror(-ret));
    if (c->ret == 0)
        c->ret = ret;
    co_cond_broadcast(&c->turn);
    co_mutex_unlock(&c->lock);
}

static const struct convert_source *source_at(const struct convert *c, uint64_t offset)
{
    const struct convert_source *source = c->sources;
    while (offset >= source->start + source->size)
        source++;
    return source;
}

/* ---- what there is to copy ---- */

/* Block status of the target's offset, of which c->status is kept as long as it covers it. */
static coroutine_fn int co_look_up(struct convert *c, const struct convert_source *source, uint64_t offset)
{
    if (offset >= c->status_start && offset < c->status_start + c->status.length)
        return 0;
    int ret = blk_co_status(blk_front_node(source->front), c->base, offset - source->start,
                            source->start + source->size - offset, &c->status);
    if (ret < 0 && c->salvage) {
        warn_report("error while reading block status at offset %" PRIu64 ": %s", offset, strerror(-ret));
        c->status = (struct blk_status){ .data = true,
                                         .present = true,
                                         .length = MIN(source->start + source->size - offset, (uint64_t)65536) };
    } else if (ret < 0) {
        error_report("error while reading block status at offset %" PRIu64 ": %s", offset, strerror(-ret));
        return ret;
    }
    c->status_start = offset;
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

/* The chunk at `offset`: a part of one extent that does not cross the end of the target's backing image. */
static coroutine_fn int co_chunk_at(struct convert *c, uint64_t offset, struct chunk *chunk)
{
    const struct convert_source *source = source_at(c, offset);
    int ret = co_look_up(c, source, offset);
    if (ret < 0)
        return ret;
    chunk->offset = offset;
    chunk->length = c->status_start + c->status.length - offset;
    if (c->has_backing && offset < c->base_size)
        chunk->length = MIN(chunk->length, c->base_size - offset);
    chunk->kind = kind_of(c, &c->status, offset);
    if (chunk->kind == CHUNK_DATA || (chunk->kind == CHUNK_ZERO && !c->sparse))
        chunk->length = MIN(chunk->length, (uint64_t)CONVERT_BUFFER);
    if (c->compress)
        end_with_cluster(c, chunk);
    return 0;
}

/* How much is to be copied, for progress. */
static coroutine_fn int co_count(struct convert *c)
{
    for (uint64_t offset = 0; offset < c->total;) {
        struct chunk chunk;
        int ret = co_chunk_at(c, offset, &chunk);
        if (ret < 0)
            return ret;
        uint64_t length = c->status_start + c->status.length - offset;
        if (c->has_backing && offset < c->base_size)
            length = MIN(length, c->base_size - offset);
        if (c->compress)
            length = chunk.length;
        if (chunk.kind == CHUNK_DATA || (chunk.kind == CHUNK_ZERO && !c->target_zero))
            c->to_do += length;
        offset += length;
    }
    c->status = (struct blk_status){ 0 };
    return 0;
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

/* Zeroes in the data are zeroes of the content: they hide what a backing image may have there. */
static bool is_zero(const uint8_t *data, uint64_t length)
{
    return length == 0 || (data[0] == 0 && !memcmp(data, data + 1, length - 1));
}

/* The length of the run at data that is all zeroes, or all to be written, in steps of c->sparse. */
static uint64_t run_length(const struct convert *c, const uint8_t *data, uint64_t length, bool *zero)
{
    if (!c->sparse) {
        *zero = false;
        return length;
    }
    uint64_t run = MIN(c->sparse, length);
    *zero = is_zero(data, run);
    while (run < length) {
        uint64_t step = MIN(c->sparse, length - run);
        if (is_zero(data + run, step) != *zero)
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

static coroutine_fn int co_write_chunk(struct convert *c, const struct chunk *chunk, const uint8_t *buffer)
{
    int ret = 0;
    if (chunk->kind == CHUNK_DATA)
        ret = co_write_data(c, chunk->offset, buffer, chunk->length);
    else if (chunk->kind == CHUNK_ZERO)
        ret = co_write_zeroes(c, chunk->offset, chunk->length);
    if (ret < 0)
        co_fail(c, ret, "writing", chunk->offset);
    return ret;
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

static coroutine_fn int co_read_chunk(struct convert *c, const struct chunk *chunk, uint8_t *buffer)
{
    uint64_t offset = chunk->offset, end = offset + chunk->length;
    int ret = 0;
    if (chunk->kind != CHUNK_DATA)
        return 0;
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
        co_fail(c, ret, "reading", chunk->offset);
    return ret;
}

/* ---- workers ---- */

static coroutine_fn int co_take_chunk(struct convert *c, struct chunk *chunk)
{
    co_mutex_lock(&c->lock);
    int ret = c->ret;
    chunk->length = 0;
    if (ret == 0 && c->next < c->total)
        ret = co_chunk_at(c, c->next, chunk);
    if (ret == 0)
        c->next += chunk->length;
    co_mutex_unlock(&c->lock);
    return ret;
}

static coroutine_fn void co_keep_rate(struct convert *c, const struct chunk *chunk)
{
    if (chunk->kind == CHUNK_DATA || (chunk->kind == CHUNK_ZERO && !c->sparse))
        co_rate_keep(&c->rate, chunk->length);
}

static void count_chunk(struct convert *c, const struct chunk *chunk)
{
    if (chunk->kind == CHUNK_DATA || (chunk->kind == CHUNK_ZERO && !c->target_zero)) {
        c->done += chunk->length;
        progress_update(c->done, c->to_do);
    }
}

/* Until all before the chunk is written, if that matters. */
static coroutine_fn int co_wait_turn(struct convert *c, const struct chunk *chunk)
{
    co_mutex_lock(&c->lock);
    while (!c->out_of_order && c->written != chunk->offset && c->ret == 0)
        co_cond_wait(&c->turn, &c->lock);
    int ret = c->ret;
    co_mutex_unlock(&c->lock);
    return ret;
}

static coroutine_fn int co_copy_chunk(struct convert *c, const struct chunk *chunk, uint8_t *buffer)
{
    int ret = co_read_chunk(c, chunk, buffer);
    if (ret == 0)
        ret = co_wait_turn(c, chunk);
    if (ret == 0)
        ret = co_write_chunk(c, chunk, buffer);
    if (ret < 0)
        return ret;
    co_mutex_lock(&c->lock);
    c->written = chunk->offset + chunk->length;
    if (!c->out_of_order)
        co_cond_broadcast(&c->turn);
    count_chunk(c, chunk);
    co_mutex_unlock(&c->lock);
    co_keep_rate(c, chunk);
    return 0;
}

static coroutine_fn int co_worker(void *arg, size_t number)
{
    (void)number;
    struct convert *c = arg;
    uint8_t *buffer = blk_buffer_alloc(blk_front_node(c->target), CONVERT_BUFFER);
    struct chunk chunk;
    int ret = buffer ? 0 : -ENOMEM;
    if (ret < 0)
        error_report("Out of memory");
    while (ret == 0) {
        ret = co_take_chunk(c, &chunk);
        if (ret < 0 || !chunk.length)
            break;
        ret = co_copy_chunk(c, &chunk, buffer);
    }
    if (ret < 0)
        co_fail(c, ret, NULL, 0);
    free(buffer);
    return ret;
}

coroutine_fn int convert_co_copy(struct convert *c)
{
    int ret = co_count(c);
    if (ret < 0)
        return ret;
    co_mutex_init(&c->lock);
    co_cond_init(&c->turn);
    /* A limited speed is one loop's to keep; and what is little is copied before others have begun. */
    if (c->rate.limit || c->to_do <= SPREAD_MIN)
        co_crew(c->workers, c->workers, co_worker, c);
    else
        co_crew_spread(c->workers, c->workers, co_worker, c);
    co_cond_finish(&c->turn);
    co_mutex_finish(&c->lock);
    return c->ret;
}
