/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts while a damaged image (damage.h) is repaired: leaks only, all, or because it is dirty and opened (all of
 * the kind `opening`).
 *
 * On each disk: the disk and its snapshot read as before; no cluster misses more references than it did in the damaged
 * image, no other error is there that was not, but that a COPIED flag is seen to be wrong when the refcount that was as
 * wrong is mended, and the dirty and corrupt marks stand for as long as any error does;
 * repairing (what is left) succeeds and leaves a sound image that still reads the same.
 */
#include "damage.h"
#include "memory_node.h"
#include "powercut.h"

#include <base/endian.h>
#include <block/logwrites.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CLUSTERS ((24u << 20) / 512)

/* What a check found. */
struct findings {
    uint64_t cluster_size;
    uint64_t missing[MAX_CLUSTERS]; /* references that a cluster's refcount does not count; NOT_KNOWN */
    uint64_t errors;                /* clusters that miss some */
    uint64_t flagged[MAX_CLUSTERS]; /* COPIED flags of what is not its owner's alone: harm, as one that lacks is not */
    uint64_t harmful_flags, others;
    unsigned marks; /* incompatible features of version 3: 1 dirty, 2 corrupt; else 0 */
};
#define NOT_KNOWN UINT64_MAX
#define OFFSET_MASK UINT64_C(0x00fffffffffffe00) /* of an L1 or L2 entry */

struct repairing {
    char options[160];
    uint64_t size, done;
    bool snapshot;
    unsigned kinds, fix; /* fix 0: by opening */
    uint8_t *content, *snapshot_content;
    struct findings before, now;
};

/* ---- reading ---- */

static coroutine_fn void co_read_disk(struct cut *c, const char *file, uint8_t *content, uint64_t size)
{
    struct error *error = NULL;
    struct blk_node *node = cut_co_open(file, NULL, BLK_O_CHECK, &error);

    cut_need(c, node, "open", error);
    cut_need(c, blk_node_size(node) == size, "size", NULL);
    cut_need(c, blk_co_read(node, 0, content, size) == 0, "read", NULL);
    blk_co_node_unref(node);
}

/* ---- what is wrong with an image ---- */

static struct findings *collecting;

/* A flag that is not there costs a copy, no more. */
static void collect_flag(uint64_t entry)
{
    uint64_t cluster = (entry & OFFSET_MASK) / collecting->cluster_size;

    if (!(entry >> 63))
        return;
    collecting->harmful_flags++;
    if (cluster < MAX_CLUSTERS)
        collecting->flagged[cluster]++;
}

static void collect(struct blk_check *check, bool error, const char *line)
{
    uint64_t cluster, refcount, references, entry;

    (void)check;
    if (sscanf(line, "ERROR cluster %" SCNu64 " refcount=%" SCNu64 " reference=%" SCNu64, &cluster, &refcount,
               &references) == 3 &&
        cluster < MAX_CLUSTERS)
        collecting->missing[cluster] = references - refcount;
    else if (sscanf(line, "Can't get refcount for cluster %" SCNu64, &cluster) == 1 && cluster < MAX_CLUSTERS)
        collecting->missing[cluster] = NOT_KNOWN;
    else if (sscanf(line, "ERROR OFLAG_COPIED data cluster: l2_entry=%" SCNx64, &entry) == 1)
        collect_flag(entry);
    else if (sscanf(line, "ERROR OFLAG_COPIED L2 cluster: l1_index=%*u l1_entry=%" SCNx64, &entry) == 1)
        collect_flag(entry);
    else
        collecting->others += error;
}

static coroutine_fn void co_find(struct cut *c, const char *file, struct findings *findings)
{
    struct error *error = NULL;
    struct blk_check check = { .report = collect };
    struct blk_node *node = cut_co_open(file, NULL, BLK_O_CHECK, &error);

    cut_need(c, node, "open for check", error);
    memset(findings, 0, sizeof(*findings));
    findings->cluster_size = UINT64_C(1) << load_be32(memory_node(blk_node_find(file))->data + 20);
    collecting = findings;
    blk_co_check(node, &check, 0, &error); /* that it cannot be done is one of the errors counted above */
    error_free(error);
    blk_co_node_unref(node);
    for (uint64_t i = 0; i < MAX_CLUSTERS; i++)
        findings->errors += findings->missing[i] > 0;
    const uint8_t *header = memory_node(blk_node_find(file))->data;
    findings->marks = header[7] >= 3 ? header[79] & 3 : 0;
}

