/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * virtio-blk requests (virtio 1.2, 5.2.6): from a chain of buffers to a request of the block layer and back. On the
 * queue's loop, without allocation: each descriptor has its slot, made when the queue starts. Nothing is assumed about
 * how the driver cuts header, data and status into buffers.
 * Invariants: a slot is busy from taking its chain to giving it back, so a head that comes twice is refused; header and
 * segments are copied before they are looked at; the data stays in guest memory and is moved by the block layer.
 */
#include "virtio_blk.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u

static struct virtio_blk *blk_of(const struct virtio_queue *queue)
{
    return container_of(queue->vdev, struct virtio_blk, vdev);
}

static struct virtio_blk_queue *queue_state(const struct virtio_queue *queue)
{
    return &blk_of(queue)->blk_queues[queue->index];
}

/* ---- buffers ---- */

/* Copies the first `length` bytes out of the buffers and moves past them. There are that many. */
static void take_front(struct iovec **iov, unsigned *count, void *to, size_t length)
{
    uint8_t *at = to;
    while (length) {
        size_t part = MIN(length, (*iov)->iov_len);
        memcpy(at, (*iov)->iov_base, part);
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + part;
        (*iov)->iov_len -= part;
        if (!(*iov)->iov_len) {
            (*iov)++;
            (*count)--;
        }
        at += part;
        length -= part;
    }
}

/* The last byte of the buffers, which are not empty; they are one shorter afterwards. */
static uint8_t *take_last_byte(struct iovec *iov, unsigned *count)
{
    struct iovec *last = &iov[*count - 1];
    last->iov_len--;
    uint8_t *byte = (uint8_t *)last->iov_base + last->iov_len;
    if (!last->iov_len)
        (*count)--;
    return byte;
}

/* ---- completion ---- */

static void complete(struct virtio_blk_slot *slot, uint8_t status)
{
    __atomic_store_n(slot->status, status, __ATOMIC_RELAXED);
    slot->busy = false;
    /* What was written from the start on: all, or (the status being last) nothing that can be vouched for (2.7.8.2). */
    uint32_t written = slot->filled || slot->in_length == 1 ? slot->in_length : 0;
    virtio_queue_complete(slot->queue, slot->head, written);
}

static void submit_segment(struct virtio_blk_slot *slot);

static void stall(struct virtio_blk_slot *slot, int error)
{
    struct virtio_queue *queue = slot->queue;
    struct virtio_blk_queue *state = queue_state(queue);
    if (queue->stopping) {
        slot->busy = false;
        virtio_queue_forget(queue);
        return;
    }
    if (list_empty(&state->stalled))
        warn_report("%s: %s: the machine is stopped; 'cont' in the monitor tries again", queue->vdev->name,
                    strerror(-error));
    list_append(&state->stalled, &slot->stalled);
    machine_event(queue->vdev->machine, MACHINE_IO_ERROR, 0);
}

static void request_done(struct blk_request *request, int result)
{
    struct virtio_blk_slot *slot = container_of(request, struct virtio_blk_slot, request);
    if (unlikely(result < 0)) {
        switch (blk_front_on_error(blk_of(slot->queue)->front, request->op == BLK_OP_READ, result)) {
        case BLK_ON_ERROR_STOP: stall(slot, result); return;
        case BLK_ON_ERROR_IGNORE: break;
        default: complete(slot, result == -ENOTSUP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR); return;
        }
    }
    slot->filled = request->op == BLK_OP_READ && result >= 0;
    if (++slot->segment < slot->segment_count)
        submit_segment(slot);
    else
        complete(slot, VIRTIO_BLK_S_OK);
}

/* ---- submission ---- */

static void submit(struct virtio_blk_slot *slot)
{
    slot->request.done = request_done;
    blk_submit(blk_of(slot->queue)->front, &slot->request);
}

static void submit_data(struct virtio_blk_slot *slot, enum blk_op op, uint64_t sector, const struct iovec *iov,
                        unsigned count, uint64_t length)
{
    uint64_t offset;
    if (length % SECTOR || !checked_mul(sector, SECTOR, &offset) ||
        !range_inside(offset, length, blk_front_size(blk_of(slot->queue)->front))) {
        complete(slot, VIRTIO_BLK_S_IOERR);
        return;
    }
    if (!length) {
        complete(slot, VIRTIO_BLK_S_OK);
        return;
    }
    slot->request.op = op;
    slot->request.flags = 0;
    slot->request.offset = offset;
    slot->request.length = length;
    slot->request.iov = iov;
    slot->request.iov_count = (int)count;
    submit(slot);
}

