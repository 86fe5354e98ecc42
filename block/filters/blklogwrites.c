/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blklogwrites: a filter that writes a log of every change to its child `file` into its child `log`, in dm-log-writes
 * format with a clock (block/logwrites.h says what a log means). Options as QEMU's.
 *
 * The rule that makes a log a true history: the clock ticks before a request goes to the child (`began`) and after it
 * came back (`ended`); a change takes its place in the log when it has ended and before it is acknowledged; a flush
 * takes its place when it begins, since what ends later is not covered, and is written there when it has ended. A
 * flush that failed leaves a mark. With O_DSYNC every write is logged as FUA; in cache mode unsafe nothing is
 * durable, so neither flush nor FUA is logged. A change that failed may have happened or not, for ever: its `ended`
 * is LOGWRITES_NEVER.
 *
 * The log has whole sectors: a write of parts of a sector is made one of whole sectors here, alone on the node.
 */
#include "filter.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/endian.h>
#include <block/image.h>
#include <block/logwrites.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define MAX_SECTOR_SIZE (1u << 23)

struct blklogwrites {
    struct blk_node *log;
    uint32_t sector_size;
    uint64_t generation;
    uint64_t update_interval;
    struct co_rwlock rewrite; /* read-modify-write of a sector: for writing; other changes: for reading */

    pthread_mutex_t lock; /* protects all below */
    uint64_t clock;
    uint64_t next_sector; /* of the log */
    uint64_t entries;
    uint64_t since_update;
};

static const struct opt_desc blklogwrites_options[] = {
    { .name = "log-sector-size", .type = OPT_SIZE, .flags = OPT_CONTENT, .def = "512", .help = "Log sector size" },
    { .name = "log-append", .type = OPT_BOOL, .flags = OPT_CONTENT, .def = "off", .help = "Append to an existing log" },
    { .name = "log-super-update-interval",
      .type = OPT_NUMBER,
      .def = "4096",
      .help = "Log superblock update interval (# of write requests)" },
    { 0 },
};

/* ---- the log ---- */

static void put_clock(struct blklogwrites *s, uint8_t *sector, uint64_t began, uint64_t ended)
{
    uint8_t *clock = sector + s->sector_size - sizeof(struct log_clock);

    store_le64(clock + offsetof(struct log_clock, magic), LOGWRITES_CLOCK_MAGIC);
    store_le64(clock + offsetof(struct log_clock, generation), s->generation);
    store_le64(clock + offsetof(struct log_clock, began), began);
    store_le64(clock + offsetof(struct log_clock, ended), ended);
}

static coroutine_fn int co_write_superblock(struct blklogwrites *s)
{
    AUTO_FREE uint8_t *sector = xcalloc(1, s->sector_size);

    pthread_mutex_lock(&s->lock);
    uint64_t entries = s->entries;
    pthread_mutex_unlock(&s->lock);
    store_le64(sector + offsetof(struct log_superblock, magic), LOGWRITES_MAGIC);
    store_le64(sector + offsetof(struct log_superblock, version), LOGWRITES_VERSION);
    store_le64(sector + offsetof(struct log_superblock, entries), entries);
    store_le32(sector + offsetof(struct log_superblock, sector_size), s->sector_size);
    put_clock(s, sector, 0, 0);
    return blk_co_write(s->log, 0, sector, s->sector_size, 0);
}

static uint64_t tick(struct blklogwrites *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t now = s->clock++;
    pthread_mutex_unlock(&s->lock);
    return now;
}

/* A place in the log for one entry and `sectors` of data, and the clock at which it was taken. */
static uint64_t reserve(struct blklogwrites *s, uint64_t sectors, uint64_t *now, bool *update)
{
    pthread_mutex_lock(&s->lock);
    uint64_t at = s->next_sector;
    s->next_sector += 1 + sectors;
    s->entries++;
    *now = s->clock++;
    *update = ++s->since_update >= s->update_interval;
    if (*update)
        s->since_update = 0;
    pthread_mutex_unlock(&s->lock);
    return at * s->sector_size;
}

