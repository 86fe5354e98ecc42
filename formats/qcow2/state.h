/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The state of an open image, and the structures in memory that its files share.
 *
 * Numbers: "cluster" is a host cluster's index in the file, "guest cluster" one of the virtual disk; offsets and
 * lengths are bytes. The L1 table, L2 slices, the refcount table and refcount blocks are kept big-endian, as on disk,
 * so that writing back is a copy.
 *
 * Locking: `lock` guards everything but what says otherwise. It is held while metadata is read, never across guest data
 * I/O, copy on write or a host flush. `map` (map.c) takes no lock: it follows l1, dir and slice entries by atomic
 * loads, inside an epoch; so a slice or a cluster that is taken away is reused only when that epoch has passed.
 */
#pragma once

#include "entry.h"
#include "format.h"
#include "set.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/endian.h>
#include <base/epoch.h>
#include <base/list.h>
#include <base/sync.h>
#include <block/image.h>
#include <block/iov.h>
#include <block/node.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>

/*
 * A part of an L2 table: at most 4 KiB, never more than the table. Its states:
 *
 *   unstable dirty committing
 *       -      -       -       as on disk: may be evicted
 *       x      x       -       changed since the last commit copied it: on dirty_slices
 *       x      -       x       copied by the running commit, not durable yet
 *       x      x       x       copied, and changed again since
 *
 * A commit that succeeds leads from the third to the first, one that fails to the second; the fourth becomes the second
 * either way.
 */
struct qcow2_slice {
    uint64_t number;        /* guest offset >> slice_shift */
    uint64_t host_offset;   /* its place in the file */
    atomic_bool referenced; /* used since the clock hand went by; set by map without the lock */
    atomic_bool unstable;   /* memory is the only true copy: W9, W10 */
    bool suspect;           /* some entry is wild or points at metadata: map is careful. Constant once published */
    bool dirty, committing;
    uint64_t lowest, highest; /* no entry names a host cluster below or above; lowest > highest: none names any */
    uint64_t retired;         /* epoch, once evicted */
    struct list link;         /* slices, or limbo_slices */
    struct list dirty_link;
    /* Of extended entries, which are two words: odd while one changes, another one afterwards. Who reads them without
     * the lock looks before and after. */
    atomic_uint changes;
    _Atomic uint64_t words[]; /* the entries, big-endian: qcow2_slice_entry() and qcow2_slice_set() alone touch them */
};

/* The slices of one L2 table that are in memory. */
struct qcow2_dir {
    size_t count;
    _Atomic(struct qcow2_slice *) slices[];
};

struct qcow2_refblock {
    uint64_t index; /* in the refcount table */
    uint64_t host_offset;
    bool fresh; /* the refcount table on disk does not point at it yet */
    bool dirty;
    bool committing;
    bool checked;                    /* does not overlap other metadata */
    bool used;                       /* since the clock hand went by */
    uint32_t dirty_start, dirty_end; /* bytes, whole write_units */
    struct list link;                /* refblocks */
    uint8_t *data;                   /* one cluster */
};

/* What freed a cluster; the options pass-discard-* say which of these give it back to the host. */
enum qcow2_freed_by { QCOW2_FREED_BY_REQUEST, QCOW2_FREED_BY_SNAPSHOT, QCOW2_FREED_BY_OTHER, QCOW2_FREED_BY_COUNT };

/* Host clusters whose references are gone from memory. */
struct qcow2_extent {
    uint64_t cluster;
    uint32_t count;
    enum qcow2_freed_by by;
};
struct qcow2_freed {
    struct qcow2_extent *extents;
    size_t count, capacity;
};
/* Freed clusters whose removal is durable: they wait for the requests that may still use them. */
struct qcow2_limbo {
    struct list link;
    uint64_t epoch;
    struct qcow2_freed freed;
};

/* A slow request on guest clusters [first, last]. Exclusive ones (allocation, zeroes, discard) meet no other. */
struct qcow2_inflight {
    struct list link;
    uint64_t first, last;
    bool exclusive;
    struct co_cond ended; /* who waits for this one; while it is registered */
};

