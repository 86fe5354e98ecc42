/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Nodes and drivers: what a format, a protocol driver or a filter implements, and what it may call.
 *
 * A node has a driver, children by role ("file", "backing", "data-file", …), options and a size. Nodes are opened,
 * closed and linked on the main loop only; requests on them come from any loop at once, so a driver's request functions
 * are thread-safe.
 *
 * The way of a request (docs/architecture.md draws it): blk_submit() walks `map` from the root down. Where every step
 * says BLK_DATA the protocol node's `submit` gets the caller's buffers on the caller's ring: no coroutine, no copy, no
 * allocation. Anything else starts a coroutine that goes through the blk_co_ functions below, layer by layer.
 */
#pragma once

#include <block/event.h>

#include <base/compiler.h>
#include <base/error.h>
#include <base/list.h>
#include <base/loop.h>
#include <base/opts.h>
#include <base/pool.h>
#include <base/sync.h>
#include <block/types.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

struct blk_bitmap;
struct blk_check;
struct blk_compact;
struct blk_snapshot;
struct blk_create;
struct blk_front;
struct blk_info;
struct blk_measure;
struct blk_node;
struct epoch_domain;
struct blk_probe;

/* ---- one submission to a protocol node ---- */

struct blk_io {
    union {
        struct loop_io ring;   /* for drivers that use the caller's ring */
        struct pool_work work; /* for drivers that use the worker pool */
        struct loop_task task; /* for drivers that are done at once */
        struct loop_post post; /* for those that are done in another thread */
    };
    struct blk_node *node; /* the protocol node */
    struct loop *loop;     /* where it was submitted and will complete */
    enum blk_op op;
    unsigned flags; /* BLK_REQ_* */
    uint64_t offset, length;
    const struct iovec *iov; /* READ and WRITE; covers exactly length; stays until done */
    int iov_count;
    void (*done)(struct blk_io *io, int result); /* 0 or -errno; on io->loop; never from inside submit */
    int result;                                  /* of blk_io_complete() */
    uint64_t scratch[6];                         /* the driver's own */
};

/* For drivers whose completions come from a library's thread, from another loop, or from inside submit: io->done is
 * called on io->loop, later. Any thread; once. */
void blk_io_complete(struct blk_io *io, int result);

/* ---- drivers ---- */

enum blk_driver_flags {
    BLK_DRIVER_FORMAT = 1u << 0,   /* lays out a disk in its "file" child */
    BLK_DRIVER_PROTOCOL = 1u << 1, /* reaches bytes itself; has submit, no children */
    BLK_DRIVER_FILTER = 1u << 2,   /* same bytes as its "file" child */
    BLK_DRIVER_GROWS = 1u << 3,    /* a write past the end grows the node; not protocol: if its "file" child grows */
    BLK_DRIVER_BACKING = 1u << 4,  /* format: shows its "backing" child where it has nothing itself */
    /* format: what it maps may be elsewhere as soon as the epoch is left. Its co_read and co_write take any range, and
     * hold the place by their own means; its map sends zeroes and discards to itself. */
    BLK_DRIVER_REMAPS = 1u << 5,
    BLK_DRIVER_TELLS =
        1u << 6, /* format: tells its file of its steps (block/event.h), each read and write of data too */
};

/* How the host's file is made longer ahead of writes. */
struct blk_ahead {
    /* The host allocates it: `size` bytes past the end of a write, and up to a multiple of `align` (0: of anything).
     * Else it is a hole, as long as the driver finds useful. */
    bool allocate;
    uint64_t size, align;
};

/* NULL in a table means the default: what a filter does not have passes through to its child, what others do not have
 * there is nothing to do for, or nobody can do it. */
struct blk_driver {
    const char *name;
    unsigned flags;
    size_t state_size;                                     /* node->state: zeroed memory of this size */
    const struct opt_desc *options;                        /* for opening; NULL: none */
    const struct opt_desc *create_options, *amend_options; /* for `img-tool create -o`; NULL: cannot create */
    const char *const
        *protocol_prefixes; /* "file", "nbd", …: file names that begin `prefix:`; NULL-terminated or NULL */

    /* Format: how sure is it (0 … 100) that a file that begins and ends like this is its? block/probe.h */
    int (*probe)(const struct blk_probe *probe);
    /* Protocol: how sure is it that a plain path (no prefix) is its (a block device, a regular file)? 0 … 100. */
    int (*probe_path)(const char *path);
    /* Protocol: removes a file that blk_co_create() has just made, after a later step failed. 0 or -errno. */
    int (*remove)(const char *filename);
    /* Protocol: turns a file name into options ("filename", or host, port, …). NULL: sets "filename". */
    int (*parse_filename)(const char *filename, struct opts *opts, struct error **errp);

