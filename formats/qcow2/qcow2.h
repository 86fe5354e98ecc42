/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the files of the qcow2 driver share: the header, the state of an open image, and each file's functions.
 *
 * Numbers: "cluster" is a host cluster's index in the file, "guest cluster" one of the virtual disk; offsets and
 * lengths are bytes. The L1 table, L2 slices, the refcount table and refcount blocks are kept big-endian, as on disk,
 * so that writing back is a copy.
 *
 * Locking: `lock` guards everything below it except what says otherwise. It is held while metadata is read, never
 * across guest data I/O, copy on write or a host flush. `map` (map.c) takes no lock: it follows l1, dir and slice
 * entries by atomic loads, inside an epoch; so a slice or a cluster that is taken away is reused only when that epoch
 * has passed.
 *
 * Writing order (commit.c): what an entry refers to is durable before the entry; an entry is durably gone before its
 * cluster's refcount goes down.
 */
#pragma once

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

/* ---- the format (qcow2 specification) ---- */

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_V2_HEADER_LENGTH 72u
#define QCOW2_V3_HEADER_LENGTH 104u

#define QCOW2_MIN_CLUSTER_BITS 9u
#define QCOW2_MAX_CLUSTER_BITS 21u
#define QCOW2_MAX_L1_BYTES (32u << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)
#define QCOW2_MAX_BACKING_NAME 1023u
#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES (1024u * QCOW2_MAX_SNAPSHOTS)

#define QCOW2_INCOMPAT_DIRTY (UINT64_C(1) << 0)
#define QCOW2_INCOMPAT_CORRUPT (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (UINT64_C(1) << 4)
#define QCOW2_INCOMPAT_KNOWN UINT64_C(0x1f)
#define QCOW2_COMPAT_LAZY_REFCOUNTS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_BITMAPS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA (UINT64_C(1) << 1)

#define QCOW2_EXT_END 0x00000000u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_TABLE 0x6803f857u
#define QCOW2_EXT_BITMAPS 0x23852875u
#define QCOW2_EXT_CRYPTO 0x0537be77u
#define QCOW2_EXT_DATA_FILE 0x44415441u

/* L1 and standard L2 entries. */
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)
#define QCOW2_COPIED (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ZERO UINT64_C(1)
#define QCOW2_L1_RESERVED UINT64_C(0x7f000000000001ff)
#define QCOW2_L2_RESERVED UINT64_C(0x3f000000000001fe)
#define QCOW2_REFTABLE_RESERVED UINT64_C(0x1ff)

enum qcow2_compression { QCOW2_ZLIB, QCOW2_ZSTD };

/* Byte offsets of header fields that are changed in place; all lie in the first sector. */
enum qcow2_header_field {
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_L1_SIZE = 36,
    QCOW2_AT_L1_OFFSET = 40,
    QCOW2_AT_REFTABLE_OFFSET = 48,
    QCOW2_AT_REFTABLE_CLUSTERS = 56,
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_AUTOCLEAR = 88,
};

struct qcow2_header {
    uint32_t version;
    uint64_t backing_offset;
    uint32_t backing_length;
    uint32_t cluster_bits;
    uint64_t size;
    uint32_t crypt_method;
    uint32_t l1_size;
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression;
};

/* What the header extensions say. */
struct qcow2_extensions {
    char backing_format[16];
    const uint8_t *feature_table; /* points into the buffer that was parsed */
    size_t feature_table_length;
    bool crypto, bitmaps, data_file;
    uint32_t bitmap_count;
    uint64_t bitmap_directory_size, bitmap_directory_offset;
};

/* ---- an L2 entry ---- */

enum qcow2_kind { QCOW2_UNALLOCATED, QCOW2_ZERO_PLAIN, QCOW2_ZERO_ALLOCATED, QCOW2_NORMAL, QCOW2_IS_COMPRESSED };

static inline enum qcow2_kind qcow2_kind(uint64_t entry)
{
    if (entry & QCOW2_COMPRESSED)
        return QCOW2_IS_COMPRESSED;
    if (entry & QCOW2_ZERO)
        return entry & QCOW2_OFFSET_MASK ? QCOW2_ZERO_ALLOCATED : QCOW2_ZERO_PLAIN;
    return entry & QCOW2_OFFSET_MASK ? QCOW2_NORMAL : QCOW2_UNALLOCATED;
}

