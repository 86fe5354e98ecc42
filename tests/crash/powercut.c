/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts on qcow2: powercut MODE WORKLOADS SAMPLES SEED.
 *
 * A workload makes an image, then several coroutines write, zero, discard and flush it at once through a node that
 * logs each change with its begin and end (block/logwrites.h). Then, for moments all along the log, disks as a power
 * cut at that moment may leave them are made of it: with everything that had begun, with nothing but what was durable,
 * and with samples of the rest dropped, torn in 512-byte sectors and in either order where the order was open. On each
 * such disk our check finds nothing worse than leaks, and each sector of the guest's disk holds what the model
 * (crash_model.h) allows. The installed qemu-img checks a sample of them.
 *
 * MODE is a cache mode. `unsafe` promises nothing but order of what the host has been given: there only the first kind
 * of disk is made.
 */
#include "crash_model.h"
#include "memory_node.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <block/front.h>
#include <block/image.h>
#include <block/logwrites.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_DISK (24u << 20)

static struct settings {
    const char *mode;
    unsigned workloads, samples;
    uint64_t seed;
    unsigned flags;
    bool write_cache, unsafe, quick;
} settings;

/* One workload. */
struct run {
    uint64_t seed, random;
    char folder[64], *log_path, *state_path;
    char options[160], base_kind[16];
    uint64_t size, cluster;
    bool v2, lazy, has_backing, discards;
    uint8_t *base; /* the file before the workload */
    uint64_t base_length;
    struct crash_model model;
    struct blk_node *disk, *backing, *log_node, *node;
    struct blk_front *front;
    unsigned workers, operations;
    struct logwrites *log;
    uint8_t *image; /* a disk after a cut */
    uint64_t image_length;
    uint64_t states, checked_by_qemu;
};

static uint64_t rnd(struct run *r)
{
    uint64_t x = r->random += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t below(struct run *r, uint64_t bound) { return rnd(r) % bound; }

static void die(struct run *r, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fprintf(stderr, "powercut: mode %s, seed %" PRIu64 " (%s, %s%s): ", settings.mode, r->seed, r->options,
            r->base_kind, r->has_backing ? ", backing" : "");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\nrepeat: powercut %s 1 %u %" PRIu64 "\n", settings.mode, settings.samples, r->seed);
    va_end(args);
    exit(1);
}

static void need(struct run *r, bool ok, const char *what, struct error *error)
{
    if (!ok)
        die(r, "%s: %s", what, error ? error_text(error) : "failed");
}

/* ---- making the image ---- */

static int shell(struct run *r, const char *fmt, ...)
{
    va_list args;
    char text[2048];

    va_start(args, fmt);
    int n = snprintf(text, sizeof(text), "cd %s && ", r->folder);
    vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, args);
    va_end(args);
    return system(text);
}

static void load_base(struct run *r, const char *name)
{
    char *path = xasprintf("%s/%s", r->folder, name);
    int fd = open(path, O_RDONLY);

    need(r, fd >= 0, "open base", NULL);
    r->base = xcalloc(1, MAX_DISK);
    ssize_t n = pread(fd, r->base, MAX_DISK, 0);
    need(r, n > 0, "read base", NULL);
    r->base_length = align_up((uint64_t)n, 512);
    close(fd);
    free(path);
}

static void choose(struct run *r)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 4096, 16384, 65536 };
    static const unsigned bits[] = { 1, 2, 8, 16, 16, 32, 64 };

    r->cluster = clusters[below(r, ARRAY_SIZE(clusters))];
    r->size = (below(r, 900) + 100) * 512;
    r->v2 = below(r, 5) == 0;
    r->lazy = !r->v2 && below(r, 6) == 0;
    r->has_backing = below(r, 3) == 0;
    unsigned width = r->v2 ? 16 : bits[below(r, ARRAY_SIZE(bits))];
    snprintf(r->options, sizeof(r->options), "cluster_size=%" PRIu64 ",compat=%s,refcount_bits=%u%s", r->cluster,
             r->v2 ? "0.10" : "1.1", width, r->lazy ? ",lazy_refcounts=on" : "");
    const char *kind = "empty";
    uint64_t k = below(r, 6);
    if (k == 1 && width > 1)
        kind = "snapshot";
    else if (k == 2)
        kind = "compressed";
    else if (k == 3)
        kind = "written";
    snprintf(r->base_kind, sizeof(r->base_kind), "%s", kind);
    r->workers = 1 + (unsigned)below(r, 4);
    r->operations = settings.quick ? 15 : 40;
}

