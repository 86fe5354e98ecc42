/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The split virtqueue (virtio 1.2, section 2.7), device side: only the layout of the ring. One user at a time: the loop
 * that serves the queue. Everything a driver wrote is copied out of guest memory once, then checked; what is wrong is
 * reported by -EINVAL and a sentence in vq->error, after which the queue is not to be touched again.
 */
#pragma once

#include <linux/virtio_ring.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct guest_memory;

#define VIRTQUEUE_MAX_SIZE 1024u

struct virtqueue {
    const struct guest_memory *memory;
    uint16_t size;
    bool event_idx, indirect;
    /* In guest memory, checked once, valid while the guest's memory is. */
    const struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint16_t next_avail; /* the entry that we take next */
    uint16_t next_used;  /* the entry that we fill next */
    uint16_t signalled;  /* next_used when the driver was last interrupted */
    bool signalled_valid;
    const char *error; /* NULL: nothing wrong so far */
};

/* Buffers of one request. */
struct virtq_chain {
    struct iovec *iov; /* the caller's: first those that the device reads, then those that it writes */
    unsigned out_count, in_count;
    uint64_t out_length, in_length;
};

/* Addresses as the driver gave them. The ring starts at index 0 on both sides. */
int virtqueue_init(struct virtqueue *vq, const struct guest_memory *memory, uint16_t size, uint64_t desc,
                   uint64_t avail, uint64_t used, bool event_idx, bool indirect);

/* Takes the next available chain's head: 1 and *head < size, 0 if there is none, -EINVAL. */
int virtqueue_next(struct virtqueue *vq, uint16_t *head);
/* Reads the chain that starts at head. chain->iov has room for vq->size entries. */
int virtqueue_read_chain(struct virtqueue *vq, uint16_t head, struct virtq_chain *chain);

/* Gives a chain back, with the number of bytes written into it; the driver sees it after virtqueue_publish(). */
void virtqueue_put(struct virtqueue *vq, uint16_t head, uint32_t written);
/* Shows the driver what was put. Returns whether it wants an interrupt for that. */
bool virtqueue_publish(struct virtqueue *vq);

/* While we look anyway, the driver need not ring. */
void virtqueue_disable_doorbell(struct virtqueue *vq);
/* From now on it rings. Returns whether something was made available meanwhile, for which it has not rung. */
bool virtqueue_enable_doorbell(struct virtqueue *vq);
