/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * quorum: one disk kept on several images. A write counts if enough of them took it. A read takes what enough of them
 * agree on (read-pattern=quorum), or what the first gives that can be read (fifo). With two images and blkverify=on the
 * program ends at the first difference.
 *
 * Q1: with rewrite-corrupted=on each change of the disk is in the list of tracked ranges. So no change to the same
 *     place is in flight, nor starts, from the vote that decides a rewrite to the end of the rewrite.
 */
#include "verify.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/testpoint.h>
#include <block/image.h>
#include <block/iov.h>
#include <block/tracked.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CHILDREN 32u

struct quorum {
    /* Options. */
    uint64_t threshold;
    bool blkverify, rewrite;
    const char *read_pattern;
    bool fifo;
    struct blk_node *children[MAX_CHILDREN];
    size_t count;
};

static const struct opt_desc quorum_options[] = {
    { .name = "vote-threshold",
      .type = OPT_NUMBER,
      .flags = OPT_CONTENT,
      .help = "how many images have to agree, or to take a write",
      .at = OPT_AT(struct quorum, threshold) },
    { .name = "blkverify",
      .type = OPT_BOOL,
      .def = "off",
      .help = "with two images and a threshold of two: end at the first difference",
      .at = OPT_AT(struct quorum, blkverify) },
    { .name = "rewrite-corrupted",
      .type = OPT_BOOL,
      .def = "off",
      .help = "write what was agreed on over what differs",
      .at = OPT_AT(struct quorum, rewrite) },
    { .name = "read-pattern",
      .type = OPT_STRING,
      .def = "quorum",
      .help = "quorum, or fifo: the first image that can be read",
      .at = OPT_AT(struct quorum, read_pattern) },
    { 0 },
};

/* ---- opening ---- */

static coroutine_fn int co_open_children(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct quorum *s = node->state;
    int ret = 0;

    while (ret == 0) {
        char role[24];
        snprintf(role, sizeof(role), "children.%zu", s->count);
        if (!opts_has(opts, role) && !opts_has_prefix(opts, role))
            break;
        if (s->count == MAX_CHILDREN)
            return error_set(errp, -EINVAL, "A quorum has at most %u children", MAX_CHILDREN);
        ret = blk_co_open_child(node, role, opts, NULL, flags, false, errp);
        if (ret == 0)
            s->children[s->count++] = blk_node_child(node, role);
    }
    return ret;
}

/* What was given, in the order in which QEMU finds fault with it. */
static int check(const struct quorum *s, struct error **errp)
{
    if (s->count == 0)
        return error_set(errp, -EINVAL, "Number of provided children must be 1 or more");
    if (s->threshold < 1)
        return error_set(errp, -EINVAL, "Parameter 'vote-threshold' expects a value >= 1");
    if (!s->fifo && strcmp(s->read_pattern, "quorum") != 0)
        return error_set(errp, -EINVAL, "Please set read-pattern as fifo or quorum");
    if (s->threshold > s->count)
        return error_set(errp, -EINVAL, "threshold may not exceed children count");
    if (s->blkverify && (s->count != 2 || s->threshold != 2))
        return error_set(errp, -EINVAL,
                         "blkverify=on can only be set if there are exactly two files and vote-threshold is 2");
    if (s->blkverify && s->rewrite)
        return error_set(errp, -EINVAL, "rewrite-corrupted=on cannot be used with blkverify=on");
    for (size_t i = 1; i < s->count; i++) {
        if (blk_node_size(s->children[i]) != blk_node_size(s->children[0]))
            return error_set_errno(errp, -EIO, "Could not refresh total sector count");
    }
    return 0;
}

