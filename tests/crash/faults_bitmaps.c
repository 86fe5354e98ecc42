/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults while an image with dirty bitmaps is opened, written and closed, and a bitmap is added. Afterwards the image
 * is sound, and its bitmap marks what has changed, or says that it says nothing; it says so only if something failed.
 */
#include "bitmap_model.h"
#include "faults.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SECTORS 300u
#define BYTES (SECTORS * 512u)

static const uint8_t before[BYTES]; /* zeroes */

static coroutine_fn void co_work(struct faults *f, struct blk_node *node)
{
    static uint8_t content[40 * 512];
    uint64_t first = faults_below(f, SECTORS - 40);
    struct error *error = NULL;

    memset(content, 'x', sizeof(content));
    int ret = blk_co_write(node, first * 512, content, sizeof(content), 0);
    if (ret == 0)
        blk_co_flush(node);
    struct blk_bitmap *bitmap = blk_co_bitmap_add(node, "two", 4096, &error);
    faults_told(f, "adding a bitmap", bitmap ? 0 : -EIO, error);
    error_free(error);
    blk_co_write(node, 0, content, 512, 0);
}

static coroutine_fn void co_look(struct faults *f, struct blk_node *node)
{
    static uint8_t content[BYTES];
    struct error *error = NULL;
    struct blk_bitmap *one = blk_bitmap_find(node, "one", &error);

    if (!one || blk_co_bitmaps_load(node, &error) < 0)
        faults_die(f, "the bitmap: %s", error_text(error));
    if (blk_co_read(node, 0, content, sizeof(content)) < 0)
        faults_die(f, "cannot be read");
    if (one->inconsistent && !faults_failed(f))
        faults_die(f, "nothing failed, and the bitmap is in use");
    int64_t sector = one->inconsistent ? -1 : bitmap_misses(one, before, content, sizeof(content));
    if (sector >= 0)
        faults_die(f, "sector %lld has changed, and is not marked", (long long)sector);
    if (!faults_failed(f) && !blk_bitmap_find(node, "two", NULL))
        faults_die(f, "the new bitmap is not there");
}

static coroutine_fn void co_once(struct faults *f, void *arg)
{
    struct error *error = NULL;
    struct blk_node *node = faults_co_open(f, BLK_O_RDWR | BLK_O_RESIZE, &error);

    (void)arg;
    if (node) {
        co_work(f, node);
        int ret = blk_co_node_unref(node);
        if (ret < 0 && !faults_failed(f))
            faults_die(f, "closing fails: %s", strerror(-ret));
    } else {
        faults_told(f, "opening", -EIO, error);
    }
    error_free(error);
    faults_end(f);
    node = faults_co_reopen(f, 0);
    faults_co_check(f, node, faults_failed(f));
    co_look(f, node);
    blk_co_node_unref(node);
}

coroutine_fn void faults_co_bitmaps(struct faults *f)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 65536 };
    struct error *error = NULL;

    snprintf(f->label, sizeof(f->label), "cluster_size=%u", clusters[faults_below(f, ARRAY_SIZE(clusters))]);
    if (faults_co_make_image(f, f->label, BYTES, &error) < 0)
        faults_die(f, "create: %s", error_text(error));
    struct blk_node *node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE);
    if (!blk_co_bitmap_add(node, "one", UINT64_C(512) << faults_below(f, 8), &error))
        faults_die(f, "the bitmap: %s", error_text(error));
    if (blk_co_node_unref(node) < 0)
        faults_die(f, "the image cannot be closed");
    faults_take_base(f);
    faults_co_each(f, co_once, NULL);
}
