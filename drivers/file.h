/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside the `file` and `host_device` drivers: one open file description and what was learnt about it.
 *
 *   file.c          options, opening, closing        file_submit.c  a read or write: on the ring, in a worker, a copy
 *   file_limits.c   size and alignment               file_steps.c   a flush, discard, write of zeroes
 *   file_resize.c   creating, growing, shrinking     file_lock.c    image locks
 *   file_extent.c   where the holes are              file_holder.c  who holds a lock
 */
#pragma once

#include <block/node.h>

struct file_state {
    int fd;
    char *filename;
    bool block_device, char_device; /* neither: a regular file */
    bool direct;                    /* O_DIRECT */
    bool dsync;                     /* O_DSYNC */
    bool no_flush;                  /* cache.no-flush */
    bool threads;                   /* aio=threads */
    bool in_memory;                 /* on tmpfs: a transfer is a copy, and waits for no device */

    /* Relaxed atomics, any loop: what the host has turned out not to support. Set once, never cleared. */
    atomic_bool no_zero_range, no_punch, no_allocate, no_block_discard;
    /* With O_DSYNC only what came before this open can still be in a cache: one flush covers it for good. */
    atomic_bool dsync_settled;
    /* A failed fdatasync() drops the kernel's dirty marks: later ones succeed although data is lost. So with the page
     * cache the first failure stays. */
    atomic_int flush_error;

    bool locking;
    unsigned locked, locked_unshared; /* BLK_PERM_*: lock bytes held; main loop */
};

/* Blocking; on the main loop while the node is being opened, or with it drained. */
int file_refresh_size(struct blk_node *node, struct error **errp);
int file_probe_limits(struct blk_node *node, struct error **errp);

void file_submit(struct blk_node *node, struct blk_io *io);
coroutine_fn int file_co_extent(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent);

extern const struct opt_desc file_create_options[];
extern const struct opt_desc host_device_create_options[];
coroutine_fn int file_co_create(struct blk_create *create, struct error **errp);
coroutine_fn int host_device_co_create(struct blk_create *create, struct error **errp);
coroutine_fn int file_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                  struct error **errp);

/* Does the host know open-file-description locks? */
bool file_lock_supported(int fd);
/*
 * Takes the lock bytes for `perm` and for what is not in `shared`, checks that nobody else holds a byte that
 * contradicts, and gives up the bytes in *locked and *locked_unshared that are no longer needed. On failure the bytes
 * held are those from before. `writable`: the hint does not offer -U.
 */
int file_lock_change(int fd, const char *filename, unsigned perm, unsigned shared, bool writable, unsigned *locked,
                     unsigned *locked_unshared, struct error **errp);
void file_lock_drop(int fd);

/* Finds a process, other than by our own `fd`, that holds a lock on `byte` of the file. Returns its pid and its name
 * in `name`, or 0 where it cannot be seen. Best effort. */
int file_find_holder(int fd, uint64_t byte, char *name, size_t name_size);

/* The file's size as a node has it: whole sectors. */
static inline uint64_t file_round_size(uint64_t size)
{
    return (size + BLK_SECTOR_SIZE - 1) & ~(uint64_t)(BLK_SECTOR_SIZE - 1);
}