    /* What a plain name of it begins with, where it has no file of its own: "null-co://"; a filter's is followed by its
     * child's name. */
    const char *name_prefix;

    /* A filter's child with its bytes is in this role; NULL: "file". */
    const char *child_role;

    /* Takes what it knows from opts (what it leaves is refused by name), opens children with blk_co_open_child(), sets
     * node->size and node->limits. flags: BLK_O_*, also in node->open_flags. On failure nothing stays open: the core
     * closes the children. */
    coroutine_fn int (*co_open)(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp);
    /* No request is in flight. Writes back what is dirty; children are still there. Returns the first error that means
     * loss. Called even after a failed write-back, and must free everything. */
    coroutine_fn int (*co_close)(struct blk_node *node);
    /* Can such an image be made? Asked before anything is: what stands under that name is not lost to a wrong option.
     * Looks at the options and the size alone. NULL: yes. */
    int (*create_check)(const struct blk_create *create, struct error **errp);
    coroutine_fn int (*co_create)(struct blk_create *create, struct error **errp);
    /* How large a file would become (blk_co_measure()). */
    coroutine_fn int (*co_measure)(const struct opts *options, uint64_t size, struct blk_node *source,
                                   struct blk_measure *measure, struct error **errp);

    /*
     * From memory only: never waits, never allocates host space, any loop, many at once. Fills *extent for [offset,
     * offset + length), length > 0 (FLUSH: both 0, extent.length is not looked at). The range is inside the node.
     * A write, discard or zero op may say BLK_DATA only where the same request on the child does all there is to do.
     * For op READ it is also the one source of block status.
     * NULL in a protocol driver: everything is BLK_DATA, its own; in a filter: its child's.
     */
    void (*map)(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                struct blk_extent *extent);
    /* Makes the metadata for the first part of the range resident, after BLK_SLOW with BLK_EXTENT_COLD. */
    coroutine_fn int (*co_load)(struct blk_node *node, enum blk_op op, uint64_t offset, uint64_t length);

    /* Protocol: starts one request; completes through io->done, later. Aligned to node->limits by the core. Any
     * loop. */
    void (*submit)(struct blk_node *node, struct blk_io *io);
    /* Protocol: ends the requests in flight soon, with -ECANCELED, and touches their buffers no more; `for_good`: and
     * those to come. Main loop. NULL: they take their time. */
    void (*cancel)(struct blk_node *node, bool for_good);
    /* Protocol: where are holes? Like map, but may wait. NULL: all is data. A filter whose map sends requests the slow
     * way answers here for block status, with BLK_DATA, its child and BLK_EXTENT_RAW. */
    coroutine_fn int (*co_extent)(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent);

    /*
     * What `map` answered BLK_SLOW for. Return 0 or -errno; never partial. The buffers cover exactly length. Called on
     * any loop, many at once; the caller is not inside an epoch. co_read: length is within the one extent that map
     * said. co_write, co_write_zeroes, co_discard: any range inside the node. co_write_zeroes and co_discard may return
     * -ENOTSUP: the core then writes zeroes, or does nothing. With BLK_REQ_FUA the change and the metadata that it
     * needs are durable at return.
     */
    coroutine_fn int (*co_read)(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                int iov_count);
    coroutine_fn int (*co_write)(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                 int iov_count, unsigned flags);
    /* BLK_REQ_COMPRESSED: any range inside the node. NULL: it cannot, but for a filter that has no part in writes. */
    coroutine_fn int (*co_write_compressed)(struct blk_node *node, uint64_t offset, uint64_t length,
                                            const struct iovec *iov, int iov_count, unsigned flags);
    coroutine_fn int (*co_write_zeroes)(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags);
    coroutine_fn int (*co_discard)(struct blk_node *node, uint64_t offset, uint64_t length);
    coroutine_fn int (*co_flush)(struct blk_node *node);

    /*
     * Work that the driver does by itself, which nobody waits for: a timer's commit, a reconnect. drain_begin: starts
     * none from now on. co_drain_settle: returns when what runs has ended. drain_end: goes on. What requests ask for is
     * done all the while. Main loop. NULL: the driver has no such work.
     */
    void (*drain_begin)(struct blk_node *node);
    coroutine_fn void (*co_drain_settle)(struct blk_node *node);
    void (*drain_end)(struct blk_node *node);

