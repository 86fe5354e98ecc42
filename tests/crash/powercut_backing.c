/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while an image records one backing file after the other, by names of any length, with and without a
 * format, beside an extension of the header that nobody knows.
 *
 * On each disk: the image opens and is clean, names the backing file of before or after a change that was going on, and
 * else the last one, name and format together; what was written before a change is there if the change is; and the
 * unknown extension is what it was.
 */
#include "powercut.h"

#include <base/endian.h>
#include <block/change.h>
#include <block/logwrites.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CHANGES 12u
#define SECTORS 64u

struct change {
    uint64_t from, done; /* clocks */
    char name[1024];     /* "": none */
    const char *format;
};

struct backing {
    struct cut *c;
    char options[160];
    uint64_t cluster;
    bool unknown; /* has that extension */
    struct blk_node *node;
    struct change changes[MAX_CHANGES]; /* the first: as it was made */
    unsigned count;
};

/* ---- the unknown extension ---- */

enum { HEADER = 112, UNKNOWN = 0x12345678, UNKNOWN_BYTES = 24 };
static const char unknown_text[] = "what is this?";

/* Puts it before the others. The image has no backing file, so there is nothing but zeroes behind them. */
static void add_unknown(struct backing *t)
{
    uint8_t *data = t->c->base;

    memmove(data + HEADER + UNKNOWN_BYTES, data + HEADER, t->cluster - HEADER - UNKNOWN_BYTES);
    memset(data + HEADER, 0, UNKNOWN_BYTES);
    store_be32(data + HEADER, UNKNOWN);
    store_be32(data + HEADER + 4, sizeof(unknown_text));
    memcpy(data + HEADER + 8, unknown_text, sizeof(unknown_text));
}

static coroutine_fn bool co_has_unknown(const struct backing *t)
{
    static uint8_t data[65536];
    bool found = false;

    cut_need(t->c, blk_co_read(t->c->state, 0, data, t->cluster) == 0, "read the header", NULL);
    for (size_t at = HEADER; at + 8 <= t->cluster && load_be32(data + at) != 0;) {
        size_t length = load_be32(data + at + 4);
        if (load_be32(data + at) == UNKNOWN && length == sizeof(unknown_text))
            found = memcmp(data + at + 8, unknown_text, length) == 0;
        at += 8 + align_up(length, 8);
    }
    return found;
}

/* ---- the workload ---- */

static void choose(struct backing *t)
{
    static const unsigned clusters[] = { 512, 1024, 2048, 4096, 65536 };
    bool v2 = cut_below(t->c, 5) == 0;

    t->cluster = clusters[cut_below(t->c, ARRAY_SIZE(clusters))];
    t->unknown = !v2 && t->cluster > 512 && cut_below(t->c, 2); /* in 512 bytes it has no place */
    snprintf(t->options, sizeof(t->options), "cluster_size=%" PRIu64 ",compat=%s", t->cluster, v2 ? "0.10" : "1.1");
    snprintf(t->c->label, sizeof(t->c->label), "%s%s", t->options, t->unknown ? ", unknown extension" : "");
}

/* Sector `number` is filled when the change of that number is about to begin. */
static void fill(uint8_t *sector, unsigned number) { memset(sector, (int)(number + 1), 512); }

static coroutine_fn void co_change(struct backing *t)
{
    static const char *const formats[] = { "raw", "qcow2", "a-long-one", NULL };
    struct change *next = &t->changes[t->count];
    uint8_t sector[512];
    uint64_t length = cut_below(t->c, 4) ? cut_below(t->c, 60) : cut_below(t->c, 1024);

    fill(sector, t->count);
    cut_need(t->c, blk_co_write(t->node, t->count * 512, sector, 512, 0) == 0, "write", NULL);
    memset(next->name, 0, sizeof(next->name));
    memset(next->name, (int)('a' + t->count), length);
    next->format = length ? formats[cut_below(t->c, ARRAY_SIZE(formats))] : NULL;
    next->from = logwrites_now(t->c->file);
    int ret = blk_co_change_backing(t->node, length ? next->name : NULL, next->format, NULL);
    next->done = logwrites_now(t->c->file);
    if (ret == 0)
        t->count++;
    else
        cut_need(t->c, ret == -ENOSPC && t->cluster < 4096, "change the backing file", NULL);
}

/* ---- judging a disk ---- */

static const char *text(const char *of) { return of ? of : ""; }

/* The number of the change that the disk shows. */
static coroutine_fn unsigned co_shown(struct backing *t, const struct cut_moment *m, struct blk_node *node)
{
    struct blk_info info;
    unsigned shown = t->count;

    cut_need(t->c, blk_co_info(node, &info, NULL) == 0, "info", NULL);
    for (unsigned i = 0; i < t->count && shown == t->count; i++) {
        const struct change *change = &t->changes[i];
        bool possible = change->from <= m->time && (i + 1 == t->count || t->changes[i + 1].done >= m->time);
        if (possible && strcmp(text(info.backing_file), change->name) == 0 &&
            strcmp(text(info.backing_format), text(change->format)) == 0)
            shown = i;
    }
    if (shown == t->count)
        cut_die(t->c, "clock %" PRIu64 ", %s: names '%s' of format '%s'", m->time, m->what, text(info.backing_file),
                text(info.backing_format));
    blk_info_finish(&info);
    return shown;
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    struct backing *t = arg;
    struct error *error = NULL;
    uint8_t sector[512], wanted[512];
    struct blk_node *node = cut_co_open("state", NULL, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING, &error);

    if (!node)
        cut_die(c, "clock %" PRIu64 ", %s: the image does not open: %s", m->time, m->what, error_text(error));
    cut_co_check(c, m, node);
    unsigned shown = co_shown(t, m, node);
    for (unsigned i = 1; i <= shown; i++) {
        cut_need(c, blk_co_read(node, i * 512, sector, 512) == 0, "read", NULL);
        fill(wanted, i);
        if (memcmp(sector, wanted, 512) != 0)
            cut_die(c, "clock %" PRIu64 ", %s: what was written before change %u is lost", m->time, m->what, i);
    }
    if (t->unknown && !co_has_unknown(t))
        cut_die(c, "clock %" PRIu64 ", %s: the unknown extension is lost", m->time, m->what);
    cut_need(c, blk_co_node_unref(node) == 0, "close", NULL);
}

coroutine_fn void powercut_co_backing(struct cut *c)
{
    struct backing t = { .c = c, .count = 1 };
    struct error *error = NULL;

    choose(&t);
    c->log_flags = cut_below(c, 4) ? 0 : BLK_O_DSYNC;
    cut_co_make_image(c, t.options, SECTORS * 512);
    cut_load_base(c, "base");
    if (t.unknown)
        add_unknown(&t);
    cut_co_start(c, "");
    t.node = cut_co_open("logging", NULL, c->log_flags | BLK_O_RDWR | BLK_O_RESIZE, &error);
    cut_need(c, t.node, "open", error);
    for (unsigned i = 0; i < (c->settings->quick ? 4 : MAX_CHANGES - 1); i++)
        co_change(&t);
    cut_need(c, blk_co_node_unref(t.node) == 0, "close", NULL);
    cut_co_finish(c);
    cut_co_each(c, co_judge, &t);
}
