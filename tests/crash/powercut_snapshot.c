/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while internal snapshots are created, applied and deleted.
 *
 * On each disk: the image opens, and is clean once it is open for writing (the dirty bit sees to that; of version 2,
 * which has none, once it is repaired). Each sector holds what the model (crash_model.h) allows, where applying a
 * snapshot is a write of what it kept. A snapshot is there if it was created by then and nobody had begun to delete it,
 * it is not there if it was deleted, and what it kept comes back, size and all, when it is applied to the disk.
 */
#include "crash_model.h"
#include "powercut.h"

#include <block/logwrites.h>
#include <block/snapshot.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SNAPSHOTS 8u
#define SECTORS 300u

struct kept {
    char name[8];
    uint64_t created_from, created, deleted_from, deleted; /* clocks; CRASH_NEVER: not */
    uint64_t values[SECTORS];                              /* stamps; 0: zeroes */
};

struct snapshots {
    struct cut *c;
    char options[160];
    bool v2;
    struct blk_node *node;
    struct crash_model model;
    uint64_t values[SECTORS]; /* what the disk holds */
    struct kept kept[MAX_SNAPSHOTS];
    unsigned count;
};

/* ---- the workload ---- */

static uint64_t now(const struct snapshots *t) { return logwrites_now(t->c->file); }

static void choose(struct snapshots *t)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 65536 }, bits[] = { 4, 8, 16, 16, 64 };
    struct cut *c = t->c;

    t->v2 = cut_below(c, 6) == 0;
    bool lazy = !t->v2 && cut_below(c, 6) == 0;
    unsigned cluster = clusters[cut_below(c, ARRAY_SIZE(clusters))];
    snprintf(t->options, sizeof(t->options), "cluster_size=%u,compat=%s,refcount_bits=%u%s%s", cluster,
             t->v2 ? "0.10" : "1.1", t->v2 ? 16 : bits[cut_below(c, ARRAY_SIZE(bits))],
             lazy ? ",lazy_refcounts=on" : "", cut_subclusters(c, cluster, t->v2));
    snprintf(c->label, sizeof(c->label), "%s", t->options);
}

static void note(struct snapshots *t, const char *what, const char *name)
{
    size_t used = strlen(t->c->label);

    snprintf(t->c->label + used, sizeof(t->c->label) - used, " %s%s", what, name);
}

static coroutine_fn void co_flush(struct snapshots *t)
{
    struct crash_op *op = crash_model_add(&t->model, 0, 0);

    op->kind = CRASH_FLUSH;
    op->start = now(t);
    cut_need(t->c, blk_co_flush(t->node) == 0, "flush", NULL);
    op->end = now(t);
}

static coroutine_fn void co_change_content(struct snapshots *t)
{
    uint64_t first = cut_below(t->c, SECTORS), count = MIN(1 + cut_below(t->c, 60), SECTORS - first);
    struct crash_op *op = crash_model_add(&t->model, first, count);
    bool zero = cut_below(t->c, 4) == 0;
    uint8_t *buffer = xcalloc(count, 512);
    int ret;

    op->kind = zero ? CRASH_ZERO : CRASH_WRITE;
    for (uint64_t i = 0; i < count; i++) {
        crash_stamp(buffer + i * 512, op->value, first + i);
        t->values[first + i] = zero ? 0 : op->value;
    }
    op->start = now(t);
    if (zero)
        ret = blk_co_write_zeroes(t->node, first * 512, count * 512, cut_below(t->c, 2) ? BLK_REQ_MAY_UNMAP : 0u);
    else
        ret = blk_co_write(t->node, first * 512, buffer, count * 512, 0);
    cut_need(t->c, ret == 0, "write", NULL);
    op->end = now(t);
    free(buffer);
}

static coroutine_fn void co_create(struct snapshots *t)
{
    struct kept *k = &t->kept[t->count++];
    struct error *error = NULL;

    snprintf(k->name, sizeof(k->name), "s%u", t->count);
    memcpy(k->values, t->values, sizeof(k->values));
    k->created_from = now(t);
    k->deleted_from = k->deleted = CRASH_NEVER;
    struct blk_snapshot what = { .name = k->name };
    note(t, "+", k->name);
    cut_need(t->c, blk_co_snapshot_create(t->node, &what, &error) == 0, "create a snapshot", error);
    k->created = now(t);
}

static coroutine_fn void co_delete(struct snapshots *t, struct kept *k)
{
    struct error *error = NULL;

    note(t, "-", k->name);
    k->deleted_from = now(t);
    cut_need(t->c, blk_co_snapshot_delete(t->node, k->name, &error) == 0, "delete a snapshot", error);
    k->deleted = now(t);
}

/* To the model each run of sectors of one stamp is a write of it, durable when it returns. */
static coroutine_fn void co_apply(struct snapshots *t, const struct kept *k)
{
    size_t from = t->model.count;
    uint64_t start = now(t);
    struct error *error = NULL;

    note(t, "=", k->name);
    for (uint64_t i = 0, end; i < SECTORS; i = end) {
        for (end = i + 1; end < SECTORS && k->values[end] == k->values[i];)
            end++;
        struct crash_op *op = crash_model_add(&t->model, i, end - i);
        op->kind = k->values[i] ? CRASH_WRITE : CRASH_ZERO;
        op->value = k->values[i];
        op->fua = true;
        op->start = start;
    }
    cut_need(t->c, blk_co_snapshot_apply(t->node, k->name, &error) == 0, "apply a snapshot", error);
    for (size_t i = from; i < t->model.count; i++)
        t->model.ops[i]->end = now(t);
    memcpy(t->values, k->values, sizeof(t->values));
}