    /* Drained. `exact`: the file must not be larger either. prealloc: "off", "falloc", "full", "metadata". */
    coroutine_fn int (*co_truncate)(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                    struct error **errp);
    /* With BLK_DRIVER_GROWS: does this node? NULL: it does. Any thread. */
    bool (*grows)(const struct blk_node *node);
    /* The child with the node's bytes is another one now, or has another size or other limits: what the node took from
     * it follows. Drained, main loop. NULL: nothing was taken. */
    void (*child_changed)(struct blk_node *node);
    /* Protocol that grows: from now on the host's file may be longer than the node, so that writes at the end need not
     * make it longer each; it is cut to the node's size when nobody may resize it any more, at a reopen for reading,
     * and at a truncate. how == NULL: cuts it, and from now on no more. For a parent whose format minds no longer file:
     * others may see it, and it stays after a crash. No change is in flight; main loop. NULL: it cannot. */
    void (*grow_ahead)(struct blk_node *node, const struct blk_ahead *how);
    /* Bytes that the host has allocated for this node, or -errno. Protocol nodes. */
    coroutine_fn int64_t (*co_allocated_size)(struct blk_node *node);
    coroutine_fn int (*co_info)(struct blk_node *node, struct blk_info *info, struct error **errp);
    coroutine_fn int (*co_check)(struct blk_node *node, struct blk_check *check, unsigned fix, struct error **errp);

    /* What the image says of its backing file (blk_co_change_backing()). Drained, main loop; the node is writable. All
     * that was written before is durable first; then it happens or does not. */
    coroutine_fn int (*co_change_backing)(struct blk_node *node, const char *name, const char *format,
                                          struct error **errp);

    /* A format above is about to take this step (block/event.h). Any loop. */
    coroutine_fn void (*co_event)(struct blk_node *node, enum blk_event event);
    /* Options of an image that is there (blk_co_amend()), validated by the table. Drained, main loop; the node is
     * writable. */
    coroutine_fn int (*co_amend)(struct blk_node *node, struct opts *opts, struct error **errp);
    /* The image's file becomes as short as what is in use (blk_co_compact()). Drained, main loop; the node is writable.
     */
    coroutine_fn int (*co_compact)(struct blk_node *node, struct blk_compact *compact, struct error **errp);
    /* Everything goes that the image holds itself (blk_co_make_empty()). Drained, main loop; the node is writable. */
    coroutine_fn int (*co_make_empty)(struct blk_node *node, struct error **errp);

    /* Internal snapshots (block/snapshot.h). Drained, main loop; all but showing one need a writable node. Each happens
     * or does not. */
    coroutine_fn int (*co_snapshot_create)(struct blk_node *node, const struct blk_snapshot *what, struct error **errp);
    coroutine_fn int (*co_snapshot_apply)(struct blk_node *node, const char *id_or_name, struct error **errp);
    coroutine_fn int (*co_snapshot_delete)(struct blk_node *node, const char *name, struct error **errp);
    coroutine_fn int (*co_snapshot_show)(struct blk_node *node, const char *id, const char *name, struct error **errp);

    /* Dirty bitmaps (block/bitmap.h). bitmap_check: could the image keep one of this name (empty: any)? NULL: it keeps
     * none. bitmap_removed: one that lies in the image goes from the list. co_bitmaps_load: bits of all that are usable
     * and not in memory; those of a writable image are. Main loop, drained. */
    int (*bitmap_check)(const struct blk_node *node, const char *name, struct error **errp);
    void (*bitmap_removed)(struct blk_node *node, const struct blk_bitmap *bitmap);
    coroutine_fn int (*co_bitmaps_load)(struct blk_node *node, struct error **errp);

    /* VM state (block/snapshot.h), from offset 0 on. Main loop, with the turn; a write: drained. */
    coroutine_fn int (*co_vm_state_read)(struct blk_node *node, uint64_t offset, uint64_t length,
                                         const struct iovec *iov, int iov_count);
    coroutine_fn int (*co_vm_state_write)(struct blk_node *node, uint64_t offset, uint64_t length,
                                          const struct iovec *iov, int iov_count, struct error **errp);

