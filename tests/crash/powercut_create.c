/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while an image is created, in an empty file or over what a device held before: garbage, or an image.
 *
 * On each disk: until create has returned the file is no qcow2 image (the error says so), is the old image untouched,
 * or is the new one, empty; never a mixture. Once it has returned it is the new one, and whole.
 */
#include "powercut.h"

#include <block/logwrites.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct creation {
    char options[900], backing_name[601];
    const char *prealloc;
    uint64_t size, cluster, done; /* done: the clock when it had returned */
    uint64_t old_size;            /* of the image before, 0: none */
    uint8_t *old;                 /* and its content */
    bool lazy;
};

/* ---- what was there before ---- */

static coroutine_fn void co_old_image(struct cut *c, struct creation *t)
{
    char options[64];
    struct error *error = NULL;

    t->old_size = (cut_below(c, 300) + 50) * 512;
    snprintf(options, sizeof(options), "cluster_size=%" PRIu64,
             cut_below(c, 2) ? t->cluster : UINT64_C(512) << cut_below(c, 6));
    cut_co_make_image(c, options, t->old_size);
    cut_load_base(c, "base");
    t->old = xmalloc(t->old_size);
    for (uint64_t i = 0; i < t->old_size; i++)
        t->old[i] = (uint8_t)(1 + cut_below(c, 255));
    struct blk_node *file = cut_co_memory(c, "old", c->base, c->base_length, "");
    struct blk_node *node = cut_co_open("old", NULL, BLK_O_RDWR | BLK_O_RESIZE, &error);
    cut_need(c, node, "old image", error);
    cut_need(c, blk_co_write(node, 0, t->old, t->old_size, 0) == 0 && blk_co_node_unref(node) == 0, "write", NULL);
    c->base_length = blk_node_size(file);
    cut_need(c, blk_co_read(file, 0, c->base, c->base_length) == 0, "read back", NULL);
    blk_co_node_unref(file);
}

static coroutine_fn void co_make_base(struct cut *c, struct creation *t)
{
    uint64_t what = cut_below(c, 3);

    if (what == 0) {
        co_old_image(c, t);
        return;
    }
    c->base = xcalloc(1, CUT_MAX_DISK);
    c->base_length = what == 1 ? 0 : 1u << 20;
    for (uint64_t i = 0; i < c->base_length; i++)
        c->base[i] = (uint8_t)cut_below(c, 256);
}

/* ---- creating ---- */

static void choose(struct cut *c, struct creation *t)
{
    static const unsigned bits[] = { 1, 2, 8, 16, 16, 32, 64 };
    static const char *const modes[] = { "off", "metadata", "falloc", "full" };
    char backing[640] = "";
    bool v2 = cut_below(c, 5) == 0;

    t->cluster = UINT64_C(512) << (cut_below(c, 3) ? cut_below(c, 8) : 0);
    t->prealloc = modes[cut_below(c, ARRAY_SIZE(modes))];
    t->size = (cut_below(c, 900) + 100) * 512;
    if (strcmp(t->prealloc, "off") == 0 && cut_below(c, 3) == 0)
        t->size = t->cluster * t->cluster * (40 + cut_below(c, 900)); /* many L1 entries, many refcount blocks */
    t->lazy = !v2 && cut_below(c, 4) == 0;
    if (strcmp(t->prealloc, "off") == 0 && t->cluster >= 1024 && cut_below(c, 2)) {
        memset(t->backing_name, 'b', 100 + cut_below(c, 500)); /* the header may be longer than a sector */
        snprintf(backing, sizeof(backing), ",backing_file=%s,backing_fmt=raw", t->backing_name);
    }
    snprintf(t->options, sizeof(t->options), "cluster_size=%" PRIu64 ",compat=%s,refcount_bits=%u,preallocation=%s%s%s",
             t->cluster, v2 ? "0.10" : "1.1", v2 ? 16 : bits[cut_below(c, ARRAY_SIZE(bits))], t->prealloc,
             t->lazy ? ",lazy_refcounts=on" : "", backing);
}

