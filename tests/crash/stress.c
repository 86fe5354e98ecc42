/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Several loops at once on one qcow2 image: stress LOOPS SECONDS SEED [FILE|- [OPTIONS [PREPARE]]].
 *
 * Each loop runs several coroutines that read, write, zero, discard and flush where they like; a model knows what a
 * read may find while others change the same sectors (overlap_model.h). In the end the image is closed, checked and
 * read again. Without FILE the image is in memory.
 */
#include "memory_node.h"
#include "overlap_load.h"

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

#define DISK_BYTES (UINT64_C(16) << 20)
#define WORKERS_A_LOOP 6u

static uint64_t seed;

void die(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fprintf(stderr, "stress: seed %" PRIu64 ": ", seed);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

struct plan {
    unsigned loops, seconds;
    uint64_t cluster;
    const char *file, *options, *prepare;
};

static coroutine_fn struct blk_node *co_open_image(const char *file, unsigned flags, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "l2-cache-size", "65536"); /* so small that slices are evicted all the time */
    if (seed % 2)
        opts_set(opts, "discard-no-unref", "on"); /* holes are punched into clusters that are filled again */
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
                            plan->cluster, plan->cluster, path);
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

static struct blk_front *front_of(struct blk_node *node, unsigned perm)
{
    struct error *error = NULL;
    struct blk_front *front = blk_front_new("stress", node, perm, BLK_PERM_ALL, &error);

    if (!front)
        die("%s", error_text(error));
    return front;
}

static coroutine_fn void co_close_image(struct blk_front *front, struct blk_node *node)
{
    int ret = blk_co_front_free(front);

    if (ret == 0)
        ret = blk_co_node_unref(node);
    if (ret < 0)
        die("close: %s", strerror(-ret));
}

static coroutine_fn void co_verify(const struct plan *plan, struct overlap_load *load)
{
    struct error *error = NULL;
    struct blk_check check = { 0 };
    struct blk_node *again = co_open_image(plan->file, 0, &error);

    if (!again)
        die("does not open again: %s", error_text(error));
    if (blk_co_check(again, &check, 0, &error) < 0)
        die("check: %s", error_text(error));
    if (check.corruptions || check.leaks || check.check_errors)
        die("check: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors", check.corruptions, check.leaks,
            check.check_errors);
    load->front = front_of(again, BLK_PERM_CONSISTENT_READ);
    co_overlap_load_read_all(load);
    co_close_image(load->front, again);
}

static coroutine_fn int co_main(void *arg)
{
    const struct plan *plan = arg;
    struct overlap_load load = { .seed = seed,
                                 .sectors = DISK_BYTES / 512,
                                 .cluster = plan->cluster,
                                 .loop_count = plan->loops,
                                 .workers_a_loop = WORKERS_A_LOOP };
    struct error *error = NULL;
    struct blk_node *disk = co_make_image(plan);
    struct blk_node *node = co_open_image(plan->file, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);

    if (!node)
        die("%s", error_text(error));
    load.front = front_of(node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE);
    overlap_load_start(&load);
    co_sleep_ns(plan->seconds * UINT64_C(1000000000));
    co_overlap_load_stop(&load);
    struct blk_stats stats;
    blk_front_stats(load.front, &stats);
    co_close_image(load.front, node);
    co_verify(plan, &load);
    blk_co_node_unref(disk);
    printf("%u loops, %" PRIu64 " operations, %" PRIu64 " mapped, %" PRIu64 " slow, %" PRIu64 " met others\n",
           plan->loops, atomic_load(&load.operations), stats.mapped, stats.slow, load.model.overlapping);
    if (plan->seconds > 0 && load.model.overlapping < 10)
        die("hardly any requests overlapped");
    overlap_load_finish(&load);
    return 0;
}

int main(int argc, char **argv)
{
    struct plan plan = { .options = "cluster_size=65536", .cluster = 65536 };

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
    plan.cluster = size ? strtoull(size + strlen("cluster_size="), NULL, 10) : plan.cluster;
    if (plan.loops < 1 || plan.loops > OVERLAP_MAX_LOOPS)
        return 2;
    struct loop *loop = loop_new(NULL);
    int ret = co_run(loop, co_main, &plan);
    loop_free(loop);
    return ret;
}
