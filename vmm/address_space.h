/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An address space (ports, or memory-mapped I/O): which device answers at which address. vCPU threads dispatch to it
 * with the machine's device lock held; regions are added and removed under the same lock.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* `offset` is from the region's start, length 1, 2, 4 or 8; the access is all inside the region. */
struct io_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned length);
    void (*write)(void *opaque, uint64_t offset, unsigned length, uint64_t value);
};

/* Owned by the device, embedded in it; stays in place while it is in a space. */
struct io_region {
    const char *name;
    uint64_t base, size;
    const struct io_ops *ops;
    void *opaque;
};

struct address_space {
    struct io_region **regions; /* by base, not overlapping */
    size_t count, room;
};

void address_space_finish(struct address_space *space);
/* -EBUSY if the range overlaps another region, -EINVAL if it is empty or wraps. */
int address_space_add(struct address_space *space, struct io_region *region);
void address_space_remove(struct address_space *space, struct io_region *region);
/* Of 1 to 8 bytes: one access of a device if their number is a power of two, else several, the lowest first. Where
 * nothing answers: reads all ones, writes nothing. */
uint64_t address_space_read(const struct address_space *space, uint64_t address, unsigned length);
void address_space_write(const struct address_space *space, uint64_t address, unsigned length, uint64_t value);