static coroutine_fn void co_make_base(struct run *r)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;
    char *path = xasprintf("%s/base", r->folder);
    uint64_t half = align_down(r->size / 2, 512);

    opts_parse(opts, r->options, NULL, true, NULL);
    need(r, blk_co_create("qcow2", path, opts, r->size, &error) == 0, "create", error);
    opts_free(opts);
    free(path);
    if (strcmp(r->base_kind, "empty") != 0) {
        shell(r, "qemu-io -f qcow2 -c 'write -q -P 201 0 %" PRIu64 "' base", half);
        if (strcmp(r->base_kind, "snapshot") == 0)
            shell(r, "qemu-img snapshot -c one base && qemu-io -f qcow2 -c 'write -q -P 202 0 %" PRIu64 "' base",
                  MIN(half, r->cluster * 3));
        if (strcmp(r->base_kind, "compressed") == 0)
            shell(r, "qemu-img convert -c -O qcow2 -o %s base two && mv two base", r->options);
    }
    load_base(r, "base");
}

static coroutine_fn struct blk_node *co_memory(struct run *r, const char *name, uint64_t size, const char *more)
{
    char *line = xasprintf("driver=memory,node-name=%s,size=%" PRIu64 "%s", name, size, more);
    struct opts *opts = opts_new();
    struct error *error = NULL;

    opts_parse(opts, line, NULL, true, NULL);
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_RESIZE, &error);
    need(r, node, "memory node", error);
    opts_free(opts);
    free(line);
    return node;
}

static coroutine_fn struct blk_node *co_open_qcow2(struct run *r, const char *file, unsigned flags, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "file", file);
    if (r->has_backing)
        opts_set(opts, "backing", "below");
    struct blk_node *node = blk_co_open(NULL, opts, flags, errp);
    opts_free(opts);
    return node;
}

static void fill_memory(struct blk_node *node, const uint8_t *data, uint64_t length)
{
    struct memory_node *m = memory_node(node);

    if (m->capacity < length) {
        m->data = xrealloc(m->data, length + 1);
        m->capacity = length;
    }
    memcpy(m->data, data, length);
    if (m->capacity > length)
        memset(m->data + length, 0, m->capacity - length);
    m->capacity = length;
    atomic_store(&node->size, length);
}

static coroutine_fn void co_open_all(struct run *r)
{
    struct error *error = NULL;
    const char *direct = !(settings.flags & BLK_O_DIRECT) ? ""
                         : below(r, 4)                    ? ",align=512,mem-align=512"
                                                          : ",align=4096,mem-align=4096";
    char *memory_options = xasprintf(",latency-ns=%d%s", r->workers > 1 ? 3000 : 0, direct);

    r->disk = co_memory(r, "disk", r->base_length, memory_options);
    fill_memory(r->disk, r->base, r->base_length);
    if (r->has_backing) {
        uint64_t size = below(r, 2) ? r->size : align_down(r->size / 2, 512);
        r->backing = co_memory(r, "below", size, "");
        uint8_t *data = memory_node(r->backing)->data;
        for (uint64_t i = 0; i < size; i++)
            data[i] = (uint8_t)(i / 512 * 7 + 3);
    }
    char *line = xasprintf("driver=blklogwrites,node-name=logging,file=disk,log.driver=file,log.filename=%s",
                           r->log_path);
    struct opts *opts = opts_new();
    opts_parse(opts, line, NULL, true, NULL);
    r->log_node = blk_co_open(NULL, opts, settings.flags | BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);
    need(r, r->log_node, "log node", error);
    opts_free(opts);
    r->node = co_open_qcow2(r, "logging", settings.flags | BLK_O_RDWR | BLK_O_RESIZE | (below(r, 2) ? BLK_O_UNMAP : 0u),
                            &error);
    need(r, r->node, "open", error);
    r->front = blk_front_new("powercut", r->node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL, &error);
    need(r, r->front, "front", error);
    blk_front_set_write_cache(r->front, settings.write_cache);
    free(line);
    free(memory_options);
    crash_model_init(&r->model, r->size / 512);
    need(r, blk_front_co_read(r->front, 0, r->model.initial, r->size) == 0, "initial read", NULL);
}

