/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts under guest requests: several coroutines write, zero, discard and flush an image at once. On each disk our
 * check finds nothing worse than leaks, and each sector holds what the model (crash_model.h) allows.
 *
 * The kind is a cache mode. `unsafe` promises nothing but the order of what the host has been given. `reftable` is
 * writeback on an image whose refcount table is full but for a few clusters, so that it grows under the requests.
 */
#include "crash_model.h"
#include "memory_node.h"
#include "powercut.h"

#include <block/front.h>
#include <block/logwrites.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct guest {
    struct cut *c;
    char options[160], base_kind[16];
    uint64_t size, cluster; /* size: of the part of the disk that is worked on */
    uint64_t virtual_size;
    unsigned flags; /* cache mode */
    bool write_cache, reftable, v2, lazy, has_backing, discards;
    struct crash_model model;
    struct blk_node *backing, *node;
    struct blk_front *front;
    unsigned workers, operations;
};

/* ---- making the image ---- */

static void choose(struct guest *g)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 4096, 16384, 65536 };
    static const unsigned bits[] = { 1, 2, 8, 16, 16, 32, 64 };
    static const char *const kinds[] = { "empty", "snapshot", "compressed", "written", "empty", "empty" };
    struct cut *c = g->c;

    g->cluster = clusters[cut_below(c, ARRAY_SIZE(clusters))];
    g->size = g->virtual_size = (cut_below(c, 900) + 100) * 512;
    g->v2 = cut_below(c, 5) == 0;
    g->lazy = !g->v2 && cut_below(c, 6) == 0;
    g->has_backing = cut_below(c, 3) == 0;
    unsigned width = g->v2 ? 16 : bits[cut_below(c, ARRAY_SIZE(bits))];
    const char *kind = kinds[cut_below(c, ARRAY_SIZE(kinds))];
    if (strcmp(kind, "snapshot") == 0 && width == 1)
        kind = "empty";
    snprintf(g->base_kind, sizeof(g->base_kind), "%s", kind);
    snprintf(g->options, sizeof(g->options), "cluster_size=%" PRIu64 ",compat=%s,refcount_bits=%u%s", g->cluster,
             g->v2 ? "0.10" : "1.1", width, g->lazy ? ",lazy_refcounts=on" : "");
    g->workers = 1 + (unsigned)cut_below(c, 4);
    g->operations = c->settings->quick ? 15 : 40;
}

/* 512-byte clusters and 64-bit refcounts: one cluster of refcount table counts 4096 clusters. Nearly all of them are the
 * L1 table of a disk of gigabytes, which costs no time as it is empty. */
static void choose_full_table(struct guest *g)
{
    uint64_t counted = 4096, others = 2 + 64, left = 20 + cut_below(g->c, 100);

    g->v2 = false;
    g->cluster = 512;
    g->size = (cut_below(g->c, 300) + 100) * 512;
    g->virtual_size = (counted - others - left) * (512 / 8) * (UINT64_C(64) * 512);
    snprintf(g->base_kind, sizeof(g->base_kind), "full table");
    snprintf(g->options, sizeof(g->options), "cluster_size=512,refcount_bits=64%s",
             g->lazy ? ",lazy_refcounts=on" : "");
    g->operations = 12;
}

static coroutine_fn void co_make_base(struct guest *g)
{
    struct cut *c = g->c;
    uint64_t half = align_down(g->size / 2, 512);

    cut_co_make_image(c, g->options, g->virtual_size);
    if (strcmp(g->base_kind, "empty") != 0 && !g->reftable) {
        cut_shell(c, "qemu-io -f qcow2 -c 'write -q -P 201 0 %" PRIu64 "' base", half);
        if (strcmp(g->base_kind, "snapshot") == 0)
            cut_shell(c, "qemu-img snapshot -c one base && qemu-io -f qcow2 -c 'write -q -P 202 0 %" PRIu64 "' base",
                      MIN(half, g->cluster * 3));
        if (strcmp(g->base_kind, "compressed") == 0)
            cut_shell(c, "qemu-img convert -c -O qcow2 -o %s base two && mv two base", g->options);
    }
    cut_load_base(c, "base");
}