struct record {
    unsigned flags;
    uint64_t offset, length;
    uint64_t began, ended;
    const void *data; /* NULL with `length` and neither DISCARD nor MARK: zeroes */
    const char *mark;
};

static coroutine_fn int co_put(struct blklogwrites *s, uint64_t at, const struct record *r)
{
    AUTO_FREE uint8_t *sector = xcalloc(1, s->sector_size);
    size_t room = s->sector_size - sizeof(struct log_entry) - sizeof(struct log_clock);
    size_t mark_length = r->mark ? MIN(strlen(r->mark), room) : 0;

    store_le64(sector + offsetof(struct log_entry, sector), r->offset / s->sector_size);
    store_le64(sector + offsetof(struct log_entry, sectors), r->length / s->sector_size);
    store_le64(sector + offsetof(struct log_entry, flags), r->flags);
    store_le64(sector + offsetof(struct log_entry, data_length), mark_length);
    if (r->mark)
        memcpy(sector + sizeof(struct log_entry), r->mark, mark_length);
    put_clock(s, sector, r->began, r->ended);
    int ret = blk_co_write(s->log, at, sector, s->sector_size, 0);
    if (ret == 0 && r->length && !(r->flags & LOGWRITES_DISCARD))
        ret = r->data ? blk_co_write(s->log, at + s->sector_size, r->data, r->length, 0)
                      : blk_co_write_zeroes(s->log, at + s->sector_size, r->length, BLK_REQ_MAY_UNMAP);
    return ret;
}

/* Logs a change that has just ended; `result`: how. */
static coroutine_fn int co_log_change(struct blklogwrites *s, struct record *r, int result)
{
    bool update;
    uint64_t sectors = r->flags & LOGWRITES_DISCARD ? 0 : r->length / s->sector_size;
    uint64_t at = reserve(s, sectors, &r->ended, &update);

    if (result < 0)
        r->ended = LOGWRITES_NEVER;
    int ret = co_put(s, at, r);
    if (ret == 0 && update)
        ret = co_write_superblock(s);
    return result < 0 ? result : ret;
}

uint64_t logwrites_now(struct blk_node *node) { return tick(node->state); }

coroutine_fn int logwrites_co_mark(struct blk_node *node, const char *text)
{
    struct blklogwrites *s = node->state;
    struct record record = { .flags = LOGWRITES_MARK, .mark = text };

    record.began = tick(s);
    return co_log_change(s, &record, 0);
}

/* ---- opening ---- */

/* Walks an existing log to its end. */
static coroutine_fn int co_find_end(struct blklogwrites *s, struct error **errp)
{
    AUTO_FREE uint8_t *sector = xcalloc(1, s->sector_size);
    uint64_t size = blk_node_size(s->log), at = s->sector_size;

    for (uint64_t i = 0; i < s->entries; i++) {
        uint64_t sectors, bytes;
        if (!range_inside(at, s->sector_size, size))
            return error_set(errp, -EINVAL, "Log entry %" PRIu64 " lies outside of the log", i);
        int ret = blk_co_read(s->log, at, sector, s->sector_size);
        if (ret < 0)
            return error_set_errno(errp, ret, "Could not read log entry %" PRIu64, i);
        const uint8_t *clock = sector + s->sector_size - sizeof(struct log_clock);
        for (size_t n = offsetof(struct log_clock, began); n < sizeof(struct log_clock); n += 8) {
            uint64_t time = load_le64(clock + n);
            if (load_le64(clock) == LOGWRITES_CLOCK_MAGIC && time != LOGWRITES_NEVER && time >= s->clock)
                s->clock = time + 1;
        }
        sectors = load_le64(sector + offsetof(struct log_entry, sectors));
        if (load_le64(sector + offsetof(struct log_entry, flags)) & LOGWRITES_DISCARD)
            sectors = 0; /* they have no data */
        if (!checked_mul(sectors, s->sector_size, &bytes) || !checked_add(at + s->sector_size, bytes, &at) ||
            at > INT64_MAX)
            return error_set(errp, -EINVAL, "Log entry %" PRIu64 " lies outside of the log", i);
    }
    s->next_sector = at / s->sector_size;
    return 0;
}

