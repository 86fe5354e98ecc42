/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Dispatch of port and memory-mapped accesses: an array of regions sorted by address, looked up by bisection.
 * Invariant: regions do not overlap. An access that is not wholly inside one region is answered by nobody.
 */
#include "address_space.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/log.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

LOG_CATEGORY(io);

void address_space_finish(struct address_space *space)
{
    free(space->regions);
    *space = (struct address_space){ 0 };
}

/* Index of the first region that ends after `address`. */
static size_t find(const struct address_space *space, uint64_t address)
{
    size_t low = 0, high = space->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct io_region *region = space->regions[middle];
        if (region->base + (region->size - 1) < address)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int address_space_add(struct address_space *space, struct io_region *region)
{
    uint64_t last;
    if (!region->size || !checked_add(region->base, region->size - 1, &last))
        return -EINVAL;
    size_t at = find(space, region->base);
    if (at < space->count && space->regions[at]->base <= last)
        return -EBUSY;
    if (space->count == space->room) {
        space->room = space->room ? space->room * 2 : 32;
        space->regions = xrealloc(space->regions, space->room * sizeof(struct io_region *));
    }
    memmove(&space->regions[at + 1], &space->regions[at], (space->count - at) * sizeof(struct io_region *));
    space->regions[at] = region;
    space->count++;
    return 0;
}

void address_space_remove(struct address_space *space, struct io_region *region)
{
    size_t at = find(space, region->base);
    if (at == space->count || space->regions[at] != region)
        return;
    space->count--;
    memmove(&space->regions[at], &space->regions[at + 1], (space->count - at) * sizeof(struct io_region *));
}

static struct io_region *region_at(const struct address_space *space, uint64_t address, unsigned length)
{
    size_t at = find(space, address);
    if (at == space->count)
        return NULL;
    struct io_region *region = space->regions[at];
    return address >= region->base && range_inside(address - region->base, length, region->size) ? region : NULL;
}

/* The part of an access that a device can be asked for: all of it if its length is a power of two, else as much as is
 * one from an aligned address on. */
static unsigned piece(uint64_t address, unsigned length)
{
    unsigned size = 8;

    if ((length & (length - 1)) == 0)
        return length;
    while (size > length || (address & (size - 1)))
        size /= 2;
    return size;
}

static uint64_t read_piece(const struct address_space *space, uint64_t address, unsigned length)
{
    const struct io_region *region = region_at(space, address, length);

    if (region && region->ops->read)
        return region->ops->read(region->opaque, address - region->base, length);
    log_debug("read of %u at 0x%" PRIx64 ": nobody", length, address);
    return UINT64_MAX;
}

uint64_t address_space_read(const struct address_space *space, uint64_t address, unsigned length)
{
    unsigned size = piece(address, length);

    if (size == length)
        return read_piece(space, address, length);
    uint64_t low = read_piece(space, address, size) & ((UINT64_C(1) << 8 * size) - 1);
    return low | address_space_read(space, address + size, length - size) << 8 * size;
}

static void write_piece(const struct address_space *space, uint64_t address, unsigned length, uint64_t value)
{
    const struct io_region *region = region_at(space, address, length);

    if (region && region->ops->write)
        region->ops->write(region->opaque, address - region->base, length, value);
    else
        log_debug("write of %u at 0x%" PRIx64 ": nobody (0x%" PRIx64 ")", length, address, value);
}

void address_space_write(const struct address_space *space, uint64_t address, unsigned length, uint64_t value)
{
    for (unsigned size; length > 0; address += size, length -= size) {
        size = piece(address, length);
        write_piece(space, address, size, size < 8 ? value & ((UINT64_C(1) << 8 * size) - 1) : value);
        value = size < 8 ? value >> 8 * size : 0;
    }
}