    /*
     * Reopen (block/change.h, block/reopen.c). Drained, main loop. opts are all of the node's options as they shall be,
     * flags the new BLK_O_*, while node->open_flags are the old ones still.
     *   co_reopen_prepare  makes the new state beside the old one, which stays in force; may fail, and has undone what
     * it did then
     *   reopen_switch      the two change places; called once more, it takes that back
     *   co_reopen_begin    the new flags are in force, locks held: writes what a writable image needs. May fail
     *   co_reopen_clean    drops the state that is not in force. Called after every prepare that succeeded
     * NULL: flags and common options alone may change, and the driver need not know.
     */
    coroutine_fn int (*co_reopen_prepare)(struct blk_node *node, struct opts *opts, unsigned flags,
                                          struct error **errp);
    void (*reopen_switch)(struct blk_node *node);
    coroutine_fn int (*co_reopen_begin)(struct blk_node *node, unsigned old_flags, struct error **errp);
    coroutine_fn void (*co_reopen_clean)(struct blk_node *node);

    /*
     * Permissions on the whole node change, as a part of a transaction (block/perm.c): prepare takes what is new on the
     * host and checks that nobody else contradicts, still holding what was held before; on failure nothing has changed.
     * After a prepare that succeeded either commit gives up what is needed no longer, or abort goes back to what was
     * held before. At most one transaction at a time; main loop. NULL: nothing to lock.
     */
    int (*perm_prepare)(struct blk_node *node, unsigned perm, unsigned shared, struct error **errp);
    void (*perm_commit)(struct blk_node *node);
    void (*perm_abort)(struct blk_node *node);
    /* What the node needs of a child and lets others do to it, for what its parents do. NULL: block/perm.c's rules by
     * role. */
    void (*child_perm)(struct blk_node *node, const char *role, unsigned perm, unsigned shared, unsigned *child_perm,
                       unsigned *child_shared);
};

/* Registers a driver before main: one line at the end of its file. */
void blk_driver_register(const struct blk_driver *driver);
#define BLK_DRIVER(driver) \
    __attribute__((constructor)) static void register_##driver(void) { blk_driver_register(&driver); }
const struct blk_driver *blk_driver_find(const char *name);
/* Calls fn for each driver, by name in alphabetical order. */
void blk_driver_each(void (*fn)(const struct blk_driver *driver, void *arg), void *arg);

/* ---- nodes ---- */

struct blk_child {
    struct blk_node *node;   /* owns a reference */
    struct blk_node *parent; /* NULL where a front end is the parent */
    struct blk_front *front;
    char *role;
    unsigned perm, shared; /* BLK_PERM_*: what the parent does, what others may */
    bool follows;          /* opened by the parent, or for it: a reopen of the parent takes it along */
    struct list in_parent; /* parent->children */
    struct list in_node;   /* node->parents */
};

struct blk_node {
    const struct blk_driver *driver;
    void *state;
    char *name;           /* node-name: given, or "#block123" */
    char *filename;       /* as a person would name it: plain, protocol:…, or json:{…} */
    struct opts *options; /* what it was opened with, driver included; for json: names */
    unsigned open_flags;  /* BLK_O_* */
    unsigned references;  /* main loop */
    _Atomic uint64_t size;
    struct blk_limits limits;
    struct list children, parents; /* struct blk_child; main loop, or drained */
    /* Shortcuts into children, by their role (data: "data-file"); NULL where there is none. */
    struct blk_node *file, *backing, *data;
    struct blk_node *opened_for; /* while it opens: the parent that asked, to see loops in a chain */
    struct loop *loop;           /* the main loop: where it was opened */
    struct epoch_domain *epoch;  /* of requests that come in at this node */
    unsigned drained;            /* drained sections that hold the driver (block/drain.c); main loop */
    bool opened;                 /* the driver's co_open() has returned, and well */
    /* Its last reference has gone: nobody finds it, or gets another. It waits for drained sections, then it closes. */
    enum { BLK_STAYS, BLK_CLOSE_WAITS, BLK_CLOSES } closing;
    struct blk_node *closing_child; /* closed by it, and not linked to it any more; for blk_node_cancel() */
    unsigned pinned;                /* BLK_PERM_*: locked on the host whatever the parents do (block/perm.h) */
    struct list in_graph;

    /* block/bitmap.h: the image's dirty bitmaps, and how many of them record changes. Drained. */
    struct list bitmaps;
    atomic_uint recording;

    /* block/tracked.c: writes that must not meet other writes (read-modify-write). The hot path looks at `tracking`
     * only. */
    atomic_uint tracking;
    pthread_mutex_t tracked_lock;
    struct list tracked;
    struct co_cond tracked_changed;
    uint64_t tracking_epoch;
};

/* Have all requests ended that were in flight when `epoch` was retired (base/epoch.h) and that could have reached this
 * node: those on the node itself, and those of every node and front end above it? Any thread; never blocks. */