static bool valid_sector_size(uint64_t size)
{
    return is_power_of_two(size) && size >= BLK_SECTOR_SIZE && size <= MAX_SECTOR_SIZE;
}

static int new_generation(struct blklogwrites *s, struct error **errp)
{
    if (getrandom(&s->generation, sizeof(s->generation), 0) != sizeof(s->generation))
        return error_set_errno(errp, -errno, "Could not make a generation for the log");
    return 0;
}

/* A log that goes on is one with its entries: they share a generation. */
static coroutine_fn int co_append(struct blklogwrites *s, struct error **errp)
{
    uint8_t super[BLK_SECTOR_SIZE], clock[sizeof(struct log_clock)];
    int ret = blk_co_read(s->log, 0, super, sizeof(super));

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read log superblock");
    if (load_le64(super + offsetof(struct log_superblock, magic)) != LOGWRITES_MAGIC)
        return error_set(errp, -EINVAL, "Invalid log superblock magic");
    uint64_t version = load_le64(super + offsetof(struct log_superblock, version));
    if (version != LOGWRITES_VERSION)
        return error_set(errp, -EINVAL, "Unsupported log version %" PRIu64, version);
    uint32_t sector_size = load_le32(super + offsetof(struct log_superblock, sector_size));
    if (!valid_sector_size(sector_size))
        return error_set(errp, -EINVAL, "Invalid log sector size %" PRIu32, sector_size);
    s->sector_size = sector_size;
    s->entries = load_le64(super + offsetof(struct log_superblock, entries));
    ret = blk_co_read(s->log, sector_size - sizeof(clock), clock, sizeof(clock));
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read log superblock");
    if (load_le64(clock) == LOGWRITES_CLOCK_MAGIC)
        s->generation = load_le64(clock + offsetof(struct log_clock, generation));
    else if (new_generation(s, errp) < 0) /* one that another program has written */
        return -EIO;
    return co_find_end(s, errp);
}

static int read_log_options(struct blklogwrites *s, struct opts *opts, bool *append, struct error **errp)
{
    uint64_t sector_size = BLK_SECTOR_SIZE;
    int given = opts_size(opts, blklogwrites_options, "log-sector-size", &sector_size, errp);
    int ret = given;

    if (ret >= 0)
        ret = opts_bool(opts, blklogwrites_options, "log-append", append, errp);
    if (ret >= 0)
        ret = opts_number(opts, blklogwrites_options, "log-super-update-interval", &s->update_interval, errp);
    if (ret < 0)
        return ret;
    if (*append && given)
        return error_set(errp, -EINVAL, "log-append and log-sector-size are mutually exclusive");
    if (!valid_sector_size(sector_size))
        return error_set(errp, -EINVAL, "Invalid log sector size %" PRIu64, sector_size);
    if (s->update_interval == 0)
        return error_set(errp, -EINVAL, "Invalid log superblock update interval 0");
    s->sector_size = (uint32_t)sector_size;
    return 0;
}

static coroutine_fn int co_open_log(struct blk_node *node, struct opts *opts, unsigned flags, bool append,
                                    struct error **errp)
{
    struct blklogwrites *s = node->state;
    /* A log need not outlive a power cut itself. */
    unsigned log_flags = (flags & ~(unsigned)(BLK_O_DIRECT | BLK_O_DSYNC)) | BLK_O_RDWR;
    int ret = blk_co_open_child(node, "log", opts, NULL, log_flags, false, errp);

    if (ret < 0)
        return ret;
    s->log = list_last(&node->children, struct blk_child, in_parent)->node;
    return append && blk_node_size(s->log) ? co_append(s, errp) : new_generation(s, errp);
}