static void submit_segment(struct virtio_blk_slot *slot)
{
    const struct virtio_blk_discard_write_zeroes *segment = &slot->segments[slot->segment];
    bool zeroes = slot->type == VIRTIO_BLK_T_WRITE_ZEROES;
    slot->request.op = zeroes ? BLK_OP_WRITE_ZEROES : BLK_OP_DISCARD;
    slot->request.flags = zeroes && le32toh(segment->flags) & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP ? BLK_REQ_MAY_UNMAP
                                                                                                 : 0;
    slot->request.offset = le64toh(segment->sector) * SECTOR;
    slot->request.length = (uint64_t)le32toh(segment->num_sectors) * SECTOR;
    slot->request.iov = NULL;
    slot->request.iov_count = 0;
    submit(slot);
}

/* What is wrong with a segment, as a status; all are checked before the first is carried out. */
static uint8_t check_segment(const struct virtio_blk *blk, const struct virtio_blk_slot *slot,
                             const struct virtio_blk_discard_write_zeroes *segment)
{
    bool zeroes = slot->type == VIRTIO_BLK_T_WRITE_ZEROES;
    uint32_t flags = le32toh(segment->flags), sectors = le32toh(segment->num_sectors);
    uint64_t offset;
    if (flags & ~(zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0u))
        return VIRTIO_BLK_S_UNSUPP;
    if (!sectors || sectors > (zeroes ? blk->max_zeroes_sectors : blk->max_discard_sectors) ||
        !checked_mul(le64toh(segment->sector), SECTOR, &offset) ||
        !range_inside(offset, (uint64_t)sectors * SECTOR, blk_front_size(blk->front)))
        return VIRTIO_BLK_S_IOERR;
    return VIRTIO_BLK_S_OK;
}

static void start_segments(struct virtio_blk_slot *slot, struct iovec *iov, unsigned count, uint64_t length)
{
    const struct virtio_blk *blk = blk_of(slot->queue);
    unsigned feature = slot->type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_F_WRITE_ZEROES : VIRTIO_BLK_F_DISCARD;
    uint8_t status = VIRTIO_BLK_S_OK;
    if (!(blk->vdev.features >> feature & 1))
        status = VIRTIO_BLK_S_UNSUPP;
    else if (!length || length % sizeof(slot->segments[0]) || length > sizeof(slot->segments) || blk->read_only)
        status = VIRTIO_BLK_S_IOERR;
    if (status == VIRTIO_BLK_S_OK) {
        take_front(&iov, &count, slot->segments, length);
        slot->segment_count = (unsigned)(length / sizeof(slot->segments[0]));
        for (unsigned i = 0; status == VIRTIO_BLK_S_OK && i < slot->segment_count; i++)
            status = check_segment(blk, slot, &slot->segments[i]);
    }
    if (status == VIRTIO_BLK_S_OK)
        submit_segment(slot);
    else
        complete(slot, status);
}

static void flush(struct virtio_blk_slot *slot)
{
    slot->request.op = BLK_OP_FLUSH;
    slot->request.flags = 0;
    slot->request.offset = slot->request.length = 0;
    slot->request.iov = NULL;
    slot->request.iov_count = 0;
    submit(slot);
}

/* The serial number, padded with zeroes; not terminated if it fills all. */
static void get_id(struct virtio_blk_slot *slot, struct iovec *iov, unsigned count)
{
    const char *serial = blk_of(slot->queue)->serial;
    char id[VIRTIO_BLK_ID_LENGTH] = "";
    memcpy(id, serial ? serial : "", MIN(strlen(serial ? serial : ""), sizeof(id)));
    size_t done = 0;
    for (unsigned i = 0; i < count && done < sizeof(id); i++) {
        size_t part = MIN(iov[i].iov_len, sizeof(id) - done);
        memcpy(iov[i].iov_base, id + done, part);
        done += part;
    }
    slot->filled = done == slot->in_length - 1;
    complete(slot, VIRTIO_BLK_S_OK);
}

