/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the parts of `faults` share: an image file in memory (tests/lib/memory_node.h), a base to start from, and the
 * loop that lets each request of an operation fail in turn.
 */
#pragma once

#include "memory_node.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <block/image.h>
#include <stdbool.h>
#include <stdint.h>

#define FAULTS_MAX_FILE (16u << 20)

struct faults {
    const char *kind;
    uint64_t seed, random;
    char label[240];
    struct blk_node *file; /* node "file" */
    uint8_t *base;         /* what it holds before each run */
    uint64_t base_length;
    struct memory_faults now; /* the fault of this run */
    uint64_t runs;            /* with a failure */
};

/* ---- workloads: one sequence ---- */

coroutine_fn void faults_co_guest(struct faults *f);
coroutine_fn void faults_co_create(struct faults *f);
coroutine_fn void faults_co_resize(struct faults *f);
coroutine_fn void faults_co_repair(struct faults *f);
coroutine_fn void faults_co_backing(struct faults *f);
coroutine_fn void faults_co_empty(struct faults *f);
coroutine_fn void faults_co_amend(struct faults *f);
coroutine_fn void faults_co_bitmaps(struct faults *f);
coroutine_fn void faults_co_compact(struct faults *f);

/* ---- faults.c ---- */

uint64_t faults_below(struct faults *f, uint64_t bound); /* random, by the seed */
__attribute__((format(printf, 2, 3), noreturn)) void faults_die(struct faults *f, const char *fmt, ...);
/* Makes an image in the file. */
coroutine_fn int faults_co_make_image(struct faults *f, const char *options, uint64_t size, struct error **errp);
/* What the file holds now becomes the base. */
void faults_take_base(struct faults *f);
/* Opens the image in the file. */
coroutine_fn struct blk_node *faults_co_open(struct faults *f, unsigned flags, struct error **errp);
/* The same where it must work: dies if not. */
coroutine_fn struct blk_node *faults_co_reopen(struct faults *f, unsigned flags);
/* Dies where the check finds more than leaks, or leaks where there may be none. */
coroutine_fn void faults_co_check(struct faults *f, struct blk_node *node, bool leaks_allowed);
/* Dies if an operation fails and says nothing, or says something and does not fail, or fails without a fault in this
 * run; but it may be refused (-EINVAL). */
void faults_told(struct faults *f, const char *what, int ret, const struct error *error);
bool faults_failed(const struct faults *f); /* in this run, so far */
void faults_end(struct faults *f);          /* no more of them in this run; faults_failed() stays true */
/* Runs co_once without a fault, then with one at each request, once and for good. Each run starts with the base and
 * with the same random numbers. */
coroutine_fn void faults_co_each(struct faults *f, coroutine_fn void (*co_once)(struct faults *f, void *arg),
                                 void *arg);
