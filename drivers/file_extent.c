/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where are the holes? SEEK_DATA and SEEK_HOLE, in a worker: cold extent trees and network file systems make them
 * wait.
 *
 * Nothing is kept between calls: a hole that is remembered after somebody has written to it would read as zeroes.
 * What cannot be told is data.
 */
#include "file.h"

#include <base/compiler.h>
#include <base/crew.h>
#include <errno.h>
#include <unistd.h>

struct seek {
    int fd;
    uint64_t offset;
    bool data;
    uint64_t end; /* where the extent that begins at `offset` ends */
};

/* Moves the descriptor's file position, which nothing else looks at. */
static int seek_extent(void *arg)
{
    struct seek *seek = arg;
    off_t at = lseek(seek->fd, (off_t)seek->offset, SEEK_DATA);

    if (at < 0 && errno == ENXIO) { /* a hole up to the end of the file, or already behind it */
        seek->data = false;
        seek->end = UINT64_MAX;
        return 0;
    }
    if (at < 0)
        return -errno;
    if ((uint64_t)at > seek->offset) {
        seek->data = false;
        seek->end = (uint64_t)at;
        return 0;
    }
    seek->data = true;
    at = lseek(seek->fd, (off_t)seek->offset, SEEK_HOLE);
    if (at < 0 && errno != ENXIO)
        return -errno;
    /* Somebody punched or truncated between the two: data is what it was. */
    if (at < 0 || (uint64_t)at <= seek->offset)
        seek->end = seek->offset + 1;
    else
        seek->end = (uint64_t)at;
    return 0;
}

coroutine_fn int file_co_extent(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent)
{
    struct file_state *s = node->state;
    struct seek seek = { .fd = s->fd, .offset = offset };
    uint64_t size = blk_node_size(node);
    int ret = co_crew_do(seek_extent, &seek);

    if (ret < 0) { /* this file system cannot say */
        seek.data = true;
        seek.end = UINT64_MAX;
    }
    /* A node has whole sectors; what the last one has past the file's end is a hole, as qemu-img map says too. */
    *extent = (struct blk_extent){
        .kind = seek.data ? BLK_DATA : BLK_ZERO,
        .flags = seek.data ? 0 : BLK_EXTENT_ALLOCATED | BLK_EXTENT_OFFSET_VALID,
        .length = MIN(seek.end - offset, length),
        .child_offset = offset,
    };
    if (offset + extent->length >= size)
        extent->flags |= BLK_EXTENT_EOF;
    return 0;
}
