/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Several loops at once on one qcow2 image: stress LOOPS SECONDS SEED [FILE|- [OPTIONS [PREPARE]]].
 *
 * Each loop runs several coroutines that read, write, zero, discard and flush. An operation first takes its range of
 * sectors in the model, so that no two that overlap are under way at once; sectors of one cluster may well be. So each
 * read has one right answer, checked on the spot. In the end the image is closed, checked and read again. Without FILE
 * the image is in memory.
 */
#include "crash_model.h"
#include "memory_node.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <block/front.h>
#include <block/image.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define DISK_BYTES (UINT64_C(16) << 20)
#define SECTORS (DISK_BYTES / 512)
#define WORKERS_A_LOOP 6u
#define MAX_LOOPS 8u

static pthread_mutex_t model_lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t values[SECTORS]; /* what each sector holds; 0: zeroes */
static bool taken[SECTORS];
static _Atomic uint32_t next_value = 1;
static atomic_uint running;
static atomic_bool stop;
static _Atomic uint64_t operations;
static struct blk_front *front;
static struct blk_node *node;
static uint64_t cluster = 65536;
static uint64_t seed;

struct worker {
    uint64_t random;
    unsigned number;
};

static uint64_t below(struct worker *w, uint64_t bound)
{
    uint64_t x = w->random += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (x ^ (x >> 31)) % bound;
}

static void die(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fprintf(stderr, "stress: seed %" PRIu64 ": ", seed);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

/* ---- ranges ---- */

static bool take(uint64_t first, uint64_t count)
{
    bool free_range = true;

    pthread_mutex_lock(&model_lock);
    for (uint64_t i = 0; i < count && free_range; i++)
        free_range = !taken[first + i];
    for (uint64_t i = 0; i < count && free_range; i++)
        taken[first + i] = true;
    pthread_mutex_unlock(&model_lock);
    return free_range;
}

static void give_back(uint64_t first, uint64_t count, bool changed, uint32_t value)
{
    pthread_mutex_lock(&model_lock);
    for (uint64_t i = 0; i < count; i++) {
        taken[first + i] = false;
        if (changed)
            values[first + i] = value;
    }
    pthread_mutex_unlock(&model_lock);
}

/* ---- operations on a range that is ours ---- */

static void check_content(const uint8_t *content, uint64_t first, uint64_t count, const char *when)
{
    for (uint64_t i = 0; i < count; i++) {
        uint8_t wanted[512] = { 0 };
        if (values[first + i])
            crash_stamp(wanted, values[first + i], first + i);
        if (memcmp(wanted, content + i * 512, 512) != 0) {
            uint64_t word;
            memcpy(&word, content + i * 512, 8);
            die("%s: sector %" PRIu64 " should hold value %" PRIu32 ", begins %016" PRIx64, when, first + i,
                values[first + i], word);
        }
    }
}

static coroutine_fn int co_read_range(uint64_t first, uint64_t count)
{
    uint8_t *buffer = blk_buffer_alloc(node, count * 512);
    int ret = blk_front_co_read(front, first * 512, buffer, count * 512);

    if (ret == 0)
        check_content(buffer, first, count, "while running");
    free(buffer);
    return ret;
}

static coroutine_fn int co_write_range(uint64_t first, uint64_t count, uint32_t value, unsigned flags)
{
    uint8_t *buffer = blk_buffer_alloc(node, count * 512);

    for (uint64_t i = 0; i < count; i++)
        crash_stamp(buffer + i * 512, value, first + i);
    int ret = blk_front_co_write(front, first * 512, buffer, count * 512, flags);
    free(buffer);
    return ret;
}

static void choose_range(struct worker *w, uint64_t *first, uint64_t *count, bool aligned)
{
    uint64_t unit = cluster / 512;

    *first = below(w, below(w, 2) ? SECTORS : SECTORS / 16);
    *count = 1 + below(w, below(w, 8) ? 16 : 4 * unit);
    if (aligned) {
        *first -= *first % unit;
        *count += (unit - *count % unit) % unit;
    }
    *count = MIN(*count, SECTORS - *first);
}

static coroutine_fn int co_operation(struct worker *w)
{
    uint64_t first, count, what = below(w, 100);
    uint32_t value = 0;
    bool changed = true, discard = what < 12;
    int ret;

    if (what >= 98)
        return blk_front_co_flush(front);
    choose_range(w, &first, &count, discard || below(w, 4) == 0);
    if (!take(first, count))
        return 0;
    if (discard) {
        ret = blk_front_co_discard(front, first * 512, count * 512);
    } else if (what < 24) {
        ret = blk_front_co_write_zeroes(front, first * 512, count * 512, below(w, 2) ? BLK_REQ_MAY_UNMAP : 0);
    } else if (what < 60) {
        ret = co_read_range(first, count);
        changed = false;
    } else {
        value = atomic_fetch_add(&next_value, 1);
        ret = co_write_range(first, count, value, below(w, 50) ? 0 : BLK_REQ_FUA);
    }
    give_back(first, count, changed, value);
    return ret;
}

static coroutine_fn void co_worker(void *arg)
{
    struct worker *w = arg;

    while (!atomic_load(&stop)) {
        int ret = co_operation(w);
        if (ret < 0)
            die("worker %u: %s", w->number, strerror(-ret));
        atomic_fetch_add(&operations, 1);
        if (below(w, 16) == 0)
            co_relax();
    }
    free(w);
    atomic_fetch_sub(&running, 1);
}

/* ---- the whole ---- */

struct plan {
    unsigned loops, seconds;
    const char *file, *options, *prepare;
};

static coroutine_fn struct blk_node *co_open_image(const char *file, unsigned flags, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "l2-cache-size", "65536"); /* so small that slices are evicted all the time */
    if (file)
        opts_set(opts, "file.filename", file);
    else
        opts_set(opts, "file", "disk");
    struct blk_node *opened = blk_co_open(NULL, opts, flags, errp);
    opts_free(opts);
    return opened;
}

