/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The request engine of bench: `depth` preallocated requests, each sent again from its own completion callback. Nothing
 * is allocated, locked or waited for in between, so what is measured is the block layer.
 *
 * A flush is due after every flush_interval writes. When draining, it waits until nothing is in flight and nothing is
 * sent before it is done; else it takes the place of one request.
 */
#include "bench.h"

#include <base/loop.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct bench_slot {
    struct blk_request request;
    struct iovec iov;
    struct bench_lane *lane;
    bool idle;
};

static void slot_done(struct blk_request *request, int result);

/* splitmix64: one multiply-xor chain a request, and any seed will do. */
static inline uint64_t next_random(struct bench_lane *lane)
{
    uint64_t z = lane->random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static inline uint64_t next_offset(struct bench_lane *lane)
{
    if (lane->random)
        return lane->offset + (uint64_t)(((unsigned __int128)next_random(lane) * lane->places) >> 64) * lane->size;
    uint64_t offset = lane->offset;
    lane->offset += lane->step;
    if (lane->offset >= lane->image_size && lane->image_size)
        lane->offset %= lane->image_size;
    if (lane->size <= lane->image_size && lane->offset > lane->image_size - lane->size)
        lane->offset = 0; /* a request that would cross the end */
    return offset;
}

static inline bool may_send(const struct bench_lane *lane)
{
    return lane->sent < lane->count && !lane->error && !(lane->stop && __atomic_load_n(lane->stop, __ATOMIC_RELAXED));
}

static void submit(struct bench_slot *slot)
{
    slot->idle = false;
    slot->lane->in_flight++;
    blk_submit(slot->lane->front, &slot->request);
}

static void send_flush(struct bench_slot *slot)
{
    struct blk_request *request = &slot->request;
    slot->lane->until_flush = slot->lane->flush_interval;
    slot->lane->flushing = slot->lane->drain;
    request->op = BLK_OP_FLUSH;
    request->offset = request->length = 0;
    submit(slot);
}

/* Sends what is due through this slot; if that is nothing, the slot rests. */
static inline void send_next(struct bench_slot *slot)
{
    struct bench_lane *lane = slot->lane;
    struct blk_request *request = &slot->request;
    slot->idle = true;
    if (lane->flush_interval && !lane->until_flush) {
        if (!lane->drain)
            send_flush(slot);
        else if (!lane->in_flight && !lane->error)
            send_flush(slot);
        return;
    }
    if (!may_send(lane) || lane->flushing)
        return;
    lane->sent++;
    lane->until_flush--; /* means nothing without flushes */
    request->op = lane->write ? BLK_OP_WRITE : BLK_OP_READ;
    request->offset = next_offset(lane);
    request->length = lane->size;
    request->iov_count = 1; /* a flush through this slot has taken it away */
    submit(slot);
}

static void send_all(struct bench_lane *lane)
{
    for (unsigned i = 0; i < lane->depth; i++) {
        if (lane->slots[i].idle)
            send_next(&lane->slots[i]);
    }
}

static void slot_done(struct blk_request *request, int result)
{
    struct bench_slot *slot = container_of(request, struct bench_slot, request);
    struct bench_lane *lane = slot->lane;
    bool was_drained_flush = lane->flushing;
    lane->in_flight--;
    if (likely(result == 0)) {
        lane->completed += request->op != BLK_OP_FLUSH;
        lane->flushes += request->op == BLK_OP_FLUSH;
    } else if (!lane->error) {
        lane->error = result;
    }
    lane->flushing = false;
    send_next(slot);
    if (was_drained_flush)
        send_all(lane);
    if (!lane->in_flight) {
        lane->end_ns = loop_now_ns();
        lane->done(lane);
    }
}

int bench_lane_init(struct bench_lane *lane)
{
    lane->slots = calloc(lane->depth, sizeof(*lane->slots));
    uint64_t size = lane->size ? lane->size : 1;
    if (lane->depth <= SIZE_MAX / 2 / size)
        lane->buffer = blk_buffer_alloc(blk_front_node(lane->front), size * lane->depth);
    if (!lane->slots || !lane->buffer)
        return -ENOMEM;
    memset(lane->buffer, lane->pattern, size * lane->depth);
    for (unsigned i = 0; i < lane->depth; i++) {
        struct bench_slot *slot = &lane->slots[i];
        slot->lane = lane;
        slot->idle = true;
        slot->iov = (struct iovec){ .iov_base = lane->buffer + size * i, .iov_len = lane->size };
        slot->request.iov = &slot->iov;
        slot->request.done = slot_done;
    }
    lane->until_flush = lane->flush_interval;
    lane->places = lane->random ? (lane->image_size - lane->offset) / size : 0;
    return 0;
}

void bench_lane_finish(struct bench_lane *lane)
{
    free(lane->slots);
    free(lane->buffer);
}

void bench_lane_start(struct bench_lane *lane)
{
    lane->start_ns = lane->end_ns = loop_now_ns();
    send_all(lane);
    if (!lane->in_flight)
        lane->done(lane);
}
