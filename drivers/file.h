/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside the `file` and `host_device` drivers: one open file description and what was learnt about it.
 *
 *   file.c          names, permissions, tables       file_open.c    options, opening, opening anew, closing
 *                                                    file_submit.c  a read or write: on the ring, in a worker, a copy
 *   file_limits.c   size and alignment               file_steps.c   a flush, discard, write of zeroes
 *   file_resize.c   creating, growing, shrinking     file_lock.c    image locks
 *   file_extent.c   where the holes are              file_holder.c  who holds a lock
 *   file_ahead.c    a file that is longer than what was written
 */
#pragma once

#include <block/node.h>

/* Lock bytes held on an image, BLK_PERM_*. next_*: what a change that is prepared will hold; until it is committed or
 * aborted the bytes of both are held. */
struct file_locks {
    unsigned perm, unshared;
    unsigned next_perm, next_unshared;
};

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
    /* A failed sync drops the kernel's dirty marks: later ones succeed although data is lost. So with the page cache
     * the first failure stays. */
    atomic_int flush_error;

    /* file_ahead.c. `grown` (any loop): a write that ends here or before leaves the host file's size as it is;
     * UINT64_MAX: nobody minds. `ahead_lock` guards from `growing` on. `ahead`, `how` and `ahead_end`: written while no
     * write is in flight, `ahead_end` also by the one who grows. */
    _Atomic uint64_t grown;
    bool ahead;           /* asked for, */
    struct blk_ahead how; /* and how */
    uint64_t ahead_end;   /* how long we made the file; 0: we did not */
    pthread_mutex_t ahead_lock;
    bool growing;
    struct pool_work *waiting, **waiting_end; /* of blk_io: writes until the file is longer */

    bool locking;
    struct file_locks locks; /* main loop */

    /* While a reopen is under way: the other way in which the file is open. What file_reopen_switch() swaps is filled
     * in. */
    struct file_state *next;
    struct blk_limits other_limits;
};

/* Blocking; on the main loop while the node is being opened, or with it drained. */
int file_refresh_size(struct blk_node *node, struct error **errp);
int file_probe_limits(const struct file_state *s, uint64_t size, struct blk_limits *limits, struct error **errp);

extern const struct opt_desc file_open_options[];
int file_open(struct blk_node *node, struct opts *opts, bool want_device, struct error **errp);
int file_close_state(struct file_state *s);
coroutine_fn int file_co_reopen_prepare(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp);
void file_reopen_switch(struct blk_node *node);
coroutine_fn void file_co_reopen_clean(struct blk_node *node);

void file_submit(struct blk_node *node, struct blk_io *io);
coroutine_fn int file_co_extent(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent);

extern const struct opt_desc file_create_options[];
extern const struct opt_desc host_device_create_options[];
coroutine_fn int file_co_create(struct blk_create *create, struct error **errp);
coroutine_fn int host_device_co_create(struct blk_create *create, struct error **errp);
coroutine_fn int file_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                  struct error **errp);

void file_ahead_init(struct file_state *s);
/* Cuts off what was grown ahead. No change is in flight. Blocking. */
void file_ahead_trim(struct blk_node *node);
void file_grow_ahead(struct blk_node *node, const struct blk_ahead *how);

/* Does the host know open-file-description locks? */
bool file_lock_supported(int fd);
/*
 * Takes the lock bytes for `perm` and for what is not in `shared`, as far as they are not held, and checks that nobody
 * else holds a byte that contradicts. A lock that no living process is seen to hold is waited for, blocking, half a
 * second at most. On failure the bytes held are those from before. `writable`: the hint does not offer -U. fd -1: only
 * notes what would be locked.
 */
int file_lock_prepare(int fd, const char *filename, struct file_locks *locks, unsigned perm, unsigned shared,
                      bool writable, struct error **errp);
/* After a prepare that succeeded. They cannot fail. */
void file_lock_commit(int fd, struct file_locks *locks);
void file_lock_abort(int fd, struct file_locks *locks);
void file_lock_drop(int fd);
/* Takes what another descriptor of ours holds, all that a change that is prepared there may leave it. */
int file_lock_copy(int fd, const struct file_locks *locks, struct error **errp);

struct file_holder {
    int pid;
    char name[32];
    bool dying; /* it was killed, or is ending by itself: it will let go */
};

/* Finds a process that holds a lock on `byte` of the file other than by our own `fd`; one that lives, if there is one.
 * Returns whether one was seen. Best effort. */
bool file_find_holder(int fd, uint64_t byte, struct file_holder *holder);

/* The descriptor to lock; -1: locks are only noted. */
static inline int file_lock_fd(const struct file_state *s) { return s->locking ? s->fd : -1; }

/* The file's size as a node has it: whole sectors. */
static inline uint64_t file_round_size(uint64_t size)
{
    return (size + BLK_SECTOR_SIZE - 1) & ~(uint64_t)(BLK_SECTOR_SIZE - 1);
}