/* Kinds of metadata, as QEMU names them in its messages. */
enum qcow2_region {
    QCOW2_REGION_HEADER = 1u << 0,
    QCOW2_REGION_L1 = 1u << 1,
    QCOW2_REGION_L2 = 1u << 2,
    QCOW2_REGION_REFBLOCK = 1u << 3,
    QCOW2_REGION_REFTABLE = 1u << 4,
    QCOW2_REGION_SNAPSHOTS = 1u << 5,
    QCOW2_REGION_INACTIVE_L1 = 1u << 6,
    QCOW2_REGION_INACTIVE_L2 = 1u << 7,
    QCOW2_REGION_BITMAPS = 1u << 8,
};
/* What overlap-check=constant, cached, all check. */
#define QCOW2_OVERLAP_CONSTANT \
    (QCOW2_REGION_HEADER | QCOW2_REGION_L1 | QCOW2_REGION_REFTABLE | QCOW2_REGION_SNAPSHOTS | QCOW2_REGION_BITMAPS)
#define QCOW2_OVERLAP_CACHED \
    (QCOW2_OVERLAP_CONSTANT | QCOW2_REGION_L2 | QCOW2_REGION_REFBLOCK | QCOW2_REGION_INACTIVE_L1)
#define QCOW2_OVERLAP_ALL (QCOW2_OVERLAP_CACHED | QCOW2_REGION_INACTIVE_L2)

/* Bytes of the file. */
struct qcow2_range {
    uint64_t start, end;
};

struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size, extra_length;
    uint16_t id_length, name_length;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec, vm_state_size, disk_size, icount; /* icount: UINT64_MAX where there is none */
    char *id, *name;
    uint8_t *raw; /* the entry as it lies on disk, padded */
};

/* Where a bitmap's table lies. */
struct qcow2_bitmap_table {
    uint64_t offset;
    uint32_t entries;
};

/* One decompressed cluster, shared by the requests that read it. */
struct qcow2_decoded {
    struct list link; /* decoded: most recently used first */
    uint64_t guest_cluster;
    struct qcow2_entry entry;
    unsigned references; /* the list's counts too */
    bool ready, stale;
    int result;
    uint8_t *data;
};

enum qcow2_timer_state { QCOW2_TIMER_IDLE, QCOW2_TIMER_ARMING, QCOW2_TIMER_ARMED };

#define QCOW2_DECODED_MAX 8u
#define QCOW2_CACHE_LINE 64u

struct qcow2 {
    /*
     * What map reads for each request, on cache lines that nobody writes to while requests run: constant while the
     * image is open, but for truncate (drained), and two flags that change when something is wrong.
     */
    struct blk_node *node;
    _Atomic uint64_t *l1; /* big-endian; memory is whole write_units */
    _Atomic(struct qcow2_dir *) *dir;
    uint64_t cluster_size;
    uint32_t l1_size;                           /* entries */
    unsigned cluster_bits, l2_bits, slice_bits; /* log2: bytes a cluster, entries a table, entries a slice */
    unsigned l1_shift, slice_shift;             /* log2: guest bytes an L1 entry, a slice */
    unsigned sub_bits;                          /* log2: bytes a subcluster; the cluster's where there are none */
    unsigned refblock_bits;                     /* log2: refcounts a block */
    bool extended;                              /* L2 entries say what is in each subcluster */
    bool external;                              /* guest data are in a file of their own, at their guest offset */
    atomic_bool corrupt;                        /* no write is allowed any more */
    atomic_bool header_unsure; /* a write of the header failed: on disk it may be the one before, or what was to be */
    char apart_from_writers[QCOW2_CACHE_LINE];

    /* Written by those who change entries, read by each flush. */
    atomic_bool need_commit; /* an L2 or L1 change is not durable: a flush has to commit */
    struct co_mutex lock;

    /* Constant while open, except by truncate (drained). */
    struct qcow2_header header;
    uint8_t sector0[BLK_SECTOR_SIZE]; /* as on disk; changed under the lock */
    bool header_writing;              /* header.c: the lock is given up for it */
    struct co_cond header_written;
    char *backing_name, backing_format[16];
    char *data_name; /* of the external data file, as the header has it; NULL: it names none */
    /* Pieces in which the L1 table and refcount blocks are written: what the host writes at once, so that it need not
     * read first; a sector at least, a cluster at most. Constant. Sectors of the refcount table stay single: W4. */
    uint32_t write_unit;
    bool lazy_refcounts;
    bool pass_discard[QCOW2_FREED_BY_COUNT]; /* to the host */
    bool discard_keeps_place;                /* discard-no-unref */
    struct blk_node *grown_ahead;            /* the file that has been asked to grow ahead, or NULL; main loop */
    struct qcow2 *reopening;                 /* reopen.c: options that are not in force; main loop */
    unsigned overlap_check;                  /* QCOW2_REGION_* */
    size_t max_slices, max_refblocks;
    struct qcow2_snapshot *snapshots;
    uint64_t snapshots_length; /* bytes of the snapshot table */
    uint32_t bitmap_count;
    uint64_t bitmap_directory_size, bitmap_directory_offset;
    struct qcow2_bitmap_table *old_bitmaps; /* bitmaps.c: of bitmaps that are removed, to be freed */
    size_t old_bitmap_count;
    bool bitmaps_in_use; /* the directory on disk says so */