static coroutine_fn void co_open_all(struct guest *g)
{
    struct cut *c = g->c;
    struct error *error = NULL;
    const char *direct = !(g->flags & BLK_O_DIRECT) ? ""
                         : cut_below(c, 4)          ? ",align=512,mem-align=512"
                                                    : ",align=4096,mem-align=4096";
    char *memory_options = xasprintf(",latency-ns=%d%s", g->workers > 1 ? 3000 : 0, direct);

    cut_co_start(c, memory_options);
    if (g->has_backing) {
        uint64_t size = cut_below(c, 2) ? g->size : align_down(g->size / 2, 512);
        g->backing = cut_co_memory(c, "below", NULL, size, "");
        uint8_t *data = memory_node(g->backing)->data;
        for (uint64_t i = 0; i < size; i++)
            data[i] = (uint8_t)(i / 512 * 7 + 3);
    }
    unsigned flags = g->flags | BLK_O_RDWR | BLK_O_RESIZE | (cut_below(c, 2) ? BLK_O_UNMAP : 0u);
    g->node = cut_co_open("logging", g->has_backing ? "below" : NULL, flags, &error);
    cut_need(c, g->node, "open", error);
    g->front = blk_front_new("powercut", g->node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL, &error);
    cut_need(c, g->front, "front", error);
    blk_front_set_write_cache(g->front, g->write_cache);
    g->discards = (g->node->open_flags & BLK_O_UNMAP) != 0;
    free(memory_options);
    crash_model_init(&g->model, g->size / 512);
    cut_need(c, blk_front_co_read(g->front, 0, g->model.initial, g->size) == 0, "initial read", NULL);
}

/* ---- the workload ---- */

static void choose_range(struct guest *g, uint64_t *offset, uint64_t *length)
{
    uint64_t unit = cut_below(g->c, 2) ? g->cluster : 512, sectors = g->size / 512;

    *offset = cut_below(g->c, 3) ? cut_below(g->c, sectors) * 512 : cut_below(g->c, MIN(sectors, UINT64_C(64))) * 512;
    *length = (1 + cut_below(g->c, cut_below(g->c, 4) ? UINT64_C(8) : 3 * g->cluster / 512 + 40)) * 512;
    if (unit > 512 && cut_below(g->c, 2)) {
        *offset = align_down(*offset, unit);
        *length = align_up(*length, unit);
    }
    *length = MIN(*length, g->size - *offset);
}

static coroutine_fn int co_write_op(struct guest *g, struct crash_op *op)
{
    uint8_t *buffer = blk_buffer_alloc(g->node, op->count * 512);

    for (uint64_t i = 0; i < op->count; i++)
        crash_stamp(buffer + i * 512, op->value, op->first + i);
    int ret = blk_front_co_write(g->front, op->first * 512, buffer, op->count * 512, op->fua ? BLK_REQ_FUA : 0);
    free(buffer);
    return ret;
}

/* Whole clusters only; the rest keeps what it has. */
static void discard_range(struct guest *g, struct crash_op *op)
{
    uint64_t start = align_up(op->first * 512, g->cluster), end = (op->first + op->count) * 512;

    if (end != g->size)
        end = align_down(end, g->cluster);
    op->first = start / 512;
    op->count = end > start && !(g->v2 && g->has_backing) && g->discards ? (end - start) / 512 : 0;
}