static coroutine_fn int quorum_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct quorum *s = node->state;
    int ret = opts_read(opts, quorum_options, s, errp);

    if (ret < 0)
        return ret;
    s->fifo = strcmp(s->read_pattern, "fifo") == 0;
    ret = co_open_children(node, opts, flags, errp);
    if (ret == 0)
        ret = check(s, errp);
    if (ret < 0)
        return ret;
    node->limits = s->children[0]->limits;
    node->limits.request_alignment = 1; /* each child sees to its own */
    atomic_store(&node->size, blk_node_size(s->children[0]));
    return 0;
}

/* All of them hold the disk: what is asked of it is asked of each. */
static void quorum_child_perm(struct blk_node *node, const char *role, unsigned perm, unsigned shared,
                              unsigned *child_perm, unsigned *child_shared)
{
    (void)node;
    (void)role;
    *child_perm = perm;
    *child_shared = shared;
}

/* ---- voting ---- */

static coroutine_fn int co_send(struct quorum *s, struct verify_request *r, struct verify_child *children)
{
    for (size_t i = 0; i < s->count; i++)
        children[i] = (struct verify_child){ .node = s->children[i] };
    r->children = children;
    r->count = s->count;
    return verify_co_send(r);
}

/* The most frequent error. */
static int voted_error(const struct verify_request *r)
{
    int winner = -EIO;
    size_t best = 0;

    for (size_t i = 0; i < r->count; i++) {
        size_t votes = 0;
        for (size_t j = 0; j < r->count; j++)
            votes += r->children[j].ret == r->children[i].ret;
        if (r->children[i].ret < 0 && votes > best) {
            winner = r->children[i].ret;
            best = votes;
        }
    }
    return winner;
}

static size_t successes(const struct verify_request *r)
{
    size_t count = 0;

    for (size_t i = 0; i < r->count; i++)
        count += r->children[i].ret == 0;
    return count;
}

static bool same(const struct verify_request *r, size_t a, size_t b)
{
    return r->children[a].ret == 0 && r->children[b].ret == 0 &&
           memcmp(r->children[a].buffer, r->children[b].buffer, r->length) == 0;
}

/* The child with whose content most agree, and how many those are. */
static size_t elect(const struct verify_request *r, size_t *votes)
{
    size_t winner = 0;

    *votes = 0;
    for (size_t i = 0; i < r->count; i++) {
        size_t count = 0;
        for (size_t j = 0; j < r->count; j++)
            count += same(r, i, j);
        if (count > *votes) {
            winner = i;
            *votes = count;
        }
    }
    return winner;
}

/* Two images, which have to be the same. */
static void verify(const struct verify_request *r)
{
    uint64_t at = verify_difference(r->children[0].buffer, r->children[1].buffer, r->length);

    if (at == r->length)
        return;
    fprintf(stderr, "quorum: offset=%" PRIu64 " bytes=%" PRIu64 " contents mismatch at offset %" PRIu64, r->offset,
            r->length, r->offset + at);
    verify_end();
}

static coroutine_fn void co_rewrite_losers(const struct verify_request *r, size_t winner)
{
    for (size_t i = 0; i < r->count; i++) {
        if (r->children[i].ret == 0 && !same(r, i, winner) && blk_node_writable(r->children[i].node))
            blk_co_write(r->children[i].node, r->offset, r->children[winner].buffer, r->length, 0);
    }
}

/* What a vote has found to differ may have been written since, or may have been a write under way. So the vote is taken
 * again with the range closed to changes (Q1), and that one counts. */
static coroutine_fn void co_repair(struct blk_node *node, uint64_t offset, uint64_t length)
{
    struct quorum *s = node->state;
    struct verify_child children[MAX_CHILDREN];
    struct verify_request r = { .op = BLK_OP_READ, .offset = offset, .length = length };
    struct blk_tracked tracked;
    size_t votes = 0, winner = 0;

    testpoint_co("quorum-voted");
    blk_co_tracked_rewrite(node, &tracked, offset, length);
    if (co_send(s, &r, children) == 0)
        winner = elect(&r, &votes);
    if (votes >= s->threshold) {
        testpoint_co("quorum-rewrite");
        co_rewrite_losers(&r, winner);
    }
    blk_tracked_end(node, &tracked);
    verify_free_buffers(&r);
}