static coroutine_fn int blklogwrites_co_open(struct blk_node *node, struct opts *opts, unsigned flags,
                                             struct error **errp)
{
    struct blklogwrites *s = node->state;
    bool append = false;
    int ret = read_log_options(s, opts, &append, errp);

    s->next_sector = 1;
    if (ret == 0)
        ret = blk_co_open_child(node, "file", opts, NULL, flags, false, errp);
    if (ret == 0)
        ret = co_open_log(node, opts, flags, append, errp);
    if (ret < 0)
        return ret;
    pthread_mutex_init(&s->lock, NULL);
    co_rwlock_init(&s->rewrite);
    node->limits = node->file->limits;
    node->limits.request_alignment = MAX(node->limits.request_alignment, s->sector_size);
    atomic_store(&node->size, blk_node_size(node->file));
    return 0;
}

static coroutine_fn int blklogwrites_co_close(struct blk_node *node)
{
    struct blklogwrites *s = node->state;
    int ret = blk_node_writable(node) ? co_write_superblock(s) : 0;

    if (ret == 0)
        ret = blk_co_flush(s->log);
    co_rwlock_finish(&s->rewrite);
    pthread_mutex_destroy(&s->lock);
    return ret;
}

static void blklogwrites_child_perm(struct blk_node *node, const char *role, unsigned perm, unsigned shared,
                                    unsigned *child_perm, unsigned *child_shared)
{
    if (strcmp(role, "log") == 0) {
        *child_perm = BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE | BLK_PERM_RESIZE;
        *child_shared = BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE_UNCHANGED;
    } else {
        *child_perm = perm;
        *child_shared = shared;
    }
}

/* ---- requests ---- */

static void blklogwrites_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                             struct blk_extent *extent)
{
    blk_extent_pass(extent, node->file, offset, length);
    if (op != BLK_OP_READ) {
        extent->kind = BLK_SLOW;
        extent->flags = 0;
    }
}

static unsigned log_flags(const struct blk_node *node, unsigned flags)
{
    bool durable = (flags & BLK_REQ_FUA) || (node->open_flags & BLK_O_DSYNC);

    return durable && !(node->open_flags & BLK_O_NO_FLUSH) ? LOGWRITES_FUA : 0;
}

static void fill_from_iov(uint8_t *buffer, const struct iovec *iov, int iov_count)
{
    for (int i = 0; i < iov_count; i++) {
        memcpy(buffer, iov[i].iov_base, iov[i].iov_len);
        buffer += iov[i].iov_len;
    }
}

/* The data is copied: the log and the disk get the same bytes whatever a guest does to its memory meanwhile. */
static coroutine_fn int blklogwrites_co_write(struct blk_node *node, uint64_t offset, uint64_t length,
                                              const struct iovec *iov, int iov_count, unsigned flags)
{
    struct blklogwrites *s = node->state;
    struct record r = { .flags = log_flags(node, flags), .offset = align_down(offset, s->sector_size) };
    uint64_t head = offset - r.offset;
    int ret = 0;

    if (flags & BLK_REQ_ABSENT_ONLY)
        return -ENOTSUP; /* nobody knows what of it will be written */
    r.length = align_up(head + length, s->sector_size);
    AUTO_FREE uint8_t *buffer = blk_buffer_alloc(node, r.length);
    if (!buffer)
        return -ENOMEM;
    if (r.length == length) {
        co_rwlock_read(&s->rewrite);
    } else {
        co_rwlock_write(&s->rewrite);
        ret = blk_co_read(node->file, r.offset, buffer, s->sector_size);
        if (ret == 0 && r.length > s->sector_size)
            ret = blk_co_read(node->file, r.offset + r.length - s->sector_size, buffer + r.length - s->sector_size,
                              s->sector_size);
    }
    if (ret == 0) {
        fill_from_iov(buffer + head, iov, iov_count);
        r.data = buffer;
        r.began = tick(s);
        ret = blk_co_write(node->file, r.offset, buffer, r.length, flags);
        filter_grow(node);
        ret = co_log_change(s, &r, ret);
    }
    co_rwlock_unlock(&s->rewrite);
    return ret;
}

