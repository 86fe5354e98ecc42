/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest memory: one or two blocks of anonymous host memory, below and above the PCI hole. Everything outside vCPUs
 * reaches it through memory_at() or the copies below, which check address and length against the blocks: a range is
 * inside one block or it is refused. All may be called from any thread once memory_init() has returned.
 */
#pragma once

#include <base/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MEMORY_HOLE_START 0xb0000000ull /* ECAM, then the PCI window, then the chipset */
#define MEMORY_HOLE_END 0x100000000ull
#define MEMORY_MAX_BLOCKS 2

struct memory_block {
    uint64_t gpa, size;
    uint8_t *host;
};

struct guest_memory {
    struct memory_block blocks[MEMORY_MAX_BLOCKS];
    unsigned block_count;
    uint64_t size; /* bytes in all */
};

/* `size` bytes of zeroed memory, a multiple of 4 KiB; not populated before the guest touches it. */
int memory_init(struct guest_memory *memory, uint64_t size, struct error **errp);
void memory_finish(struct guest_memory *memory);

/* Host address of [gpa, gpa + length), or NULL if that is not all inside one block. An empty range is inside. */
void *memory_at(const struct guest_memory *memory, uint64_t gpa, uint64_t length);
bool memory_copy_to(const struct guest_memory *memory, uint64_t gpa, const void *data, uint64_t length);
bool memory_copy_from(const struct guest_memory *memory, uint64_t gpa, void *data, uint64_t length);
bool memory_fill(const struct guest_memory *memory, uint64_t gpa, uint8_t byte, uint64_t length);
