/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One I/O fails: faults SEQUENCES SEED. A sequence of operations on a qcow2 image in memory is run again and again;
 * each time another request to the file fails, once or from then on, with EIO or ENOSPC. Nothing may crash or hang;
 * what reported success and was flushed successfully is there; what reported an error is old or new; the image is
 * never corrupt (leaks only), and after a failure that went by it is clean once it has been closed without an error.
 */
#include "crash_model.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <block/front.h>
#include <block/image.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX (16u << 20)

static uint8_t content[FILE_MAX], base[FILE_MAX];
static uint64_t content_size, base_size;
static uint64_t requests, fail_at; /* 0: never */
static int fail_with;
static bool fail_for_good, failed;
static uint64_t seed, random_state;
static char options[128];

static uint64_t below(uint64_t bound)
{
    uint64_t x = random_state += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (x ^ (x >> 31)) % bound;
}

static void die(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fprintf(stderr, "faults: seed %" PRIu64 " (%s), request %" PRIu64 " fails %s with %s: ", seed, options, fail_at,
            fail_for_good ? "for good" : "once", strerror(-fail_with));
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\nrepeat: faults 1 %" PRIu64 "\n", seed);
    va_end(args);
    exit(1);
}

/* ---- the file ---- */

static coroutine_fn int file_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    node->limits.request_alignment = node->limits.memory_alignment = 1;
    atomic_store(&node->size, content_size);
    return 0;
}

static void transfer(struct blk_io *io)
{
    uint64_t at = io->offset;

    for (int i = 0; i < io->iov_count; at += io->iov[i++].iov_len) {
        if (io->op == BLK_OP_WRITE) {
            memcpy(content + at, io->iov[i].iov_base, io->iov[i].iov_len);
            continue;
        }
        uint64_t inside = at < content_size ? MIN(content_size - at, (uint64_t)io->iov[i].iov_len) : 0;
        memcpy(io->iov[i].iov_base, content + at, inside);
        memset((uint8_t *)io->iov[i].iov_base + inside, 0, io->iov[i].iov_len - inside);
    }
}

static int perform(struct blk_io *io)
{
    uint64_t end = io->offset + io->length;

    requests++;
    if (fail_at && (requests == fail_at || (fail_for_good && requests > fail_at))) {
        failed = true;
        return fail_with;
    }
    if (io->op == BLK_OP_FLUSH || io->op == BLK_OP_DISCARD)
        return 0;
    if (io->op != BLK_OP_READ && end > FILE_MAX)
        return -ENOSPC;
    if (io->op == BLK_OP_WRITE_ZEROES)
        memset(content + io->offset, 0, io->length);
    else
        transfer(io);
    if (io->op != BLK_OP_READ && end > content_size) {
        content_size = end;
        atomic_store(&io->node->size, end);
    }
    return 0;
}

static void complete(struct loop_task *task)
{
    struct blk_io *io = container_of(task, struct blk_io, task);

    io->done(io, perform(io));
}

static void file_submit(struct blk_node *node, struct blk_io *io)
{
    io->task.fn = complete;
    loop_defer(io->loop, &io->task);
}

static coroutine_fn int file_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                         struct error **errp)
{
    if (size > FILE_MAX)
        return error_set(errp, -ENOSPC, "too large");
    if (size > content_size)
        memset(content + content_size, 0, size - content_size);
    content_size = size;
    atomic_store(&node->size, size);
    return 0;
}

static const struct blk_driver faulty_file = {
    .name = "faulty-file",
    .flags = BLK_DRIVER_PROTOCOL | BLK_DRIVER_GROWS,
    .co_open = file_co_open,
    .submit = file_submit,
    .co_truncate = file_co_truncate,
};
BLK_DRIVER(faulty_file)

/* ---- one run ---- */

static coroutine_fn struct blk_node *co_open_image(unsigned flags, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "file.driver", "faulty-file");
    opts_set(opts, "l2-cache-size", "16384");
    struct blk_node *node = blk_co_open(NULL, opts, flags, errp);
    opts_free(opts);
    return node;
}

struct sequence {
    uint64_t size, cluster;
    unsigned operations;
    struct crash_model model;
    uint64_t clock;
};

static coroutine_fn int co_write_op(struct blk_node *node, struct crash_op *op)
{
    uint8_t *buffer = xmalloc(op->count * 512);

    for (uint64_t i = 0; i < op->count; i++)
        crash_stamp(buffer + i * 512, op->value, op->first + i);
    int ret = blk_co_write(node, op->first * 512, buffer, op->count * 512, op->fua ? BLK_REQ_FUA : 0);
    free(buffer);
    return ret;
}

static coroutine_fn void co_operation(struct sequence *q, struct blk_node *node)
{
    uint64_t what = below(20), sectors = q->size / 512, first = below(sectors);
    uint64_t count = MIN(1 + below(below(3) ? 8 : 3 * q->cluster / 512 + 20), sectors - first);
    int ret;

    if (what >= 6 && what < 9) { /* discard: whole clusters, so that the model need not know more */
        first = align_down(first * 512, q->cluster) / 512;
        count = MIN(align_up(count * 512, q->cluster) / 512, sectors - first);
    }
    struct crash_op *op = crash_model_add(&q->model, first, count);
    op->kind = what < 3 ? CRASH_FLUSH : what < 9 ? CRASH_ZERO : CRASH_WRITE;
    op->fua = what == 9 || what == 3;
    op->start = ++q->clock;
    if (what < 3)
        ret = blk_co_flush(node);
    else if (what < 6)
        ret = blk_co_write_zeroes(node, first * 512, count * 512,
                                  (below(2) ? BLK_REQ_MAY_UNMAP : 0u) | (op->fua ? BLK_REQ_FUA : 0u));
    else if (what < 9)
        ret = blk_co_discard(node, first * 512, count * 512);
    else
        ret = co_write_op(node, op);
    if (ret == 0)
        op->end = ++q->clock;
}

