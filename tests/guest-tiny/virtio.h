/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A virtio driver that does exactly what it is told, also what is wrong. */
#pragma once

#include "tiny.h"

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8
#define STATUS_NEEDS_RESET 0x40

#define COMMON_DEVICE_FEATURE_SELECT 0
#define COMMON_DEVICE_FEATURE 4
#define COMMON_DRIVER_FEATURE_SELECT 8
#define COMMON_DRIVER_FEATURE 12
#define COMMON_CONFIG_VECTOR 16
#define COMMON_NUM_QUEUES 18
#define COMMON_STATUS 20
#define COMMON_QUEUE_SELECT 22
#define COMMON_QUEUE_SIZE 24
#define COMMON_QUEUE_VECTOR 26
#define COMMON_QUEUE_ENABLE 28
#define COMMON_QUEUE_NOTIFY_OFF 30
#define COMMON_QUEUE_DESC 32
#define COMMON_QUEUE_AVAIL 40
#define COMMON_QUEUE_USED 48

#define F_BLK_RO 5
#define F_BLK_SIZE 6
#define F_BLK_FLUSH 9
#define F_BLK_CONFIG_WCE 11
#define F_BLK_MQ 12
#define F_BLK_DISCARD 13
#define F_BLK_WRITE_ZEROES 14
#define F_INDIRECT 28
#define F_EVENT_IDX 29
#define F_VERSION_1 32
#define FEATURE(bit) (1ull << (bit))

#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

#define QUEUE_MAX 256
#define MAX_QUEUES 4

struct desc {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

struct queue {
    unsigned index;
    uint16_t size;
    uint64_t doorbell;
    struct desc *desc;
    volatile uint16_t *avail; /* flags, idx, ring[size], used_event */
    volatile uint16_t *used;  /* flags, idx, then pairs of 32 bits, then avail_event */
    uint16_t avail_index, used_index;
};

struct device {
    unsigned devfn;
    uint64_t common, isr, config, notify; /* addresses */
    uint32_t notify_multiplier;
    uint64_t features;
    struct queue queues[MAX_QUEUES];
};

/* The n-th virtio-blk on the bus; fails the test where there is none. Reset, acknowledged, driver found. */
void device_open(struct device *device, unsigned n);
void device_reset(struct device *device);
uint64_t device_features(struct device *device);
/* Negotiates `wanted` (and VERSION_1), sets up `queues` queues of `size` entries, and DRIVER_OK. No vectors. */
void device_start(struct device *device, uint64_t wanted, unsigned queues, uint16_t size);
/* The steps of that, for tests that do them differently. */
bool device_negotiate(struct device *device, uint64_t features);
void queue_setup(struct device *device, unsigned index, uint16_t size, uint16_t vector);
void queue_place(struct device *device, unsigned index, uint16_t size, uint16_t vector); /* all but enabling it */
uint8_t device_status(struct device *device);

/* ---- requests ---- */

#define BLK_IN 0
#define BLK_OUT 1
#define BLK_FLUSH 4
#define BLK_GET_ID 8
#define BLK_DISCARD 11
#define BLK_WRITE_ZEROES 13
#define BLK_OK 0
#define BLK_IOERR 1
#define BLK_UNSUPP 2

struct request_header {
    uint32_t type, reserved;
    uint64_t sector;
};

struct range {
    uint64_t sector;
    uint32_t count, flags;
};

/* Puts the chain that starts at `head` into the available ring (without ringing). */
void queue_offer(struct queue *queue, uint16_t head);
void queue_ring(struct queue *queue);
/* Is something in the used ring that we have not taken? */
bool queue_has_used(struct queue *queue);
/* Waits for the next used entry; returns the head. */
uint16_t queue_take(struct queue *queue, uint32_t *length);

/* Writes a descriptor. */
void describe(struct queue *queue, uint16_t index, const void *address, uint32_t length, uint16_t flags, uint16_t next);
/* A whole request with three descriptors from `head` on (two without data): offered, rung, waited for. Returns the
 * status byte. */
uint8_t blk_request(struct queue *queue, uint16_t head, uint32_t type, uint64_t sector, void *data, uint32_t length);
uint64_t blk_capacity(struct device *device);

/* Bytes that depend on place and seed; and the check for them. */
void fill_pattern(void *data, size_t length, uint32_t seed);
bool is_pattern(const void *data, size_t length, uint32_t seed);

/* ---- MSI-X ---- */

/* Table entry `entry` sends vector `vector` to this processor, unmasked. */
void msix_set(struct device *device, unsigned entry, uint8_t vector);
volatile uint32_t *msix_data(struct device *device, unsigned entry); /* the word that an entry sends */
void msix_mask(struct device *device, unsigned entry, bool masked);
bool msix_pending(struct device *device, unsigned entry);
void msix_enable(struct device *device, bool on);