static coroutine_fn void co_one_operation(struct guest *g)
{
    uint64_t offset, length, what = cut_below(g->c, 20);
    int ret;

    /* Some requests take much longer than others: what must wait for them shall be seen waiting. */
    if (g->workers > 1)
        memory_node(g->c->disk)->latency_ns = cut_below(g->c, 3) ? 1000 : cut_below(g->c, 200000);
    choose_range(g, &offset, &length);
    struct crash_op *op = crash_model_add(&g->model, offset / 512, length / 512);
    op->start = logwrites_now(g->c->file);
    if (what < 3) {
        op->kind = CRASH_FLUSH;
        ret = blk_front_co_flush(g->front);
    } else if (what < 6) {
        op->kind = CRASH_ZERO;
        op->fua = !g->write_cache || cut_below(g->c, 8) == 0;
        ret = blk_front_co_write_zeroes(g->front, offset, length,
                                        (cut_below(g->c, 2) ? BLK_REQ_MAY_UNMAP : 0u) | (op->fua ? BLK_REQ_FUA : 0u));
    } else if (what < 9) {
        op->kind = CRASH_ZERO;
        discard_range(g, op);
        ret = blk_front_co_discard(g->front, offset, length);
    } else {
        op->kind = CRASH_WRITE;
        op->fua = !g->write_cache || cut_below(g->c, 8) == 0;
        ret = co_write_op(g, op);
    }
    op->end = logwrites_now(g->c->file);
    if (ret < 0)
        cut_die(g->c, "operation on %" PRIu64 "+%" PRIu64 ": %s", offset, length, strerror(-ret));
}

struct worker {
    struct guest *g;
    unsigned *left;
    struct co *waiter;
};

static coroutine_fn void co_worker(void *arg)
{
    struct worker *w = arg;

    for (unsigned i = 0; i < w->g->operations; i++)
        co_one_operation(w->g);
    if (--*w->left == 0 && w->waiter)
        co_wake(w->waiter);
}

static coroutine_fn void co_work(struct guest *g)
{
    unsigned left = g->workers;
    struct worker w = { g, &left, NULL };

    for (unsigned i = 0; i < g->workers; i++)
        co_start(co_worker, &w);
    if (left) {
        w.waiter = co_self();
        co_yield();
    }
}

/* ---- judging a disk ---- */

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    struct guest *g = arg;
    struct error *error = NULL;
    static uint8_t content[1u << 20];
    uint64_t bad;

    struct blk_node *node = cut_co_open("state", g->has_backing ? "below" : NULL,
                                        g->lazy ? BLK_O_RDWR | BLK_O_RESIZE : 0, &error);
    if (!node)
        cut_die(c, "clock %" PRIu64 ", %s: the image does not open: %s", m->time, m->what, error_text(error));
    cut_co_check(c, m, node);
    int ret = blk_co_read(node, 0, content, g->size);
    if (ret < 0)
        cut_die(c, "clock %" PRIu64 ", %s: cannot be read: %s", m->time, m->what, strerror(-ret));
    if (!crash_model_allows(&g->model, content, m->time, &bad)) {
        crash_model_explain(&g->model, content, m->time, bad, stderr);
        cut_die(c, "clock %" PRIu64 ", %s: sector %" PRIu64 " holds what it must not", m->time, m->what, bad);
    }
    blk_co_node_unref(node);
    if (m->by_qemu)
        cut_check_by_qemu(c, m, g->lazy);
}

/* ---- a workload from beginning to end ---- */

coroutine_fn void powercut_co_guest(struct cut *c)
{
    struct guest g = { .c = c, .reftable = strcmp(c->settings->kind, "reftable") == 0 };

    blk_cache_mode_parse(g.reftable ? "writeback" : c->settings->kind, &g.flags, &g.write_cache);
    c->log_flags = g.flags;
    c->order_only = g.flags & BLK_O_NO_FLUSH;
    choose(&g);
    if (g.reftable)
        choose_full_table(&g);
    snprintf(c->label, sizeof(c->label), "%s, %s%s", g.options, g.base_kind, g.has_backing ? ", backing" : "");
    co_make_base(&g);
    co_open_all(&g);
    co_work(&g);
    int ret = blk_co_front_free(g.front);
    if (ret == 0)
        ret = blk_co_node_unref(g.node);
    cut_need(c, ret == 0, "close", NULL);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &g);
    blk_co_node_unref(g.backing);
    crash_model_finish(&g.model);
}