    /* L2 (l2cache.c, l2table.c) */
    struct list slices, limbo_slices, dirty_slices;
    size_t slice_count, dirty_count;
    struct list loading; /* struct loading in l2cache.c */
    struct list making;  /* struct making in l2table.c */
    struct co_cond loaded;
    uint8_t *l1_dirty; /* a byte for each write_unit of the L1 table: 1 dirty, 2 captured */
    uint32_t l1_dirty_count;
    bool l1_checked, reftable_checked;     /* they lie over no other metadata */
    struct qcow2_set l2_set, refblock_set; /* host clusters of active L2 tables and refcount blocks */
    struct qcow2_set inactive_l2_set;      /* of snapshots' L2 tables: overlap.c */
    struct qcow2_range *inactive_l1;       /* snapshots' L1 tables: in order, apart from each other */
    size_t inactive_l1_count;

    /* refcounts (refcount.c) */
    uint64_t *reftable;                              /* big-endian */
    uint64_t reftable_entries;                       /* in memory; whole clusters */
    bool reftable_moved;                             /* memory's table is not the one that the header on disk names */
    uint64_t reftable_offset, reftable_disk_entries; /* its place, and how many entries that has room for */
    uint8_t *reftable_dirty;                         /* the same by sector */
    struct qcow2_refblock **refblocks;               /* by index; NULL: not loaded */
    struct list refblock_list;
    size_t refblock_count, refblock_dirty_count;
    uint64_t free_cursor; /* no free cluster below */
    /* alloc.c: the next compressed cluster may begin here, within a host cluster that others have a part of; 0: none */
    uint64_t free_bytes;
    bool extending; /* somebody makes the file reach to the end of such a cluster */
    struct co_cond file_extended;
    /* Clusters from here on were never written: they read as zeroes. Only suspect slices name them. */
    uint64_t fresh_from;
    bool dirty_bit;   /* set on disk by us: lazy refcounts, or a change of snapshots is on its way */
    bool dirty_stays; /* what was begun could not be undone: who opens the image next repairs it */

    /* freeing (dirty.c, free.c) */
    struct qcow2_freed freed;
    struct list limbo;
    uint64_t zeroed_epoch; /* retired when a cluster last lost its data but not its place to a change of its entry */
    bool reaping;
    uint64_t freeing;            /* clusters in `freed`, in a running commit and in limbo */
    struct qcow2_freed to_punch; /* the host gets them back first; then their last reference goes */
    size_t max_punch;            /* so many clusters may wait for that: bounds memory */
    struct qcow2_set punch_set;  /* these, and those that it is getting back right now */
    bool punching;               /* somebody gives them back, or is about to */
    int reap_error;              /* a refcount could not be lowered since this was 0; its cluster is freed again */

    /* requests (inflight.c) */
    struct list inflight;

    /* commit.c */
    bool commit_running;
    uint64_t commits_started, commits_done, commit_succeeded;
    int commit_error;
    struct co_cond commit_done;

    /* dirty.c */
    coroutine_fn void (*co_background_commit)(void *arg); /* commit.c: arg is the image */
    bool background;                                      /* a background commit is queued or running */
    bool closing;
    atomic_bool drained; /* nothing starts by itself */
    unsigned resuming;   /* coroutines of drained sections that have ended; home loop */
    enum qcow2_timer_state timer_state;
    struct loop_timer timer;

    /* cacheclean.c */
    uint64_t clean_interval; /* seconds; 0: never */
    struct loop_timer clean_timer;
    bool cleaning;

    /* compress.c */
    struct list decoded;
    unsigned decoded_count;
    struct co_cond decoded_ready;

    bool corruption_signalled;
    atomic_int density; /* extent.c: do more clusters count as used than the host stores? */
};

/* ---- the children ---- */

/* Guest data go to this child, metadata to node->file: one and the same unless the data file is external. Asked for
 * each time, as children are replaced while an image is open. */
static inline struct blk_node *qcow2_data_file(const struct qcow2 *s)
{
    return s->node->data ? s->node->data : s->node->file;
}

