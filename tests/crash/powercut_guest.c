/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts under guest requests: several coroutines on one loop or two write, zero, discard and flush an image at
 * once. On each disk our check finds nothing worse than leaks, each sector holds what the model (crash_model.h) allows,
 * and a snapshot what it always held. After a clean close there are no leaks either.
 *
 * The kind is a cache mode. `unsafe` promises nothing but the order of what the host has been given. `reftable` is
 * writeback on an image whose refcount table is full but for a few clusters, so that it grows under the requests;
 * `errors` is writeback on a file of which some requests fail; `reopen` one whose image becomes read-only and writable
 * again, with and without lazy refcounts, with other cache sizes; `compressed` one with compressed writes among the
 * others, which fail where there are data; `data-file` one with an external data file. Where there is no write cache
 * the front end makes writes durable, not the workload; in writeback a guest may turn its cache off and on.
 */
#include "crash_model.h"
#include "memory_node.h"
#include "powercut.h"

#include <block/change.h>
#include <block/front.h>
#include <block/logwrites.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct guest {
    struct cut *c;
    char options[160], base_kind[16];
    uint64_t size, cluster; /* size: of the part of the disk that is worked on */
    uint64_t virtual_size;
    unsigned flags; /* cache mode */
    bool write_cache, reftable, errors, reopen, compressed, data_file, v2, lazy, has_backing, discards, small_caches,
        snapshot;
    uint8_t *snapshot_content;
    pthread_mutex_t lock; /* the model and random numbers, while workers run */
    struct loop *second;  /* half of the workers run here; NULL: all on the main loop */
    struct crash_model model;
    struct blk_node *backing, *node;
    struct blk_front *front;
    unsigned workers, operations;
    atomic_uint left; /* workers */
};

/* ---- making the image ---- */

static void choose(struct guest *g)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 4096, 16384, 65536 };
    static const unsigned large[] = { 131072, 262144, 1048576, 2097152 };
    static const unsigned bits[] = { 1, 2, 8, 16, 16, 32, 64 };
    static const char *const kinds[] = { "empty", "snapshot", "compressed", "written", "empty", "empty" };
    struct cut *c = g->c;

    g->cluster = cut_below(c, 24) ? clusters[cut_below(c, ARRAY_SIZE(clusters))]
                                  : large[cut_below(c, ARRAY_SIZE(large))];
    g->size = g->virtual_size = (cut_below(c, 900) + 100) * 512;
    g->v2 = cut_below(c, 5) == 0;
    g->lazy = !g->v2 && cut_below(c, 6) == 0;
    g->has_backing = cut_below(c, 3) == 0;
    unsigned width = g->v2 ? 16 : bits[cut_below(c, ARRAY_SIZE(bits))];
    const char *kind = kinds[cut_below(c, ARRAY_SIZE(kinds))];
    if (strcmp(kind, "snapshot") == 0 && width == 1)
        kind = "empty";
    snprintf(g->base_kind, sizeof(g->base_kind), "%s", kind);
    snprintf(g->options, sizeof(g->options), "cluster_size=%" PRIu64 ",compat=%s,refcount_bits=%u%s%s", g->cluster,
             g->v2 ? "0.10" : "1.1", width, g->lazy ? ",lazy_refcounts=on" : "", cut_subclusters(c, g->cluster, g->v2));
    g->workers = 1 + (unsigned)cut_below(c, 4);
    g->operations = c->settings->quick ? 15 : 40;
    g->small_caches = cut_below(c, 2);
    if (g->reopen) {
        g->lazy = !g->v2; /* sooner or later */
        g->workers = cut_below(c, 2) ? 1 : g->workers;
    }
    g->snapshot = strcmp(kind, "snapshot") == 0;
}

/* The bytes of the disk that no entry names are not shown, but in a raw data file they are the disk's. */
static void choose_data_file(struct guest *g)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 16384, 65536 };
    struct cut *c = g->c;
    bool raw = cut_below(c, 2);

    g->v2 = g->snapshot = g->small_caches = false;
    g->has_backing = g->has_backing && !raw;
    g->cluster = clusters[cut_below(c, ARRAY_SIZE(clusters))];
    snprintf(g->base_kind, sizeof(g->base_kind), "%s", cut_below(c, 2) ? "written" : "empty");
    snprintf(g->options, sizeof(g->options), "cluster_size=%" PRIu64 ",data_file_raw=%s%s%s", g->cluster,
             raw ? "on" : "off", g->lazy ? ",lazy_refcounts=on" : "", cut_subclusters(c, g->cluster, false));
}