/* ---- the workload ---- */

static void choose_range(struct run *r, uint64_t *offset, uint64_t *length)
{
    uint64_t unit = below(r, 2) ? r->cluster : 512, sectors = r->size / 512;

    *offset = below(r, 3) ? below(r, sectors) * 512 : below(r, MIN(sectors, UINT64_C(64))) * 512;
    *length = (1 + below(r, below(r, 4) ? UINT64_C(8) : 3 * r->cluster / 512 + 40)) * 512;
    if (unit > 512 && below(r, 2)) {
        *offset = align_down(*offset, unit);
        *length = align_up(*length, unit);
    }
    *length = MIN(*length, r->size - *offset);
}

static coroutine_fn int co_write_op(struct run *r, struct crash_op *op)
{
    uint8_t *buffer = blk_buffer_alloc(r->node, op->count * 512);

    for (uint64_t i = 0; i < op->count; i++)
        crash_stamp(buffer + i * 512, op->value, op->first + i);
    int ret = blk_front_co_write(r->front, op->first * 512, buffer, op->count * 512, op->fua ? BLK_REQ_FUA : 0);
    free(buffer);
    return ret;
}

/* Whole clusters only; the rest keeps what it has. */
static void discard_range(struct run *r, struct crash_op *op)
{
    uint64_t start = align_up(op->first * 512, r->cluster), end = (op->first + op->count) * 512;

    if (end != r->size)
        end = align_down(end, r->cluster);
    op->first = start / 512;
    op->count = end > start && !(r->v2 && r->has_backing) && r->discards ? (end - start) / 512 : 0;
}

static coroutine_fn void co_one_operation(struct run *r)
{
    uint64_t offset, length, what = below(r, 20);
    int ret;

    /* Some requests take much longer than others: what must wait for them shall be seen waiting. */
    if (r->workers > 1)
        memory_node(r->disk)->latency_ns = below(r, 3) ? 1000 : below(r, 200000);
    choose_range(r, &offset, &length);
    struct crash_op *op = crash_model_add(&r->model, offset / 512, length / 512);
    op->start = logwrites_now(r->log_node);
    if (what < 3) {
        op->kind = CRASH_FLUSH;
        ret = blk_front_co_flush(r->front);
    } else if (what < 6) {
        op->kind = CRASH_ZERO;
        op->fua = !settings.write_cache || below(r, 8) == 0;
        ret = blk_front_co_write_zeroes(r->front, offset, length,
                                        (below(r, 2) ? BLK_REQ_MAY_UNMAP : 0u) | (op->fua ? BLK_REQ_FUA : 0u));
    } else if (what < 9) {
        op->kind = CRASH_ZERO;
        discard_range(r, op);
        ret = blk_front_co_discard(r->front, offset, length);
    } else {
        op->kind = CRASH_WRITE;
        op->fua = !settings.write_cache || below(r, 8) == 0;
        ret = co_write_op(r, op);
    }
    op->end = logwrites_now(r->log_node);
    if (ret < 0)
        die(r, "operation on %" PRIu64 "+%" PRIu64 ": %s", offset, length, strerror(-ret));
}

struct worker {
    struct run *r;
    unsigned *left;
    struct co *waiter;
};

static coroutine_fn void co_worker(void *arg)
{
    struct worker *w = arg;

    for (unsigned i = 0; i < w->r->operations; i++)
        co_one_operation(w->r);
    if (--*w->left == 0 && w->waiter)
        co_wake(w->waiter);
}

static coroutine_fn void co_work(struct run *r)
{
    unsigned left = r->workers;
    struct worker w = { r, &left, NULL };

    for (unsigned i = 0; i < r->workers; i++)
        co_start(co_worker, &w);
    if (left) {
        w.waiter = co_self();
        co_yield();
    }
}