/* ---- structures in memory ---- */

/* A part of an L2 table: at most 4 KiB, never more than the table. */
struct qcow2_slice {
    uint64_t number;        /* guest offset >> slice_shift */
    uint64_t host_offset;   /* where it lies in the file */
    atomic_bool referenced; /* used since the clock hand went by; set by map without the lock */
    atomic_bool unstable;   /* has changes that are not durable yet */
    bool suspect;           /* some entry is wild or points at metadata: map is careful. Constant once published */
    bool dirty;             /* changed since the last capture: on dirty_slices */
    bool committing;        /* captured by the running commit */
    uint64_t retired;       /* epoch, once evicted */
    struct list link;       /* slices, or limbo_slices */
    struct list dirty_link;
    _Atomic uint64_t entries[]; /* big-endian */
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
    uint32_t dirty_start, dirty_end; /* bytes, whole sectors */
    struct list link;                /* refblocks */
    uint8_t *data;                   /* one cluster */
};

/* Host clusters whose references are gone from memory. */
struct qcow2_extent {
    uint64_t cluster;
    uint32_t count;
    bool discard; /* may be given back to the host */
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
};

/* A set of host clusters that hold metadata: open addressing, 0 is empty (cluster 0 is the header). */
struct qcow2_set {
    uint64_t *slots;
    size_t count, capacity;
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

struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size, extra_length;
    uint16_t id_length, name_length;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec, vm_state_size, disk_size, icount; /* icount: UINT64_MAX where there is none */
    char *id, *name;
};

/* One decompressed cluster, shared by the requests that read it. */
struct qcow2_decoded {
    struct list link; /* decoded: most recently used first */
    uint64_t guest_cluster, entry;
    unsigned references; /* the list's counts too */
    bool ready, stale;
    int result;
    uint8_t *data;
};

enum qcow2_timer_state { QCOW2_TIMER_IDLE, QCOW2_TIMER_ARMING, QCOW2_TIMER_ARMED };

struct qcow2 {
    struct blk_node *node;

    /* Constant while open, except by truncate (drained). */
    struct qcow2_header header;
    uint8_t sector0[BLK_SECTOR_SIZE]; /* as on disk; changed under the lock */
    char *backing_name, backing_format[16];
    unsigned cluster_bits, l2_bits, slice_bits; /* log2: bytes a cluster, entries a table, entries a slice */
    unsigned l1_shift, slice_shift;             /* log2: guest bytes an L1 entry, a slice */
    uint64_t cluster_size;
    unsigned refblock_bits; /* log2: refcounts a block */
    bool lazy_refcounts, discard_to_host, host_grows;
    unsigned overlap_check; /* QCOW2_REGION_* */
    size_t max_slices, max_refblocks;
    struct qcow2_snapshot *snapshots;
    uint64_t snapshots_length; /* bytes of the snapshot table */
    uint32_t bitmap_count;
    uint64_t bitmap_directory_size, bitmap_directory_offset;

    /* Read by map without the lock. */
    _Atomic uint64_t *l1; /* big-endian; memory is whole sectors */
    uint32_t l1_size;     /* entries */
    _Atomic(struct qcow2_dir *) *dir;
    atomic_bool need_commit;   /* an L2 or L1 change is not durable: a flush has to commit */
    atomic_bool corrupt;       /* no write is allowed any more */
    atomic_bool header_unsure; /* a write of the header failed: on disk it may be the one before, or what was to be */

    struct co_mutex lock;

    /* L2 (l2.c) */
    struct list slices, limbo_slices, dirty_slices;
    size_t slice_count, dirty_count;
    struct list loading; /* struct loading in l2.c */
    struct co_cond loaded;
    uint8_t *l1_dirty; /* a byte for each 512-byte sector of the L1 table: 1 dirty, 2 captured */
    uint32_t l1_dirty_count;
    bool l1_checked, reftable_checked;     /* they lie over no other metadata */
    struct qcow2_set l2_set, refblock_set; /* host clusters of active L2 tables and refcount blocks */
    struct qcow2_set inactive_l2_set;      /* of snapshots' L2 tables: overlap.c */

