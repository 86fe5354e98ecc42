/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while an image with dirty bitmaps is written and closed, twice, and bitmaps come and go.
 *
 * On each disk: the image opens and is clean; a bitmap is in use, and says so, or marks every sector that is not what
 * it was when the bitmap was made. Once the image has been closed its bitmaps can be used.
 */
#include "bitmap_model.h"
#include "powercut.h"

#include <block/logwrites.h>
#include <stdlib.h>

#define SECTORS 600u
#define BYTES (SECTORS * 512u)

struct bitmaps {
    struct cut *c;
    char options[160];
    bool lazy;
    uint64_t granularity;
    uint8_t before[BYTES]; /* when the bitmap `one` was made */
    uint64_t closed;       /* the log's clock, after the last close */
    struct blk_node *node;
};

static void choose(struct bitmaps *t)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 65536 }, bits[] = { 1, 8, 16, 16, 64 };
    struct cut *c = t->c;

    t->lazy = cut_below(c, 5) == 0;
    snprintf(t->options, sizeof(t->options), "cluster_size=%u,refcount_bits=%u%s",
             clusters[cut_below(c, ARRAY_SIZE(clusters))], bits[cut_below(c, ARRAY_SIZE(bits))],
             t->lazy ? ",lazy_refcounts=on" : "");
    t->granularity = UINT64_C(512) << cut_below(c, 8);
    snprintf(c->label, sizeof(c->label), "%s, granularity %u", t->options, (unsigned)t->granularity);
}

static coroutine_fn void co_open(struct bitmaps *t, const char *file, unsigned flags)
{
    struct error *error = NULL;

    t->node = cut_co_open(file, NULL, flags, &error);
    cut_need(t->c, t->node, "open", error);
}

static coroutine_fn void co_write_some(struct bitmaps *t)
{
    static uint8_t content[64 * 512];

    for (uint64_t i = 1 + cut_below(t->c, 8); i > 0; i--) {
        uint64_t first = cut_below(t->c, SECTORS), count = MIN(1 + cut_below(t->c, 60), SECTORS - first);
        memset(content, (int)(1 + cut_below(t->c, 255)), count * 512);
        int ret = cut_below(t->c, 4) ? blk_co_write(t->node, first * 512, content, count * 512, 0)
                                     : blk_co_write_zeroes(t->node, first * 512, count * 512, 0);
        cut_need(t->c, ret == 0, "write", NULL);
        if (cut_below(t->c, 3) == 0)
            cut_need(t->c, blk_co_flush(t->node) == 0, "flush", NULL);
    }
}

static coroutine_fn void co_add(struct bitmaps *t, const char *name)
{
    struct error *error = NULL;
    struct blk_bitmap *bitmap = blk_co_bitmap_add(t->node, name, t->granularity, &error);

    cut_need(t->c, bitmap, "add a bitmap", error);
}

static coroutine_fn void co_prepare(struct bitmaps *t)
{
    struct blk_node *file = cut_co_before(t->c, t->options, BYTES);
    co_open(t, "before", BLK_O_RDWR | BLK_O_RESIZE);
    co_write_some(t);
    cut_need(t->c, blk_co_read(t->node, 0, t->before, BYTES) == 0, "read", NULL);
    co_add(t, "one");
    if (cut_below(t->c, 2))
        co_add(t, "other");
    if (cut_below(t->c, 2))
        co_write_some(t);
    cut_need(t->c, blk_co_node_unref(t->node) == 0, "close", NULL);
    cut_co_take_base(t->c, file);
}

/* Other bitmaps come and go beside the one that is judged. */
static coroutine_fn void co_session(struct bitmaps *t)
{
    struct blk_bitmap *other;

    co_open(t, "logging", t->c->log_flags | BLK_O_RDWR | BLK_O_RESIZE);
    if (cut_below(t->c, 5))
        co_write_some(t);
    other = blk_bitmap_find(t->node, "other", NULL);
    if (cut_below(t->c, 2) && other)
        blk_co_bitmap_remove(other);
    else if (!other)
        co_add(t, "other");
    if (cut_below(t->c, 2))
        co_write_some(t);
    cut_need(t->c, blk_co_node_unref(t->node) == 0, "close", NULL);
    t->closed = logwrites_now(t->c->file);
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    struct bitmaps *t = arg;
    static uint8_t content[BYTES];
    struct error *error = NULL;

    if (m->by_qemu)
        cut_check_by_qemu(c, m, true);
    co_open(t, "state", t->lazy ? BLK_O_RDWR | BLK_O_RESIZE : 0); /* a dirty image is repaired */
    cut_co_check(c, m, t->node);
    cut_need(c, blk_co_read(t->node, 0, content, BYTES) == 0, "read", NULL);
    struct blk_bitmap *one = blk_bitmap_find(t->node, "one", &error);
    cut_need(c, one, m->what, error);
    cut_need(c, blk_co_bitmaps_load(t->node, &error) == 0, m->what, error);
    int64_t sector = one->inconsistent ? -1 : bitmap_misses(one, t->before, content, BYTES);
    if (sector >= 0)
        cut_die(c, "clock %llu, %s: sector %lld is another, and not marked", (unsigned long long)m->time, m->what,
                (long long)sector);
    if (one->inconsistent && m->time >= t->closed)
        cut_die(c, "%s: closed, and the bitmap is in use", m->what);
    cut_need(c, blk_co_node_unref(t->node) == 0, "close", NULL);
}

coroutine_fn void powercut_co_bitmaps(struct cut *c)
{
    static struct bitmaps t; /* too large for a coroutine's stack */

    t = (struct bitmaps){ .c = c };
    choose(&t);
    c->log_flags = cut_below(c, 4) ? 0 : BLK_O_DSYNC;
    co_prepare(&t);
    cut_co_start(c, "");
    co_session(&t);
    co_session(&t);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &t);
}
