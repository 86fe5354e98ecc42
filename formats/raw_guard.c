/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The guard of a raw disk whose format was guessed.
 *
 * Its guest could write another format's header into it and have the host follow that, to any file that it names, at
 * the next start. So what probes look at, the edges of the file, changes one request at a time, and only if the changed
 * edge is still recognised by nobody.
 *
 * Invariant: blk_probe_format() answers "raw" after each change, as it did when the disk was opened. What is checked is
 * a copy, and the copy is written: the guest may change its memory meanwhile. Probes of the head and of the tail do not
 * depend on each other, so only the edges that a change touches are looked at.
 */
#include "raw.h"

#include <base/checked.h>
#include <block/iov.h>
#include <block/probe.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* An edge is guarded in whole blocks of this size, so that a request is not cut within a block of the host. */
#define BLOCK 4096u
_Static_assert(BLOCK >= BLK_PROBE_HEAD && BLOCK >= BLK_PROBE_TAIL, "a block holds all that probes look at");

/* A part of the file, as it will be. */
struct edge {
    uint64_t start, end;
    uint8_t bytes[BLOCK + BLK_PROBE_TAIL];
};

struct edges {
    struct edge head, tail;
};

/* With offset=, the last sector of the disk may end behind the file: the tail then moves on, and stays within what
 * is guarded. */
static uint64_t tail_start(uint64_t file_size)
{
    return file_size < BLK_PROBE_TAIL ? 0 : align_down(file_size - BLK_PROBE_TAIL, BLOCK);
}

bool raw_guard_covers(const struct blk_node *node, uint64_t offset, uint64_t length)
{
    return offset < BLOCK || offset + length > tail_start(blk_node_size(node->file));
}

/* ---- what a change makes of an edge ---- */

/* The edge's bytes after a write of iov, or of zeroes if that is NULL, at `offset`; an empty edge if it is not
 * touched. */
static coroutine_fn int co_load_edge(struct blk_node *file, struct edge *edge, uint64_t offset, uint64_t length,
                                     const struct iovec *iov, int iov_count)
{
    uint64_t start = MAX(edge->start, offset), end = MIN(edge->end, offset + length);
    int ret = 0;

    if (start >= end) {
        edge->end = edge->start;
        return 0;
    }
    if (start > edge->start || end < edge->end)
        ret = blk_co_read(file, edge->start, edge->bytes, edge->end - edge->start);
    if (ret < 0)
        return ret;
    if (iov)
        iov_to_buffer(iov, iov_count, start - offset, edge->bytes + (start - edge->start), end - start);
    else
        memset(edge->bytes + (start - edge->start), 0, end - start);
    return 0;
}

/* In a small file the edges overlap: one copy of the guest's memory decides for both. */
static void share_overlap(const struct edge *head, struct edge *tail)
{
    uint64_t end = MIN(head->end, tail->end);

    if (tail->start < end)
        memcpy(tail->bytes, head->bytes + (tail->start - head->start), end - tail->start);
}

static bool still_raw(const struct blk_node *node, const struct edges *edges)
{
    const struct edge *head = &edges->head, *tail = &edges->tail;
    uint64_t tail_length = tail->end - tail->start;
    struct blk_probe probe = {
        .head = head->bytes,
        .head_length = (size_t)MIN(head->end - head->start, (uint64_t)BLK_PROBE_HEAD),
        .tail = tail_length >= BLK_PROBE_TAIL ? tail->bytes + tail_length - BLK_PROBE_TAIL : NULL,
    };
    const char *format = blk_probe_format(&probe);

    return format && strcmp(format, node->driver->name) == 0;
}

/* The edges after the change; the caller frees them. -EPERM: they would be another format's. */
static coroutine_fn int co_check(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                 int iov_count, struct edges **out)
{
    struct edges *edges = malloc(sizeof(*edges));
    uint64_t end = offset + length, file_size = MAX(blk_node_size(node->file), end);

    if (!edges)
        return -ENOMEM;
    edges->head.start = 0;
    edges->head.end = MIN(file_size, (uint64_t)BLOCK);
    edges->tail.start = tail_start(file_size);
    edges->tail.end = file_size;
    int ret = co_load_edge(node->file, &edges->head, offset, length, iov, iov_count);
    if (ret == 0)
        ret = co_load_edge(node->file, &edges->tail, offset, length, iov, iov_count);
    if (ret == 0) {
        share_overlap(&edges->head, &edges->tail);
        ret = still_raw(node, edges) ? 0 : -EPERM;
    }
    if (ret < 0) {
        free(edges);
        return ret;
    }
    *out = edges;
    return 0;
}

/* ---- changes ---- */

static coroutine_fn int co_write_between(struct blk_node *file, uint64_t offset, uint64_t length,
                                         const struct iovec *iov, int iov_count, uint64_t skip, unsigned flags)
{
    struct iovec *part = malloc((size_t)iov_count * sizeof(*part));

    if (!part)
        return -ENOMEM;
    int count = iov_slice(iov, iov_count, skip, length, part, iov_count);
    int ret = blk_co_writev(file, offset, length, part, count, flags);
    free(part);
    return ret;
}

static coroutine_fn int co_write_checked(struct blk_node *file, const struct edges *edges, uint64_t offset,
                                         uint64_t length, const struct iovec *iov, int iov_count, unsigned flags)
{
    const struct edge *head = &edges->head, *tail = &edges->tail;
    uint64_t end = offset + length;
    int ret = 0;

    for (uint64_t at = offset, next; at < end && ret == 0; at = next) {
        const struct edge *edge = at < head->end ? head : at >= tail->start && at < tail->end ? tail : NULL;
        next = edge ? edge->end : tail->start > at ? tail->start : end;
        next = MIN(next, end);
        if (edge)
            ret = blk_co_write(file, at, edge->bytes + (at - edge->start), next - at, flags);
        else
            ret = co_write_between(file, at, next - at, iov, iov_count, at - offset, flags);
    }
    return ret;
}

coroutine_fn int raw_guard_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                    int iov_count, unsigned flags)
{
    struct raw_state *s = node->state;
    struct edges *edges = NULL;

    co_mutex_lock(&s->guard);
    int ret = co_check(node, offset, length, iov, iov_count, &edges);
    if (ret == 0)
        ret = co_write_checked(node->file, edges, offset, length, iov, iov_count, flags);
    co_mutex_unlock(&s->guard);
    free(edges);
    return ret;
}

coroutine_fn int raw_guard_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct raw_state *s = node->state;
    struct edges *edges = NULL;

    co_mutex_lock(&s->guard);
    int ret = co_check(node, offset, length, NULL, 0, &edges);
    if (ret == 0)
        ret = blk_co_write_zeroes(node->file, offset, length, flags);
    co_mutex_unlock(&s->guard);
    free(edges);
    return ret;
}

/* Nobody knows what a discarded part of an edge will read as. */
coroutine_fn int raw_guard_co_discard(struct blk_node *node, uint64_t offset, uint64_t length)
{
    uint64_t start = MAX(offset, (uint64_t)BLOCK);
    uint64_t end = MIN(offset + length, tail_start(blk_node_size(node->file)));

    return start < end ? blk_co_discard(node->file, start, end - start) : 0;
}
