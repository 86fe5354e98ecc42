/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while an image is resized, up and down, with each preallocation mode, past the L1 and the refcount table.
 *
 * On each disk: the size is one that a resize which had begun has set, and none older than the last that was flushed;
 * each sector below it holds what the model (crash_model.h) allows, where a resize is a zeroing of what lies between
 * the sizes. Some disks are then grown: what was not there before must read as zeroes, whatever was cut off half way.
 *
 * The kind `tables` grows small clusters twice by so much that first the refcount table moves, and then the blocks of
 * the new L1 table are named in two sectors of the refcount table, each of which needs the one before it.
 */
#include "crash_model.h"
#include "memory_node.h"
#include "powercut.h"

#include <block/logwrites.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_STEPS 8u
/* The part of the disk whose content is looked at. */
#define WINDOW (400u << 10)

struct size_step {
    uint64_t size, began, durable; /* clocks */
};

struct resizing {
    struct cut *c;
    char options[160];
    uint64_t cluster;
    bool v2, lazy, snapshot, tables;
    struct blk_node *backing, *node;
    struct crash_model model;
    struct size_step steps[MAX_STEPS];
    unsigned step_count;
};

/* ---- making the image ---- */

static void choose(struct resizing *t)
{
    static const unsigned clusters[] = { 512, 512, 512, 1024, 4096, 65536 };
    static const unsigned bits[] = { 1, 2, 8, 16, 32, 64, 64 };
    struct cut *c = t->c;

    t->cluster = clusters[cut_below(c, ARRAY_SIZE(clusters))];
    t->v2 = cut_below(c, 5) == 0;
    t->lazy = !t->v2 && cut_below(c, 6) == 0;
    unsigned width = t->v2 ? 16 : bits[cut_below(c, ARRAY_SIZE(bits))];
    t->snapshot = !t->v2 && width > 1 && cut_below(c, 4) == 0;
    snprintf(t->options, sizeof(t->options), "cluster_size=%" PRIu64 ",compat=%s,refcount_bits=%u%s%s", t->cluster,
             t->v2 ? "0.10" : "1.1", width, t->lazy ? ",lazy_refcounts=on" : "", cut_subclusters(c, t->cluster, t->v2));
    t->steps[0].size = (cut_below(c, 500) + 20) * 512;
    t->step_count = 1;
}

static void choose_tables(struct resizing *t)
{
    t->cluster = 512;
    t->v2 = t->lazy = t->snapshot = false;
    snprintf(t->options, sizeof(t->options), "cluster_size=512,refcount_bits=64");
    t->c->single_sectors = 64;
    t->c->every_moment = true;
}

/* A backing image that is longer than the disk will ever be, or shorter. */
static coroutine_fn void co_make_backing(struct resizing *t)
{
    static uint8_t data[2 * WINDOW];
    uint64_t size = align_down((1 + cut_below(t->c, 2 * WINDOW - 1)) + 511, 512);

    for (uint64_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i / 512 * 7 + 3);
    t->backing = cut_co_memory(t->c, "below", data, size, "");
}

static coroutine_fn void co_open(struct resizing *t)
{
    struct cut *c = t->c;
    struct error *error = NULL;

    cut_co_make_image(c, t->options, t->steps[0].size);
    if (t->snapshot)
        cut_shell(c, "qemu-io -f qcow2 -c 'write -q -P 201 0 %" PRIu64 "' base && qemu-img snapshot -c one base",
                  align_down(t->steps[0].size / 2 + 512, 512));
    cut_load_base(c, "base");
    cut_co_start(c, "");
    if (cut_below(c, 3) == 0)
        co_make_backing(t);
    unsigned flags = c->log_flags | BLK_O_RDWR | BLK_O_RESIZE | (cut_below(c, 2) ? BLK_O_UNMAP : 0u);
    t->node = cut_co_open("logging", t->backing ? "below" : NULL, flags, &error);
    cut_need(c, t->node, "open", error);
    crash_model_init(&t->model, WINDOW / 512);
    cut_need(c, blk_co_read(t->node, 0, t->model.initial, MIN(t->steps[0].size, (uint64_t)WINDOW)) == 0, "initial read",
             NULL);
}