/* Clusters full of zeroes that have to be copied when they are written: shared with a snapshot, or compressed. */
static void prepare_image(const struct plan *plan, const char *path)
{
    char *command = NULL;

    if (strcmp(plan->prepare, "snapshot") == 0)
        command = xasprintf("qemu-io -f qcow2 -c 'write -q -P 0 0 %" PRIu64 "' %s && qemu-img snapshot -c one %s",
                            DISK_BYTES, path, path);
    else if (strcmp(plan->prepare, "compressed") == 0)
        command = xasprintf("for i in $(seq 0 2 200); do echo write -q -c -P 0 $((i * %" PRIu64 ")) %" PRIu64
                            "; done | qemu-io -f qcow2 %s >/dev/null",
                            cluster, cluster, path);
    if (!command || system(command) != 0)
        die("cannot prepare the image: %s", plan->prepare);
    free(command);
}

/* The image is made in a file and, without FILE, copied into the memory node. */
static coroutine_fn struct blk_node *co_make_image(const struct plan *plan)
{
    const char *path = plan->file ? plan->file : "stress.qcow2";
    struct opts *opts = opts_new();
    struct error *error = NULL;

    if (opts_parse(opts, plan->options, NULL, OPTS_LAST_WINS, &error) < 0 ||
        blk_co_create("qcow2", path, opts, DISK_BYTES, &error) < 0)
        die("%s", error_text(error));
    opts_free(opts);
    if (plan->prepare)
        prepare_image(plan, path);
    if (plan->file)
        return NULL;
    struct opts *memory = opts_new();
    opts_parse(memory, "driver=memory,node-name=disk,size=512", NULL, OPTS_LAST_WINS, NULL);
    struct blk_node *disk = blk_co_open(NULL, memory, BLK_O_RDWR | BLK_O_RESIZE, &error);
    opts_free(memory);
    FILE *f = fopen(path, "rb");
    struct memory_node *m = disk ? memory_node(disk) : NULL;
    if (!f || !m)
        die("no image in memory");
    m->data = xrealloc(m->data, 2 * DISK_BYTES);
    m->capacity = align_up(fread(m->data, 1, 2 * DISK_BYTES, f), 512);
    atomic_store(&disk->size, m->capacity);
    fclose(f);
    remove(path);
    return disk;
}