bool blk_epoch_passed(struct blk_node *node, uint64_t epoch);
/* Sleeps until they have. The caller is not inside an epoch of theirs. Any loop. */
coroutine_fn void blk_co_epoch_wait(struct blk_node *node, uint64_t epoch);

static inline uint64_t blk_node_size(struct blk_node *node)
{
    return atomic_load_explicit(&node->size, memory_order_relaxed);
}

/* Does a write past the end make the node larger, all the way down to the protocol? Any thread. */
bool blk_node_grows(const struct blk_node *node);

static inline bool blk_node_writable(const struct blk_node *node) { return node->open_flags & BLK_O_RDWR; }

/* What the map of a filter, and of raw, answers: the same bytes are at child:offset, and the child's own answer
 * stands. */
static inline void blk_extent_pass(struct blk_extent *extent, struct blk_node *child, uint64_t offset, uint64_t length)
{
    extent->kind = BLK_DATA;
    extent->flags = BLK_EXTENT_RAW | BLK_EXTENT_RECURSE;
    extent->length = length;
    extent->child = child;
    extent->child_offset = offset;
}

/* A filter is as large as its child, and has its limits: after opening that, and the default of child_changed. */
void blk_filter_follow(struct blk_node *node);

/* Opens the child `role` from the options "role.…" in opts (or the plain reference role=NODE-NAME), links it, and sets
 * the shortcut. Where opts has nothing for the role: the child is `filename` (NULL: returns 0 with no child where
 * `optional`). */
coroutine_fn int blk_co_open_child(struct blk_node *parent, const char *role, struct opts *opts, const char *filename,
                                   unsigned flags, bool optional, struct error **errp);

/* The child in this role, or NULL. Main loop, or drained; keep the pointer for requests: links below an open driver
 * stay. */
struct blk_node *blk_node_child(const struct blk_node *node, const char *role);

/* ---- requests on nodes, for drivers and jobs: straight-line ---- */

/* All: 0 or -errno. A read past the node's end gives zeroes; a write past it grows a protocol node that can grow, else
 * is
 * -EIO. Unaligned requests are made aligned here (read-modify-write where needed). Any loop, many at once. */
coroutine_fn int blk_co_readv(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                              int iov_count);
coroutine_fn int blk_co_writev(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                               int iov_count, unsigned flags);
coroutine_fn int blk_co_read(struct blk_node *node, uint64_t offset, void *buffer, uint64_t length);
coroutine_fn int blk_co_write(struct blk_node *node, uint64_t offset, const void *buffer, uint64_t length,
                              unsigned flags);
coroutine_fn int blk_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags);
coroutine_fn int blk_co_discard(struct blk_node *node, uint64_t offset, uint64_t length);
coroutine_fn int blk_co_flush(struct blk_node *node);
/* The caller has drained the node's parents, or is the only user. */
coroutine_fn int blk_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                 struct error **errp);

/* One extent of this node alone: `map`, loading what is cold. kind BLK_SLOW remains for what is there but not plain
 * (compressed). */
coroutine_fn int blk_co_map(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent);

/* The same through the whole chain, as `qemu-img map` prints it. */
struct blk_status {
    bool data; /* the host stores bytes for it */
    bool zero; /* reads as zeroes */
    bool compressed;
    bool present;  /* some layer allocates it */
    bool past_end; /* a layer above `base` ends before: zeroes, whatever the base has there */
    bool offset_valid;
    uint64_t offset;        /* in `file`'s file */
    struct blk_node *file;  /* the protocol node that holds it, or NULL */
    struct blk_node *layer; /* the node of the chain that decided */
    unsigned depth;         /* 0: the top */
    uint64_t length;
};
/* Looks from `top` down to, and not into, `base` (NULL: to the end of the chain). */
coroutine_fn int blk_co_status(struct blk_node *top, struct blk_node *base, uint64_t offset, uint64_t length,
                               struct blk_status *status);

/* Memory for I/O on this node: aligned; NULL where there is not enough. Free with free(). */
void *blk_buffer_alloc(const struct blk_node *node, uint64_t size);

/* The deepest data child by way of filters and formats' "file": the protocol node. */
struct blk_node *blk_node_protocol(struct blk_node *node);
/* The first node at or below it that is no filter, and that node's backing child; NULL: there is none. */
struct blk_node *blk_node_below_filters(struct blk_node *node);
struct blk_node *blk_node_backing(struct blk_node *node);