    /* refcounts (refcount.c) */
    uint64_t *reftable;                              /* big-endian */
    uint64_t reftable_entries;                       /* in memory; whole clusters */
    bool reftable_moved;                             /* memory's table is not the one that the header on disk names */
    uint64_t reftable_offset, reftable_disk_entries; /* its place, and how many entries that has room for */
    uint8_t *reftable_dirty;                         /* by sector, as l1_dirty */
    struct qcow2_refblock **refblocks;               /* by index; NULL: not loaded */
    struct list refblock_list;
    size_t refblock_count, refblock_dirty_count, refblock_fresh_count;
    uint64_t free_cursor; /* no free cluster below */
    uint64_t fresh_from;  /* clusters from here on were never written: they read as zeroes */
    bool dirty_bit;       /* set on disk by us (lazy refcounts) */

    /* freeing (free.c) */
    struct qcow2_freed freed;
    struct list limbo;
    bool reaping;
    int reap_error; /* a refcount could not be lowered: a leak. For the next settle to tell */

    /* requests (inflight.c) */
    struct list inflight;
    struct co_cond inflight_done;

    /* commit.c */
    bool commit_running;
    uint64_t commits_started, commits_done, commit_succeeded;
    int commit_error;
    struct co_cond commit_done;
    bool background; /* a background commit is queued or running */
    bool closing;
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

#define QCOW2_DECODED_MAX 8u

static inline uint64_t qcow2_be(uint64_t value) { return htobe64(value); }
static inline uint64_t qcow2_cluster_start(const struct qcow2 *s, uint64_t offset)
{
    return align_down(offset, s->cluster_size);
}
static inline uint64_t qcow2_in_cluster(const struct qcow2 *s, uint64_t offset)
{
    return offset & (s->cluster_size - 1);
}
static inline uint64_t qcow2_l1_entry(const struct qcow2 *s, uint64_t index)
{
    return be64toh(atomic_load_explicit(&s->l1[index], memory_order_acquire));
}
static inline uint32_t qcow2_slice_index(const struct qcow2 *s, uint64_t offset)
{
    return (uint32_t)((offset >> s->cluster_bits) & ((1u << s->slice_bits) - 1));
}
static inline uint32_t qcow2_slice_entries(const struct qcow2 *s) { return 1u << s->slice_bits; }
static inline uint64_t qcow2_slice_entry(const struct qcow2_slice *slice, uint32_t index)
{
    return be64toh(atomic_load_explicit(&slice->entries[index], memory_order_acquire));
}
/* Where a compressed cluster lies: bytes, the last sector counted whole. */
void qcow2_compressed_place(unsigned cluster_bits, uint64_t entry, uint64_t *offset, uint64_t *length);

/* ---- header.c ---- */

/* Parses and checks what needs no more than the first bytes of the file. */
int qcow2_header_parse(const uint8_t *data, size_t length, struct qcow2_header *header, struct error **errp);
/* The rest of what can be checked without reading further. */
int qcow2_header_validate(const struct qcow2_header *header, struct error **errp);
/* The extensions: data is the file's first `length` bytes (at most a cluster). */
int qcow2_extensions_parse(const struct qcow2_header *header, const uint8_t *data, size_t length,
                           struct qcow2_extensions *ext, struct error **errp);
/* Refuses unknown incompatible features by the names in the image's table. */
int qcow2_features_check(uint64_t unknown, const struct qcow2_extensions *ext, struct error **errp);
/* Writes header, extensions and backing name into a zeroed buffer of one cluster. Sets header->backing_offset. */
int qcow2_header_build(struct qcow2_header *header, const char *backing_name, const char *backing_format, uint8_t *out,
                       size_t out_size, struct error **errp);
/* Changes fields of the first sector in memory; qcow2_co_header_write() makes it durable (write and host flush). Where
 * that fails nobody knows which header is on disk: every commit writes it first, until it is the one in memory. */
void qcow2_header_set32(struct qcow2 *s, enum qcow2_header_field at, uint32_t value);
void qcow2_header_set64(struct qcow2 *s, enum qcow2_header_field at, uint64_t value);
coroutine_fn int qcow2_co_header_write(struct qcow2 *s);

/* ---- open.c ---- */

coroutine_fn int qcow2_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp);
coroutine_fn int qcow2_co_close(struct blk_node *node);
extern const struct opt_desc qcow2_options[];
/* Fills l2_set and refblock_set from the tables in memory. */
int qcow2_collect_metadata(struct qcow2 *s);

