/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Size, alignment and topology of an open file or device.
 *
 * What O_DIRECT needs is never assumed. The kernel is asked first (statx with STATX_DIOALIGN; BLKSSZGET for a
 * device). Where it does not say, reads at the front of the file are tried, from the smallest alignment up, and the
 * answer is raised to the block size of the device below: a read in a hole, or past the end of a file, succeeds at
 * any alignment.
 */
#include "file.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define MIN_DIRECT 512u
#define MAX_DIRECT 4096u
/* Largest single transfer: under the kernel's own limit of 2 GiB less a page. */
#define MAX_TRANSFER (1u << 30)

int file_refresh_size(struct blk_node *node, struct error **errp)
{
    struct file_state *s = node->state;
    uint64_t size = 0;

    if (s->block_device) {
        if (ioctl(s->fd, BLKGETSIZE64, &size) < 0)
            return error_set_errno(errp, -errno, "Could not refresh total sector count");
    } else if (s->char_device) {
        off_t end = lseek(s->fd, 0, SEEK_END);
        if (end < 0)
            return error_set_errno(errp, -errno, "Could not refresh total sector count");
        size = (uint64_t)end;
    } else {
        struct stat st;
        if (fstat(s->fd, &st) < 0)
            return error_set_errno(errp, -errno, "Could not refresh total sector count");
        size = (uint64_t)st.st_size;
    }
    atomic_store_explicit(&node->size, file_round_size(size), memory_order_relaxed);
    return 0;
}

/* ---- O_DIRECT ---- */

/* Returns whether the kernel said. */
static bool ask_statx(int fd, uint32_t *request, uint32_t *memory)
{
    struct statx stx;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) < 0 || !(stx.stx_mask & STATX_DIOALIGN))
        return false;
    if (!is_power_of_two(stx.stx_dio_offset_align) || !is_power_of_two(stx.stx_dio_mem_align))
        return false;
    *request = stx.stx_dio_offset_align;
    *memory = stx.stx_dio_mem_align;
    return true;
}

/* Logical block size of the device that a file's file system is on, 0 where there is none. */
static uint32_t device_block_size(int fd)
{
    static const char *const places[] = { "queue", "../queue" }; /* a disk; a partition */
    struct stat st;
    unsigned value = 0;

    if (fstat(fd, &st) < 0)
        return 0;
    for (size_t i = 0; i < ARRAY_SIZE(places) && !value; i++) {
        char path[128];
        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s/logical_block_size", major(st.st_dev), minor(st.st_dev),
                 places[i]);
        FILE *f = fopen(path, "re");
        if (!f)
            continue;
        if (fscanf(f, "%u", &value) != 1 || !is_power_of_two(value))
            value = 0;
        fclose(f);
    }
    return value;
}

static bool try_read(int fd, uint8_t *buffer, size_t length)
{
    ssize_t ret;

    do {
        ret = pread(fd, buffer, length, 0);
    } while (ret < 0 && errno == EINTR);
    /* Any other error says nothing about alignment. */
    return ret >= 0 || errno != EINVAL;
}

/* Smallest request and memory alignment with which a read works; 0 where none does. */
static int try_reads(const struct file_state *s, uint32_t *request, uint32_t *memory)
{
    uint8_t *buffer;

    *request = *memory = 0;
    if (posix_memalign((void **)&buffer, MAX_DIRECT, 2 * (size_t)MAX_DIRECT) != 0)
        return -ENOMEM;
    for (uint32_t align = MIN_DIRECT; align <= MAX_DIRECT && !*request; align *= 2) {
        if (try_read(s->fd, buffer, align))
            *request = align;
    }
    for (uint32_t align = MIN_DIRECT; align <= MAX_DIRECT && !*memory; align *= 2) {
        if (try_read(s->fd, buffer + align, MAX_DIRECT))
            *memory = align;
    }
    free(buffer);
    return 0;
}

static int probe_direct(const struct file_state *s, uint64_t size, struct blk_limits *limits, struct error **errp)
{
    int block = 0;

    if (ask_statx(s->fd, &limits->request_alignment, &limits->memory_alignment))
        return 0;
    int ret = try_reads(s, &limits->request_alignment, &limits->memory_alignment);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not probe the O_DIRECT alignment");
    if (!limits->request_alignment || !limits->memory_alignment) {
        error_set(errp, -EINVAL, "Could not find working O_DIRECT alignment");
        error_hint(errp, "cache modes that work there: writeback, writethrough, unsafe");
        return -EINVAL;
    }
    if (s->block_device && ioctl(s->fd, BLKSSZGET, &block) == 0 && block > 0 && is_power_of_two((unsigned)block))
        limits->request_alignment = (uint32_t)block;
    else if (size < MAX_DIRECT)
        limits->request_alignment = MAX_DIRECT; /* nothing there to try on */
    else
        limits->request_alignment = MAX(limits->request_alignment, device_block_size(s->fd));
    return 0;
}

/* ---- topology ---- */

static void probe_block_device(const struct file_state *s, struct blk_limits *limits)
{
    int logical = 0;
    unsigned value;

    if (ioctl(s->fd, BLKSSZGET, &logical) == 0 && logical > 0)
        limits->logical_block = (uint32_t)logical;
    if (ioctl(s->fd, BLKPBSZGET, &value) == 0)
        limits->physical_block = value;
    if (ioctl(s->fd, BLKIOMIN, &value) == 0)
        limits->min_io = value;
    if (ioctl(s->fd, BLKIOOPT, &value) == 0)
        limits->opt_io = value;
    /* The kernel discards and zeroes whole blocks only. */
    if (is_power_of_two(limits->logical_block))
        limits->discard_alignment = limits->zeroes_alignment = limits->logical_block;
}

int file_probe_limits(const struct file_state *s, uint64_t size, struct blk_limits *limits, struct error **errp)
{
    struct stat st;

    limits->request_alignment = 1;
    limits->memory_alignment = 1;
    limits->max_iov = IOV_MAX;
    limits->max_transfer = MAX_TRANSFER;
    limits->discard_alignment = 1;
    limits->zeroes_alignment = 1;
    if (s->direct) {
        int ret = probe_direct(s, size, limits, errp);
        if (ret < 0)
            return ret;
    }
    if (s->block_device) {
        probe_block_device(s, limits);
    } else if (fstat(s->fd, &st) == 0) {
        if (s->direct)
            limits->logical_block = limits->request_alignment;
        if (st.st_blksize > 0 && st.st_blksize <= 65536 && is_power_of_two((uint64_t)st.st_blksize))
            limits->physical_block = (uint32_t)st.st_blksize;
    }
    return 0;
}
