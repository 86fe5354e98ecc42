/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Faults while an image is created, resized, repaired. What failed says so; then
 *   create   the file is no image, the image that was there before, or the new one, empty;
 *   resize   the size is the old or the new one, what lies below both is whole, and so is what is written (and flushed)
 *            to the same open image afterwards;
 *   repair   the disk reads as before, and repairing again, with nothing failing, leaves a sound image.
 */
#include "damage.h"
#include "faults.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SIZE (400u << 10)

struct image {
    char options[200];
    uint64_t size, cluster;
    bool v2, lazy;
    uint8_t *content; /* of the disk, MAX_SIZE */
    /* create: of the image before */
    uint64_t old_size;
    /* resize */
    uint64_t new_size;
    const char *prealloc;
    uint64_t unsure, unsure_end; /* a write there has failed: old or new */
    /* repair */
    unsigned fix; /* 0: by opening */
};

static void choose(struct faults *f, struct image *t, const char *more)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 65536 }, bits[] = { 1, 8, 16, 64, 64 };

    t->cluster = clusters[faults_below(f, ARRAY_SIZE(clusters))];
    t->v2 = faults_below(f, 5) == 0;
    t->lazy = !t->v2 && faults_below(f, 4) == 0;
    t->size = (20 + faults_below(f, 300)) * 512;
    /* damage.c knows plain entries alone. */
    bool extended = !t->v2 && t->cluster >= 16384 && f->seed % 3 && strcmp(f->kind, "repair") != 0;
    snprintf(t->options, sizeof(t->options), "cluster_size=%" PRIu64 ",compat=%s,refcount_bits=%u%s%s%s", t->cluster,
             t->v2 ? "0.10" : "1.1", t->v2 ? 16 : bits[faults_below(f, ARRAY_SIZE(bits))],
             t->lazy ? ",lazy_refcounts=on" : "", more, extended ? ",extended_l2=on" : "");
    t->content = xcalloc(1, MAX_SIZE);
}

/* Writes and flushes a part of the disk. */
static coroutine_fn int co_write_part(struct faults *f, struct image *t, struct blk_node *node, uint64_t size)
{
    uint64_t at = faults_below(f, size / 512) * 512, length = MIN((1 + faults_below(f, 100)) * 512, size - at);
    uint8_t *part = xmalloc(length);

    for (uint64_t i = 0; i < length; i++)
        part[i] = (uint8_t)(1 + faults_below(f, 255));
    int ret = blk_co_write(node, at, part, length, 0);
    if (ret == 0)
        ret = blk_co_flush(node);
    if (ret == 0) {
        memcpy(t->content + at, part, length);
    } else {
        t->unsure = at;
        t->unsure_end = at + length;
    }
    free(part);
    return ret;
}

/* An image with something in it, closed: the base. */
static coroutine_fn void co_make_base(struct faults *f, struct image *t)
{
    struct error *error = NULL;

    if (faults_co_make_image(f, t->options, t->size, &error) < 0)
        faults_die(f, "create: %s", error_text(error));
    struct blk_node *node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE);
    for (uint64_t n = faults_below(f, 5); n > 0; n--)
        co_write_part(f, t, node, t->size);
    blk_co_node_unref(node);
    faults_take_base(f);
}

static coroutine_fn void co_compare(struct faults *f, const struct image *t, struct blk_node *node, uint64_t start,
                                    uint64_t end)
{
    static uint8_t now[MAX_SIZE];

    if (end > start && blk_co_read(node, start, now + start, end - start) < 0)
        faults_die(f, "cannot be read afterwards");
    for (uint64_t i = start; i < end; i++) {
        if (now[i] != t->content[i] && (i < t->unsure || i >= t->unsure_end))
            faults_die(f, "byte %" PRIu64 " is %#x, not %#x", i, now[i], t->content[i]);
    }
}

/* ---- create ---- */