/* ---- the workload ---- */

static void choose(struct cut *c, struct repairing *t)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 65536 }, bits[] = { 1, 2, 4, 8, 16, 32, 64 };
    uint64_t cluster = clusters[cut_below(c, ARRAY_SIZE(clusters))];
    bool v2 = cut_below(c, 5) == 0;
    unsigned width = v2 ? 16 : bits[cut_below(c, ARRAY_SIZE(bits))];

    t->size = (cut_below(c, 400) + 50) * 512;
    t->snapshot = width > 1 && cut_below(c, 2);
    t->kinds = 1u << cut_below(c, 7);
    if (cut_below(c, 2))
        t->kinds |= 1u << cut_below(c, 7);
    t->fix = cut_below(c, 3) ? BLK_FIX_LEAKS | BLK_FIX_ERRORS : BLK_FIX_LEAKS;
    if (v2)
        t->kinds &= ~(unsigned)(DAMAGE_DIRTY | DAMAGE_CORRUPT);
    else if ((t->kinds & DAMAGE_DIRTY) && !(t->kinds & DAMAGE_CORRUPT) && cut_below(c, 2))
        t->fix = 0;
    if (strcmp(c->settings->kind, "opening") == 0) {
        v2 = false;
        t->kinds = (t->kinds & ~(unsigned)DAMAGE_CORRUPT) | DAMAGE_DIRTY;
        t->fix = 0;
    }
    snprintf(t->options, sizeof(t->options), "cluster_size=%" PRIu64 ",compat=%s,refcount_bits=%u%s", cluster,
             v2 ? "0.10" : "1.1", width, !v2 && cut_below(c, 4) == 0 ? ",lazy_refcounts=on" : "");
    snprintf(c->label, sizeof(c->label), "%s, %" PRIu64 "%s, damage %#x, fix %u", t->options, t->size,
             t->snapshot ? ", snapshot" : "", t->kinds, t->fix);
}

/* A block that the damaged refcount table names past the end misses its own reference as soon as the file reaches
 * there. */
static void count_wild_blocks(const struct cut *c, struct repairing *t)
{
    uint64_t table = load_be64(c->base + 48), bytes = (uint64_t)load_be32(c->base + 56) << load_be32(c->base + 20);

    for (uint64_t at = table; at < MIN(table + bytes, c->base_length); at += 8) {
        uint64_t cluster = load_be64(c->base + at) >> load_be32(c->base + 20);
        if (cluster < MAX_CLUSTERS && load_be64(c->base + at) >= c->base_length)
            t->before.missing[cluster] = MAX(t->before.missing[cluster], UINT64_C(1));
    }
}

static coroutine_fn void co_make_base(struct cut *c, struct repairing *t)
{
    cut_co_make_image(c, t->options, t->size);
    for (uint64_t i = 0; i < 5; i++) {
        uint64_t at = cut_below(c, t->size / 512) * 512, length = MIN((1 + cut_below(c, 60)) * 512, t->size - at);
        cut_shell(c, "qemu-io -f qcow2 -c 'write -q -P %u %" PRIu64 " %" PRIu64 "' base", 1 + (unsigned)i, at, length);
        if (t->snapshot && i == 2)
            cut_shell(c, "qemu-img snapshot -c one base");
    }
    cut_load_base(c, "base");
    struct blk_node *file = cut_co_memory(c, "sound", c->base, c->base_length, "");
    t->content = xmalloc(t->size);
    t->snapshot_content = xcalloc(1, t->size);
    co_read_disk(c, "sound", t->content, t->size);
    if (t->snapshot)
        cut_co_read_snapshot(c, file, NULL, t->snapshot_content, t->size);
    blk_co_node_unref(file);

    struct damage damage = { c->base, c->base_length, cut_below(c, UINT64_MAX) };
    damage_image(&damage, t->kinds);
    c->base_length = damage.length;
    file = cut_co_memory(c, "damaged", c->base, c->base_length, "");
    co_find(c, "damaged", &t->before);
    count_wild_blocks(c, t);
    blk_co_node_unref(file);
}

static coroutine_fn int co_repair(struct cut *c, const char *file, unsigned fix)
{
    struct error *error = NULL;
    struct blk_check check = { 0 };
    struct blk_node *node = cut_co_open(file, NULL, BLK_O_RDWR | BLK_O_RESIZE | (fix ? BLK_O_CHECK : 0u), &error);

    cut_need(c, node, "open for repair", error);
    int ret = fix ? blk_co_check(node, &check, fix, &error) : 0;
    error_free(error);
    int close_ret = blk_co_node_unref(node);
    return ret < 0 ? ret : close_ret;
}

