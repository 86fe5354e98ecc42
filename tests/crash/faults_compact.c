/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults while an image is compacted. What failed says so, the image and its snapshot show what they did, and what is
 * written afterwards is there.
 */
#include "damage.h"
#include "faults.h"
#include "holes.h"

#include <block/change.h>
#include <errno.h>
#include <string.h>

struct compact {
    struct holes holes;
    bool find_zeroes;
};

static coroutine_fn void co_expect(struct faults *f, const uint8_t *wanted, const char *whose)
{
    static uint8_t content[HOLES_BYTES];
    struct blk_node *node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE);

    faults_co_check(f, node, faults_failed(f));
    if (blk_co_read(node, 0, content, HOLES_BYTES - 512) < 0)
        faults_die(f, "%s cannot be read", whose);
    if (memcmp(content, wanted, HOLES_BYTES - 512) != 0)
        faults_die(f, "%s shows something else", whose);
    blk_co_node_unref(node);
}

static coroutine_fn void co_once(struct faults *f, void *arg)
{
    static const uint8_t sector[512] = { 1, 2, 3 };
    uint8_t content[512];
    const struct compact *t = arg;
    struct blk_compact compact = { .find_zeroes = t->find_zeroes };
    struct error *error = NULL;
    bool written = false;
    struct blk_node *node = faults_co_open(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);

    if (node) {
        int ret = blk_co_compact(node, &compact, &error);
        faults_told(f, "compact", ret, error);
        written = blk_co_write(node, HOLES_BYTES - 512, sector, 512, 0) == 0 && blk_co_flush(node) == 0;
        blk_co_node_unref(node);
    } else {
        faults_told(f, "opening", -EIO, error);
    }
    error_free(error);
    faults_end(f);
    co_expect(f, t->holes.content, "the disk");
    node = faults_co_reopen(f, BLK_O_CHECK);
    if (written && (blk_co_read(node, HOLES_BYTES - 512, content, 512) < 0 || memcmp(content, sector, 512) != 0))
        faults_die(f, "what was written afterwards is lost");
    blk_co_node_unref(node);
    if (t->holes.snapshot) {
        static uint8_t shown[HOLES_BYTES];
        damage_show_snapshot(memory_node(f->file)->data);
        node = faults_co_reopen(f, BLK_O_CHECK);
        if (blk_co_read(node, 0, shown, HOLES_BYTES) < 0 || memcmp(shown, t->holes.kept, HOLES_BYTES) != 0)
            faults_die(f, "the snapshot shows something else");
        blk_co_node_unref(node);
    }
}

coroutine_fn void faults_co_compact(struct faults *f)
{
    static struct compact t; /* too large for a coroutine's stack */
    struct error *error = NULL;

    t = (struct compact){ .holes.random = f->seed, .find_zeroes = faults_below(f, 2) };
    holes_choose(&t.holes);
    snprintf(f->label, sizeof(f->label), "%s%s", t.holes.options, t.holes.snapshot ? ", a snapshot" : "");
    if (faults_co_make_image(f, t.holes.options, HOLES_BYTES, &error) < 0)
        faults_die(f, "create: %s", error_text(error));
    struct blk_node *node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    if (holes_co_fill(&t.holes, node) < 0)
        faults_die(f, "the content cannot be written");
    blk_co_node_unref(node);
    faults_take_base(f);
    faults_co_each(f, co_once, &t);
}
