/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guest memory. The host reserves nothing (MAP_NORESERVE) and fills pages as the guest touches them, so that the start
 * costs nothing. Invariant: no pointer into guest memory leaves this file but for a range that lies in one block.
 */
#include "memory.h"

#include <base/checked.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* How much lies below the hole if not everything does: 2 GiB leaves room for a guest to move its PCI window. */
#define LOW_WHEN_SPLIT 0x80000000ull

static int add_block(struct guest_memory *memory, uint64_t gpa, uint64_t size, struct error **errp)
{
    void *host = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (host == MAP_FAILED)
        return error_set_errno(errp, -errno, "cannot set up guest memory 'pc.ram'");
    madvise(host, size, MADV_HUGEPAGE);
    madvise(host, size, MADV_DONTFORK);
    memory->blocks[memory->block_count++] = (struct memory_block){ .gpa = gpa, .size = size, .host = host };
    return 0;
}

int memory_init(struct guest_memory *memory, uint64_t size, struct error **errp)
{
    *memory = (struct guest_memory){ .size = size };
    uint64_t low = size <= MEMORY_HOLE_START ? size : LOW_WHEN_SPLIT;
    int err = add_block(memory, 0, low, errp);
    if (!err && size > low)
        err = add_block(memory, MEMORY_HOLE_END, size - low, errp);
    if (err)
        memory_finish(memory);
    return err;
}

void memory_finish(struct guest_memory *memory)
{
    for (unsigned i = 0; i < memory->block_count; i++)
        munmap(memory->blocks[i].host, memory->blocks[i].size);
    memory->block_count = 0;
}

void *memory_at(const struct guest_memory *memory, uint64_t gpa, uint64_t length)
{
    for (unsigned i = 0; i < memory->block_count; i++) {
        const struct memory_block *block = &memory->blocks[i];
        if (gpa >= block->gpa && range_inside(gpa - block->gpa, length, block->size))
            return block->host + (gpa - block->gpa);
    }
    return NULL;
}

bool memory_copy_to(const struct guest_memory *memory, uint64_t gpa, const void *data, uint64_t length)
{
    void *host = memory_at(memory, gpa, length);
    if (host)
        memcpy(host, data, length);
    return host;
}

bool memory_copy_from(const struct guest_memory *memory, uint64_t gpa, void *data, uint64_t length)
{
    const void *host = memory_at(memory, gpa, length);
    if (host)
        memcpy(data, host, length);
    return host;
}

bool memory_fill(const struct guest_memory *memory, uint64_t gpa, uint8_t byte, uint64_t length)
{
    void *host = memory_at(memory, gpa, length);
    if (host)
        memset(host, byte, length);
    return host;
}
