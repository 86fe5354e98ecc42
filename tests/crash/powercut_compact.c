/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while an image is compacted. On each disk: the image opens, is clean, and shows what it showed before; so
 * does its snapshot.
 */
#include "holes.h"
#include "powercut.h"

#include <block/change.h>
#include <string.h>

struct compact {
    struct cut *c;
    struct holes holes;
    struct blk_node *node;
};

static coroutine_fn void co_open(struct compact *t, const char *file, unsigned flags)
{
    struct error *error = NULL;

    t->node = cut_co_open(file, NULL, flags | BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);
    cut_need(t->c, t->node, "open", error);
}

static coroutine_fn void co_prepare(struct compact *t)
{
    struct cut *c = t->c;

    holes_choose(&t->holes);
    snprintf(c->label, sizeof(c->label), "%s%s", t->holes.options, t->holes.snapshot ? ", a snapshot" : "");
    cut_co_make_image(c, t->holes.options, HOLES_BYTES);
    cut_load_base(c, "base");
    struct blk_node *file = cut_co_memory(c, "before", c->base, c->base_length, "");
    co_open(t, "before", 0);
    cut_need(c, holes_co_fill(&t->holes, t->node) == 0, "fill", NULL);
    cut_need(c, blk_co_node_unref(t->node) == 0, "close", NULL);
    cut_co_take_base(c, file);
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    static uint8_t content[HOLES_BYTES];
    struct compact *t = arg;

    if (m->by_qemu)
        cut_check_by_qemu(c, m, true);
    if (t->holes.snapshot) {
        cut_co_read_snapshot(c, c->state, NULL, content, HOLES_BYTES);
        cut_compare(c, m, "the snapshot", content, t->holes.kept, HOLES_BYTES);
    }
    co_open(t, "state", 0);
    cut_co_check(c, m, t->node);
    cut_need(c, blk_co_read(t->node, 0, content, HOLES_BYTES) == 0, "read", NULL);
    cut_compare(c, m, "the disk", content, t->holes.content, HOLES_BYTES);
    cut_need(c, blk_co_node_unref(t->node) == 0, "close", NULL);
}

coroutine_fn void powercut_co_compact(struct cut *c)
{
    static struct compact t; /* too large for a coroutine's stack */
    struct blk_compact compact = { .find_zeroes = cut_below(c, 2) };
    struct error *error = NULL;

    t = (struct compact){ .c = c, .holes.random = c->seed };
    c->log_flags = cut_below(c, 4) ? 0 : BLK_O_DSYNC;
    co_prepare(&t);
    cut_co_start(c, "");
    co_open(&t, "logging", c->log_flags);
    int ret = blk_co_compact(t.node, &compact, &error);
    cut_need(c, ret == 0, "compact", error);
    cut_need(c, compact.end_after <= compact.end_before, "it became no longer", NULL);
    cut_need(c, blk_co_node_unref(t.node) == 0, "close", NULL);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &t);
}
