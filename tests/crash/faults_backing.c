/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults while an image records another backing file. What failed says so, and then the image names the old one or the
 * new one, name and format together; what was written before and after is whole.
 */
#include "faults.h"

#include <base/checked.h>
#include <block/change.h>
#include <block/image.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTORS 100u

struct record {
    char name[64]; /* "": none */
    const char *format;
};

struct backing {
    char options[100];
    struct record old, new;
};

static void choose_record(struct faults *f, struct record *r, char letter)
{
    static const char *const formats[] = { "raw", "qcow2", "a-long-one", NULL };
    size_t length = faults_below(f, 5) ? 1 + faults_below(f, 60) : 0;

    memset(r->name, letter, length);
    r->format = length ? formats[faults_below(f, ARRAY_SIZE(formats))] : NULL;
}

static coroutine_fn int co_record(struct blk_node *node, const struct record *r, struct error **errp)
{
    return blk_co_change_backing(node, *r->name ? r->name : NULL, r->format, errp);
}

static coroutine_fn int co_fill(struct blk_node *node, unsigned sector, int value)
{
    uint8_t data[512];

    memset(data, value, sizeof(data));
    int ret = blk_co_write(node, sector * 512, data, sizeof(data), 0);
    return ret < 0 ? ret : blk_co_flush(node);
}

static coroutine_fn void co_need(struct faults *f, struct blk_node *node, unsigned sector, int value)
{
    uint8_t data[512];

    if (blk_co_read(node, sector * 512, data, sizeof(data)) < 0 || data[0] != value || memcmp(data, data + 1, 511) != 0)
        faults_die(f, "sector %u is not what was written", sector);
}

static const char *text(const char *of) { return of ? of : ""; }

static bool shows(const struct blk_info *info, const struct record *r)
{
    return strcmp(text(info->backing_file), r->name) == 0 && strcmp(text(info->backing_format), text(r->format)) == 0;
}

static coroutine_fn void co_once(struct faults *f, void *arg)
{
    const struct backing *t = arg;
    struct error *error = NULL;
    bool recorded = false, after = false;
    struct blk_node *node = faults_co_open(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING, &error);

    if (node) {
        int ret = co_record(node, &t->new, &error);
        faults_told(f, "the change", ret, error);
        recorded = ret == 0;
        after = co_fill(node, 2, 3) == 0;
        blk_co_node_unref(node);
    } else {
        faults_told(f, "opening", -EIO, error);
    }
    error_free(error);
    faults_end(f);
    node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING);
    struct blk_info info;
    if (blk_co_info(node, &info, NULL) < 0 || (!shows(&info, &t->new) && (recorded || !shows(&info, &t->old))))
        faults_die(f, "names '%s' of format '%s' after a change that %s", text(info.backing_file),
                   text(info.backing_format), recorded ? "worked" : "failed");
    blk_info_finish(&info);
    co_need(f, node, 1, 2);
    if (after)
        co_need(f, node, 2, 3);
    faults_co_check(f, node, faults_failed(f));
    blk_co_node_unref(node);
}

coroutine_fn void faults_co_backing(struct faults *f)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 65536 };
    struct backing t = { 0 };
    struct error *error = NULL;

    choose_record(f, &t.old, 'o');
    choose_record(f, &t.new, 'n');
    snprintf(t.options, sizeof(t.options), "cluster_size=%u,compat=%s", clusters[faults_below(f, ARRAY_SIZE(clusters))],
             faults_below(f, 4) ? "1.1" : "0.10");
    snprintf(f->label, sizeof(f->label), "%s, %zu to %zu bytes", t.options, strlen(t.old.name), strlen(t.new.name));
    if (faults_co_make_image(f, t.options, SECTORS * 512, &error) < 0)
        faults_die(f, "create: %s", error_text(error));
    struct blk_node *node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE);
    if (co_fill(node, 1, 2) < 0 || co_record(node, &t.old, &error) < 0)
        faults_die(f, "the first backing file cannot be recorded: %s", error ? error_text(error) : "write");
    blk_co_node_unref(node);
    faults_take_base(f);
    faults_co_each(f, co_once, &t);
}
