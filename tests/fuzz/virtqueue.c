/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fuzzes the split virtqueue and the parsing of virtio-blk requests: the input is the guest's memory (rings,
 * descriptors, headers) and a sequence of what driver and host do. The front end is a fake that checks what it is given
 * and completes when the input says so; the loop is a fake that runs callbacks in order.
 *
 * What must hold: nothing outside the guest's memory is touched (the memory is an allocation of its own, so ASan sees
 * it); every request that is taken is given back before a stop ends; and after each step the guest's memory is, byte
 * for byte, what a second, simple implementation of the specification makes of it (virtqueue_model.c), and the disk has
 * been asked for the same: so statuses, used lengths, data, flags and indices are right, whatever the guest does.
 */
#include "virtio_blk.h"
#include "virtqueue_model.h"

#include <assert.h>
#include <base/checked.h>
#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_SIZE MODEL_MEMORY
#define DISK_SIZE MODEL_DISK
#define MAX_PENDING 1024u

struct blk_front {
    enum blk_on_error on_error;
};

static struct guest_memory *memory;
static struct blk_request *pending[MAX_PENDING];
static unsigned pending_count;
static struct loop_task *tasks, **tasks_end = &tasks;
static struct loop_post *posts, **posts_end = &posts;
static struct loop_event *removed_event;
static struct blk_request *submitted[4 * MODEL_RING];
static unsigned submitted_count;
static struct model model;
static uint8_t disk[DISK_SIZE];
static bool stopped_by_error;

/* ---- the loop ---- */

void loop_defer(struct loop *loop, struct loop_task *task)
{
    task->next = NULL;
    *tasks_end = task;
    tasks_end = &task->next;
}

void loop_post(struct loop *loop, struct loop_post *post)
{
    post->next = NULL;
    *posts_end = post;
    posts_end = &post->next;
}

void loop_event_add(struct loop *loop, struct loop_event *event) {}

void loop_event_remove(struct loop_event *event, void (*removed)(struct loop_event *event))
{
    assert(!removed_event);
    event->removed = removed;
    removed_event = event;
}

struct io_uring *loop_ring(struct loop *loop) { return NULL; }

struct io_uring_sqe *loop_sqe(struct loop *loop, struct loop_io *io) { abort(); }

static void pump(void)
{
    while (tasks || posts || removed_event) {
        struct loop_task *task = tasks;
        struct loop_post *post = posts;
        struct loop_event *event = removed_event;
        if (post) {
            posts = post->next;
            posts_end = posts ? posts_end : &posts;
            post->fn(post);
        } else if (task) {
            tasks = task->next;
            tasks_end = tasks ? tasks_end : &tasks;
            task->fn(task);
        } else {
            removed_event = NULL;
            event->removed(event);
        }
    }
}

/* ---- the rest of the machine ---- */

void machine_event(struct machine *machine, enum machine_event event, int status) { stopped_by_error = true; }

/* In place of base's: a broken ring is the rule here, not worth a line each. */
void warn_report(const char *fmt, ...) {}

int error_set_errno(struct error **errp, int err, const char *fmt, ...) { return err; }

void quiesce_hold(struct quiesce *quiesce) {}

void quiesce_release(struct quiesce *quiesce) {}

/* ---- the front end ---- */

static uint16_t head_of(struct blk_request *request)
{
    return container_of(request, struct virtio_blk_slot, request)->head;
}

/* What the device asks the disk for is what the model says. */
static void check_submission(struct blk_request *request, const struct model_submission *expected)
{
    static const enum blk_op ops[] = { [MODEL_READ] = BLK_OP_READ,
                                       [MODEL_WRITE] = BLK_OP_WRITE,
                                       [MODEL_ZEROES] = BLK_OP_WRITE_ZEROES,
                                       [MODEL_DISCARD] = BLK_OP_DISCARD,
                                       [MODEL_FLUSH] = BLK_OP_FLUSH };
    assert(head_of(request) == expected->head && request->op == ops[expected->op]);
    assert(request->offset == expected->offset && request->length == expected->length);
    assert(request->flags == (expected->unmap ? BLK_REQ_MAY_UNMAP : 0u));
    assert((unsigned)request->iov_count == expected->count);
    for (unsigned i = 0; i < expected->count; i++) {
        assert(request->iov[i].iov_base == memory->blocks[0].host + expected->data[i].address);
        assert(request->iov[i].iov_len == expected->data[i].length);
    }
}

