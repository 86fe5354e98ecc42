/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults while an image is emptied. What failed says so, and then each sector has its content or nothing; the snapshot
 * has what it had; what is written afterwards is there.
 */
#include "faults.h"

#include <base/checked.h>
#include <block/change.h>
#include <block/image.h>
#include <errno.h>
#include <block/snapshot.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTORS 300u

struct empty {
    char options[100];
    bool snapshot;
};

static void fill(uint8_t *content)
{
    for (unsigned i = 0; i < SECTORS; i++)
        memset(content + (size_t)i * 512, (int)(i % 250 + 1), 512);
}

static coroutine_fn void co_look(struct faults *f, struct blk_node *node, bool emptied, bool last_written)
{
    static uint8_t content[SECTORS * 512], full[SECTORS * 512];

    fill(full);
    if (blk_co_read(node, 0, content, sizeof(content)) < 0)
        faults_die(f, "cannot be read");
    for (unsigned i = 0; i < SECTORS; i++) {
        const uint8_t *sector = content + (size_t)i * 512;
        bool nothing = sector[0] == 0 && memcmp(sector, sector + 1, 511) == 0;
        bool whole = memcmp(sector, full + (size_t)i * 512, 512) == 0;
        if (i == SECTORS - 1 && last_written ? !whole : !nothing && (emptied || !whole))
            faults_die(f, "sector %u is not what it may be", i);
    }
}

static coroutine_fn void co_look_at_snapshot(struct faults *f, struct blk_node *node)
{
    static uint8_t content[SECTORS * 512], full[SECTORS * 512];
    struct error *error = NULL;

    fill(full);
    if (blk_co_snapshot_apply(node, "kept", &error) < 0)
        faults_die(f, "the snapshot: %s", error_text(error));
    if (blk_co_read(node, 0, content, sizeof(content)) < 0 || memcmp(content, full, sizeof(full)) != 0)
        faults_die(f, "the snapshot holds something else");
}

static coroutine_fn void co_once(struct faults *f, void *arg)
{
    const struct empty *t = arg;
    struct error *error = NULL;
    bool emptied = false, written = false;
    static uint8_t full[SECTORS * 512];
    struct blk_node *node = faults_co_open(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING, &error);

    fill(full);
    if (node) {
        int ret = blk_co_make_empty(node, &error);
        faults_told(f, "emptying", ret, error);
        emptied = ret == 0;
        written = blk_co_write(node, (SECTORS - 1) * 512, full + (SECTORS - 1) * 512, 512, 0) == 0 &&
                  blk_co_flush(node) == 0;
        blk_co_node_unref(node);
    } else {
        faults_told(f, "opening", -EIO, error);
    }
    error_free(error);
    faults_end(f);
    node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING);
    faults_co_check(f, node, faults_failed(f));
    /* A write that failed may be there. */
    co_look(f, node, emptied && !faults_failed(f), written);
    if (t->snapshot)
        co_look_at_snapshot(f, node);
    blk_co_node_unref(node);
}

coroutine_fn void faults_co_empty(struct faults *f)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 65536 };
    static uint8_t full[SECTORS * 512];
    struct empty t = { .snapshot = faults_below(f, 2) };
    struct error *error = NULL;

    snprintf(t.options, sizeof(t.options), "cluster_size=%u,compat=%s", clusters[faults_below(f, ARRAY_SIZE(clusters))],
             faults_below(f, 4) ? "1.1" : "0.10");
    snprintf(f->label, sizeof(f->label), "%s%s", t.options, t.snapshot ? ", a snapshot" : "");
    if (faults_co_make_image(f, t.options, sizeof(full), &error) < 0)
        faults_die(f, "create: %s", error_text(error));
    struct blk_node *node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE);
    struct blk_snapshot what = { .name = "kept" };
    fill(full);
    if (blk_co_write(node, 0, full, sizeof(full), 0) < 0)
        faults_die(f, "the content cannot be written");
    if (t.snapshot && blk_co_snapshot_create(node, &what, &error) < 0)
        faults_die(f, "the snapshot: %s", error_text(error));
    if (t.snapshot && blk_co_write(node, 0, full, sizeof(full) / 2, 0) < 0)
        faults_die(f, "the content cannot be written again");
    blk_co_node_unref(node);
    faults_take_base(f);
    faults_co_each(f, co_once, &t);
}
