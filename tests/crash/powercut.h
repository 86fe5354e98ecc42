/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the parts of `powercut` share: a file whose every change is logged, and the disks that power cuts make of it.
 *
 * A workload fills in `base` (cut_co_make_image(), or by hand), opens the logged file (cut_co_start()), changes it,
 * and closes it (cut_co_finish()). cut_co_each() then makes disks for moments all along the log and shows each to the
 * workload's judge, as a node called "state".
 */
#pragma once

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <block/image.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#define CUT_MAX_DISK (64u << 20)
#define CUT_APART (2u << 20) /* of an image with an external data file: the image's part of the disk, and the data's */

struct settings {
    const char *kind; /* a cache mode: guest requests; or what else is cut: create, … */
    unsigned workloads, samples;
    uint64_t seed;
    bool quick;
};

/* Disks; what is wrong with them is counted only where another program made them. */
struct cut_findings {
    uint64_t refused, corrupt; /* not opened or checked; worse than leaks */
    uint64_t lost, stale;      /* without what was flushed; with what was never written there */
};

struct cut {
    const struct settings *settings;
    uint64_t seed, random;
    char label[240]; /* what this workload is, for messages */
    char folder[512], *log_path;
    unsigned log_flags;      /* BLK_O_*: cache mode of the logged file */
    bool order_only;         /* nothing is durable: only prefixes of the log make sense */
    bool every_moment;       /* in quick runs too */
    unsigned single_sectors; /* of how many disks are made, each time that something becomes durable */
    uint8_t *base;           /* the file before */
    uint64_t base_length;    /* whole sectors */
    struct blk_node *disk;   /* it, in memory */
    struct blk_node *file;   /* and logged, by the name "logging" */
    struct logwrites *log;
    uint8_t *image; /* a disk after a cut */
    uint64_t image_length;
    struct blk_node *state;
    uint64_t states, checked_by_qemu;
    struct cut_findings findings;
};

/* A disk to judge. */
struct cut_moment {
    uint64_t time;    /* the log's clock */
    const char *what; /* which of the open changes it has */
    bool by_qemu;     /* one of the sample that qemu-img checks too */
};

/* ---- workloads ---- */

coroutine_fn void powercut_co_guest(struct cut *c);
coroutine_fn void powercut_co_create(struct cut *c);
coroutine_fn void powercut_co_resize(struct cut *c);
coroutine_fn void powercut_co_repair(struct cut *c);
coroutine_fn void powercut_co_snapshot(struct cut *c);
coroutine_fn void powercut_co_backing(struct cut *c);
coroutine_fn void powercut_co_empty(struct cut *c);
coroutine_fn void powercut_co_amend(struct cut *c);
coroutine_fn void powercut_co_bitmaps(struct cut *c);
coroutine_fn void powercut_co_compact(struct cut *c);
coroutine_fn void powercut_co_program(struct cut *c);

/* ---- powercut_file.c ---- */

uint64_t cut_below(struct cut *c, uint64_t bound); /* random, by the seed */
/* For most images that can have subclusters, ",extended_l2=on"; draws no random number. */
const char *cut_subclusters(const struct cut *c, uint64_t cluster, bool v2);
__attribute__((format(printf, 2, 3), noreturn)) void cut_die(struct cut *c, const char *fmt, ...);
void cut_need(struct cut *c, bool ok, const char *what, struct error *error);
__attribute__((format(printf, 2, 3))) int cut_shell(struct cut *c, const char *fmt, ...); /* in the folder */

/* Creates a qcow2 image as file "base" in the folder. */
coroutine_fn void cut_co_make_image(struct cut *c, const char *options, uint64_t size);
/* File `name` of the folder becomes the base. */
void cut_load_base(struct cut *c, const char *name);
/* What this memory node holds becomes the base; drops the caller's reference, the last one. */
coroutine_fn void cut_co_take_base(struct cut *c, struct blk_node *file);
/* A memory node with `content` (may be NULL: zeroes). `more`: further options, from a comma on. */
coroutine_fn struct blk_node *cut_co_memory(struct cut *c, const char *name, const uint8_t *content, uint64_t length,
                                            const char *more);
/* A new image in a memory node "before", to be filled there, and taken as the base by cut_co_take_base(). */
coroutine_fn struct blk_node *cut_co_before(struct cut *c, const char *options, uint64_t size);
/* A qcow2 node over node `file`, over node `backing` where that is not NULL. */
coroutine_fn struct blk_node *cut_co_open(const char *file, const char *backing, unsigned flags, struct error **errp);
/* The same with the smallest caches that there are. */
coroutine_fn struct blk_node *cut_co_open_small(const char *file, const char *backing, unsigned flags,
                                                struct error **errp);
/* An image whose file is the first half of `file`, and whose data file is the second: so one log has both, in the order
 * in which they were written. (A flush of either makes both durable: that each is flushed shows unit/qcow2-data-file.)
 * With the smallest caches. */
coroutine_fn struct blk_node *cut_co_open_apart(const char *file, const char *backing, unsigned flags,
                                                struct error **errp);
/* The same for the base: files "base" and `data` of the folder. */
void cut_load_base_apart(struct cut *c, const char *data);
/* Opens c->file over the base, logging from here on; `more` as for cut_co_memory(). */
coroutine_fn void cut_co_start(struct cut *c, const char *more);
/* Closes it and reads the log. */
coroutine_fn void cut_co_finish(struct cut *c);

/* ---- powercut_disk.c ---- */

/* Shows disks for moments all along the log, then c->settings->samples more, to co_judge. */
coroutine_fn void cut_co_each(struct cut *c,
                              coroutine_fn void (*co_judge)(struct cut *c, const struct cut_moment *m, void *arg),
                              void *arg);
/* The disk as it is now in the node "state", by qemu-img: nothing worse than leaks. `repair`: a dirty image is repaired
 * first, as it is when opened. */
void cut_check_by_qemu(struct cut *c, const struct cut_moment *m, bool repair);
/* The same by our check, on an open node. */
coroutine_fn void cut_co_check(struct cut *c, const struct cut_moment *m, struct blk_node *node);
/* Dies if `content` (of `whose`: "the disk") is not what it must be. */
void cut_compare(struct cut *c, const struct cut_moment *m, const char *whose, const uint8_t *content,
                 const uint8_t *wanted, uint64_t length);
/* The disk of a node, which it closes: clean by our check, and as it must be. */
coroutine_fn void cut_co_judge(struct cut *c, const struct cut_moment *m, struct blk_node *node, const uint8_t *wanted,
                               uint64_t length);
/* What the image's only snapshot holds (damage.h): `file` is a memory node, and stays as it is. */
coroutine_fn void cut_co_read_snapshot(struct cut *c, struct blk_node *file, const char *backing, uint8_t *content,
                                       uint64_t size);
