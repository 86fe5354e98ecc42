/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while an image is emptied, as after a commit: what it holds is what its backing file has too, but for a
 * snapshot from before.
 *
 * On each disk: the image opens and is clean, shows the backing file's content, and its snapshot holds what it did.
 */
#include "powercut.h"

#include <block/change.h>
#include <block/snapshot.h>
#include <stdlib.h>
#include <string.h>

#define SECTORS 600u
#define BYTES (SECTORS * 512u)

struct empty {
    struct cut *c;
    char options[160];
    bool snapshot;
    uint8_t below[BYTES], kept[BYTES]; /* the backing file; the snapshot */
    struct blk_node *backing, *node;
};

static void choose(struct empty *t)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 65536 }, bits[] = { 4, 8, 16, 16, 64 };
    struct cut *c = t->c;
    bool v2 = cut_below(c, 5) == 0, lazy = !v2 && cut_below(c, 5) == 0;

    t->snapshot = cut_below(c, 2);
    snprintf(t->options, sizeof(t->options), "cluster_size=%u,compat=%s,refcount_bits=%u%s",
             clusters[cut_below(c, ARRAY_SIZE(clusters))], v2 ? "0.10" : "1.1",
             v2 ? 16 : bits[cut_below(c, ARRAY_SIZE(bits))], lazy ? ",lazy_refcounts=on" : "");
    snprintf(c->label, sizeof(c->label), "%s%s", t->options, t->snapshot ? ", a snapshot" : "");
    for (unsigned i = 0; i < SECTORS; i++)
        memset(t->below + (size_t)i * 512, (int)(i % 250 + 1), 512);
}

static coroutine_fn void co_write(struct empty *t, uint64_t first, uint64_t count, const uint8_t *content)
{
    cut_need(t->c, blk_co_write(t->node, first * 512, content + first * 512, count * 512, 0) == 0, "write", NULL);
}

/* Pieces of the backing file's content. */
static coroutine_fn void co_write_some(struct empty *t)
{
    for (uint64_t i = 1 + cut_below(t->c, 8); i > 0; i--) {
        uint64_t first = cut_below(t->c, SECTORS);
        co_write(t, first, MIN(1 + cut_below(t->c, 80), SECTORS - first), t->below);
    }
}

static coroutine_fn void co_open(struct empty *t, const char *file, unsigned flags)
{
    struct error *error = NULL;

    t->node = cut_co_open(file, "below", flags | BLK_O_RDWR | BLK_O_RESIZE, &error);
    cut_need(t->c, t->node, "open", error);
}

/* The image before: other content in places, a snapshot of it, and then the backing file's content over that. */
static coroutine_fn void co_prepare(struct empty *t)
{
    struct error *error = NULL;
    static uint8_t other[BYTES];

    struct blk_node *file = cut_co_before(t->c, t->options, BYTES);
    co_open(t, "before", 0);
    memcpy(t->kept, t->below, BYTES);
    memset(other, 0xee, sizeof(other));
    for (unsigned i = 0; t->snapshot && i < 4; i++) {
        uint64_t first = cut_below(t->c, SECTORS), count = MIN(1 + cut_below(t->c, 50), SECTORS - first);
        co_write(t, first, count, other);
        memcpy(t->kept + first * 512, other, count * 512);
    }
    struct blk_snapshot what = { .name = "kept" };
    if (t->snapshot)
        cut_need(t->c, blk_co_snapshot_create(t->node, &what, &error) == 0, "create a snapshot", error);
    if (t->snapshot)
        co_write(t, 0, SECTORS, t->below);
    else
        co_write_some(t);
    cut_need(t->c, blk_co_node_unref(t->node) == 0, "close", NULL);
    cut_co_take_base(t->c, file);
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    struct empty *t = arg;
    static uint8_t content[BYTES];

    if (m->by_qemu)
        cut_check_by_qemu(c, m, true);
    if (t->snapshot) {
        cut_co_read_snapshot(c, c->state, "below", content, BYTES);
        cut_compare(c, m, "the snapshot", content, t->kept, BYTES);
    }
    co_open(t, "state", 0);
    cut_co_judge(c, m, t->node, t->below, BYTES);
}

coroutine_fn void powercut_co_empty(struct cut *c)
{
    static struct empty t; /* too large for a coroutine's stack */
    struct error *error = NULL;

    t = (struct empty){ .c = c };
    choose(&t);
    c->log_flags = cut_below(c, 4) ? 0 : BLK_O_DSYNC;
    t.backing = cut_co_memory(c, "below", t.below, BYTES, "");
    co_prepare(&t);
    cut_co_start(c, "");
    co_open(&t, "logging", c->log_flags);
    for (unsigned i = 0; i < 3; i++) {
        if (i > 0)
            co_write_some(&t);
        cut_need(c, blk_co_make_empty(t.node, &error) == 0, "empty", error);
    }
    cut_need(c, blk_co_node_unref(t.node) == 0, "close", NULL);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &t);
    blk_co_node_unref(t.backing);
}