static coroutine_fn void co_verify(struct sequence *q, bool closed_well)
{
    struct error *error = NULL;
    struct blk_check check = { 0 };
    uint8_t *disk = xmalloc(q->size);
    uint64_t bad;

    fail_at = 0;
    bool lazy = strstr(options, "lazy") != NULL;
    struct blk_node *node = co_open_image(lazy ? BLK_O_RDWR : 0, &error);
    if (!node)
        die("does not open afterwards: %s", error_text(error));
    if (blk_co_check(node, &check, 0, &error) < 0)
        die("check: %s", error_text(error));
    if (check.corruptions || check.check_errors)
        die("%" PRIu64 " corruptions, %" PRIu64 " errors", check.corruptions, check.check_errors);
    if (closed_well && check.leaks)
        die("closed without an error, but %" PRIu64 " leaks", check.leaks);
    if (blk_co_read(node, 0, disk, q->size) < 0)
        die("cannot be read afterwards");
    if (closed_well) /* closing flushes */
        *crash_model_add(&q->model, 0,
                         0) = (struct crash_op){ .kind = CRASH_FLUSH, .start = q->clock + 1, .end = q->clock + 2 };
    if (!crash_model_allows(&q->model, disk, q->clock + 3, &bad)) {
        crash_model_explain(&q->model, disk, q->clock + 3, bad, stderr);
        die("sector %" PRIu64 " holds what it must not", bad);
    }
    blk_co_node_unref(node);
    free(disk);
}

/* Returns how many requests it made, 0 where it ended before the failure. */
static coroutine_fn uint64_t co_run_once(struct sequence *q, uint64_t at, bool for_good, int with)
{
    struct error *error = NULL;
    uint64_t saved = random_state;

    memcpy(content, base, MAX(base_size, content_size));
    content_size = base_size;
    requests = 0;
    fail_at = at;
    fail_for_good = for_good;
    fail_with = with;
    failed = false;
    q->clock = 0;
    crash_model_init(&q->model, q->size / 512);
    struct blk_node *node = co_open_image(BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);
    bool closed_well = false;
    if (node) {
        for (unsigned i = 0; i < q->operations; i++)
            co_operation(q, node);
        closed_well = blk_co_node_unref(node) == 0;
    } else if (!failed) {
        die("does not open: %s", error_text(error));
    }
    error_free(error);
    uint64_t made = failed || !at ? requests : 0;
    if (!failed && !closed_well)
        die("an error came out of nothing");
    co_verify(q, closed_well && node);
    crash_model_finish(&q->model);
    random_state = saved;
    return made;
}

static coroutine_fn void co_make_base(struct sequence *q)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 65536 }, bits[] = { 1, 8, 16, 64 };
    struct error *error = NULL;
    struct opts *opts = opts_new();

    q->cluster = clusters[below(ARRAY_SIZE(clusters))];
    q->size = (200 + below(600)) * 512;
    q->operations = 30;
    snprintf(options, sizeof(options), "cluster_size=%" PRIu64 ",refcount_bits=%u%s", q->cluster,
             bits[below(ARRAY_SIZE(bits))], below(5) ? "" : ",lazy_refcounts=on");
    opts_parse(opts, options, NULL, true, NULL);
    if (blk_co_create("qcow2", "faults.tmp", opts, q->size, &error) < 0)
        die("create: %s", error_text(error));
    opts_free(opts);
    FILE *f = fopen("faults.tmp", "rb");
    memset(base, 0, sizeof(base));
    base_size = f ? align_up(fread(base, 1, FILE_MAX, f), 512) : 0;
    if (f)
        fclose(f);
    remove("faults.tmp");
}

static coroutine_fn int co_main(void *arg)
{
    unsigned sequences = *(unsigned *)arg;
    uint64_t runs = 0;

    for (unsigned i = 0; i < sequences; i++, seed++) {
        struct sequence q = { 0 };
        random_state = seed;
        co_make_base(&q);
        uint64_t total = co_run_once(&q, 0, false, -EIO);
        for (uint64_t at = 1; at <= total; at++) {
            runs += co_run_once(&q, at, false, at % 2 ? -EIO : -ENOSPC) > 0;
            runs += co_run_once(&q, at, true, at % 2 ? -ENOSPC : -EIO) > 0;
        }
    }
    printf("%u sequences, %" PRIu64 " runs with a failure\n", sequences, runs);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: faults SEQUENCES SEED\n");
        return 2;
    }
    unsigned sequences = (unsigned)atoi(argv[1]);
    seed = strtoull(argv[2], NULL, 10);
    struct loop *loop = loop_new(NULL);
    int ret = co_run(loop, co_main, &sequences);
    loop_free(loop);
    return ret;
}
