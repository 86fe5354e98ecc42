/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory for secrets (locked.h). Invariant: what was in it is overwritten before the pages go back to the kernel, also
 * when it grows.
 */
#include "locked.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u

static uint8_t *map_pages(size_t room)
{
    uint8_t *data = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return NULL;
    /* Both may fail, by RLIMIT_MEMLOCK or on an old kernel: the secret works all the same. */
    (void)mlock(data, room);
    (void)madvise(data, room, MADV_DONTDUMP);
    return data;
}

uint8_t *locked_reserve(struct locked *locked, size_t length)
{
    size_t needed = locked->length + length + 1;
    if (needed <= locked->room)
        return locked->data + locked->length;
    struct locked larger = { .length = locked->length, .room = align_up(MAX(needed, 2 * locked->room), PAGE) };
    larger.data = map_pages(larger.room);
    if (!larger.data)
        return NULL;
    if (locked->length)
        memcpy(larger.data, locked->data, locked->length);
    locked_free(locked);
    *locked = larger;
    return locked->data + locked->length;
}

bool locked_append(struct locked *locked, const void *data, size_t length)
{
    uint8_t *at = locked_reserve(locked, length);
    if (!at)
        return false;
    memcpy(at, data, length);
    locked->length += length;
    locked->data[locked->length] = 0;
    return true;
}

void locked_free(struct locked *locked)
{
    if (locked->data) {
        explicit_bzero(locked->data, locked->room);
        munmap(locked->data, locked->room);
    }
    *locked = (struct locked){ 0 };
}