/* ---- snapshot.c ---- */

coroutine_fn int qcow2_co_snapshots_read(struct qcow2 *s, struct error **errp);
void qcow2_snapshots_free(struct qcow2 *s);
json_t *qcow2_snapshots_json(const struct qcow2 *s); /* for info; NULL where there are none */
/* Can its L1 table be one: aligned, not too large? */
bool qcow2_snapshot_l1_valid(const struct qcow2 *s, const struct qcow2_snapshot *snapshot);

/* ---- corrupt.c: what must never be overwritten ---- */

int qcow2_set_add(struct qcow2_set *set, uint64_t cluster);
void qcow2_set_remove(struct qcow2_set *set, uint64_t cluster);
bool qcow2_set_has(const struct qcow2_set *set, uint64_t cluster);
void qcow2_set_finish(struct qcow2_set *set);
/* Which of the image's metadata a write of [offset, offset + length) would meet: a QCOW2_REGION_ bit of those not in
 * `ignore`, or 0. Lock held. */
unsigned qcow2_overlap(const struct qcow2 *s, uint64_t offset, uint64_t length, unsigned ignore);
/* The same as a check: marks the image corrupt and returns -EIO. Lock held; may yield. */
coroutine_fn int qcow2_co_check_overlap(struct qcow2 *s, uint64_t offset, uint64_t length, unsigned ignore);
/* The same for the active L1 table and the refcount table, before they are changed where they lie. */
coroutine_fn int qcow2_co_check_l1(struct qcow2 *s);
coroutine_fn int qcow2_co_check_reftable(struct qcow2 *s);
/* Says so (once), and on a writable image sets the corrupt bit and refuses writes from now on. Returns -EIO. Lock
 * held. */
coroutine_fn int qcow2_co_mark_corrupt(struct qcow2 *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* overlap.c: options, and what has to be read for them: at open, and when the list of snapshots changes. */
int qcow2_overlap_options(struct qcow2 *s, struct opts *opts, struct error **errp);
coroutine_fn int qcow2_co_overlap_read(struct qcow2 *s, struct error **errp);

/* ---- map.c, l2cache.c ---- */

void qcow2_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
               struct blk_extent *extent);
coroutine_fn int qcow2_co_load(struct blk_node *node, enum blk_op op, uint64_t offset, uint64_t length);
coroutine_fn int qcow2_co_extent(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent);
/* l2cache.c. Lock held; may give it up and take it again. *out is NULL where there is no L2 table. */
coroutine_fn int qcow2_co_slice(struct qcow2 *s, uint64_t offset, struct qcow2_slice **out);
/* The same for changing entries: the table is made, or copied where a snapshot shares it. Never NULL on success. */
coroutine_fn int qcow2_co_slice_for_write(struct qcow2 *s, uint64_t offset, struct qcow2_slice **out);
/* Lock held, slice from qcow2_co_slice_for_write() with no yield since. */
void qcow2_slice_set(struct qcow2 *s, struct qcow2_slice *slice, uint32_t index, uint64_t entry);
void qcow2_l1_set(struct qcow2 *s, uint32_t index, uint64_t entry);
struct qcow2_slice *qcow2_slice_find(const struct qcow2 *s, uint64_t offset);
/* Can a read follow the entry: aligned, and allowed in this version? Any thread. */
bool qcow2_entry_readable(const struct qcow2 *s, uint64_t entry);
/* May writes follow it too? Lock held. */
bool qcow2_entry_plausible(const struct qcow2 *s, uint64_t entry);
void qcow2_slices_clean(struct qcow2 *s);                   /* drops what was not used since the last call. Lock held */
void qcow2_slices_free(struct qcow2 *s);                    /* all, at close or when nothing is in flight */
void qcow2_slices_forget(struct qcow2 *s);                  /* all that are clean; nothing is in flight */
void qcow2_slices_drop(struct qcow2 *s, uint64_t l1_index); /* one table's, clean, drained */

/* ---- refcount.c: counting ---- */

