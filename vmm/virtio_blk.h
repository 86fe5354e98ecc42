/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* virtio-blk (virtio 1.2, section 5.2), shared by its device part and its request part (and the fuzzer of the
 * latter). */
#pragma once

#include "virtio.h"
#include "virtio_pci.h"

#include <block/front.h>
#include <linux/virtio_blk.h>

#define VIRTIO_BLK_MAX_SEGMENTS 16u /* of one discard or write zeroes request */
#define VIRTIO_BLK_ID_LENGTH 20u

/* A request in flight; one for each descriptor, found by the chain's head. */
struct virtio_blk_slot {
    struct blk_request request;
    struct virtio_queue *queue;
    struct list stalled; /* waits for the machine to go on (werror=stop) */
    uint32_t type;
    uint32_t in_length; /* bytes that the driver gave us to write, status included */
    uint16_t head;
    bool busy;
    bool filled; /* all that the driver gave us to write but the status has been written */
    uint8_t *status;
    /* Discard, write zeroes: a copy of what the driver asked for, and how far we are. */
    struct virtio_blk_discard_write_zeroes segments[VIRTIO_BLK_MAX_SEGMENTS];
    unsigned segment, segment_count;
};

struct virtio_blk_queue {
    struct virtio_blk_slot *slots; /* one a descriptor, while the queue runs */
    struct iovec *iovs;            /* as many for each slot as the queue has descriptors */
    struct list stalled;           /* slots; the loop's */
    atomic_bool retry_posted;
    struct loop_post retry_post;
    struct virtio_queue *queue;
};

struct virtio_blk {
    struct device device;
    struct virtio_device vdev;
    struct virtio_pci proxy;
    struct blk_front *front;
    struct virtio_blk_queue *blk_queues; /* one a virtqueue */
    char *serial;
    bool read_only, write_cache; /* as at power-on */
    bool wce;                    /* as the driver has it */
    uint32_t logical_block, physical_block, min_io, opt_io;
    uint32_t discard_granularity, max_discard_sectors, max_zeroes_sectors;
};

/* ---- virtio_blk_request.c: these are the device's ops for its queues ---- */

int virtio_blk_queue_prepare(struct virtio_queue *queue);
void virtio_blk_queue_release(struct virtio_queue *queue);
bool virtio_blk_queue_process(struct virtio_queue *queue);
void virtio_blk_queue_stopping(struct virtio_queue *queue);
/* The machine goes on after a stop: tries again what failed. Main loop. */
void virtio_blk_retry(struct virtio_blk *blk);