/* ---- judging a disk ---- */

static coroutine_fn void co_judge_content(struct cut *c, const struct cut_moment *m, const struct repairing *t)
{
    uint8_t *content = xmalloc(t->size);

    co_read_disk(c, "state", content, t->size);
    if (memcmp(content, t->content, t->size) != 0)
        cut_die(c, "clock %" PRIu64 ", %s: the disk has changed", m->time, m->what);
    if (t->snapshot) {
        cut_co_read_snapshot(c, c->state, NULL, content, t->size);
        if (memcmp(content, t->snapshot_content, t->size) != 0)
            cut_die(c, "clock %" PRIu64 ", %s: the snapshot has changed", m->time, m->what);
    }
    free(content);
}

static coroutine_fn void co_judge_findings(struct cut *c, const struct cut_moment *m, struct repairing *t)
{
    const struct findings *before = &t->before, *now = &t->now;

    co_find(c, "state", &t->now);
    for (uint64_t i = 0; i < MAX_CLUSTERS; i++) {
        if (now->missing[i] > before->missing[i])
            cut_die(c, "clock %" PRIu64 ", %s: cluster %" PRIu64 " misses %" PRIu64 " references, before %" PRIu64,
                    m->time, m->what, i, now->missing[i], before->missing[i]);
        if (now->flagged[i] > before->flagged[i] && !before->missing[i])
            cut_die(c, "clock %" PRIu64 ", %s: cluster %" PRIu64 " has %" PRIu64 " wrong COPIED flags, before %" PRIu64,
                    m->time, m->what, i, now->flagged[i], before->flagged[i]);
    }
    if (now->others > before->others)
        cut_die(c, "clock %" PRIu64 ", %s: %" PRIu64 " other errors, before %" PRIu64, m->time, m->what, now->others,
                before->others);
    if (now->marks != before->marks && (now->errors || now->harmful_flags || now->others))
        cut_die(c, "clock %" PRIu64 ", %s: marks %u, not %u, but %" PRIu64 "+%" PRIu64 "+%" PRIu64 " errors", m->time,
                m->what, now->marks, before->marks, now->errors, now->harmful_flags, now->others);
}

/* Nothing at all is wrong with it. */
static coroutine_fn void co_judge_sound(struct cut *c, const struct cut_moment *m, const char *when)
{
    struct blk_check check = { 0 };
    struct error *error = NULL;
    struct blk_node *node = cut_co_open("state", NULL, 0, &error);

    cut_need(c, node, "open", error);
    int ret = blk_co_check(node, &check, 0, &error);
    if (ret < 0 || check.corruptions || check.leaks || check.check_errors)
        cut_die(c, "clock %" PRIu64 ", %s, %s: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors", m->time,
                m->what, when, check.corruptions, check.leaks, check.check_errors);
    blk_co_node_unref(node);
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    struct repairing *t = arg;

    co_judge_content(c, m, t);
    co_judge_findings(c, m, t);
    if (m->time > t->done && (t->fix == 0 || (t->fix & BLK_FIX_ERRORS)))
        co_judge_sound(c, m, "after the repair");
    if (!m->by_qemu && cut_below(c, 4))
        return;
    int ret = co_repair(c, "state", BLK_FIX_LEAKS | BLK_FIX_ERRORS);
    if (ret < 0)
        cut_die(c, "clock %" PRIu64 ", %s: repairing again: %s", m->time, m->what, strerror(-ret));
    co_judge_sound(c, m, "after repairing again");
    co_judge_content(c, m, t);
    if (m->by_qemu)
        cut_check_by_qemu(c, m, false);
}

coroutine_fn void powercut_co_repair(struct cut *c)
{
    struct repairing *t = xcalloc(1, sizeof(*t));

    choose(c, t);
    co_make_base(c, t);
    cut_co_start(c, "");
    int ret = co_repair(c, "logging", t->fix);
    if (ret < 0 && t->fix != BLK_FIX_LEAKS)
        cut_die(c, "repair: %s", strerror(-ret));
    cut_need(c, blk_co_flush(c->file) == 0, "flush", NULL);
    t->done = logwrites_now(c->file);
    cut_co_finish(c);
    cut_co_each(c, co_judge, t);
    free(t->content);
    free(t->snapshot_content);
    free(t);
}