/* 512-byte clusters and 64-bit refcounts: one cluster of refcount table counts 4096 clusters. Nearly all of them are
 * the L1 table of a disk of gigabytes, which costs no time as it is empty. */
static void choose_full_table(struct guest *g)
{
    uint64_t counted = 4096, others = 2 + 64, left = 20 + cut_below(g->c, 100);

    g->v2 = g->snapshot = false;
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

    char *options = g->data_file ? xasprintf("%s,data_file=%s/data", g->options, c->folder) : xstrdup(g->options);

    cut_co_make_image(c, options, g->virtual_size);
    free(options);
    if (strcmp(g->base_kind, "empty") != 0 && !g->reftable) {
        cut_shell(c, "qemu-io -f qcow2 -c 'write -q -P 201 0 %" PRIu64 "' base", half);
        if (strcmp(g->base_kind, "snapshot") == 0)
            cut_shell(c, "qemu-img snapshot -c one base && qemu-io -f qcow2 -c 'write -q -P 202 0 %" PRIu64 "' base",
                      MIN(half, g->cluster * 3));
        if (strcmp(g->base_kind, "compressed") == 0)
            cut_shell(c, "qemu-img convert -c -O qcow2 -o %s base two && mv two base", g->options);
    }
    if (g->data_file)
        cut_load_base_apart(c, "data");
    else
        cut_load_base(c, "base");
}

static coroutine_fn struct blk_node *co_open_image(const struct guest *g, const char *file, bool small, unsigned flags,
                                                   struct error **errp)
{
    const char *backing = g->has_backing ? "below" : NULL;

    if (g->data_file)
        return cut_co_open_apart(file, backing, flags, errp);
    return small ? cut_co_open_small(file, backing, flags, errp) : cut_co_open(file, backing, flags, errp);
}