/* ---- the workload ---- */

static uint64_t current_size(const struct resizing *t) { return t->steps[t->step_count - 1].size; }

static coroutine_fn void co_write_something(struct resizing *t)
{
    uint64_t sectors = MIN(current_size(t), (uint64_t)WINDOW) / 512, first = cut_below(t->c, sectors);
    uint64_t count = MIN(1 + cut_below(t->c, 60), sectors - first);
    struct crash_op *op = crash_model_add(&t->model, first, count);
    uint8_t *buffer = xmalloc(count * 512);

    op->start = logwrites_now(t->c->file);
    for (uint64_t i = 0; i < count; i++)
        crash_stamp(buffer + i * 512, op->value, first + i);
    cut_need(t->c, blk_co_write(t->node, first * 512, buffer, count * 512, 0) == 0, "write", NULL);
    op->end = logwrites_now(t->c->file);
    free(buffer);
}

static coroutine_fn uint64_t co_flush(struct resizing *t)
{
    struct crash_op *op = crash_model_add(&t->model, 0, 0);

    op->kind = CRASH_FLUSH;
    op->start = logwrites_now(t->c->file);
    cut_need(t->c, blk_co_flush(t->node) == 0, "flush", NULL);
    op->end = logwrites_now(t->c->file);
    return op->end;
}

/* Near, far, nearly nothing, or so large that small clusters need a long L1 table and a new refcount table for it. */
static uint64_t choose_size(struct resizing *t)
{
    uint64_t size = current_size(t);

    switch (cut_below(t->c, 8)) {
    case 0:
    case 1: return align_up(size + 512, t->cluster) - cut_below(t->c, MIN(t->cluster / 512, size / 512)) * 512;
    case 2: return (1 + cut_below(t->c, 10)) * 512;
    case 3: return t->cluster > 512 ? size : (UINT64_C(1) << 30) * (1 + cut_below(t->c, 12));
    default: return (1 + cut_below(t->c, WINDOW / 512)) * 512;
    }
}

static uint64_t next_table_size(struct resizing *t)
{
    return (UINT64_C(9) << 30) + (UINT64_C(3) << 30) * (t->step_count - 1) + cut_below(t->c, 1u << 17) * 512;
}

static coroutine_fn void co_resize(struct resizing *t)
{
    static const char *const modes[] = { "off", "off", "metadata", "falloc", "full" };
    uint64_t old = current_size(t), size = t->tables ? next_table_size(t) : choose_size(t);
    const char *prealloc = size > old && size <= WINDOW ? modes[cut_below(t->c, ARRAY_SIZE(modes))] : "off";
    uint64_t low = MIN(old, size), high = MAX(old, size);
    struct size_step *step = &t->steps[t->step_count++];
    struct error *error = NULL;
    size_t used = strlen(t->c->label);

    snprintf(t->c->label + used, sizeof(t->c->label) - used, " %" PRIu64 "/%s", size, prealloc);
    struct crash_op *op = crash_model_add(&t->model, low / 512,
                                          (high - low) / 512); /* sectors past the window are never asked for */
    op->kind = CRASH_ZERO;
    *step = (struct size_step){ .size = size, .began = logwrites_now(t->c->file) };
    op->start = step->began;
    int ret = blk_co_truncate(t->node, size, true, prealloc, &error);
    cut_need(t->c, ret == 0, "resize", error);
    op->end = logwrites_now(t->c->file);
    step->durable = co_flush(t);
}

static coroutine_fn void co_work(struct resizing *t)
{
    unsigned resizes = t->tables ? 2 : 1 + (unsigned)cut_below(t->c, t->c->settings->quick ? 2 : 4);

    for (unsigned i = 0; i < resizes; i++) {
        for (uint64_t n = cut_below(t->c, 4); n > 0; n--)
            co_write_something(t);
        if (cut_below(t->c, 2))
            co_flush(t);
        co_resize(t);
    }
}

/* ---- judging a disk ---- */