static coroutine_fn int blklogwrites_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length,
                                                     unsigned flags)
{
    struct blklogwrites *s = node->state;
    struct record r = { .flags = log_flags(node, flags), .offset = offset, .length = length };

    /* Parts of sectors: as a write of zeroes. */
    if (!is_aligned(offset | length, s->sector_size))
        return -ENOTSUP;
    co_rwlock_read(&s->rewrite);
    r.began = tick(s);
    int ret = blk_co_write_zeroes(node->file, offset, length, flags);
    filter_grow(node);
    if (ret != -ENOTSUP)
        ret = co_log_change(s, &r, ret);
    co_rwlock_unlock(&s->rewrite);
    return ret;
}

static coroutine_fn int blklogwrites_co_discard(struct blk_node *node, uint64_t offset, uint64_t length)
{
    struct blklogwrites *s = node->state;
    uint64_t start = align_up(offset, s->sector_size), end = align_down(offset + length, s->sector_size);
    struct record r = { .flags = LOGWRITES_DISCARD, .offset = start, .length = end - start };

    if (start >= end)
        return 0;
    co_rwlock_read(&s->rewrite);
    r.began = tick(s);
    int ret = blk_co_discard(node->file, start, end - start);
    if (ret != -ENOTSUP)
        ret = co_log_change(s, &r, ret);
    co_rwlock_unlock(&s->rewrite);
    return ret;
}

static coroutine_fn int blklogwrites_co_flush(struct blk_node *node)
{
    struct blklogwrites *s = node->state;
    struct record r = { .flags = LOGWRITES_FLUSH };
    bool update;

    if (node->open_flags & BLK_O_NO_FLUSH)
        return blk_co_flush(node->file);
    uint64_t at = reserve(s, 0, &r.began, &update);
    int ret = blk_co_flush(node->file);
    r.ended = tick(s);
    if (ret < 0) {
        r.flags = LOGWRITES_MARK;
        r.mark = "flush failed";
    }
    int log_ret = co_put(s, at, &r);
    if (log_ret == 0 && update)
        log_ret = co_write_superblock(s);
    return ret < 0 ? ret : log_ret;
}

static coroutine_fn int blklogwrites_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                                 struct error **errp)
{
    struct blklogwrites *s = node->state;
    AUTO_FREE char *text = xasprintf("truncate %" PRIu64, size);
    struct record r = { .flags = LOGWRITES_MARK, .mark = text, .began = tick(s) };
    uint64_t old = blk_node_size(node), start = align_up(size, s->sector_size);
    int ret = blk_co_truncate(node->file, size, exact, prealloc, errp);

    if (ret < 0)
        return ret;
    atomic_store(&node->size, blk_node_size(node->file));
    if (blk_node_size(node) < old && start < old) {
        struct record cut = { .flags = LOGWRITES_DISCARD,
                              .offset = start,
                              .length = align_down(old - start, s->sector_size),
                              .began = r.began };
        ret = co_log_change(s, &cut, 0);
    }
    if (ret == 0)
        ret = co_log_change(s, &r, 0);
    return ret < 0 ? error_set_errno(errp, ret, "Could not log the new size") : 0;
}

static const struct blk_driver blklogwrites_driver = {
    .name = "blklogwrites",
    .flags = BLK_DRIVER_FILTER | BLK_DRIVER_GROWS,
    .state_size = sizeof(struct blklogwrites),
    .options = blklogwrites_options,
    .co_open = blklogwrites_co_open,
    .co_close = blklogwrites_co_close,
    .map = blklogwrites_map,
    .co_write = blklogwrites_co_write,
    .co_write_zeroes = blklogwrites_co_write_zeroes,
    .co_discard = blklogwrites_co_discard,
    .co_flush = blklogwrites_co_flush,
    .co_truncate = blklogwrites_co_truncate,
    .child_changed = filter_follow_size,
    .child_perm = blklogwrites_child_perm,
};

BLK_DRIVER(blklogwrites_driver)
