/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A virtio device (virtio 1.2, sections 2 and 3): status, features, queues. A device implements struct
 * virtio_device_ops; a transport (virtio_pci.c) gives the driver access to it. Registers are under the machine's device
 * lock; a queue that runs belongs to its loop (virtio_queue.c).
 */
#pragma once

#include "machine.h"
#include "virtqueue.h"

#include <linux/virtio_config.h>

#define VIRTIO_NO_VECTOR 0xffffu

struct virtio_device;

/* One queue: what the driver set, and what serves it while it runs. */
struct virtio_queue {
    struct virtio_device *vdev;
    unsigned index;

    /* Registers; device lock. */
    uint16_t size_max, size;
    uint64_t desc, avail, used;
    bool enabled; /* by the driver */
    bool running; /* handed to the loop, and not yet given back */
    _Atomic uint16_t vector;

    /* The loop's while it runs. */
    struct loop *loop;
    int doorbell_fd;
    struct loop_event doorbell;
    struct virtqueue ring;
    bool stopping, doorbell_added, task_queued, irq_in_flight, irq_again, unpublished;
    unsigned in_flight; /* chains taken and not given back */
    uint64_t irq_count; /* what is written to the interrupt's eventfd: 1 */
    struct loop_task task;
    struct loop_io irq;
    struct loop_post start_post, stop_post;
};

struct virtio_device_ops {
    /* The device's own configuration, `length` bytes from `offset`, inside config_size. */
    void (*config_read)(struct virtio_device *vdev, uint64_t offset, unsigned length, void *data);
    void (*config_write)(struct virtio_device *vdev, uint64_t offset, unsigned length, const void *data);
    /* The driver has set FEATURES_OK. */
    void (*features_set)(struct virtio_device *vdev, uint64_t features);
    /* Before a queue starts: makes room for its requests. The ring is set up. -ENOMEM fails the device. */
    int (*queue_prepare)(struct virtio_queue *queue);
    /* After it stopped. Device lock. */
    void (*queue_release)(struct virtio_queue *queue);
    /* On the loop: takes chains until there are none (virtio_queue_take). Returns false if it stopped earlier and is
     * to be called again. */
    bool (*queue_process)(struct virtio_queue *queue);
    /* On the loop: the queue is to stop; gives back or forgets what waits for nothing. NULL: nothing waits. */
    void (*queue_stopping)(struct virtio_queue *queue);
    /* Power-on state, all queues stopped. Device lock. */
    void (*reset)(struct virtio_device *vdev);
};

struct virtio_transport_ops {
    /* Any thread. The eventfd that interrupts for this queue, or -1: then call raise. */
    int (*queue_irq_fd)(struct virtio_device *vdev, const struct virtio_queue *queue);
    void (*raise_queue)(struct virtio_device *vdev);
    /* Any thread: configuration change interrupt. */
    void (*raise_config)(struct virtio_device *vdev);
};

struct virtio_device {
    const struct virtio_device_ops *ops;
    const struct virtio_transport_ops *transport;
    void *transport_state; /* the transport's own */
    struct machine *machine;
    const char *name; /* for messages */
    uint64_t host_features, features;
    uint32_t config_size;
    atomic_uint status; /* VIRTIO_CONFIG_S_* */
    atomic_bool broken; /* the driver must reset; the queues take nothing more */
    struct virtio_queue *queues;
    unsigned queue_count;
    /* Stopping; device lock. */
    unsigned queues_stopping;
    pthread_cond_t changed;  /* queues_stopping went down, or another wait of a vCPU ended */
    struct quiesce *quiesce; /* held until queues_stopping is 0 */
    bool resetting;
};

/* ---- life; main loop ---- */

void virtio_init(struct virtio_device *vdev, struct machine *machine, const char *name,
                 const struct virtio_device_ops *ops, unsigned queue_count, uint16_t queue_size);
int virtio_init_queue(struct virtio_queue *queue, struct loop *loop,
                      struct error **errp); /* the loop that will serve it */
void virtio_finish(struct virtio_device *vdev);

/* ---- for transports; device lock held ---- */

void virtio_set_status(struct virtio_device *vdev, uint8_t status);
void virtio_enable_queue(struct virtio_queue *queue);
/* For device_ops: as their names say. */
void virtio_quiesce(struct virtio_device *vdev, struct quiesce *quiesce);
void virtio_power_on(struct virtio_device *vdev);

/* ---- any thread ---- */

/* The driver did something that cannot be gone on with: NEEDS_RESET, and the configuration interrupt. */
void virtio_broken(struct virtio_device *vdev, unsigned queue, const char *why);

/* ---- virtio_queue.c ---- */

/* Device lock. */
void virtio_queue_start(struct virtio_queue *queue);
void virtio_queue_stop(struct virtio_queue *queue);
/* On the queue's loop: 1, 0 (none) or -EINVAL (broken; reported). The chain's iov is the caller's, with room for
 * ring.size; *head identifies it until virtio_queue_complete(). */
int virtio_queue_take(struct virtio_queue *queue, uint16_t *head);
int virtio_queue_read_chain(struct virtio_queue *queue, uint16_t head, struct virtq_chain *chain);
void virtio_queue_complete(struct virtio_queue *queue, uint16_t head, uint32_t written);
/* The chain is dropped without the driver hearing of it (the queue is stopping). */
void virtio_queue_forget(struct virtio_queue *queue);
/* Writes of the driver that do not come by ioeventfd. Any thread. */
void virtio_queue_ring(struct virtio_queue *queue);