static coroutine_fn void co_create_once(struct faults *f, void *arg)
{
    static uint8_t zeroes[MAX_SIZE];
    const struct image *t = arg, empty = { .content = zeroes };
    struct error *error = NULL;
    int ret = faults_co_make_image(f, t->options, t->size, &error);

    if ((ret < 0) != faults_failed(f) || (ret < 0 && !error))
        faults_die(f, "create says %d: %s", ret, error ? error_text(error) : "nothing");
    faults_end(f);
    error_free(error);
    error = NULL;
    struct blk_node *node = faults_co_open(f, t->lazy ? BLK_O_RDWR | BLK_O_RESIZE : 0, &error);
    if (!node) {
        if (ret == 0 || !error)
            faults_die(f, "does not open: %s", error ? error_text(error) : "no error said");
        error_free(error);
        return;
    }
    faults_co_check(f, node, ret < 0);
    if (ret < 0 && blk_node_size(node) == t->old_size)
        co_compare(f, t, node, 0, t->old_size);
    else if (blk_node_size(node) == t->size)
        co_compare(f, &empty, node, 0, t->size);
    else
        faults_die(f, "size %" PRIu64, blk_node_size(node));
    blk_co_node_unref(node);
}

coroutine_fn void faults_co_create(struct faults *f)
{
    static const char *const modes[] = { "", ",preallocation=metadata", ",preallocation=falloc",
                                         ",preallocation=full" };
    struct image old = { 0 }, t = { 0 };

    f->base_length = 0;
    choose(f, &old, "");
    if (faults_below(f, 2))
        co_make_base(f, &old);
    choose(f, &t, modes[faults_below(f, ARRAY_SIZE(modes))]);
    if (t.size == old.size)
        t.size += 512; /* by its size it is told which of the two images is there */
    t.old_size = f->base_length ? old.size : 0;
    memcpy(t.content, old.content, MAX_SIZE);
    free(old.content);
    snprintf(f->label, sizeof(f->label), "%s, %" PRIu64, t.options, t.size);
    faults_co_each(f, co_create_once, &t);
    free(t.content);
}

/* ---- resize ---- */

static coroutine_fn int co_resize_and_write(struct faults *f, struct image *t, bool *resized)
{
    struct error *error = NULL;
    uint64_t low = MIN(t->size, t->new_size);
    struct blk_node *node = faults_co_open(f, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);

    if (!node) {
        if (!faults_failed(f))
            faults_die(f, "does not open: %s", error_text(error));
        error_free(error);
        return -EIO;
    }
    int ret = blk_co_truncate(node, t->new_size, true, t->prealloc, &error);
    if ((ret < 0) != (error != NULL) || (ret < 0 && !faults_failed(f)))
        faults_die(f, "resize says %d: %s", ret, error ? error_text(error) : "nothing");
    *resized = ret == 0;
    error_free(error);
    co_write_part(f, t, node, low);
    return blk_co_node_unref(node);
}

static coroutine_fn void co_resize_once(struct faults *f, void *arg)
{
    struct image *t = arg;
    uint8_t *saved = xmalloc(MAX_SIZE);
    bool resized = false;

    uint64_t low = MIN(t->size, t->new_size);

    memcpy(saved, t->content, MAX_SIZE);
    memset(t->content + low, 0, MAX_SIZE - low);
    t->unsure = t->unsure_end = 0;
    int ret = co_resize_and_write(f, t, &resized);
    faults_end(f);
    struct blk_node *node = faults_co_reopen(f, BLK_O_RDWR | BLK_O_RESIZE);
    uint64_t size = blk_node_size(node);
    if (size != t->new_size && (resized || size != t->size))
        faults_die(f, "size %" PRIu64 " after a resize %s", size, resized ? "that worked" : "that failed");
    faults_co_check(f, node, ret < 0 || !resized); /* a refcount that cannot be read stays too high */
    co_compare(f, t, node, 0, low);
    /* Past the end there is nothing, whatever was cut off half way. */
    if (size < MAX_SIZE && blk_co_truncate(node, MAX_SIZE, true, "off", NULL) < 0)
        faults_die(f, "cannot be grown afterwards");
    co_compare(f, t, node, t->new_size > t->size ? low : size, MAX_SIZE);
    faults_co_check(f, node, true);
    blk_co_node_unref(node);
    memcpy(t->content, saved, MAX_SIZE);
    free(saved);
}

