/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Front ends: what a device, a job, an export or a tool holds. A front end points at a root node and owns the policy:
 * is there a volatile write cache, what happens on an error, who else may use the image, the accounting.
 *
 * blk_submit() is the hot path. It may be called from any loop; the request completes on the same loop, later, never
 * from inside the call. The rest is coroutine functions, or for the main loop as they say.
 */
#pragma once

#include <block/node.h>

struct blk_front;

/* ---- life: main loop ---- */

/* A front end on `node` (adds a reference) that does `perm` and lets others do `shared` (BLK_PERM_*). NULL and *errp
 * where another user of the node, in this process or another, does not allow it. */
struct blk_front *blk_front_new(const char *name, struct blk_node *node, unsigned perm, unsigned shared,
                                struct error **errp);
/* Waits for its requests, flushes if it may write, drops the node. Returns the first error that means loss. Takes
 * NULL. */
coroutine_fn int blk_co_front_free(struct blk_front *front);

/* Other permissions than those that it was made with. On failure (another user does not allow it) nothing has changed.
 * Main loop. */
int blk_front_set_perm(struct blk_front *front, unsigned perm, unsigned shared, struct error **errp);

struct blk_node *blk_front_node(struct blk_front *front);
const char *blk_front_name(const struct blk_front *front);
uint64_t blk_front_size(struct blk_front *front); /* bytes; any thread */
bool blk_front_writable(const struct blk_front *front);

/* Without a write cache every write carries BLK_REQ_FUA. Any thread; requests submitted later follow it. Switching it
 * off does not flush: the caller does. */
void blk_front_set_write_cache(struct blk_front *front, bool on);
bool blk_front_write_cache(const struct blk_front *front);
/* Topology and alignment to show to a guest. */
const struct blk_limits *blk_front_limits(const struct blk_front *front);

/*
 * A drained section: nothing is in flight through this node, and nothing new comes until its end. Holds every front end
 * above the node, and the work that its driver and those above it do by themselves; waits for their requests and for no
 * others. The end, of the newest section of the node that the same coroutine has begun, releases exactly whom it held.
 * Sections nest, and the graph may change inside: who comes above the node is held from then on, who goes is forgotten.
 * The caller keeps the node open. Not from within a request. Main loop.
 */
coroutine_fn void blk_co_drain_begin(struct blk_node *node);
void blk_drain_end(struct blk_node *node);
/* Waits until nothing of this front end is in flight, without holding back. */
coroutine_fn void blk_co_front_settle(struct blk_front *front);
/* Is anything of this front end in flight, or waiting for a drained section to end? Main loop. */
bool blk_front_busy(struct blk_front *front);

/* ---- requests: any loop ---- */

struct blk_request {
    enum blk_op op;
    unsigned flags;          /* BLK_REQ_* */
    uint64_t offset, length; /* FLUSH: 0 */
    const struct iovec *iov; /* READ and WRITE: covers exactly length; it and the memory stay until done */
    int iov_count;
    void (*done)(struct blk_request *request, int result); /* 0 or -errno */

    /* the block layer's; need no initialisation */
    struct blk_front *front;
    struct loop *loop;
    unsigned *epoch; /* token of its epoch */
    unsigned parts;  /* submissions not yet done */
    int result;
    uint64_t start_ns;
    struct list link;
    union {
        struct blk_io io; /* the first submission: most requests have one */
        struct loop_task task;
        struct loop_post post;
    };
};
/* The request may lie anywhere: outside the node's size it fails with -EIO, a write to a read-only front end with
 * -EPERM. */
void blk_submit(struct blk_front *front, struct blk_request *request);

coroutine_fn int blk_front_co_readv(struct blk_front *front, uint64_t offset, uint64_t length, const struct iovec *iov,
                                    int iov_count);
coroutine_fn int blk_front_co_writev(struct blk_front *front, uint64_t offset, uint64_t length, const struct iovec *iov,
                                     int iov_count, unsigned flags);
coroutine_fn int blk_front_co_read(struct blk_front *front, uint64_t offset, void *buffer, uint64_t length);
coroutine_fn int blk_front_co_write(struct blk_front *front, uint64_t offset, const void *buffer, uint64_t length,
                                    unsigned flags);
coroutine_fn int blk_front_co_write_zeroes(struct blk_front *front, uint64_t offset, uint64_t length, unsigned flags);
coroutine_fn int blk_front_co_discard(struct blk_front *front, uint64_t offset, uint64_t length);
coroutine_fn int blk_front_co_flush(struct blk_front *front);
/* Drains, then resizes the root node. Main loop. */
coroutine_fn int blk_front_co_truncate(struct blk_front *front, uint64_t size, bool exact, const char *prealloc,
                                       struct error **errp);

/* ---- error policy: rerror=, werror= ---- */

enum blk_on_error { BLK_ON_ERROR_REPORT, BLK_ON_ERROR_IGNORE, BLK_ON_ERROR_STOP, BLK_ON_ERROR_ENOSPC };
void blk_front_set_on_error(struct blk_front *front, enum blk_on_error on_read, enum blk_on_error on_write);
/* What to do about this error (negative errno) of a read, or of anything else: REPORT, IGNORE or STOP. Tells
 * events->failed. Any thread. */
enum blk_on_error blk_front_on_error(const struct blk_front *front, bool is_read, int error);

/* ---- events, for the owner: a device, an export, a job ---- */

struct blk_front_events {
    /* The disk has another size now: `size` bytes. Main loop, inside a drained section. */
    void (*resized)(void *arg, uint64_t size);
    /* The first section that holds this front end has begun (requests are accepted, and wait), or the last one has
     * ended. Main loop. */
    void (*drained)(void *arg, bool held);
    /* Another node is the root now: size, limits and content may be others. Main loop, inside a drained section. */
    void (*medium_changed)(void *arg);
    /* A request has failed, and this is what is done about it. Any thread. */
    void (*failed)(void *arg, bool is_read, int error, enum blk_on_error action);
};
/* NULL: none any more. `events` stays valid as long as the front end. Main loop, while nothing is in flight. */
void blk_front_set_events(struct blk_front *front, const struct blk_front_events *events, void *arg);

/* ---- accounting ---- */

struct blk_stats {
    uint64_t operations[BLK_OP_COUNT], bytes[BLK_OP_COUNT],
        failed[BLK_OP_COUNT];       /* ended well; failed ones count no bytes */
    uint64_t invalid[BLK_OP_COUNT]; /* refused at the door: outside the disk, or changes of a read-only one */
    uint64_t time_ns[BLK_OP_COUNT]; /* from submission to completion, all together, of good and failed ones */
    uint64_t last_ns;               /* when the last one ended (loop_now_ns()), 0: none yet */
    uint64_t mapped;                /* requests that took the mapped path */
    uint64_t slow;                  /* requests that needed a coroutine */
};
/* A sum over all loops; exact when nothing is in flight. Any thread. */
void blk_front_stats(const struct blk_front *front, struct blk_stats *stats);
