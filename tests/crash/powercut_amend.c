/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while an image changes its version, the width of its refcounts, lazy refcounts, and grows.
 *
 * On each disk: the image opens, is clean, and shows what it showed before all of that; a snapshot, too, which there is
 * if the version stays 3.
 */
#include "powercut.h"

#include <base/opts.h>
#include <block/change.h>
#include <block/snapshot.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTORS 500u
#define BYTES (SECTORS * 512u)

struct amend {
    struct cut *c;
    char options[160];
    bool v2, snapshot, below; /* as it is made; has a snapshot; lies over a backing image */
    uint8_t content[BYTES];
    struct blk_node *backing, *node;
};

static void choose(struct amend *t)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 65536 }, bits[] = { 2, 8, 16, 16, 64 };
    struct cut *c = t->c;

    t->v2 = cut_below(c, 3) == 0;
    t->snapshot = !t->v2 && cut_below(c, 3) == 0;
    t->below = cut_below(c, 2);
    snprintf(t->options, sizeof(t->options), "cluster_size=%u,compat=%s,refcount_bits=%u",
             clusters[cut_below(c, ARRAY_SIZE(clusters))], t->v2 ? "0.10" : "1.1",
             t->v2 ? 16 : bits[cut_below(c, ARRAY_SIZE(bits))]);
    snprintf(c->label, sizeof(c->label), "%s%s%s:", t->options, t->snapshot ? ", a snapshot" : "",
             t->below ? ", a backing image" : "");
}

static coroutine_fn void co_open(struct amend *t, const char *file, unsigned flags)
{
    struct error *error = NULL;

    t->node = cut_co_open(file, t->below ? "below" : NULL, flags | BLK_O_RDWR | BLK_O_RESIZE, &error);
    cut_need(t->c, t->node, "open", error);
}

/* Data, zeroes, and nothing, in pieces of any length. */
static coroutine_fn void co_fill(struct amend *t)
{
    uint64_t next;

    for (uint64_t first = 0; first < SECTORS; first = next) {
        uint64_t count = MIN(1 + cut_below(t->c, 60), SECTORS - first), kind = cut_below(t->c, 3);
        uint8_t *content = t->content + first * 512;
        int ret = 0;
        next = first + count;
        if (kind == 2)
            continue;
        memset(content, kind ? (int)(first % 250 + 1) : 0, count * 512);
        if (kind)
            ret = blk_co_write(t->node, first * 512, content, count * 512, 0);
        else
            ret = blk_co_write_zeroes(t->node, first * 512, count * 512, cut_below(t->c, 2) ? BLK_REQ_MAY_UNMAP : 0u);
        if (ret == -ENOTSUP) /* version 2 over a backing image */
            ret = blk_co_write(t->node, first * 512, content, count * 512, 0);
        cut_need(t->c, ret == 0, "write", NULL);
    }
}

static coroutine_fn void co_prepare(struct amend *t)
{
    struct blk_snapshot what = { .name = "kept" };
    struct error *error = NULL;

    struct blk_node *file = cut_co_before(t->c, t->options, BYTES);
    memset(t->content, t->below ? 0xbb : 0, BYTES);
    t->backing = cut_co_memory(t->c, "below", t->content, BYTES, "");
    co_open(t, "before", 0);
    co_fill(t);
    if (t->snapshot)
        cut_need(t->c, blk_co_snapshot_create(t->node, &what, &error) == 0, "create a snapshot", error);
    cut_need(t->c, blk_co_node_unref(t->node) == 0, "close", NULL);
    cut_co_take_base(t->c, file);
}

static coroutine_fn void co_amend(struct amend *t)
{
    static const char *const wishes[] = { "compat=0.10,refcount_bits=16",
                                          "compat=1.1",
                                          "refcount_bits=64",
                                          "refcount_bits=4",
                                          "refcount_bits=16",
                                          "lazy_refcounts=on",
                                          "lazy_refcounts=off",
                                          "compat=1.1,refcount_bits=32,lazy_refcounts=on",
                                          "size=1M" };
    const char *wish = wishes[cut_below(t->c, ARRAY_SIZE(wishes) - t->snapshot)]; /* the last: its size is kept */
    size_t used = strlen(t->c->label);
    struct opts *opts = opts_new();
    struct error *error = NULL;

    snprintf(t->c->label + used, sizeof(t->c->label) - used, " %s", wish);
    opts_parse(opts, wish, NULL, OPTS_LAST_WINS, NULL);
    int ret = blk_co_amend(t->node, opts, &error);
    cut_need(t->c, ret == 0 || ret == -EINVAL || ret == -ENOTSUP, "amend",
             error); /* refused: version 2, or a snapshot */
    error_free(error);
    opts_free(opts);
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    static uint8_t content[BYTES];
    struct amend *t = arg;

    if (m->by_qemu)
        cut_check_by_qemu(c, m, true);
    if (t->snapshot) {
        cut_co_read_snapshot(c, c->state, t->below ? "below" : NULL, content, BYTES);
        cut_compare(c, m, "the snapshot", content, t->content, BYTES);
    }
    co_open(t, "state", 0);
    cut_co_judge(c, m, t->node, t->content, BYTES);
}

coroutine_fn void powercut_co_amend(struct cut *c)
{
    static struct amend t; /* too large for a coroutine's stack */

    t = (struct amend){ .c = c };
    choose(&t);
    c->log_flags = cut_below(c, 4) ? 0 : BLK_O_DSYNC;
    co_prepare(&t);
    cut_co_start(c, "");
    co_open(&t, "logging", c->log_flags);
    for (unsigned i = 0; i < (c->settings->quick ? 3 : 6); i++)
        co_amend(&t);
    cut_need(c, blk_co_node_unref(t.node) == 0, "close", NULL);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &t);
    blk_co_node_unref(t.backing);
}