static coroutine_fn void co_create(struct cut *c, struct creation *t)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;

    opts_parse(opts, t->options, NULL, OPTS_LAST_WINS, NULL);
    struct blk_create create = { .options = opts, .size = t->size, .file = c->file };
    int ret = blk_driver_find("qcow2")->co_create(&create, &error);
    cut_need(c, ret == 0, "create", error);
    t->done = logwrites_now(c->file);
    opts_free(opts);
}

/* ---- judging a disk ---- */

static coroutine_fn bool co_is_old(struct blk_node *node, const struct creation *t)
{
    uint8_t *content = xmalloc(t->old_size + 1);
    bool old = t->old_size && blk_node_size(node) == t->old_size && blk_co_read(node, 0, content, t->old_size) == 0 &&
               memcmp(content, t->old, t->old_size) == 0;

    free(content);
    return old;
}

/* The size asked for, the backing name, nothing but zeroes. */
static coroutine_fn void co_judge_new(struct cut *c, const struct cut_moment *m, const struct creation *t,
                                      struct blk_node *node)
{
    uint64_t length = MIN(t->size, UINT64_C(1) << 20);
    uint8_t *content = xmalloc(length);
    struct blk_info info;

    if (blk_node_size(node) != t->size)
        cut_die(c, "clock %" PRIu64 ", %s: %" PRIu64 " bytes, not %" PRIu64, m->time, m->what, blk_node_size(node),
                t->size);
    cut_need(c, blk_co_info(node, &info, NULL) == 0, "info", NULL);
    if (strcmp(info.backing_file ? info.backing_file : "", t->backing_name) != 0)
        cut_die(c, "clock %" PRIu64 ", %s: the backing file's name is another", m->time, m->what);
    blk_info_finish(&info);
    cut_need(c, blk_co_read(node, 0, content, length) == 0, "read", NULL);
    for (uint64_t i = 0; i < length; i++) {
        if (content[i])
            cut_die(c, "clock %" PRIu64 ", %s: the new disk's byte %" PRIu64 " is not zero", m->time, m->what, i);
    }
    free(content);
}

/* Nothing is lost, and what was asked for in advance is there. */
static coroutine_fn void co_judge_whole(struct cut *c, const struct cut_moment *m, const struct creation *t,
                                        struct blk_node *node)
{
    struct blk_check check = { 0 };
    uint64_t wanted = strcmp(t->prealloc, "off") == 0 ? 0 : div_round_up(t->size, t->cluster);

    cut_need(c, blk_co_check(node, &check, 0, NULL) == 0, "check", NULL);
    if (check.leaks || check.allocated_clusters != wanted)
        cut_die(c, "clock %" PRIu64 ", %s: %" PRIu64 " leaks, %" PRIu64 " clusters", m->time, m->what, check.leaks,
                check.allocated_clusters);
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    const struct creation *t = arg;
    struct error *error = NULL;
    unsigned flags = t->lazy ? BLK_O_RDWR | BLK_O_RESIZE : 0;
    struct blk_node *node = cut_co_open("state", NULL, flags, &error);

    if (!node) {
        if (!error || m->time > t->done)
            cut_die(c, "clock %" PRIu64 ", %s: %s", m->time, m->what, error ? error_text(error) : "no error said");
        error_free(error);
        return;
    }
    cut_co_check(c, m, node);
    if (m->time > t->done || !co_is_old(node, t))
        co_judge_new(c, m, t, node);
    if (m->time > t->done)
        co_judge_whole(c, m, t, node);
    blk_co_node_unref(node);
    if (m->by_qemu && !t->backing_name[0]) /* which qemu-img would open too */
        cut_check_by_qemu(c, m, t->lazy);
}

coroutine_fn void powercut_co_create(struct cut *c)
{
    struct creation t = { 0 };

    choose(c, &t);
    snprintf(c->label, sizeof(c->label), "%.120s, %" PRIu64 " bytes", t.options, t.size);
    co_make_base(c, &t);
    cut_co_start(c, "");
    co_create(c, &t);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &t);
    free(t.old);
}