/* After each step of both. */
static void check_step(void)
{
    assert(submitted_count == model.submitted_count);
    for (unsigned i = 0; i < submitted_count; i++)
        check_submission(submitted[i], &model.submitted[i]);
    submitted_count = model.submitted_count = 0;
    assert(memcmp(model.memory, memory->blocks[0].host, MEMORY_SIZE) == 0);
}

/* The buffers are still the same, whatever the guest did to its descriptors meanwhile. */
static void move_data(struct blk_request *request)
{
    uint8_t *at = disk + request->offset;
    check_submission(request, &model.requests[head_of(request)].now);
    for (int i = 0; i < request->iov_count; at += request->iov[i++].iov_len) {
        if (request->op == BLK_OP_READ)
            memcpy(request->iov[i].iov_base, at, request->iov[i].iov_len);
        else
            memcpy(at, request->iov[i].iov_base, request->iov[i].iov_len);
    }
    if (request->op == BLK_OP_WRITE_ZEROES)
        memset(at, 0, request->length);
}

void blk_submit(struct blk_front *front, struct blk_request *request)
{
    assert(pending_count < MAX_PENDING);
    for (unsigned i = 0; i < pending_count; i++)
        assert(pending[i] != request);
    assert(range_inside(request->offset, request->length, DISK_SIZE) && submitted_count < ARRAY_SIZE(submitted));
    submitted[submitted_count++] = request;
    pending[pending_count++] = request;
}

uint64_t blk_front_size(struct blk_front *front) { return DISK_SIZE; }

enum blk_on_error blk_front_on_error(const struct blk_front *front, bool is_read, int error) { return front->on_error; }

static void complete(unsigned which, int result)
{
    if (!pending_count)
        return;
    which %= pending_count;
    struct blk_request *request = pending[which];
    pending[which] = pending[--pending_count];
    uint16_t head = head_of(request);
    if (result == 0)
        move_data(request);
    model_complete(&model, head, result);
    request->done(request, result);
    pump();
    model_publish(&model);
    check_step();
}

/* ---- the device ---- */

static int queue_irq_fd(struct virtio_device *vdev, const struct virtio_queue *queue) { return -1; }

static void no_interrupt(struct virtio_device *vdev) {}

static void no_reset(struct virtio_device *vdev) {}

static const struct virtio_transport_ops transport = { queue_irq_fd, no_interrupt, no_interrupt };
static const struct virtio_device_ops ops = {
    .queue_prepare = virtio_blk_queue_prepare,
    .queue_release = virtio_blk_queue_release,
    .queue_process = virtio_blk_queue_process,
    .queue_stopping = virtio_blk_queue_stopping,
    .reset = no_reset,
};

static void start(struct virtio_queue *queue, const uint8_t *head)
{
    atomic_store(&queue->vdev->status, VIRTIO_CONFIG_S_DRIVER_OK);
    atomic_store(&queue->vdev->broken, false);
    queue->size = (uint16_t)(1u << head[0] % 7);
    queue->desc = head[1] * 16u;
    queue->avail = head[2] * 64u;
    queue->used = head[3] * 64u;
    queue->enabled = true;
    virtio_queue_start(queue);
    pump();
    model_start(&model, queue->size, head[1] * 16u, head[2] * 64u, head[3] * 64u);
    model_publish(&model);
    check_step();
    assert(queue->running == model.running);
}

static void stop(struct virtio_queue *queue)
{
    virtio_queue_stop(queue);
    pump();
    model_stopping(&model);
    check_step();
    while (pending_count)
        complete(0, -EIO);
    assert(!queue->running && !queue->in_flight && !queue->vdev->queues_stopping);
}