static coroutine_fn void co_verify(const struct plan *plan)
{
    struct error *error = NULL;
    struct blk_check check = { 0 };
    uint8_t *buffer = xmalloc(DISK_BYTES);
    struct blk_node *again = co_open_image(plan->file, 0, &error);

    if (!again)
        die("does not open again: %s", error_text(error));
    if (blk_co_check(again, &check, 0, &error) < 0)
        die("check: %s", error_text(error));
    if (check.corruptions || check.leaks || check.check_errors)
        die("check: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors", check.corruptions, check.leaks,
            check.check_errors);
    if (blk_co_read(again, 0, buffer, DISK_BYTES) < 0)
        die("cannot be read again");
    check_content(buffer, 0, SECTORS, "at the end");
    blk_co_node_unref(again);
    free(buffer);
}

static coroutine_fn int co_main(void *arg)
{
    const struct plan *plan = arg;
    struct loop *loops[MAX_LOOPS];
    struct error *error = NULL;
    struct blk_node *disk = co_make_image(plan);

    node = co_open_image(plan->file, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);
    if (!node)
        die("%s", error_text(error));
    front = blk_front_new("stress", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL, &error);
    if (!front)
        die("%s", error_text(error));
    for (unsigned i = 0; i < plan->loops; i++) {
        loops[i] = loop_thread_start("stress", &error);
        if (!loops[i])
            die("%s", error_text(error));
        for (unsigned j = 0; j < WORKERS_A_LOOP; j++) {
            struct worker *w = xcalloc(1, sizeof(*w));
            *w = (struct worker){ .random = seed * 1000 + i * 100 + j, .number = i * 100 + j };
            atomic_fetch_add(&running, 1);
            co_start_on(loops[i], co_worker, w);
        }
    }
    co_sleep_ns(plan->seconds * UINT64_C(1000000000));
    atomic_store(&stop, true);
    while (atomic_load(&running) > 0)
        co_sleep_ns(1000000);
    struct blk_stats stats;
    blk_front_stats(front, &stats);
    for (unsigned i = 0; i < plan->loops; i++)
        loop_thread_stop(loops[i]);
    int ret = blk_co_front_free(front);
    if (ret == 0)
        ret = blk_co_node_unref(node);
    if (ret < 0)
        die("close: %s", strerror(-ret));
    co_verify(plan);
    blk_co_node_unref(disk);
    printf("%u loops, %" PRIu64 " operations, %" PRIu64 " mapped, %" PRIu64 " slow\n", plan->loops,
           atomic_load(&operations), stats.mapped, stats.slow);
    return 0;
}

int main(int argc, char **argv)
{
    struct plan plan = { .options = "cluster_size=65536" };

    if (argc < 4 || argc > 7) {
        fprintf(stderr, "usage: stress LOOPS SECONDS SEED [FILE|- [OPTIONS [PREPARE]]]\n");
        return 2;
    }
    plan.loops = (unsigned)atoi(argv[1]);
    plan.seconds = (unsigned)atoi(argv[2]);
    seed = strtoull(argv[3], NULL, 10);
    plan.file = argc > 4 && strcmp(argv[4], "-") != 0 ? argv[4] : NULL;
    plan.options = argc > 5 ? argv[5] : plan.options;
    plan.prepare = argc > 6 ? argv[6] : NULL;
    const char *size = strstr(plan.options, "cluster_size=");
    cluster = size ? strtoull(size + strlen("cluster_size="), NULL, 10) : cluster;
    if (plan.loops < 1 || plan.loops > MAX_LOOPS)
        return 2;
    struct loop *loop = loop_new(NULL);
    int ret = co_run(loop, co_main, &plan);
    loop_free(loop);
    return ret;
}