uint64_t qcow2_refcount_get(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_set(void *block, unsigned order, uint64_t index, uint64_t value);
static inline uint64_t qcow2_refcount_max(unsigned order)
{
    return order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
}
/* Lock held; may give up the lock only inside I/O on metadata (never does: it is held). Clusters outside the table
 * count 0. */
coroutine_fn int qcow2_co_refcount(struct qcow2 *s, uint64_t cluster, uint64_t *out);
/* The block that counts `cluster` must exist. */
coroutine_fn int qcow2_co_refcount_change(struct qcow2 *s, uint64_t cluster, uint64_t value);
coroutine_fn int qcow2_co_refblock(struct qcow2 *s, uint64_t index, struct qcow2_refblock **out); /* NULL: none */
coroutine_fn int qcow2_co_refblock_for_write(struct qcow2 *s, uint64_t index, struct qcow2_refblock **out);
struct qcow2_refblock *qcow2_refblock_insert(struct qcow2 *s, uint64_t index, uint64_t host_offset);
void qcow2_refblock_dirty(struct qcow2 *s, struct qcow2_refblock *block, uint32_t start, uint32_t end);
void qcow2_refblocks_trim(struct qcow2 *s);
void qcow2_refblocks_clean(struct qcow2 *s); /* drops what was not used since the last call. Lock held */
void qcow2_refblock_drop(struct qcow2 *s, struct qcow2_refblock *block);
void qcow2_refcounts_free(struct qcow2 *s);
void qcow2_reftable_set(struct qcow2 *s, uint64_t index, uint64_t offset);

/* ---- alloc.c: host clusters ---- */

/* 1 … count contiguous clusters, refcount one each. *got says how many; *fresh (may be NULL) whether they are certain
 * to read as zeroes. Lock held, never given up. */
coroutine_fn int qcow2_co_alloc(struct qcow2 *s, uint64_t count, uint64_t *offset, uint64_t *got, bool *fresh);
/* Exactly count contiguous ones. */
coroutine_fn int qcow2_co_alloc_exact(struct qcow2 *s, uint64_t count, uint64_t *offset);
/* Gives back clusters that nothing on disk refers to. */
coroutine_fn void qcow2_co_unalloc(struct qcow2 *s, uint64_t offset, uint64_t count);
/* reftable.c: makes the block that counts cluster `cluster` exist (growing the table if need be). Lock held. */
coroutine_fn int qcow2_co_refblock_create(struct qcow2 *s, uint64_t cluster);
coroutine_fn int qcow2_co_grow_reftable(struct qcow2 *s, uint64_t entries);
/* Exactly count contiguous clusters behind all that is counted, with the blocks that count them. */
coroutine_fn int qcow2_co_append_run(struct qcow2 *s, uint64_t count, uint64_t *offset);
/* Before the first change: the dirty bit for lazy refcounts. Lock held. */
coroutine_fn int qcow2_co_begin_changes(struct qcow2 *s);

/* ---- free.c ---- */

/* References to these clusters are gone from memory; see commit.c for what follows. Lock held. */
void qcow2_freed_add(struct qcow2_freed *freed, uint64_t cluster, uint64_t count, bool discard);
void qcow2_free_entry(struct qcow2 *s, uint64_t entry, bool discard); /* what an L2 entry referred to */
coroutine_fn void qcow2_co_reap(struct qcow2 *s, bool wait);          /* lock held; given up and taken again */

/* ---- inflight.c ---- */

/* Waits until [first, last] (exclusive: shortened to what is free) can be registered. Returns true at once where it
 * could, false after a wait: look everything up again. Lock held. */
coroutine_fn bool qcow2_co_inflight_begin(struct qcow2 *s, struct qcow2_inflight *entry);
void qcow2_inflight_end(struct qcow2 *s, struct qcow2_inflight *entry);

/* ---- commit.c ---- */

/* Makes durable all that completed before the call. Lock not held. */
coroutine_fn int qcow2_co_commit(struct qcow2 *s);
/* Lock held: kicks a background commit where much is dirty, and arms the timer. */
void qcow2_note_dirty(struct qcow2 *s);
/* Lock held, given up while waiting: where far too much is dirty. */
coroutine_fn void qcow2_co_throttle(struct qcow2 *s);
/* Nothing is in flight: commits until nothing is dirty and nothing waits to be freed. Lock not held. */
coroutine_fn int qcow2_co_settle(struct qcow2 *s);
/* For close, on the home loop: no commit starts by itself any more, and none runs. */
coroutine_fn void qcow2_co_stop_background(struct qcow2 *s);
coroutine_fn int qcow2_co_flush(struct blk_node *node);

/* cacheclean.c. On the home loop. */
int qcow2_clean_options(struct qcow2 *s, struct opts *opts, struct error **errp);
void qcow2_clean_start(struct qcow2 *s);
coroutine_fn void qcow2_co_clean_stop(struct qcow2 *s);

/* writeback.c: a set of pieces to write, copied at once, written in parallel */
struct qcow2_writeback {
    struct qcow2_piece {
        uint64_t offset;
        const void *source;
        uint32_t length;
    } * pieces;
    size_t count, capacity;
    uint64_t bytes;
    uint8_t *buffer;
};
int qcow2_writeback_add(struct qcow2_writeback *wb, uint64_t offset, const void *source, uint32_t length);
int qcow2_writeback_copy(struct qcow2_writeback *wb, struct blk_node *file); /* sorts, copies from the sources */
coroutine_fn int qcow2_co_writeback_write(struct qcow2_writeback *wb, struct blk_node *file);
/* By offset, a flush between one piece and the next; none after the last. */
coroutine_fn int qcow2_co_writeback_write_in_order(const struct qcow2_writeback *wb, struct blk_node *file);
void qcow2_writeback_finish(struct qcow2_writeback *wb);

/* ---- read.c, write.c, zero.c, compress.c ---- */

coroutine_fn int qcow2_co_read(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                               int iov_count);
coroutine_fn int qcow2_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                int iov_count, unsigned flags);
/* The old content of a guest range within one cluster, by its entry: for copy on write and slow reads. Lock not held;
 * the caller has the cluster registered in flight. */
