/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A virtqueue on its loop: doorbell in, requests to the device, completions back, one interrupt a batch.
 *
 * The doorbell is an ioeventfd that the loop reads through its ring. Completed chains are put into the used ring at
 * once, but published in a task that runs when the iteration's completions are through: one index update and at most
 * one interrupt for all of them, and the interrupt is an eventfd write queued on the same ring, so it costs no system
 * call of its own.
 * Invariant: once `stopping`, nothing is taken from the ring; the queue is given back only when nothing is in flight,
 * the used ring is published, and neither doorbell, task nor interrupt write is outstanding.
 */
#include "virtio.h"

#include <base/compiler.h>
#include <errno.h>
#include <liburing.h>
#include <unistd.h>

static void finish_stop_if_idle(struct virtio_queue *queue);

/* ---- interrupts ---- */

static void signal_driver(struct virtio_queue *queue);

static void irq_written(struct loop_io *io, int32_t result)
{
    struct virtio_queue *queue = container_of(io, struct virtio_queue, irq);
    queue->irq_in_flight = false;
    if (queue->irq_again)
        signal_driver(queue);
    finish_stop_if_idle(queue);
}

static void signal_driver(struct virtio_queue *queue)
{
    const struct virtio_transport_ops *transport = queue->vdev->transport;
    queue->irq_again = queue->irq_in_flight;
    if (queue->irq_in_flight)
        return;
    int fd = transport->queue_irq_fd(queue->vdev, queue);
    if (fd < 0) {
        transport->raise_queue(queue->vdev);
    } else if (!loop_ring(queue->loop)) {
        if (write(fd, &queue->irq_count, sizeof(queue->irq_count)) < 0)
            return; /* the counter is full: an interrupt is pending anyway */
    } else {
        queue->irq_in_flight = true;
        io_uring_prep_write(loop_sqe(queue->loop, &queue->irq), fd, &queue->irq_count, sizeof(queue->irq_count), 0);
    }
}

static void publish(struct virtio_queue *queue)
{
    if (!queue->unpublished)
        return;
    queue->unpublished = false;
    if (virtqueue_publish(&queue->ring))
        signal_driver(queue);
}

/* ---- taking ---- */

static bool may_take(const struct virtio_queue *queue)
{
    return !queue->stopping && !atomic_load_explicit(&queue->vdev->broken, memory_order_relaxed);
}

static void queue_task(struct virtio_queue *queue)
{
    if (queue->task_queued)
        return;
    queue->task_queued = true;
    loop_defer(queue->loop, &queue->task);
}

static void process(struct virtio_queue *queue)
{
    do {
        if (!may_take(queue))
            return;
        virtqueue_disable_doorbell(&queue->ring);
        if (!queue->vdev->ops->queue_process(queue)) {
            /* The rest in a later iteration, so that a driver that never stops does not starve others on this loop. */
            virtio_queue_ring(queue);
            return;
        }
    } while (may_take(queue) && virtqueue_enable_doorbell(&queue->ring));
}

static void doorbell_rung(struct loop_event *event, uint64_t count)
{
    process(container_of(event, struct virtio_queue, doorbell));
}

void virtio_queue_ring(struct virtio_queue *queue)
{
    uint64_t one = 1;
    if (write(queue->doorbell_fd, &one, sizeof(one)) < 0)
        return; /* cannot be: the counter never gets near its end */
}

int virtio_queue_take(struct virtio_queue *queue, uint16_t *head)
{
    int result = may_take(queue) ? virtqueue_next(&queue->ring, head) : 0;
    if (result < 0)
        virtio_broken(queue->vdev, queue->index, queue->ring.error);
    if (result == 1)
        queue->in_flight++;
    return result;
}

int virtio_queue_read_chain(struct virtio_queue *queue, uint16_t head, struct virtq_chain *chain)
{
    int err = virtqueue_read_chain(&queue->ring, head, chain);
    if (err)
        virtio_broken(queue->vdev, queue->index, queue->ring.error);
    return err;
}

void virtio_queue_complete(struct virtio_queue *queue, uint16_t head, uint32_t written)
{
    virtqueue_put(&queue->ring, head, written);
    queue->unpublished = true;
    queue->in_flight--;
    queue_task(queue);
}

void virtio_queue_forget(struct virtio_queue *queue)
{
    queue->in_flight--;
    queue_task(queue);
}

static void run_task(struct loop_task *task)
{
    struct virtio_queue *queue = container_of(task, struct virtio_queue, task);
    queue->task_queued = false;
    publish(queue);
    finish_stop_if_idle(queue);
}

/* ---- start and stop ---- */

static void start(struct loop_post *post)
{
    struct virtio_queue *queue = container_of(post, struct virtio_queue, start_post);
    queue->doorbell_added = true;
    loop_event_add(queue->loop, &queue->doorbell);
    process(queue);
}

static void doorbell_removed(struct loop_event *event)
{
    struct virtio_queue *queue = container_of(event, struct virtio_queue, doorbell);
    queue->doorbell_added = false;
    finish_stop_if_idle(queue);
}

static void stop(struct loop_post *post)
{
    struct virtio_queue *queue = container_of(post, struct virtio_queue, stop_post);
    queue->stopping = true;
    if (queue->vdev->ops->queue_stopping)
        queue->vdev->ops->queue_stopping(queue);
    loop_event_remove(&queue->doorbell, doorbell_removed);
}

/* Gives the queue back to whoever stops the device: the last of all callbacks on this loop. */
static void finish_stop_if_idle(struct virtio_queue *queue)
{
    if (!queue->stopping || queue->doorbell_added || queue->task_queued || queue->irq_in_flight || queue->in_flight)
        return;
    struct virtio_device *vdev = queue->vdev;
    struct machine *machine = vdev->machine;
    struct quiesce *quiesce = NULL;
    queue->stopping = false;
    device_lock(machine);
    queue->running = false;
    vdev->ops->queue_release(queue);
    if (--vdev->queues_stopping == 0) {
        quiesce = vdev->quiesce;
        vdev->quiesce = NULL;
        pthread_cond_broadcast(&vdev->changed);
    }
    device_unlock(machine);
    if (quiesce)
        quiesce_release(quiesce);
}

void virtio_queue_start(struct virtio_queue *queue)
{
    struct virtio_device *vdev = queue->vdev;
    bool event_idx = vdev->features >> VIRTIO_RING_F_EVENT_IDX & 1,
         indirect = vdev->features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
    if (queue->running || !queue->enabled)
        return;
    if (virtqueue_init(&queue->ring, &vdev->machine->memory, queue->size, queue->desc, queue->avail, queue->used,
                       event_idx, indirect) < 0) {
        virtio_broken(vdev, queue->index, queue->ring.error);
        return;
    }
    if (vdev->ops->queue_prepare(queue) < 0) {
        virtio_broken(vdev, queue->index, "not enough memory for its requests");
        return;
    }
    queue->running = true;
    queue->doorbell.fd = queue->doorbell_fd;
    queue->doorbell.signalled = doorbell_rung;
    queue->task.fn = run_task;
    queue->irq.done = irq_written;
    queue->irq_count = 1;
    queue->start_post.fn = start;
    queue->stop_post.fn = stop;
    loop_post(queue->loop, &queue->start_post);
}

void virtio_queue_stop(struct virtio_queue *queue)
{
    if (!queue->running)
        return;
    queue->vdev->queues_stopping++;
    loop_post(queue->loop, &queue->stop_post);
}