coroutine_fn void faults_co_resize(struct faults *f)
{
    static const char *const modes[] = { "off", "metadata", "falloc", "full" };
    struct image t = { .prealloc = "off" };

    choose(f, &t, "");
    switch (faults_below(f, 4)) {
    case 0: t.new_size = (1 + faults_below(f, t.size / 512)) * 512; break; /* smaller */
    case 1: t.new_size = t.cluster > 512 ? t.size * 2 : UINT64_C(9) << 30; break;
    default:
        t.new_size = MIN(t.size + (1 + faults_below(f, 400)) * 512, (uint64_t)MAX_SIZE);
        t.prealloc = modes[faults_below(f, ARRAY_SIZE(modes))];
    }
    co_make_base(f, &t);
    snprintf(f->label, sizeof(f->label), "%s, %" PRIu64 " to %" PRIu64 ", %s", t.options, t.size, t.new_size,
             t.prealloc);
    faults_co_each(f, co_resize_once, &t);
    free(t.content);
}

/* ---- repair ---- */

static coroutine_fn int co_repair(struct faults *f, unsigned fix)
{
    struct error *error = NULL;
    struct blk_check check = { 0 };
    struct blk_node *node = faults_co_open(f, BLK_O_RDWR | BLK_O_RESIZE | (fix ? BLK_O_CHECK : 0u), &error);

    if (!node) {
        if (!error || !faults_failed(f))
            faults_die(f, "does not open: %s", error ? error_text(error) : "no error said");
        error_free(error);
        return -EIO;
    }
    int ret = fix ? blk_co_check(node, &check, fix, &error) : 0;
    if (ret < 0 && !error)
        faults_die(f, "repair failed and said nothing");
    error_free(error);
    int close_ret = blk_co_node_unref(node);
    return ret < 0 ? ret : check.corruptions || check.check_errors ? -EIO : close_ret;
}

static coroutine_fn void co_repair_once(struct faults *f, void *arg)
{
    const struct image *t = arg;
    int ret = co_repair(f, t->fix);

    faults_end(f);
    struct blk_node *node = faults_co_reopen(f, BLK_O_CHECK);
    co_compare(f, t, node, 0, t->size);
    blk_co_node_unref(node);
    if (ret < 0 && co_repair(f, BLK_FIX_LEAKS | BLK_FIX_ERRORS) < 0)
        faults_die(f, "the second repair fails too");
    node = faults_co_reopen(f, 0);
    faults_co_check(f, node, ret == 0 && faults_failed(f));
    co_compare(f, t, node, 0, t->size);
    blk_co_node_unref(node);
}

coroutine_fn void faults_co_repair(struct faults *f)
{
    struct image t = { .fix = BLK_FIX_LEAKS | BLK_FIX_ERRORS };
    unsigned kinds = 1u << faults_below(f, 7) | 1u << faults_below(f, 7);

    choose(f, &t, "");
    if (t.v2)
        kinds &= ~(unsigned)(DAMAGE_DIRTY | DAMAGE_CORRUPT);
    else if ((kinds & DAMAGE_DIRTY) && !(kinds & DAMAGE_CORRUPT))
        t.fix = 0;
    co_make_base(f, &t);
    struct damage damage = { f->base, f->base_length, faults_below(f, UINT64_MAX) };
    damage_image(&damage, kinds);
    f->base_length = damage.length;
    snprintf(f->label, sizeof(f->label), "%s, %" PRIu64 ", damage %#x", t.options, t.size, kinds);
    faults_co_each(f, co_repair_once, &t);
    free(t.content);
}