static bool size_allowed(const struct resizing *t, uint64_t size, uint64_t time)
{
    unsigned oldest = 0;

    for (unsigned i = 0; i < t->step_count; i++) {
        if (t->steps[i].durable < time)
            oldest = i;
    }
    for (unsigned i = oldest; i < t->step_count; i++) {
        if (t->steps[i].size == size && t->steps[i].began < time + 1)
            return true;
    }
    return false;
}

static coroutine_fn void co_judge_content(struct resizing *t, const struct cut_moment *m, struct blk_node *node)
{
    static uint8_t content[WINDOW];
    uint64_t length = MIN(blk_node_size(node), (uint64_t)WINDOW), all = t->model.sectors, bad;

    int ret = blk_co_read(node, 0, content, length);
    if (ret < 0)
        cut_die(t->c, "clock %" PRIu64 ", %s: cannot be read: %s", m->time, m->what, strerror(-ret));
    t->model.sectors = length / 512;
    if (!crash_model_allows(&t->model, content, m->time, &bad)) {
        crash_model_explain(&t->model, content, m->time, bad, stderr);
        cut_die(t->c, "clock %" PRIu64 ", %s: size %" PRIu64 ", sector %" PRIu64 " holds what it must not", m->time,
                m->what, blk_node_size(node), bad);
    }
    t->model.sectors = all;
}

/* Life goes on with this disk: it grows. */
static coroutine_fn void co_judge_growth(struct resizing *t, const struct cut_moment *m)
{
    static uint8_t before[WINDOW], after[WINDOW];
    struct error *error = NULL;
    struct blk_node *node = cut_co_open("state", t->backing ? "below" : NULL, BLK_O_RDWR | BLK_O_RESIZE, &error);
    uint64_t size = blk_node_size(node);

    cut_need(t->c, node, "open for growing", error);
    if (size < WINDOW) {
        memset(before, 0, sizeof(before));
        cut_need(t->c, blk_co_read(node, 0, before, size) == 0, "read", NULL);
        cut_need(t->c, blk_co_truncate(node, WINDOW, true, "off", &error) == 0, "grow", error);
        cut_need(t->c, blk_co_read(node, 0, after, WINDOW) == 0, "read", NULL);
        for (uint64_t i = 0; i < WINDOW; i++) {
            if (before[i] != after[i])
                cut_die(t->c, "clock %" PRIu64 ", %s: grown from %" PRIu64 ", byte %" PRIu64 " is %#x, not %#x",
                        m->time, m->what, size, i, after[i], before[i]);
        }
        cut_co_check(t->c, m, node);
    }
    cut_need(t->c, blk_co_node_unref(node) == 0, "close", NULL);
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    struct resizing *t = arg;
    struct error *error = NULL;
    struct blk_node *node = cut_co_open("state", t->backing ? "below" : NULL, t->lazy ? BLK_O_RDWR | BLK_O_RESIZE : 0,
                                        &error);

    if (!node)
        cut_die(c, "clock %" PRIu64 ", %s: the image does not open: %s", m->time, m->what, error_text(error));
    if (!size_allowed(t, blk_node_size(node), m->time))
        cut_die(c, "clock %" PRIu64 ", %s: the size is %" PRIu64, m->time, m->what, blk_node_size(node));
    cut_co_check(c, m, node);
    co_judge_content(t, m, node);
    blk_co_node_unref(node);
    if (m->by_qemu)
        cut_check_by_qemu(c, m, t->lazy);
    if (cut_below(c, 8) == 0)
        co_judge_growth(t, m);
}

coroutine_fn void powercut_co_resize(struct cut *c)
{
    struct resizing t = { .c = c, .tables = strcmp(c->settings->kind, "tables") == 0 };

    choose(&t);
    if (t.tables)
        choose_tables(&t);
    c->log_flags = cut_below(c, 4) ? 0 : BLK_O_DSYNC;
    snprintf(c->label, sizeof(c->label), "%s%s, %" PRIu64, t.options, t.snapshot ? ", snapshot" : "", t.steps[0].size);
    co_open(&t);
    co_work(&t);
    cut_need(c, blk_co_node_unref(t.node) == 0, "close", NULL);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &t);
    blk_co_node_unref(t.backing);
    crash_model_finish(&t.model);
}