/* In one image of three a discarded cluster keeps its place. */
static coroutine_fn void co_choose_discard(struct guest *g)
{
    struct opts *opts = opts_new();
    struct blk_reopen item = { .node = g->node, .opts = opts };
    struct error *error = NULL;

    if (!g->v2 && g->c->seed % 3 == 0) {
        opts_set(opts, "discard-no-unref", "on");
        cut_need(g->c, blk_co_reopen(&item, 1, &error) == 0, "reopen", error);
    }
    opts_free(opts);
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
    if (g->snapshot) {
        g->snapshot_content = xmalloc(g->size);
        cut_co_read_snapshot(c, c->disk, g->has_backing ? "below" : NULL, g->snapshot_content, g->size);
    }
    g->node = co_open_image(g, "logging", g->small_caches, flags, &error);
    cut_need(c, g->node, "open", error);
    co_choose_discard(g);
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

static coroutine_fn int co_write_op(struct guest *g, struct crash_op *op, unsigned flags)
{
    uint8_t *buffer = blk_buffer_alloc(g->node, op->count * 512);

    for (uint64_t i = 0; i < op->count; i++)
        crash_stamp(buffer + i * 512, op->value, op->first + i);
    int ret = blk_front_co_write(g->front, op->first * 512, buffer, op->count * 512, flags);
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

struct operation {
    struct crash_op *op;
    enum blk_op what;
    uint64_t offset, length;
    unsigned flags;
};

/* Lock held. A write of up to four whole clusters. */
static void choose_compressed(struct guest *g, struct operation *o)
{
    o->offset = cut_below(g->c, div_round_up(g->size, g->cluster)) * g->cluster;
    o->length = MIN((1 + cut_below(g->c, 4)) * g->cluster, g->size - o->offset);
    o->flags = BLK_REQ_COMPRESSED;
}

/* Lock held. What the guest asks for; durable are also the changes that the front end makes durable by itself. */
static struct operation choose_operation(struct guest *g)
{
    static const enum blk_op ops[] = { BLK_OP_FLUSH, BLK_OP_WRITE_ZEROES, BLK_OP_DISCARD };
    uint64_t what = cut_below(g->c, 20);
    struct operation o = { .what = what < 9 ? ops[what / 3] : BLK_OP_WRITE };

    choose_range(g, &o.offset, &o.length);
    if (g->compressed && o.what == BLK_OP_WRITE && cut_below(g->c, 2))
        choose_compressed(g, &o);
    o.op = crash_model_add(&g->model, o.offset / 512, o.length / 512);
    o.op->kind = o.what == BLK_OP_FLUSH ? CRASH_FLUSH : o.what == BLK_OP_WRITE ? CRASH_WRITE : CRASH_ZERO;
    if (o.what == BLK_OP_DISCARD)
        discard_range(g, o.op);
    if (o.what == BLK_OP_WRITE_ZEROES && cut_below(g->c, 2))
        o.flags |= BLK_REQ_MAY_UNMAP;
    if ((o.what == BLK_OP_WRITE || o.what == BLK_OP_WRITE_ZEROES) && cut_below(g->c, 8) == 0)
        o.flags |= BLK_REQ_FUA;
    /* A guest may turn its write cache off and on. What is submitted meanwhile by others may see either. */
    if (!g->second && g->workers == 1 && !(g->flags & BLK_O_DSYNC) && cut_below(g->c, 10) == 0)
        blk_front_set_write_cache(g->front, !blk_front_write_cache(g->front));
    o.op->fua = o.what != BLK_OP_DISCARD && ((o.flags & BLK_REQ_FUA) || !blk_front_write_cache(g->front));
    /* Some requests take much longer than others: what must wait for them shall be seen waiting. */
    if (g->workers > 1)
        memory_node(g->c->disk)->latency_ns = cut_below(g->c, 3) ? 1000 : cut_below(g->c, 200000);
    if (g->errors && cut_below(g->c, 6) == 0)
        memory_node_fail(g->c->disk, (struct memory_faults){ .fail_at = 1 + cut_below(g->c, 8),
                                                             .for_good = cut_below(g->c, 4) == 0,
                                                             .with = cut_below(g->c, 2) ? -EIO : -ENOSPC });
    else if (g->errors && cut_below(g->c, 2))
        memory_node_fail(g->c->disk, (struct memory_faults){ 0 });
    return o;
}

/* Becomes read-only, with nothing left in memory, and writable again. Nobody else writes. */
static coroutine_fn void co_reopen_read_only(struct guest *g)
{
    struct blk_reopen item = { .node = g->node, .clear = BLK_O_RDWR };
    struct crash_op *op = crash_model_add(&g->model, 0, 0);
    struct error *error = NULL;

    op->kind = CRASH_FLUSH;
    op->start = logwrites_now(g->c->file);
    cut_need(g->c, blk_front_set_perm(g->front, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, &error) == 0, "permissions",
             error);
    cut_need(g->c, blk_co_reopen(&item, 1, &error) == 0, "reopen read-only", error);
    op->end = logwrites_now(g->c->file);
    item = (struct blk_reopen){ .node = g->node, .set = BLK_O_RDWR };
    cut_need(g->c, blk_co_reopen(&item, 1, &error) == 0, "reopen writable", error);
    int ret = blk_front_set_perm(g->front, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL, &error);
    cut_need(g->c, ret == 0, "permissions", error);
}

/* Main loop. */
static coroutine_fn void co_reopen(struct guest *g)
{
    struct opts *opts = opts_new();
    struct blk_reopen item = { .node = g->node, .opts = opts };
    struct error *error = NULL;
    uint64_t how = cut_below(g->c, 3);

    if (how == 0 && g->workers == 1) {
        co_reopen_read_only(g);
    } else {
        if (how == 1 && !g->v2)
            opts_set(opts, "lazy-refcounts", cut_below(g->c, 2) ? "on" : "off");
        else
            opts_set(opts, "l2-cache-size", cut_below(g->c, 2) ? "512" : "65536");
        cut_need(g->c, blk_co_reopen(&item, 1, &error) == 0, "reopen", error);
    }
    opts_free(opts);
}

static coroutine_fn void co_one_operation(struct guest *g)
{
    int ret;

    pthread_mutex_lock(&g->lock);
    struct operation o = choose_operation(g);
    o.op->start = logwrites_now(g->c->file);
    pthread_mutex_unlock(&g->lock);
    switch (o.what) {
    case BLK_OP_FLUSH: ret = blk_front_co_flush(g->front); break;
    case BLK_OP_WRITE_ZEROES: ret = blk_front_co_write_zeroes(g->front, o.offset, o.length, o.flags); break;
    case BLK_OP_DISCARD: ret = blk_front_co_discard(g->front, o.offset, o.length); break;
    default: ret = co_write_op(g, o.op, o.flags); break;
    }
    o.op->end = logwrites_now(g->c->file);
    o.op->failed = ret < 0;
    if (g->reopen && cut_below(g->c, 6) == 0)
        co_reopen(g);
    if (ret < 0 && !g->errors && !(ret == -EIO && (o.flags & BLK_REQ_COMPRESSED)))
        cut_die(g->c, "operation on %" PRIu64 "+%" PRIu64 ": %s", o.offset, o.length, strerror(-ret));
}

static coroutine_fn void co_worker(void *arg)
{
    struct guest *g = arg;

    for (unsigned i = 0; i < g->operations; i++)
        co_one_operation(g);
    atomic_fetch_sub(&g->left, 1);
}

static coroutine_fn void co_work(struct guest *g)
{
    struct error *error = NULL;

    pthread_mutex_init(&g->lock, NULL);
    if (g->workers > 1 && !g->reopen && cut_below(g->c, 3) == 0) {
        g->second = loop_thread_start("powercut", &error);
        cut_need(g->c, g->second, "second loop", error);
    }
    atomic_store(&g->left, g->workers);
    for (unsigned i = 0; i < g->workers; i++) {
        if (g->second && i % 2)
            co_start_on(g->second, co_worker, g);
        else
            co_start(co_worker, g);
    }
    while (atomic_load(&g->left) > 0)
        co_sleep_ns(20000);
    if (g->second)
        loop_thread_stop(g->second);
    memory_node_fail(g->c->disk, (struct memory_faults){ 0 });
    pthread_mutex_destroy(&g->lock);
}

/* After a clean close nothing is left over. A failed request may leave a leak. */
static coroutine_fn void co_check_closed(struct guest *g)
{
    struct error *error = NULL;
    struct blk_check check = { 0 };
    struct blk_node *node = co_open_image(g, "disk", false, 0, &error);

    cut_need(g->c, node, "open after closing", error);
    cut_need(g->c, blk_co_check(node, &check, 0, &error) == 0, "check after closing", error);
    if (check.corruptions || check.check_errors || (check.leaks && !g->errors))
        cut_die(g->c, "after closing: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors",
                check.corruptions, check.leaks, check.check_errors);
    blk_co_node_unref(node);
}

/* ---- judging a disk ---- */

static coroutine_fn void co_judge_snapshot(struct guest *g, const struct cut_moment *m)
{
    static uint8_t content[1u << 20];

    cut_co_read_snapshot(g->c, g->c->state, g->has_backing ? "below" : NULL, content, g->size);
    for (uint64_t i = 0; i < g->size; i++) {
        if (content[i] != g->snapshot_content[i])
            cut_die(g->c, "clock %" PRIu64 ", %s: byte %" PRIu64 " of the snapshot has changed", m->time, m->what, i);
    }
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    struct guest *g = arg;
    struct error *error = NULL;
    static uint8_t content[1u << 20];
    uint64_t bad;

    struct blk_node *node = co_open_image(g, "state", false, g->lazy ? BLK_O_RDWR | BLK_O_RESIZE : 0, &error);
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
    if (g->snapshot && cut_below(c, 4) == 0)
        co_judge_snapshot(g, m);
    if (m->by_qemu && !g->data_file)
        cut_check_by_qemu(c, m, g->lazy);
}

/* ---- a workload from beginning to end ---- */

coroutine_fn void powercut_co_guest(struct cut *c)
{
    struct guest g = { .c = c,
                       .reftable = strcmp(c->settings->kind, "reftable") == 0,
                       .errors = strcmp(c->settings->kind, "errors") == 0,
                       .reopen = strcmp(c->settings->kind, "reopen") == 0,
                       .compressed = strcmp(c->settings->kind, "compressed") == 0,
                       .data_file = strcmp(c->settings->kind, "data-file") == 0 };
    bool writeback = g.reftable || g.errors || g.reopen || g.compressed || g.data_file;

    blk_cache_mode_parse(writeback ? "writeback" : c->settings->kind, &g.flags, &g.write_cache);
    c->log_flags = g.flags;
    c->order_only = g.flags & BLK_O_NO_FLUSH;
    if (g.flags & BLK_O_DSYNC)
        c->single_sectors = MAX(c->single_sectors / 3, 1u); /* something becomes durable all the time */
    choose(&g);
    if (g.reftable)
        choose_full_table(&g);
    if (g.data_file)
        choose_data_file(&g);
    snprintf(c->label, sizeof(c->label), "%s, %s%s%s, %u workers", g.options, g.base_kind,
             g.has_backing ? ", backing" : "", g.small_caches ? ", small caches" : "", g.workers);
    co_make_base(&g);
    co_open_all(&g);
    co_work(&g);
    int ret = blk_co_front_free(g.front);
    if (ret == 0)
        ret = blk_co_node_unref(g.node);
    cut_need(c, ret == 0, "close", NULL);
    co_check_closed(&g);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &g);
    blk_co_node_unref(g.backing);
    crash_model_finish(&g.model);
    free(g.snapshot_content);
}
