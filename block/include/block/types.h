/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Words that every user of the block layer shares: operations, flags, extents, limits. Offsets and lengths are in
 * bytes. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum blk_op { BLK_OP_READ, BLK_OP_WRITE, BLK_OP_WRITE_ZEROES, BLK_OP_DISCARD, BLK_OP_FLUSH, BLK_OP_COUNT };

/* Flags of one request. */
enum blk_req_flags {
    BLK_REQ_FUA = 1u << 0,         /* writes: on stable storage before completion */
    BLK_REQ_MAY_UNMAP = 1u << 1,   /* write zeroes: may give the space back to the host */
    BLK_REQ_NO_FALLBACK = 1u << 2, /* write zeroes: -ENOTSUP where it would mean writing buffers of zeroes */
    BLK_REQ_REGISTERED = 1u << 3,  /* internal */
    /* writes: only where the node has nothing itself and its backing shows through; the rest is left out. A
     * write of others that comes meanwhile stays (copy on read, stream) */
    BLK_REQ_ABSENT_ONLY = 1u << 4,
    /* writes: of whole clusters (the disk's last may be cut), compressed. -EINVAL: they are not whole. -EIO: the image
     * has data there. -ENOTSUP: the format, or a filter, cannot */
    BLK_REQ_COMPRESSED = 1u << 5,
};

/* How an image is opened. */
enum blk_open_flags {
    BLK_O_RDWR = 1u << 0,           /* else read-only */
    BLK_O_DIRECT = 1u << 1,         /* cache.direct: O_DIRECT on the host */
    BLK_O_DSYNC = 1u << 2,          /* O_DSYNC on the host: modes writethrough and directsync */
    BLK_O_NO_FLUSH = 1u << 3,       /* cache.no-flush: unsafe */
    BLK_O_UNMAP = 1u << 4,          /* discard=unmap: discards reach the host */
    BLK_O_FORCE_SHARE = 1u << 5,    /* -U: take no lock that others could conflict with */
    BLK_O_NO_BACKING = 1u << 6,     /* do not open the backing chain (info, check, rebase -u) */
    BLK_O_CHECK = 1u << 7,          /* for check and repair: open although dirty or corrupt */
    BLK_O_NO_IO = 1u << 8,          /* only metadata is wanted (info) */
    BLK_O_PROBED = 1u << 9,         /* internal: the format was guessed */
    BLK_O_AIO_THREADS = 1u << 10,   /* aio=threads */
    BLK_O_NO_LOCK = 1u << 11,       /* locking=off */
    BLK_O_RESIZE = 1u << 12,        /* the front end will resize */
    BLK_O_AUTO_RDONLY = 1u << 13,   /* fall back to read-only where the image may not be written */
    BLK_O_DETECT_ZEROES = 1u << 14, /* detect-zeroes=on: writes of zeroes become write-zeroes */
    BLK_O_DETECT_UNMAP = 3u << 14,  /* detect-zeroes=unmap: and may give the space back */
    BLK_O_DETECT_MASK = 3u << 14,
    BLK_O_NO_PROBE = 1u << 16, /* internal: below a disk that is written; its format has to be named */
};

/* What `map` found at a place. */
enum blk_kind {
    BLK_DATA,   /* the bytes are at child:child_offset (a protocol node: child is NULL, they are its own) */
    BLK_ZERO,   /* reads as zeroes, nothing to ask */
    BLK_ABSENT, /* not in this layer: ask the backing child; zeroes where there is none or it ends before */
    BLK_SLOW,   /* cannot be said or done from memory: the driver's co_ functions */
};

enum blk_extent_flags {
    BLK_EXTENT_COLD = 1u << 0,       /* with BLK_SLOW: metadata is not in memory; co_load() and map again */
    BLK_EXTENT_COMPRESSED = 1u << 1, /* with BLK_SLOW: a compressed cluster */
    BLK_EXTENT_ALLOCATED =
        1u << 2,                  /* with BLK_ZERO: this layer says so itself (a zero cluster), not for lack of data */
    BLK_EXTENT_RECURSE = 1u << 3, /* with BLK_DATA: it is data here, but the child may know that it reads as zeroes */
    BLK_EXTENT_RAW = 1u << 6,     /* with BLK_DATA: this node adds nothing, the child's answer stands (raw, filters) */
    BLK_EXTENT_EOF = 1u << 4,     /* the extent ends at the end of the node */
    BLK_EXTENT_OFFSET_VALID = 1u << 5, /* with BLK_ZERO: child:child_offset is where the preallocated cluster is */
};

struct blk_node;

struct blk_extent {
    enum blk_kind kind;
    unsigned flags;
    uint64_t length; /* from the offset asked for; 1 … the length asked for */
    struct blk_node *child;
    uint64_t child_offset;
};

/* What a node asks of requests and recommends. A power of two each, at least 1; 0 in `max_` means no limit. */
struct blk_limits {
    uint32_t request_alignment; /* of offset and length; others cost a read-modify-write */
    uint32_t memory_alignment;  /* of every iovec's address and length; others are bounced */
    uint32_t max_iov;
    uint64_t max_transfer;
    uint64_t discard_alignment, max_discard;
    uint64_t zeroes_alignment, max_zeroes;
    uint32_t logical_block, physical_block, min_io, opt_io; /* host topology, 0 unknown */
};

/* What a parent does with a node, and what it lets others do meanwhile (as QEMU's permissions; block/perm.h has the
 * lock bytes). Bit numbers are those of the lock bytes. */
enum blk_perm {
    BLK_PERM_CONSISTENT_READ = 1u << 0,
    BLK_PERM_WRITE = 1u << 1,
    BLK_PERM_WRITE_UNCHANGED = 1u << 2,
    BLK_PERM_RESIZE = 1u << 3,
    BLK_PERM_ALL = 15,
};

/* Image files end at a whole number of these where their own size does not. */
#define BLK_SECTOR_SIZE 512u
