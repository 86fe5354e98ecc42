/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading a log of writes (block/logwrites.h): the entries into memory, their data on demand.
 *
 * Each entry gets the clock from which on it is durable: the smallest end of all flushes that began after it ended. A
 * log without a clock, of another program, is taken to have done one thing after the other. Reading stops at the
 * first entry that was never written (the program that logged was killed), or that is of an older log in the same
 * file.
 */
#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <block/logwrites.h>
#include <block/types.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SECTOR_SIZE (1u << 23)

struct logwrites {
    int fd;
    uint64_t file_size;
    uint64_t sector_size;
    uint64_t promised; /* entries, says the superblock */
    bool has_clock;
    uint64_t generation;
    struct logwrites_entry *entries;
    size_t count, room;
    uint64_t end;
};

static int read_at(const struct logwrites *log, uint64_t offset, void *buffer, size_t length)
{
    size_t done = 0;

    while (done < length) {
        ssize_t got = pread(log->fd, (char *)buffer + done, length - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0) { /* a hole at the end */
            memset((char *)buffer + done, 0, length - done);
            return 0;
        }
        done += (size_t)got;
    }
    return 0;
}

static int read_superblock(struct logwrites *log, const char *path, struct error **errp)
{
    uint8_t super[sizeof(struct log_superblock)], clock[sizeof(struct log_clock)];
    int ret = read_at(log, 0, super, sizeof(super));

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read '%s'", path);
    if (load_le64(super + offsetof(struct log_superblock, magic)) != LOGWRITES_MAGIC)
        return error_set(errp, -EINVAL, "'%s' is not a log of writes: Invalid log superblock magic", path);
    if (load_le64(super + offsetof(struct log_superblock, version)) != LOGWRITES_VERSION)
        return error_set(errp, -EINVAL, "'%s': Unsupported log version %" PRIu64, path,
                         load_le64(super + offsetof(struct log_superblock, version)));
    log->promised = load_le64(super + offsetof(struct log_superblock, entries));
    log->sector_size = load_le32(super + offsetof(struct log_superblock, sector_size));
    if (!is_power_of_two(log->sector_size) || log->sector_size < BLK_SECTOR_SIZE || log->sector_size > MAX_SECTOR_SIZE)
        return error_set(errp, -EINVAL, "'%s': Invalid log sector size %" PRIu64, path, log->sector_size);
    ret = read_at(log, log->sector_size - sizeof(clock), clock, sizeof(clock));
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read '%s'", path);
    log->has_clock = load_le64(clock + offsetof(struct log_clock, magic)) == LOGWRITES_CLOCK_MAGIC;
    log->generation = load_le64(clock + offsetof(struct log_clock, generation));
    return 0;
}

static struct logwrites_entry *new_entry(struct logwrites *log)
{
    if (log->count == log->room) {
        log->room = log->room ? 2 * log->room : 256;
        log->entries = xrealloc(log->entries, log->room * sizeof(*log->entries));
    }
    memset(&log->entries[log->count], 0, sizeof(*log->entries));
    return &log->entries[log->count++];
}

static void set_times(struct logwrites *log, struct logwrites_entry *e, const uint8_t *clock, bool has_clock)
{
    e->began = has_clock ? load_le64(clock + offsetof(struct log_clock, began)) : log->end;
    e->ended = has_clock ? load_le64(clock + offsetof(struct log_clock, ended)) : e->began + 1;
    if (e->began >= log->end)
        log->end = e->began + 1;
    if (e->ended != LOGWRITES_NEVER && e->ended >= log->end)
        log->end = e->ended + 1;
}

static bool is_zero(const uint8_t *data, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (data[i])
            return false;
    }
    return true;
}

/* 1: an entry, *at is behind it; 0: the log ends before; -errno. */
static int read_entry(struct logwrites *log, uint64_t *at, uint8_t *sector, const char *path, struct error **errp)
{
    const uint8_t *clock = sector + log->sector_size - sizeof(struct log_clock);
    uint64_t sectors, length, offset, next;

    if (!range_inside(*at, log->sector_size, align_up(log->file_size, log->sector_size)))
        return 0;
    int ret = read_at(log, *at, sector, log->sector_size);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read '%s'", path);
    bool ours = log->has_clock && load_le64(clock + offsetof(struct log_clock, magic)) == LOGWRITES_CLOCK_MAGIC &&
                load_le64(clock + offsetof(struct log_clock, generation)) == log->generation;
    if (!ours && (log->count >= log->promised || is_zero(sector, log->sector_size)))
        return 0;

    unsigned flags = (unsigned)load_le64(sector + offsetof(struct log_entry, flags));
    sectors = load_le64(sector + offsetof(struct log_entry, sectors));
    if (!checked_mul(sectors, log->sector_size, &length) ||
        !checked_mul(load_le64(sector + offsetof(struct log_entry, sector)), log->sector_size, &offset) ||
        !checked_add(*at, log->sector_size, &next) ||
        !checked_add(next, flags & LOGWRITES_DISCARD ? 0 : length, &next) || next > INT64_MAX)
        return error_set(errp, -EINVAL, "'%s': entry %zu lies outside of the log", path, log->count);

    struct logwrites_entry *e = new_entry(log);
    e->flags = flags;
    e->offset = offset;
    e->length = length;
    e->data = *at + log->sector_size;
    if (flags & LOGWRITES_MARK) {
        size_t room = log->sector_size - sizeof(struct log_entry);
        size_t text = (size_t)MIN(load_le64(sector + offsetof(struct log_entry, data_length)), (uint64_t)room);
        e->mark = strndup((const char *)sector + sizeof(struct log_entry), text);
    }
    set_times(log, e, clock, ours);
    *at = next;
    return 1;
}

