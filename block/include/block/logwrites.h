/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Logs of writes, for power-cut tests: what a `blklogwrites` node (block/filters/blklogwrites.c) records, and reading
 * it.
 *
 * The file is that of the kernel's dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst),
 * little-endian: sector 0 is the superblock, then entries, each one sector with struct log_entry and, unless DISCARD,
 * FLUSH or MARK, the data. Ours adds to the end of each of these sectors when the I/O began and ended, on a clock
 * that ticks at each begin and each end. That is what it takes to say, for each moment, what a disk may hold:
 *
 *   A write is durable at time t if a flush that began after the write ended has itself ended by t (or the write is
 *   FUA and has ended by t). It may have landed, whole, in part or not, if it began before t. Else it has not.
 *
 * A new size is a mark "truncate BYTES"; what it cuts off is a discard too.
 *
 * Read in the order of the file and without the clock, as other tools do, a log is also a true history: writes stand
 * where they ended, a flush where it began. Then a disk after a cut has everything up to the last flush before the
 * cut and anything of what follows it, which is a subset of what the clock allows.
 */
#pragma once

#include <base/error.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct blk_node;

enum logwrites_flags {
    LOGWRITES_FLUSH = 1u << 0,
    LOGWRITES_FUA = 1u << 1,
    LOGWRITES_DISCARD = 1u << 2,
    LOGWRITES_MARK = 1u << 3,
};

/* ---- reading; any thread, one at a time ---- */

#define LOGWRITES_NEVER UINT64_MAX

struct logwrites_entry {
    unsigned flags;          /* LOGWRITES_*; 0: a write */
    uint64_t offset, length; /* bytes of the disk */
    uint64_t began, ended;   /* clock; ended LOGWRITES_NEVER: the write failed, what it did is not known */
    uint64_t durable;        /* from this clock on; LOGWRITES_NEVER */
    uint64_t data;           /* where in the log file */
    char *mark;              /* MARK: its text */
};

struct logwrites;
struct logwrites *logwrites_open(const char *path, struct error **errp); /* NULL and *errp where it is not a log */
void logwrites_close(struct logwrites *log);                             /* takes NULL */
size_t logwrites_count(const struct logwrites *log);
const struct logwrites_entry *logwrites_entry(const struct logwrites *log, size_t index);
uint64_t logwrites_sector_size(const struct logwrites *log);
/* One past the last clock in the log. */
uint64_t logwrites_end(const struct logwrites *log);
/* `length` bytes of entry `index`'s data from `skip` on. 0 or -errno. */
int logwrites_read(const struct logwrites *log, size_t index, uint64_t skip, void *buffer, size_t length);

enum logwrites_fate { LOGWRITES_NOT_YET, LOGWRITES_MAYBE, LOGWRITES_DURABLE };
/* What a power cut at clock `time` means for an entry that changes the disk. Entries that share bytes take effect in
 * the order of the log, unless both were under way at once: then either order. */
enum logwrites_fate logwrites_fate(const struct logwrites_entry *entry, uint64_t time);

/* ---- writing: of an open blklogwrites node ---- */

/* The clock now: what was acknowledged before this call ended before it. Any thread. */
uint64_t logwrites_now(struct blk_node *node);
/* Puts a mark with a text (cut where it does not fit into a sector) into the log. In a coroutine, any loop. 0 or
 * -errno. */
int logwrites_co_mark(struct blk_node *node, const char *text);

/* ---- on the disk ---- */

#define LOGWRITES_MAGIC 0x6a736677736872ull
#define LOGWRITES_VERSION 1ull
#define LOGWRITES_CLOCK_MAGIC 0x314b434f4c434d56ull /* "VMCLOCK1" */

struct log_superblock {
    uint64_t magic, version, entries;
    uint32_t sector_size;
} __attribute__((packed));

struct log_entry {
    uint64_t sector, sectors; /* of sector_size bytes */
    uint64_t flags;
    uint64_t data_length; /* MARK: of the text, which follows in the same sector */
} __attribute__((packed));

/* The last bytes of the superblock (begin and end are 0 there) and of each entry's sector. */
struct log_clock {
    uint64_t magic, generation, began, ended;
} __attribute__((packed));