/* One that is there, or NULL. */
static struct kept *pick(struct snapshots *t)
{
    struct kept *k = t->count ? &t->kept[cut_below(t->c, t->count)] : NULL;

    return k && k->deleted_from == CRASH_NEVER ? k : NULL;
}

static coroutine_fn void co_work(struct snapshots *t)
{
    unsigned steps = t->c->settings->quick ? 4 : 7;

    for (unsigned i = 0; i < steps; i++) {
        for (uint64_t n = cut_below(t->c, 5); n > 0; n--)
            co_change_content(t);
        if (cut_below(t->c, 3) == 0)
            co_flush(t);
        struct kept *k = pick(t);
        if (!k && t->count < MAX_SNAPSHOTS)
            co_create(t);
        else if (k && cut_below(t->c, 2))
            co_apply(t, k);
        else if (k)
            co_delete(t, k);
    }
}

/* ---- judging a disk ---- */

static coroutine_fn bool co_has(struct snapshots *t, struct blk_node *node, const char *name)
{
    struct blk_info info = { 0 };
    bool found = false;
    size_t index;
    json_t *one;

    cut_need(t->c, blk_co_info(node, &info, NULL) == 0, "info", NULL);
    json_array_foreach(info.snapshots, index, one)
        found = found || strcmp(json_string_value(json_object_get(one, "name")), name) == 0;
    blk_info_finish(&info);
    return found;
}

static coroutine_fn void co_judge_kept(struct snapshots *t, const struct cut_moment *m, struct blk_node *node,
                                       const struct kept *k)
{
    static uint8_t content[SECTORS * 512];
    uint8_t wanted[512];
    struct error *error = NULL;

    if (blk_co_snapshot_apply(node, k->name, &error) < 0)
        cut_die(t->c, "clock %" PRIu64 ", %s: snapshot %s: %s", m->time, m->what, k->name, error_text(error));
    cut_need(t->c, blk_node_size(node) == sizeof(content), "size of the snapshot", NULL);
    cut_need(t->c, blk_co_read(node, 0, content, sizeof(content)) == 0, "read the snapshot", NULL);
    for (uint64_t i = 0; i < SECTORS; i++) {
        memset(wanted, 0, sizeof(wanted));
        if (k->values[i])
            crash_stamp(wanted, k->values[i], i);
        if (memcmp(content + i * 512, wanted, 512) != 0)
            cut_die(t->c, "clock %" PRIu64 ", %s: sector %" PRIu64 " of snapshot %s is another", m->time, m->what, i,
                    k->name);
    }
    cut_co_check(t->c, m, node);
}

static coroutine_fn void co_judge_list(struct snapshots *t, const struct cut_moment *m, struct blk_node *node)
{
    for (unsigned i = 0; i < t->count; i++) {
        const struct kept *k = &t->kept[i];
        bool there = co_has(t, node, k->name);
        if (there ? k->created_from >= m->time || k->deleted < m->time
                  : k->created < m->time && k->deleted_from > m->time)
            cut_die(t->c, "clock %" PRIu64 ", %s: snapshot %s is %sthere", m->time, m->what, k->name,
                    there ? "" : "not ");
    }
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    struct snapshots *t = arg;
    struct error *error = NULL;
    static uint8_t content[SECTORS * 512];
    uint64_t bad;

    if (m->by_qemu)
        cut_check_by_qemu(c, m, true);
    struct blk_node *node = cut_co_open("state", NULL, BLK_O_RDWR | BLK_O_RESIZE, &error);
    if (!node)
        cut_die(c, "clock %" PRIu64 ", %s: the image does not open: %s", m->time, m->what, error_text(error));
    if (t->v2) {
        struct blk_check repair = { 0 };
        cut_need(c, blk_co_check(node, &repair, BLK_FIX_LEAKS | BLK_FIX_ERRORS, &error) == 0, "repair", error);
    }
    cut_co_check(c, m, node);
    cut_need(c, blk_co_read(node, 0, content, sizeof(content)) == 0, "read", NULL);
    if (!crash_model_allows(&t->model, content, m->time, &bad)) {
        crash_model_explain(&t->model, content, m->time, bad, stderr);
        cut_die(c, "clock %" PRIu64 ", %s: sector %" PRIu64 " holds what it must not", m->time, m->what, bad);
    }
    co_judge_list(t, m, node);
    for (unsigned i = 0; i < t->count; i++) {
        if (cut_below(c, 3) == 0 && co_has(t, node, t->kept[i].name))
            co_judge_kept(t, m, node, &t->kept[i]);
    }
    cut_need(c, blk_co_node_unref(node) == 0, "close", NULL);
}

coroutine_fn void powercut_co_snapshot(struct cut *c)
{
    struct snapshots t = { .c = c };
    struct error *error = NULL;

    choose(&t);
    c->log_flags = cut_below(c, 4) ? 0 : BLK_O_DSYNC;
    cut_co_make_image(c, t.options, SECTORS * 512);
    cut_load_base(c, "base");
    cut_co_start(c, "");
    unsigned flags = c->log_flags | BLK_O_RDWR | BLK_O_RESIZE | (cut_below(c, 2) ? BLK_O_UNMAP : 0u);
    t.node = (cut_below(c, 2) ? cut_co_open : cut_co_open_small)("logging", NULL, flags, &error);
    cut_need(c, t.node, "open", error);
    crash_model_init(&t.model, SECTORS);
    co_work(&t);
    cut_need(c, blk_co_node_unref(t.node) == 0, "close", NULL);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &t);
    crash_model_finish(&t.model);
}
