/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One I/O fails: faults KIND SEQUENCES SEED. A sequence of operations on a qcow2 image in memory is run again and
 * again; each time another request to the file fails, once or from then on, with EIO or ENOSPC. Nothing may crash or
 * hang, and the image is never corrupt. What else must hold says the workload: KIND `guest`, `compressed`
 * (faults_guest.c), `create`, `resize`, `repair` (faults_image.c).
 */
#include "faults.h"
#include "random.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t faults_below(struct faults *f, uint64_t bound) { return random_below(&f->random, bound); }

void faults_die(struct faults *f, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fprintf(stderr, "faults: %s, seed %" PRIu64 " (%s), request %" PRIu64 " fails %s with %s: ", f->kind, f->seed,
            f->label, f->now.fail_at, f->now.for_good ? "for good" : "once", strerror(-f->now.with));
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\nrepeat: faults %s 1 %" PRIu64 "\n", f->kind, f->seed);
    va_end(args);
    exit(1);
}

/* ---- the image ---- */

coroutine_fn int faults_co_make_image(struct faults *f, const char *options, uint64_t size, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_parse(opts, options, NULL, OPTS_LAST_WINS, NULL);
    struct blk_create create = { .options = opts, .size = size, .file = f->file };
    int ret = blk_driver_find("qcow2")->co_create(&create, errp);
    opts_free(opts);
    return ret;
}

void faults_take_base(struct faults *f)
{
    f->base_length = blk_node_size(f->file);
    memcpy(f->base, memory_node(f->file)->data, f->base_length);
}

coroutine_fn struct blk_node *faults_co_open(struct faults *f, unsigned flags, struct error **errp)
{
    struct opts *opts = opts_new();

    (void)f;
    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "file", "file");
    opts_set(opts, "l2-cache-size", "16384");
    struct blk_node *node = blk_co_open(NULL, opts, flags | BLK_O_NO_BACKING, errp);
    opts_free(opts);
    return node;
}

coroutine_fn struct blk_node *faults_co_reopen(struct faults *f, unsigned flags)
{
    struct error *error = NULL;
    struct blk_node *node = faults_co_open(f, flags, &error);

    if (!node)
        faults_die(f, "does not open afterwards: %s", error_text(error));
    return node;
}

coroutine_fn void faults_co_check(struct faults *f, struct blk_node *node, bool leaks_allowed)
{
    struct blk_check check = { 0 };
    struct error *error = NULL;

    if (blk_co_check(node, &check, 0, &error) < 0)
        faults_die(f, "check: %s", error_text(error));
    if (check.corruptions || check.check_errors || (check.leaks && !leaks_allowed))
        faults_die(f, "%" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors", check.corruptions, check.leaks,
                   check.check_errors);
}

/* ---- one request after the other ---- */

void faults_told(struct faults *f, const char *what, int ret, const struct error *error)
{
    if ((ret < 0) != (error != NULL) || (ret < 0 && ret != -EINVAL && !faults_failed(f)))
        faults_die(f, "%s says %d: %s", what, ret, error ? error_text(error) : "nothing");
}

bool faults_failed(const struct faults *f) { return memory_node(f->file)->faults.failed; }

void faults_end(struct faults *f)
{
    struct memory_faults faults = memory_node(f->file)->faults;

    faults.fail_at = 0;
    memory_node_fail(f->file, faults);
}

/* Returns how many requests it made; 0 where it ended before the fault. */
static coroutine_fn uint64_t co_run_once(struct faults *f, coroutine_fn void (*co_once)(struct faults *f, void *arg),
                                         void *arg)
{
    uint64_t random = f->random;

    memory_node_fill(f->file, f->base, f->base_length);
    memory_node_fail(f->file, f->now);
    co_once(f, arg);
    f->random = random;
    return faults_failed(f) || !f->now.fail_at ? memory_node(f->file)->faults.requests : 0;
}

coroutine_fn void faults_co_each(struct faults *f, coroutine_fn void (*co_once)(struct faults *f, void *arg), void *arg)
{
    f->now = (struct memory_faults){ 0 };
    uint64_t total = co_run_once(f, co_once, arg);

    for (uint64_t at = 1; at <= total; at++) {
        f->now = (struct memory_faults){ .fail_at = at, .with = at % 2 ? -EIO : -ENOSPC };
        f->runs += co_run_once(f, co_once, arg) > 0;
        f->now = (struct memory_faults){ .fail_at = at, .with = at % 2 ? -ENOSPC : -EIO, .for_good = true };
        f->runs += co_run_once(f, co_once, arg) > 0;
    }
}

/* ---- the program ---- */

static const struct workload {
    const char *kind;
    coroutine_fn void (*co_work)(struct faults *f);
} workloads[] = {
    { "guest", faults_co_guest },     { "compressed", faults_co_guest }, { "create", faults_co_create },
    { "resize", faults_co_resize },   { "repair", faults_co_repair },    { "backing", faults_co_backing },
    { "empty", faults_co_empty },     { "amend", faults_co_amend },      { "bitmaps", faults_co_bitmaps },
    { "compact", faults_co_compact },
};

struct arguments {
    const struct workload *workload;
    unsigned sequences;
    uint64_t seed;
};

static coroutine_fn struct blk_node *co_open_file(void)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "memory");
    opts_set(opts, "node-name", "file");
    opts_set(opts, "size", "0");
    opts_set(opts, "max-size", "16M");
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, NULL);
    opts_free(opts);
    return node;
}

static coroutine_fn int co_main(void *arg)
{
    const struct arguments *a = arg;
    struct faults f = { .kind = a->workload->kind, .file = co_open_file(), .base = xmalloc(FAULTS_MAX_FILE) };

    for (unsigned i = 0; i < a->sequences; i++) {
        f.seed = f.random = a->seed + i;
        f.now = (struct memory_faults){ 0 };
        memory_node_fill(f.file, f.base, 0);
        memory_node_fail(f.file, f.now);
        a->workload->co_work(&f);
    }
    blk_co_node_unref(f.file);
    free(f.base);
    printf("%s: %u sequences, %" PRIu64 " runs with a failure\n", f.kind, a->sequences, f.runs);
    return 0;
}

int main(int argc, char **argv)
{
    struct arguments a = { 0 };

    for (size_t i = 0; argc == 4 && i < ARRAY_SIZE(workloads); i++) {
        if (strcmp(workloads[i].kind, argv[1]) == 0)
            a.workload = &workloads[i];
    }
    if (!a.workload) {
        fprintf(stderr, "usage: faults KIND SEQUENCES SEED\n");
        return 2;
    }
    a.sequences = (unsigned)atoi(argv[2]);
    a.seed = strtoull(argv[3], NULL, 10);
    struct loop *loop = loop_new(NULL);
    int ret = co_run(loop, co_main, &a);
    loop_free(loop);
    return ret;
}
