/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults while an image changes its version, the width of its refcounts, or lazy refcounts. What failed says so, the
 * image shows what it did, and what is written afterwards is there.
 */
#include "faults.h"

#include <base/checked.h>
#include <base/opts.h>
#include <block/change.h>
#include <block/image.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTORS 200u

struct amend {
    char options[100];
    const char *wish;
};

/* Data, then zero clusters, then nothing. */
static void fill(uint8_t *content)
{
    memset(content, 0, SECTORS * 512);
    for (unsigned i = 0; i < SECTORS / 2; i++)
        memset(content + (size_t)i * 512, (int)(i % 250 + 1), 512);
}

static coroutine_fn int co_amend(struct blk_node *node, const char *wish, struct error **errp)
{
    struct opts *opts = opts_new();
    int ret = opts_parse(opts, wish, NULL, OPTS_LAST_WINS, errp);

    if (ret == 0)
        ret = blk_co_amend(node, opts, errp);
    opts_free(opts);
    return ret;
}

static coroutine_fn void co_once(struct faults *f, void *arg)
{
    static uint8_t full[SECTORS * 512], content[SECTORS * 512];
    const struct amend *t = arg;
    struct error *error = NULL;
    bool written = false;
    struct blk_node *node = faults_co_open(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING, &error);

    fill(full);
    if (node) {
        int ret = co_amend(node, t->wish, &error);
        faults_told(f, "the change", ret, error);
        written = blk_co_write(node, (SECTORS - 1) * 512, full, 512, 0) == 0 && blk_co_flush(node) == 0;
        blk_co_node_unref(node);
    } else {
        faults_told(f, "opening", -EIO, error);
    }
    error_free(error);
    faults_end(f);
    node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING);
    faults_co_check(f, node, faults_failed(f));
    if (blk_co_read(node, 0, content, sizeof(content)) < 0)
        faults_die(f, "cannot be read");
    if (memcmp(content, full, (SECTORS - 1) * 512) != 0)
        faults_die(f, "shows something else");
    if (written && memcmp(content + (SECTORS - 1) * 512, full, 512) != 0)
        faults_die(f, "what was written afterwards is lost");
    blk_co_node_unref(node);
}

coroutine_fn void faults_co_amend(struct faults *f)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 65536 };
    static const char *const wishes[] = { "compat=0.10",     "compat=1.1",         "refcount_bits=64",
                                          "refcount_bits=2", "lazy_refcounts=off", "lazy_refcounts=on" };
    static uint8_t full[SECTORS * 512];
    struct amend t = { .wish = wishes[faults_below(f, ARRAY_SIZE(wishes))] };
    struct error *error = NULL;
    bool v2 = faults_below(f, 3) == 0, lazy = !v2 && faults_below(f, 3) == 0;

    snprintf(t.options, sizeof(t.options), "cluster_size=%u,compat=%s%s",
             clusters[faults_below(f, ARRAY_SIZE(clusters))], v2 ? "0.10" : "1.1", lazy ? ",lazy_refcounts=on" : "");
    snprintf(f->label, sizeof(f->label), "%s, %s", t.options, t.wish);
    if (faults_co_make_image(f, t.options, sizeof(full), &error) < 0)
        faults_die(f, "create: %s", error_text(error));
    struct blk_node *node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE);
    fill(full);
    if (blk_co_write(node, 0, full, sizeof(full) / 2, 0) < 0 ||
        blk_co_write_zeroes(node, sizeof(full) / 4, sizeof(full) / 2, 0) < 0 ||
        blk_co_write(node, sizeof(full) / 4, full + sizeof(full) / 4, sizeof(full) / 4, 0) < 0)
        faults_die(f, "the content cannot be written");
    blk_co_node_unref(node);
    faults_take_base(f);
    faults_co_each(f, co_once, &t);
}