static void act(struct virtio_blk *blk, struct virtio_queue *queue, uint8_t action, uint8_t operand,
                const uint8_t *head)
{
    static const int results[] = { 0, 0, 0, -EIO, -ENOSPC, -ENOTSUP };
    uint8_t *bytes = memory->blocks[0].host;
    switch (action % 6) {
    case 0: /* the doorbell */
        if (queue->running)
            queue->doorbell.signalled(&queue->doorbell, 1);
        model_doorbell(&model);
        break;
    case 1: complete(operand, results[operand % ARRAY_SIZE(results)]); break;
    case 2: /* the driver changes memory while we look */
        bytes[(operand * 64u + action) % MEMORY_SIZE] = (uint8_t)(operand ^ action);
        model.memory[(operand * 64u + action) % MEMORY_SIZE] = (uint8_t)(operand ^ action);
        break;
    case 3: /* one more chain is available */
        if (queue->running)
            __atomic_fetch_add(&queue->ring.avail->idx, operand % 4, __ATOMIC_RELAXED);
        memcpy(model.memory, bytes, MEMORY_SIZE);
        break;
    case 4:
        virtio_blk_retry(blk);
        model_retry(&model);
        break;
    default: stop(queue); start(queue, head);
    }
    pump();
    model_publish(&model);
    check_step();
    assert(atomic_load(&blk->vdev.broken) == model.broken);
}

static void init_blk(struct virtio_blk *blk, struct machine *machine, struct blk_front *front, uint8_t flags)
{
    blk->vdev.machine = machine;
    blk->vdev.name = "fuzz";
    blk->vdev.ops = &ops;
    blk->vdev.transport = &transport;
    blk->vdev.queue_count = 1;
    blk->vdev.features = 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES |
                         (uint64_t)(flags & 1) << VIRTIO_RING_F_EVENT_IDX |
                         (uint64_t)(flags >> 1 & 1) << VIRTIO_RING_F_INDIRECT_DESC;
    blk->read_only = flags & 4;
    blk->max_discard_sectors = MODEL_MAX_DISCARD;
    blk->max_zeroes_sectors = MODEL_MAX_ZEROES;
    blk->serial = MODEL_SERIAL;
    blk->front = front;
    model.event_idx = flags & 1;
    model.indirect = flags & 2;
    model.read_only = flags & 4;
    model.policy = flags & 16 ? MODEL_STOP : flags & 8 ? MODEL_IGNORE : MODEL_REPORT;
    front->on_error = flags >> 4 & 1 ? BLK_ON_ERROR_STOP : flags >> 3 & 1 ? BLK_ON_ERROR_IGNORE : BLK_ON_ERROR_REPORT;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 6)
        return 0;
    struct machine machine = { 0 };
    struct blk_front front;
    struct virtio_blk blk = { 0 };
    struct virtio_queue queue = { .vdev = &blk.vdev, .size_max = 256, .doorbell_fd = -1 };
    struct virtio_blk_queue blk_queue = { .queue = &queue };
    memory = &machine.memory;
    *memory = (struct guest_memory){ .block_count = 1, .size = MEMORY_SIZE };
    memory->blocks[0] = (struct memory_block){ 0, MEMORY_SIZE, calloc(1, MEMORY_SIZE) };
    pthread_mutex_init(&machine.device_lock, NULL);
    init_blk(&blk, &machine, &front, data[4]);
    pthread_cond_init(&blk.vdev.changed, NULL);
    blk.vdev.queues = &queue;
    blk.blk_queues = &blk_queue;

    /* Six bytes of set-up, a number of two-byte actions, the rest is memory. */
    size_t actions = MIN((size_t)data[5], (size - 6) / 2);
    const uint8_t *contents = data + 6 + actions * 2;
    memcpy(memory->blocks[0].host, contents, MIN((size_t)(data + size - contents), (size_t)MEMORY_SIZE));
    memcpy(model.memory, memory->blocks[0].host, MEMORY_SIZE);
    model.disk = disk;
    model.submitted_count = submitted_count = 0;
    /* Each run begins with the same disk, so that an input alone says what happens; the pattern has no short period. */
    for (uint32_t i = 0; i < DISK_SIZE / 4; i++)
        ((uint32_t *)disk)[i] = i * 2654435761u;
    start(&queue, data);
    for (size_t i = 0; i < actions; i++)
        act(&blk, &queue, data[6 + i * 2], data[7 + i * 2], data);
    stop(&queue);
    pthread_cond_destroy(&blk.vdev.changed);
    pthread_mutex_destroy(&machine.device_lock);
    free(memory->blocks[0].host);
    return 0;
}