coroutine_fn int qcow2_co_read_entry(struct qcow2 *s, uint64_t entry, uint64_t offset, uint64_t length,
                                     const struct iovec *iov, int iov_count);
/* Is the entry one that may be followed at all? Marks the image corrupt and returns -EIO if not. Lock held. */
coroutine_fn int qcow2_co_check_entry(struct qcow2 *s, const struct qcow2_slice *slice, uint32_t index, uint64_t entry,
                                      bool to_write);
coroutine_fn int qcow2_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags);
coroutine_fn int qcow2_co_discard(struct blk_node *node, uint64_t offset, uint64_t length);
/* Zeroes or (full) drops whole clusters, or zeroes those that are unallocated still; offset and length are whole
 * clusters, the last may reach past the disk's end. */
enum qcow2_clear {
    QCOW2_CLEAR_ZERO,
    QCOW2_CLEAR_ZERO_UNMAP,
    QCOW2_CLEAR_ABSENT,
    QCOW2_CLEAR_DISCARD,
    QCOW2_CLEAR_DROP
};
coroutine_fn int qcow2_co_clear(struct qcow2 *s, uint64_t offset, uint64_t length, enum qcow2_clear how);

/* Reads a compressed cluster through the pool and the little cache of decoded ones. Lock not held. */
coroutine_fn int qcow2_co_read_compressed(struct qcow2 *s, uint64_t entry, uint64_t offset, uint64_t length,
                                          const struct iovec *iov, int iov_count);
/* Decodes one cluster: 0 or -EIO. Pure. */
int qcow2_decompress(enum qcow2_compression how, const uint8_t *in, size_t in_length, uint8_t *out, size_t out_length);
void qcow2_decoded_forget(struct qcow2 *s, uint64_t guest_cluster); /* its entry changes. Lock held */
void qcow2_decoded_free(struct qcow2 *s);

/* ---- create.c, truncate.c, check.c, info.c ---- */

coroutine_fn int qcow2_co_create(struct blk_create *create, struct error **errp);
extern const struct opt_desc qcow2_create_options[];
coroutine_fn int qcow2_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                   struct error **errp);
/* Clusters for all of [offset, end) that has none. prealloc: "metadata", "falloc", "full". Nothing is in flight. */
coroutine_fn int qcow2_co_preallocate(struct qcow2 *s, uint64_t offset, uint64_t end, const char *prealloc,
                                      struct error **errp);
coroutine_fn int qcow2_co_check(struct blk_node *node, struct blk_check *check, unsigned fix, struct error **errp);
coroutine_fn int qcow2_co_info(struct blk_node *node, struct blk_info *info, struct error **errp);