/* The chain's buffers are read; header and status are cut off here. */
static void start_request(struct virtio_blk_slot *slot, struct virtq_chain *chain)
{
    struct virtio_blk_outhdr header;
    struct iovec *out = chain->iov, *in = chain->iov + chain->out_count;
    unsigned out_count = chain->out_count, in_count = chain->in_count;
    take_front(&out, &out_count, &header, sizeof(header));
    slot->status = take_last_byte(in, &in_count);
    slot->in_length = (uint32_t)chain->in_length;
    slot->type = le32toh(header.type);
    slot->segment = slot->segment_count = 0;
    slot->filled = false;
    uint64_t sector = le64toh(header.sector), out_length = chain->out_length - sizeof(header);
    switch (slot->type) {
    case VIRTIO_BLK_T_IN: submit_data(slot, BLK_OP_READ, sector, in, in_count, chain->in_length - 1); break;
    case VIRTIO_BLK_T_OUT:
        if (blk_of(slot->queue)->read_only)
            complete(slot, VIRTIO_BLK_S_IOERR);
        else
            submit_data(slot, BLK_OP_WRITE, sector, out, out_count, out_length);
        break;
    case VIRTIO_BLK_T_FLUSH: flush(slot); break;
    case VIRTIO_BLK_T_GET_ID: get_id(slot, in, in_count); break;
    case VIRTIO_BLK_T_DISCARD:
    case VIRTIO_BLK_T_WRITE_ZEROES: start_segments(slot, out, out_count, out_length); break;
    default: complete(slot, VIRTIO_BLK_S_UNSUPP);
    }
}

static int take_one(struct virtio_queue *queue, uint16_t head)
{
    struct virtio_blk_queue *state = queue_state(queue);
    struct virtio_blk_slot *slot = &state->slots[head];
    struct virtq_chain chain = { .iov = state->iovs + (size_t)head * queue->ring.size };
    if (slot->busy) {
        virtio_broken(queue->vdev, queue->index, "a descriptor was made available again while in use");
        return -EINVAL;
    }
    if (virtio_queue_read_chain(queue, head, &chain) < 0)
        return -EINVAL;
    if (chain.out_length < sizeof(struct virtio_blk_outhdr) || !chain.in_length) {
        virtio_broken(queue->vdev, queue->index, "a request has no header or no room for its status");
        return -EINVAL;
    }
    slot->queue = queue;
    slot->head = head;
    slot->busy = true;
    start_request(slot, &chain);
    return 0;
}

bool virtio_blk_queue_process(struct virtio_queue *queue)
{
    uint16_t head;
    int result = 0;
    for (unsigned i = 0; i < queue->ring.size; i++) {
        result = virtio_queue_take(queue, &head);
        if (result != 1)
            return true;
        if (take_one(queue, head) < 0) {
            virtio_queue_forget(queue);
            return true;
        }
    }
    return false;
}

/* ---- stopped by an error ---- */

static void retry(struct loop_post *post)
{
    struct virtio_blk_queue *state = container_of(post, struct virtio_blk_queue, retry_post);
    struct list todo;
    atomic_store(&state->retry_posted, false);
    list_init(&todo);
    list_splice(&todo, &state->stalled);
    while (!list_empty(&todo)) {
        struct virtio_blk_slot *slot = list_first(&todo, struct virtio_blk_slot, stalled);
        list_remove(&slot->stalled);
        submit(slot);
    }
}

void virtio_blk_retry(struct virtio_blk *blk)
{
    for (unsigned i = 0; i < blk->vdev.queue_count; i++) {
        struct virtio_blk_queue *state = &blk->blk_queues[i];
        if (!state->queue->running || atomic_exchange(&state->retry_posted, true))
            continue;
        state->retry_post.fn = retry;
        loop_post(state->queue->loop, &state->retry_post);
    }
}

void virtio_blk_queue_stopping(struct virtio_queue *queue)
{
    struct virtio_blk_queue *state = queue_state(queue);
    while (!list_empty(&state->stalled)) {
        struct virtio_blk_slot *slot = list_first(&state->stalled, struct virtio_blk_slot, stalled);
        list_remove(&slot->stalled);
        slot->busy = false;
        virtio_queue_forget(queue);
    }
}

/* ---- memory ---- */

int virtio_blk_queue_prepare(struct virtio_queue *queue)
{
    struct virtio_blk_queue *state = queue_state(queue);
    size_t size = queue->ring.size;
    state->queue = queue;
    list_init(&state->stalled);
    /* Zeroed by the host when first touched: a slot that is never used costs nothing. */
    state->slots = calloc(size, sizeof(state->slots[0]));
    state->iovs = calloc(size * size, sizeof(state->iovs[0]));
    if (state->slots && state->iovs)
        return 0;
    virtio_blk_queue_release(queue);
    return -ENOMEM;
}

void virtio_blk_queue_release(struct virtio_queue *queue)
{
    struct virtio_blk_queue *state = queue_state(queue);
    free(state->slots);
    free(state->iovs);
    state->slots = NULL;
    state->iovs = NULL;
}