/* ---- durability ---- */

struct flush {
    uint64_t began;
    uint64_t ended; /* the smallest of this and all flushes that began later */
};

static int compare_flushes(const void *a, const void *b)
{
    const struct flush *x = a, *y = b;

    return (x->began > y->began) - (x->began < y->began);
}

static uint64_t first_cover(const struct flush *flushes, size_t count, uint64_t ended)
{
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (flushes[middle].began > ended)
            high = middle;
        else
            low = middle + 1;
    }
    return low < count ? flushes[low].ended : LOGWRITES_NEVER;
}

static void find_durable(struct logwrites *log)
{
    struct flush *flushes = xcalloc(log->count + 1, sizeof(*flushes));
    size_t count = 0;

    for (size_t i = 0; i < log->count; i++) {
        const struct logwrites_entry *e = &log->entries[i];
        if (e->flags & LOGWRITES_FLUSH && e->ended != LOGWRITES_NEVER)
            flushes[count++] = (struct flush){ e->began, e->ended };
    }
    qsort(flushes, count, sizeof(*flushes), compare_flushes);
    for (size_t i = count; i-- > 1;)
        flushes[i - 1].ended = MIN(flushes[i - 1].ended, flushes[i].ended);
    for (size_t i = 0; i < log->count; i++) {
        struct logwrites_entry *e = &log->entries[i];
        if (e->ended == LOGWRITES_NEVER)
            e->durable = LOGWRITES_NEVER;
        else if (e->flags & LOGWRITES_FUA)
            e->durable = e->ended;
        else
            e->durable = first_cover(flushes, count, e->ended);
    }
    free(flushes);
}

/* ---- public ---- */

struct logwrites *logwrites_open(const char *path, struct error **errp)
{
    struct logwrites *log = xcalloc(1, sizeof(*log));
    struct stat st;
    uint64_t at;

    log->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (log->fd < 0 || fstat(log->fd, &st) < 0) {
        error_set_errno(errp, -errno, "Could not open '%s'", path);
        goto fail;
    }
    log->file_size = (uint64_t)st.st_size;
    if (read_superblock(log, path, errp) < 0)
        goto fail;
    uint8_t *sector = xmalloc(log->sector_size);
    int ret = 1;
    for (at = log->sector_size; ret > 0;)
        ret = read_entry(log, &at, sector, path, errp);
    free(sector);
    if (ret < 0)
        goto fail;
    find_durable(log);
    return log;
fail:
    logwrites_close(log);
    return NULL;
}

void logwrites_close(struct logwrites *log)
{
    if (!log)
        return;
    for (size_t i = 0; i < log->count; i++)
        free(log->entries[i].mark);
    free(log->entries);
    if (log->fd >= 0)
        close(log->fd);
    free(log);
}

size_t logwrites_count(const struct logwrites *log) { return log->count; }

const struct logwrites_entry *logwrites_entry(const struct logwrites *log, size_t index)
{
    return &log->entries[index];
}

uint64_t logwrites_sector_size(const struct logwrites *log) { return log->sector_size; }

uint64_t logwrites_end(const struct logwrites *log) { return log->end; }

int logwrites_read(const struct logwrites *log, size_t index, uint64_t skip, void *buffer, size_t length)
{
    const struct logwrites_entry *e = &log->entries[index];

    if ((e->flags & LOGWRITES_DISCARD) || !range_inside(skip, length, e->length))
        return -EINVAL;
    return read_at(log, e->data + skip, buffer, length);
}

enum logwrites_fate logwrites_fate(const struct logwrites_entry *entry, uint64_t time)
{
    if (entry->began >= time)
        return LOGWRITES_NOT_YET;
    return entry->durable < time ? LOGWRITES_DURABLE : LOGWRITES_MAYBE;
}