static coroutine_fn int co_vote_on_read(struct blk_node *node, struct verify_request *r)
{
    struct quorum *s = node->state;
    size_t votes, winner;

    if (successes(r) < s->threshold)
        return voted_error(r);
    if (s->blkverify)
        verify(r);
    winner = elect(r, &votes);
    if (votes < s->threshold)
        return -EIO;
    if (s->rewrite && votes < r->count)
        co_repair(node, r->offset, r->length);
    iov_from_buffer(r->iov, r->iov_count, 0, r->children[winner].buffer, r->length);
    return 0;
}

/* ---- requests ---- */

static coroutine_fn int co_read_first(struct quorum *s, uint64_t offset, uint64_t length, const struct iovec *iov,
                                      int iov_count)
{
    int ret = -EIO;

    for (size_t i = 0; i < s->count && ret < 0; i++)
        ret = blk_co_readv(s->children[i], offset, length, iov, iov_count);
    return ret;
}

static coroutine_fn int quorum_co_read(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                       int iov_count)
{
    struct quorum *s = node->state;
    struct verify_child children[MAX_CHILDREN];
    struct verify_request r = {
        .op = BLK_OP_READ, .offset = offset, .length = length, .iov = iov, .iov_count = iov_count
    };

    if (s->fifo)
        return co_read_first(s, offset, length, iov, iov_count);
    int ret = co_send(s, &r, children);
    if (ret == 0)
        ret = co_vote_on_read(node, &r);
    verify_free_buffers(&r);
    return ret;
}

/* What changes the disk, or makes it durable. */
static coroutine_fn int co_change(struct blk_node *node, struct verify_request *r)
{
    struct quorum *s = node->state;
    struct verify_child children[MAX_CHILDREN];
    struct blk_tracked tracked;
    bool tracks = s->rewrite && r->op != BLK_OP_FLUSH; /* Q1 */

    if (tracks)
        blk_co_tracked_write(node, &tracked, r->offset, r->length);
    int ret = co_send(s, r, children);
    if (tracks)
        blk_tracked_end(node, &tracked);
    if (ret < 0)
        return ret;
    return successes(r) >= s->threshold ? 0 : voted_error(r);
}

static coroutine_fn int quorum_co_write(struct blk_node *node, uint64_t offset, uint64_t length,
                                        const struct iovec *iov, int iov_count, unsigned flags)
{
    struct verify_request r = {
        .op = BLK_OP_WRITE, .flags = flags, .offset = offset, .length = length, .iov = iov, .iov_count = iov_count
    };

    return co_change(node, &r);
}

static coroutine_fn int quorum_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct verify_request r = { .op = BLK_OP_WRITE_ZEROES, .flags = flags, .offset = offset, .length = length };

    return co_change(node, &r);
}

static coroutine_fn int quorum_co_discard(struct blk_node *node, uint64_t offset, uint64_t length)
{
    struct verify_request r = { .op = BLK_OP_DISCARD, .offset = offset, .length = length };

    return co_change(node, &r);
}

static coroutine_fn int quorum_co_flush(struct blk_node *node)
{
    struct verify_request r = { .op = BLK_OP_FLUSH };

    return co_change(node, &r);
}

static const struct blk_driver quorum_driver = {
    .name = "quorum",
    .state_size = sizeof(struct quorum),
    .options = quorum_options,
    .co_open = quorum_co_open,
    .co_read = quorum_co_read,
    .co_write = quorum_co_write,
    .co_write_zeroes = quorum_co_write_zeroes,
    .co_discard = quorum_co_discard,
    .co_flush = quorum_co_flush,
    .child_perm = quorum_child_perm,
};
BLK_DRIVER(quorum_driver)
