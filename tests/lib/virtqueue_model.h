/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a split virtqueue with a virtio-blk behind it has to do (virtio 1.2, 2.7 and 5.2.6), written a second time,
 * simply, for the fuzzer to compare with: byte by byte in a copy of the guest's memory, one step at a time. It shares
 * no code with the device.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define MODEL_MEMORY 16384u
#define MODEL_DISK (1u << 20)
#define MODEL_RING 64u
#define MODEL_MAX_DISCARD 300u /* sectors */
#define MODEL_MAX_ZEROES 600u
#define MODEL_MAX_RANGES 16u
#define MODEL_SERIAL "serial number"

enum model_op { MODEL_READ, MODEL_WRITE, MODEL_ZEROES, MODEL_DISCARD, MODEL_FLUSH };
enum model_policy { MODEL_REPORT, MODEL_IGNORE, MODEL_STOP };

struct model_range {
    uint32_t address, length;
};

/* What reaches the disk. */
struct model_submission {
    uint16_t head;
    enum model_op op;
    bool unmap;
    uint64_t offset, length;
    struct model_range data[MODEL_RING];
    unsigned count;
};

struct model_request {
    bool busy, filled;
    uint32_t type, in_length, status;
    struct model_submission now; /* what it waits for */
    struct {
        uint64_t sector;
        uint32_t sectors, flags;
    } ranges[MODEL_MAX_RANGES];
    unsigned range, range_count;
};

struct model {
    uint8_t memory[MODEL_MEMORY];
    uint8_t *disk;
    uint32_t size, desc, avail, used;
    bool event_idx, indirect, read_only, running, stopping, broken, unpublished;
    enum model_policy policy;
    uint16_t next_avail, next_used;
    struct model_request requests[MODEL_RING];
    uint16_t stalled[MODEL_RING];
    unsigned stalled_count;
    /* What the device has to have submitted, in this order; the caller takes it and sets the count to 0. */
    struct model_submission submitted[4 * MODEL_RING];
    unsigned submitted_count;
};

void model_start(struct model *model, uint32_t size, uint32_t desc, uint32_t avail, uint32_t used);
void model_doorbell(struct model *model);
/* The disk is done with the submission of this head. */
void model_complete(struct model *model, uint16_t head, int result);
void model_retry(struct model *model);
void model_stopping(struct model *model);
/* The end of a step: what was put is published. */
void model_publish(struct model *model);