/* ---- disks after a cut ---- */

enum cut { CUT_ALL, CUT_DURABLE, CUT_SAMPLE };

static void apply(struct run *r, size_t index, bool torn)
{
    const struct logwrites_entry *e = logwrites_entry(r->log, index);
    static uint8_t data[MAX_DISK];

    if (e->length == 0 || !range_inside(e->offset, e->length, MAX_DISK))
        return;
    if (e->flags & LOGWRITES_DISCARD)
        memset(data, 0, e->length); /* may read as anything of the sort; zeroes are what hosts give */
    else if (logwrites_read(r->log, index, 0, data, e->length) < 0)
        die(r, "the log cannot be read");
    for (uint64_t at = 0; at < e->length; at += 512) {
        if (!torn || below(r, 2))
            memcpy(r->image + e->offset + at, data + at, 512);
    }
    r->image_length = MAX(r->image_length, e->offset + e->length);
}

static void make_disk(struct run *r, uint64_t time, enum cut cut)
{
    size_t count = logwrites_count(r->log);
    unsigned chance = 1 + (unsigned)below(r, 9); /* of ten, that a write has landed */

    memset(r->image, 0, MAX(r->image_length, r->base_length));
    memcpy(r->image, r->base, r->base_length);
    r->image_length = r->base_length;
    for (size_t i = 0; i < count; i++) {
        const struct logwrites_entry *e = logwrites_entry(r->log, i);
        if (e->flags & (LOGWRITES_MARK | LOGWRITES_FLUSH) && e->length == 0)
            continue;
        enum logwrites_fate fate = logwrites_fate(e, time);
        if (fate == LOGWRITES_NOT_YET || (cut == CUT_DURABLE && fate != LOGWRITES_DURABLE))
            continue;
        if (fate == LOGWRITES_DURABLE || cut == CUT_ALL) {
            apply(r, i, false);
            continue;
        }
        if (below(r, 10) < chance)
            apply(r, i, below(r, 2));
    }
}

static void first_problem(struct blk_check *check, bool error, const char *line)
{
    (void)check;
    if (error && settings.quick)
        fprintf(stderr, "%s\n", line);
}

