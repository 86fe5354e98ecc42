/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Registered files: each loop has a sparse table of 64 slots in its ring, filled at first use of an fd, found again by
 * an array indexed by fd.
 *
 * Only a ring's own thread may change its table, so a drop marks the slot stale in every loop and counts one global
 * number up; a loop compares that number before it uses any slot. It empties stale slots then, or when the post comes
 * that each loop concerned gets (a sleeping loop would keep the file open). Nobody waits for anybody: no deadlock.
 *
 * Invariant: a slot that loop_fixed_file() returns holds the file that the fd means now. An fd number that was dropped,
 * closed and opened again reaches a loop only after the count, with everything else its opener wrote before.
 */
#include "loop_internal.h"

#include <stdlib.h>
#include <string.h>

#define LOOP_FIXED_REFUSED UINT8_MAX /* in the map: the kernel would not register it; not tried again before a drop */
#define LOOP_FIXED_MAX_FD 65536

static void forget_refused(struct loop_fixed *fixed)
{
    for (size_t i = 0; i < fixed->map_size; i++) {
        if (fixed->map[i] == LOOP_FIXED_REFUSED)
            fixed->map[i] = 0;
    }
}

static void empty_slot(struct loop *loop, int slot)
{
    struct loop_fixed *fixed = &loop->fixed;
    int none = -1;
    io_uring_register_files_update(&loop->ring, (unsigned)slot, &none, 1);
    fixed->map[fixed->fds[slot]] = 0;
    fixed->fds[slot] = -1;
    fixed->stale[slot] = false;
}

/* On the loop's thread, registry lock held. */
static void empty_stale(struct loop *loop)
{
    struct loop_fixed *fixed = &loop->fixed;
    fixed->drops_seen = atomic_load_explicit(&loop_registry.drops, memory_order_relaxed);
    forget_refused(fixed);
    for (int slot = 0; slot < LOOP_FIXED_SLOTS; slot++) {
        if (fixed->stale[slot])
            empty_slot(loop, slot);
    }
}

static void stale_posted(struct loop_post *post)
{
    struct loop *loop = container_of(post, struct loop, fixed.post);
    pthread_mutex_lock(&loop_registry.lock);
    loop->fixed.posted = false;
    empty_stale(loop);
    pthread_mutex_unlock(&loop_registry.lock);
}

void loop_fixed_init(struct loop *loop)
{
    for (int slot = 0; slot < LOOP_FIXED_SLOTS; slot++)
        loop->fixed.fds[slot] = -1;
    loop->fixed.post.fn = stale_posted;
    loop->fixed.drops_seen = atomic_load_explicit(&loop_registry.drops, memory_order_relaxed);
}

void loop_fixed_finish(struct loop *loop) { free(loop->fixed.map); }

static bool table_usable(struct loop *loop)
{
    struct loop_fixed *fixed = &loop->fixed;
    if (!fixed->tried && loop->has_ring) {
        int ret = io_uring_register_files_sparse(&loop->ring, LOOP_FIXED_SLOTS);
        if (ret < 0) { /* before Linux 5.19 */
            int none[LOOP_FIXED_SLOTS];
            memset(none, 0xff, sizeof(none));
            ret = io_uring_register_files(&loop->ring, none, LOOP_FIXED_SLOTS);
        }
        fixed->usable = ret >= 0;
    }
    fixed->tried = true;
    return fixed->usable;
}

static void grow_map(struct loop_fixed *fixed, int fd)
{
    size_t size = MAX(fixed->map_size, (size_t)256);
    while (size <= (size_t)fd)
        size *= 2;
    if (size == fixed->map_size)
        return;
    fixed->map = xrealloc(fixed->map, size);
    memset(fixed->map + fixed->map_size, 0, size - fixed->map_size);
    fixed->map_size = size;
}

/* Registry lock held, stale slots emptied. */
static int register_fd(struct loop *loop, int fd)
{
    struct loop_fixed *fixed = &loop->fixed;
    grow_map(fixed, fd);
    int slot = 0;
    while (slot < LOOP_FIXED_SLOTS && fixed->fds[slot] >= 0)
        slot++;
    if (slot == LOOP_FIXED_SLOTS || io_uring_register_files_update(&loop->ring, (unsigned)slot, &fd, 1) != 1) {
        fixed->map[fd] = LOOP_FIXED_REFUSED;
        return -1;
    }
    fixed->fds[slot] = fd;
    fixed->map[fd] = (uint8_t)(slot + 1);
    return slot;
}

static __attribute__((noinline)) int fixed_file_slow(struct loop *loop, int fd)
{
    if (fd < 0 || fd >= LOOP_FIXED_MAX_FD || !table_usable(loop))
        return -1;
    pthread_mutex_lock(&loop_registry.lock);
    empty_stale(loop);
    uint8_t entry = (size_t)fd < loop->fixed.map_size ? loop->fixed.map[fd] : 0;
    int slot = entry ? entry - 1 : register_fd(loop, fd);
    pthread_mutex_unlock(&loop_registry.lock);
    return slot;
}

int loop_fixed_file(struct loop *loop, int fd)
{
    const struct loop_fixed *fixed = &loop->fixed;
    if (likely(fixed->drops_seen == atomic_load_explicit(&loop_registry.drops, memory_order_acquire)) &&
        (size_t)fd < fixed->map_size) {
        uint8_t entry = fixed->map[fd];
        if (likely(entry && entry != LOOP_FIXED_REFUSED))
            return entry - 1;
        if (entry == LOOP_FIXED_REFUSED)
            return -1;
    }
    return fixed_file_slow(loop, fd);
}

void loop_fixed_file_drop(int fd)
{
    struct loop *own = loop_current(), *loop;
    pthread_mutex_lock(&loop_registry.lock);
    bool found = false;
    list_for_each(loop, &loop_registry.loops, link) {
        bool here = false;
        for (int slot = 0; slot < LOOP_FIXED_SLOTS; slot++) {
            if (loop->fixed.fds[slot] == fd)
                loop->fixed.stale[slot] = here = true;
        }
        found |= here;
        if (here && loop != own && !loop->fixed.posted) {
            loop->fixed.posted = true;
            loop_post(loop, &loop->fixed.post); /* under the lock: the loop cannot go away meanwhile */
        }
    }
    /* A refused fd is forgotten by the count alone. */
    atomic_fetch_add_explicit(&loop_registry.drops, 1, memory_order_release);
    if (found && own)
        empty_stale(own);
    pthread_mutex_unlock(&loop_registry.lock);
}
