/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults under guest requests: what reported success and was flushed successfully is there; what reported an error is
 * old or new; after a failure that went by, the image is without leaks once it has been closed without an error.
 */
#include "crash_model.h"
#include "faults.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct sequence {
    struct faults *f;
    bool lazy, compressed;
    uint64_t size, cluster;
    unsigned operations;
    struct crash_model model;
    uint64_t clock;
};

static coroutine_fn int co_write_op(struct blk_node *node, struct crash_op *op, unsigned flags)
{
    uint8_t *buffer = xmalloc(op->count * 512);

    for (uint64_t i = 0; i < op->count; i++)
        crash_stamp(buffer + i * 512, op->value, op->first + i);
    int ret = blk_co_write(node, op->first * 512, buffer, op->count * 512, flags | (op->fua ? BLK_REQ_FUA : 0u));
    free(buffer);
    return ret;
}

static coroutine_fn void co_operation(struct sequence *q, struct blk_node *node)
{
    uint64_t what = faults_below(q->f, 20), sectors = q->size / 512, first = faults_below(q->f, sectors);
    uint64_t count = MIN(1 + faults_below(q->f, faults_below(q->f, 3) ? 8 : 3 * q->cluster / 512 + 20),
                         sectors - first);
    bool compressed = q->compressed && what >= 9 && faults_below(q->f, 2);
    int ret;

    if ((what >= 6 && what < 9) || compressed) { /* discard: whole clusters, so that the model need not know more */
        first = align_down(first * 512, q->cluster) / 512;
        count = MIN(align_up(count * 512, q->cluster) / 512, sectors - first);
    }
    struct crash_op *op = crash_model_add(&q->model, first, count);
    op->kind = what < 3 ? CRASH_FLUSH : what < 9 ? CRASH_ZERO : CRASH_WRITE;
    op->fua = what == 9 || what == 3;
    op->start = ++q->clock;
    if (what < 3)
        ret = blk_co_flush(node);
    else if (what < 6)
        ret = blk_co_write_zeroes(node, first * 512, count * 512,
                                  (faults_below(q->f, 2) ? BLK_REQ_MAY_UNMAP : 0u) | (op->fua ? BLK_REQ_FUA : 0u));
    else if (what < 9)
        ret = blk_co_discard(node, first * 512, count * 512);
    else
        ret = co_write_op(node, op, compressed ? BLK_REQ_COMPRESSED : 0);
    if (ret == 0)
        op->end = ++q->clock;
}

static coroutine_fn void co_verify(struct sequence *q, bool closed_well)
{
    uint8_t *disk = xmalloc(q->size);
    uint64_t bad;

    faults_end(q->f);
    struct blk_node *node = faults_co_reopen(q->f, q->lazy ? BLK_O_RDWR : 0);
    faults_co_check(q->f, node, !closed_well);
    if (blk_co_read(node, 0, disk, q->size) < 0)
        faults_die(q->f, "cannot be read afterwards");
    if (closed_well) /* closing flushes */
        *crash_model_add(&q->model, 0,
                         0) = (struct crash_op){ .kind = CRASH_FLUSH, .start = q->clock + 1, .end = q->clock + 2 };
    if (!crash_model_allows(&q->model, disk, q->clock + 3, &bad)) {
        crash_model_explain(&q->model, disk, q->clock + 3, bad, stderr);
        faults_die(q->f, "sector %" PRIu64 " holds what it must not", bad);
    }
    blk_co_node_unref(node);
    free(disk);
}

static coroutine_fn void co_once(struct faults *f, void *arg)
{
    struct sequence *q = arg;
    struct error *error = NULL;
    bool closed_well = false;

    q->clock = 0;
    crash_model_init(&q->model, q->size / 512);
    struct blk_node *node = faults_co_open(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);
    if (node) {
        for (unsigned i = 0; i < q->operations; i++)
            co_operation(q, node);
        closed_well = blk_co_node_unref(node) == 0;
    } else if (!faults_failed(f)) {
        faults_die(f, "does not open: %s", error_text(error));
    }
    error_free(error);
    if (!faults_failed(f) && !closed_well)
        faults_die(f, "an error came out of nothing");
    co_verify(q, closed_well && node);
    crash_model_finish(&q->model);
}

coroutine_fn void faults_co_guest(struct faults *f)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 65536 }, bits[] = { 1, 8, 16, 64 };
    struct sequence q = { .f = f, .operations = 30, .compressed = strcmp(f->kind, "compressed") == 0 };
    struct error *error = NULL;

    q.cluster = clusters[faults_below(f, ARRAY_SIZE(clusters))];
    q.size = (200 + faults_below(f, 600)) * 512;
    unsigned width = bits[faults_below(f, ARRAY_SIZE(bits))];
    q.lazy = faults_below(f, 5) == 0;
    snprintf(f->label, sizeof(f->label), "cluster_size=%" PRIu64 ",refcount_bits=%u%s%s", q.cluster, width,
             q.lazy ? ",lazy_refcounts=on" : "", q.cluster >= 16384 && f->seed % 3 ? ",extended_l2=on" : "");
    if (faults_co_make_image(f, f->label, q.size, &error) < 0)
        faults_die(f, "create: %s", error_text(error));
    faults_take_base(f);
    faults_co_each(f, co_once, &q);
}
