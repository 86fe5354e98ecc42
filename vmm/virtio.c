/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The state of a virtio device: status byte, feature negotiation, reset (virtio 1.2, 2.1, 2.2, 3.1). A reset by the
 * driver blocks its vCPU, with the device lock released, until every queue is back from its loop.
 * Invariant: queues run only between DRIVER_OK and reset; the registers of a running queue do not change.
 */
#include "virtio.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

void virtio_init(struct virtio_device *vdev, struct machine *machine, const char *name,
                 const struct virtio_device_ops *ops, unsigned queue_count, uint16_t queue_size)
{
    vdev->machine = machine;
    vdev->name = name;
    vdev->ops = ops;
    vdev->host_features |= 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX |
                           1ull << VIRTIO_RING_F_INDIRECT_DESC;
    vdev->queues = xcalloc(queue_count, sizeof(vdev->queues[0]));
    vdev->queue_count = queue_count;
    pthread_cond_init(&vdev->changed, NULL);
    for (unsigned i = 0; i < queue_count; i++) {
        struct virtio_queue *queue = &vdev->queues[i];
        queue->vdev = vdev;
        queue->index = i;
        queue->size_max = queue->size = queue_size;
        queue->doorbell_fd = -1;
        atomic_store(&queue->vector, VIRTIO_NO_VECTOR);
    }
}

int virtio_init_queue(struct virtio_queue *queue, struct loop *loop, struct error **errp)
{
    queue->loop = loop;
    queue->doorbell_fd = eventfd(0, EFD_CLOEXEC);
    return queue->doorbell_fd < 0 ? error_set_errno(errp, -errno, "cannot make an eventfd for a queue") : 0;
}

void virtio_finish(struct virtio_device *vdev)
{
    for (unsigned i = 0; i < vdev->queue_count; i++)
        if (vdev->queues[i].doorbell_fd >= 0)
            close(vdev->queues[i].doorbell_fd);
    free(vdev->queues);
    vdev->queues = NULL;
    pthread_cond_destroy(&vdev->changed);
}

void virtio_broken(struct virtio_device *vdev, unsigned queue, const char *why)
{
    if (atomic_exchange(&vdev->broken, true))
        return;
    warn_report("%s: queue %u: %s; the device waits for a reset", vdev->name, queue, why);
    unsigned before = atomic_fetch_or(&vdev->status, VIRTIO_CONFIG_S_NEEDS_RESET);
    if (before & VIRTIO_CONFIG_S_DRIVER_OK)
        vdev->transport->raise_config(vdev);
}

static void stop_queues(struct virtio_device *vdev)
{
    for (unsigned i = 0; i < vdev->queue_count; i++)
        virtio_queue_stop(&vdev->queues[i]);
}

/* All queues are stopped. */
static void clear(struct virtio_device *vdev)
{
    atomic_store(&vdev->status, 0);
    atomic_store(&vdev->broken, false);
    vdev->features = 0;
    for (unsigned i = 0; i < vdev->queue_count; i++) {
        struct virtio_queue *queue = &vdev->queues[i];
        eventfd_t rest;
        queue->enabled = false;
        queue->size = queue->size_max;
        queue->desc = queue->avail = queue->used = 0;
        atomic_store(&queue->vector, VIRTIO_NO_VECTOR);
        /* A ring of the doorbell that nobody heard. Reading an empty eventfd would block: fill it first. */
        if (eventfd_write(queue->doorbell_fd, 1) == 0)
            eventfd_read(queue->doorbell_fd, &rest);
    }
    vdev->ops->reset(vdev);
}

void virtio_power_on(struct virtio_device *vdev) { clear(vdev); }

void virtio_quiesce(struct virtio_device *vdev, struct quiesce *quiesce)
{
    stop_queues(vdev);
    if (!vdev->queues_stopping)
        return;
    quiesce_hold(quiesce);
    vdev->quiesce = quiesce;
}

/* On a vCPU's thread. */
static void reset_by_driver(struct virtio_device *vdev)
{
    vdev->resetting = true;
    stop_queues(vdev);
    while (vdev->queues_stopping)
        pthread_cond_wait(&vdev->changed, &vdev->machine->device_lock);
    clear(vdev);
    vdev->resetting = false;
}

static bool features_acceptable(const struct virtio_device *vdev)
{
    return !(vdev->features & ~vdev->host_features) && vdev->features >> VIRTIO_F_VERSION_1 & 1;
}

void virtio_set_status(struct virtio_device *vdev, uint8_t status)
{
    unsigned before = atomic_load(&vdev->status);
    if (vdev->resetting)
        return; /* another vCPU waits for the reset to end */
    if (status == 0) {
        reset_by_driver(vdev);
        return;
    }
    unsigned added = status & ~before;
    if (added & VIRTIO_CONFIG_S_FEATURES_OK) {
        if (features_acceptable(vdev))
            vdev->ops->features_set(vdev, vdev->features);
        else
            added &= ~(unsigned)VIRTIO_CONFIG_S_FEATURES_OK; /* the driver reads it back and gives up */
    }
    if (added & VIRTIO_CONFIG_S_DRIVER_OK && !((before | added) & VIRTIO_CONFIG_S_FEATURES_OK))
        added &= ~(unsigned)VIRTIO_CONFIG_S_DRIVER_OK;
    atomic_fetch_or(&vdev->status, added & ~(unsigned)VIRTIO_CONFIG_S_NEEDS_RESET);
    if (added & VIRTIO_CONFIG_S_DRIVER_OK)
        for (unsigned i = 0; i < vdev->queue_count; i++)
            virtio_queue_start(&vdev->queues[i]);
}

void virtio_enable_queue(struct virtio_queue *queue)
{
    queue->enabled = true;
    if (atomic_load(&queue->vdev->status) & VIRTIO_CONFIG_S_DRIVER_OK)
        virtio_queue_start(queue);
}