/* What is absent here may not read as zeroes: the header names a backing file, or who opened the image gave it one. */
static inline bool qcow2_has_backing(const struct qcow2 *s) { return s->header.backing_offset || s->node->backing; }

/* Is the external data file a raw image of the disk at any time, also for who knows nothing of this one? */
static inline bool qcow2_data_is_raw(const struct qcow2 *s)
{
    return s->external && (s->header.autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
}

/* Asked for each time too: a write past the end makes the file larger. */
static inline bool qcow2_host_grows(const struct qcow2 *s) { return blk_node_grows(s->node->file); }

/* ---- arithmetic ---- */

static inline uint64_t qcow2_be(uint64_t value) { return htobe64(value); }
static inline uint64_t qcow2_cluster_start(const struct qcow2 *s, uint64_t offset)
{
    return align_down(offset, s->cluster_size);
}
static inline uint64_t qcow2_in_cluster(const struct qcow2 *s, uint64_t offset)
{
    return offset & (s->cluster_size - 1);
}

/* Where VM state lies in the space that the L1 table maps: behind the last entry that maps a part of the disk. */
static inline uint64_t qcow2_vm_state_start(const struct qcow2 *s)
{
    return align_up(s->header.size, UINT64_C(1) << s->l1_shift);
}

/* Memory of an L1 table. */
static inline uint64_t qcow2_l1_memory(const struct qcow2 *s, uint64_t entries)
{
    return align_up(MAX(entries * 8, UINT64_C(1)), s->write_unit);
}

/* ---- entries ---- */

static inline uint64_t qcow2_l1_entry(const struct qcow2 *s, uint64_t index)
{
    return be64toh(atomic_load_explicit(&s->l1[index], memory_order_acquire));
}
static inline uint32_t qcow2_slice_index(const struct qcow2 *s, uint64_t offset)
{
    return (uint32_t)((offset >> s->cluster_bits) & ((1u << s->slice_bits) - 1));
}
static inline uint32_t qcow2_slice_entries(const struct qcow2 *s) { return 1u << s->slice_bits; }
/* The guest cluster that an entry of the slice stands for: bytes. */
static inline uint64_t qcow2_slice_guest(const struct qcow2 *s, const struct qcow2_slice *slice, uint32_t index)
{
    return (slice->number << s->slice_shift) + ((uint64_t)index << s->cluster_bits);
}
static inline size_t qcow2_slice_bytes(const struct qcow2 *s)
{
    return (size_t)1 << (s->slice_bits + qcow2_entry_shift(s->extended));
}
static inline struct qcow2_entry qcow2_slice_entry(const struct qcow2 *s, const struct qcow2_slice *slice,
                                                   uint32_t index)
{
    const _Atomic uint64_t *at = &slice->words[s->extended ? index * 2 : index];
    struct qcow2_entry entry = { be64toh(atomic_load_explicit(at, memory_order_acquire)), 0 };

    if (s->extended)
        entry.subclusters = be64toh(atomic_load_explicit(at + 1, memory_order_acquire));
    return entry;
}
static inline struct qcow2_layout qcow2_layout(const struct qcow2 *s)
{
    return (struct qcow2_layout){ s->extended, s->external };
}

/* ---- subclusters: of images without them the whole cluster is one ---- */

static inline uint64_t qcow2_sub_size(const struct qcow2 *s) { return UINT64_C(1) << s->sub_bits; }
static inline unsigned qcow2_sub_index(const struct qcow2 *s, uint64_t offset)
{
    return (unsigned)(qcow2_in_cluster(s, offset) >> s->sub_bits);
}
/* What the entry of its guest cluster says of the byte at this offset. */
static inline enum qcow2_kind qcow2_kind_at(const struct qcow2 *s, struct qcow2_entry entry, uint64_t offset)
{
    return s->extended ? qcow2_entry_kind_of(entry, qcow2_sub_index(s, offset)) : qcow2_entry_kind(entry);
}
/* The subclusters of the cluster at `cluster` that [offset, end) touches, as in an entry's bitmap. */
static inline uint32_t qcow2_sub_mask(const struct qcow2 *s, uint64_t cluster, uint64_t offset, uint64_t end)
{
    uint64_t from = MAX(offset, cluster) - cluster, to = MIN(end, cluster + s->cluster_size) - cluster;
    unsigned first = (unsigned)(from >> s->sub_bits), last = (unsigned)((to - 1) >> s->sub_bits);

    return (UINT32_MAX << first) & (UINT32_MAX >> (QCOW2_SUBCLUSTERS - 1 - last));
}