static void check_by_qemu(struct run *r, uint64_t time)
{
    int fd = open(r->state_path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    need(r, fd >= 0 && pwrite(fd, r->image, r->image_length, 0) == (ssize_t)r->image_length, "state file", NULL);
    close(fd);
    /* An image with the dirty bit is repaired when it is opened for writing; so is it here. */
    if (r->lazy)
        shell(r, "qemu-img check -q -r all -f qcow2 state >/dev/null 2>&1");
    int status = shell(r, "qemu-img check -q -f qcow2 state >qemu.out 2>&1");
    status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (status != 0 && status != 3) {
        shell(r, "cat qemu.out >&2; cp state /tmp/powercut-failed.qcow2");
        die(r, "clock %" PRIu64 ": qemu-img check says %d", time, status);
    }
    r->checked_by_qemu++;
}

static coroutine_fn void co_check_disk(struct run *r, struct blk_node *memory, uint64_t time, const char *what)
{
    struct error *error = NULL;
    struct blk_check check = { .report = first_problem };
    static uint8_t content[1u << 20];
    uint64_t bad;

    fill_memory(memory, r->image, r->image_length);
    struct blk_node *node = co_open_qcow2(r, "state", r->lazy ? BLK_O_RDWR | BLK_O_RESIZE : 0, &error);
    if (!node)
        die(r, "clock %" PRIu64 ", %s: the image does not open: %s", time, what, error_text(error));
    int ret = blk_co_check(node, &check, 0, &error);
    if (ret < 0 || check.corruptions || check.check_errors) {
        check_by_qemu(r, time);
        die(r, "clock %" PRIu64 ", %s: %" PRIu64 " corruptions, %" PRIu64 " errors", time, what, check.corruptions,
            check.check_errors);
    }
    ret = blk_co_read(node, 0, content, r->size);
    if (ret < 0)
        die(r, "clock %" PRIu64 ", %s: cannot be read: %s", time, what, strerror(-ret));
    if (!crash_model_allows(&r->model, content, time, &bad)) {
        crash_model_explain(&r->model, content, time, bad, stderr);
        die(r, "clock %" PRIu64 ", %s: sector %" PRIu64 " holds what it must not", time, what, bad);
    }
    blk_co_node_unref(node);
    r->states++;
}

static coroutine_fn void co_check_cuts(struct run *r)
{
    uint64_t end = logwrites_end(r->log) + 1, step = settings.quick ? MAX(end / 60, UINT64_C(1)) : 1, time = 0;
    struct blk_node *memory = co_memory(r, "state", 512, "");

    for (time = 0; time <= end; time += step) {
        make_disk(r, time, CUT_ALL);
        co_check_disk(r, memory, time, "all that had begun");
        if (settings.unsafe)
            continue;
        make_disk(r, time, CUT_DURABLE);
        co_check_disk(r, memory, time, "only what was durable");
        make_disk(r, time, CUT_SAMPLE);
        co_check_disk(r, memory, time, "a sample");
    }
    for (unsigned i = 0; i < settings.samples && !settings.unsafe; i++) {
        time = below(r, end + 1);
        make_disk(r, time, CUT_SAMPLE);
        co_check_disk(r, memory, time, "a sample");
        if (i % 10 == 0)
            check_by_qemu(r, time);
    }
    blk_co_node_unref(memory);
}

/* ---- a workload from beginning to end ---- */

static coroutine_fn void co_workload(struct run *r)
{
    struct error *error = NULL;

    choose(r);
    co_make_base(r);
    co_open_all(r);
    r->discards = (r->node->open_flags & BLK_O_UNMAP) != 0;
    co_work(r);
    int ret = blk_co_front_free(r->front);
    if (ret == 0)
        ret = blk_co_node_unref(r->node);
    need(r, ret == 0, "close", NULL);
    blk_co_node_unref(r->log_node);
    blk_co_node_unref(r->disk);
    r->log = logwrites_open(r->log_path, &error);
    need(r, r->log, "read the log", error);
    r->image = xcalloc(1, MAX_DISK);
    co_check_cuts(r);
    blk_co_node_unref(r->backing);
    logwrites_close(r->log);
    crash_model_finish(&r->model);
    free(r->image);
    free(r->base);
}

static coroutine_fn int co_main(void *arg)
{
    struct run r = { 0 };
    uint64_t states = 0, checked = 0;

    for (unsigned i = 0; i < settings.workloads; i++) {
        r = (struct run){ .seed = settings.seed + i, .random = settings.seed + i };
        snprintf(r.folder, sizeof(r.folder), "/dev/shm/powercut-XXXXXX");
        need(&r, mkdtemp(r.folder), "folder", NULL);
        r.log_path = xasprintf("%s/log", r.folder);
        r.state_path = xasprintf("%s/state", r.folder);
        int fd = open(r.log_path, O_RDWR | O_CREAT, 0600);
        close(fd);
        co_workload(&r);
        shell(&r, "rm -f log state base two qemu.out");
        rmdir(r.folder);
        free(r.log_path);
        free(r.state_path);
        states += r.states;
        checked += r.checked_by_qemu;
    }
    printf("%s: %u workloads, %" PRIu64 " disks after a cut, %" PRIu64 " of them checked by qemu-img too\n",
           settings.mode, settings.workloads, states, checked);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: powercut MODE WORKLOADS SAMPLES SEED\n");
        return 2;
    }
    const char *quick = getenv("QUICK");
    settings = (struct settings){ .mode = argv[1],
                                  .workloads = (unsigned)atoi(argv[2]),
                                  .samples = (unsigned)atoi(argv[3]),
                                  .seed = strtoull(argv[4], NULL, 10),
                                  .quick = quick && *quick == '1' };
    if (blk_cache_mode_parse(settings.mode, &settings.flags, &settings.write_cache) < 0)
        return 2;
    settings.unsafe = settings.flags & BLK_O_NO_FLUSH;
    struct loop *loop = loop_new(NULL);
    int ret = co_run(loop, co_main, NULL);
    loop_free(loop);
    return ret;
}
