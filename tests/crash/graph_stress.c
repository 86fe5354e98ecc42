/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A graph that changes under load: graph_stress SECONDS SEED [LOOPS].
 *
 * Several loops read, write, zero, discard and flush one qcow2 disk; a model knows what each read may find
 * (overlap_model.h). Meanwhile the main loop changes the graph, one event after the other, chosen at random: drained
 * sections in nests, new sizes, filters put in and taken out above the image and below it, a raw node in the front
 * end's place and out again, a backing child given and taken, options and cache modes of the open image; and the file's
 * server stops answering and goes on. Some changes must be refused, and then change nothing. In the end all is closed,
 * checked and read again.
 *
 * What goes wrong is a wrong read, a request or an event that fails, one that does not end (a watchdog says which), an
 * image that is not sound, a coroutine or memory that is left (AddressSanitizer).
 */
#include "memory_node.h"
#include "overlap_load.h"
#include "random.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/coroutine.h>
#include <block/change.h>
#include <block/front.h>
#include <block/image.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DISK_BYTES (UINT64_C(8) << 20)
#define CLUSTER 4096u
#define WORKERS_A_LOOP 4u
#define MAX_FILTERS 3u
#define STUCK_SECONDS 60u
#define ALL_OPS ((1u << BLK_OP_COUNT) - 1)
#define MS UINT64_C(1000000)

static struct overlap_load load = {
    .sectors = DISK_BYTES / 512, .cluster = CLUSTER, .loop_count = 4, .workers_a_loop = WORKERS_A_LOOP
};
static struct blk_node *file, *image, *zeroes, *raw; /* raw: NULL, or above the image */
static struct blk_node *filters[MAX_FILTERS];
static unsigned filter_count, filter_number;
static _Atomic uint64_t events;
static const char *_Atomic doing = "starting";
static uint64_t planner; /* random, of events */
static bool hanging;     /* the coroutine that stops the server runs */

static uint64_t below(uint64_t bound) { return random_below(&planner, bound); }

void die(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fprintf(stderr, "graph_stress: seed %" PRIu64 ", event %" PRIu64 " (%s): ", load.seed, atomic_load(&events),
            atomic_load(&doing));
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static void need(int ret, struct error *error)
{
    if (ret < 0)
        die("%s", error ? error_text(error) : strerror(-ret));
}

/* ---- events: on the main loop ---- */

static coroutine_fn void co_drain_nests(void)
{
    struct blk_node *nodes[] = { image, file, raw ? raw : image, image };
    bool other_way = below(2);

    for (size_t i = 0; i < ARRAY_SIZE(nodes); i++) {
        blk_co_drain_begin(nodes[i]);
        co_sleep_ns(below(MS));
    }
    for (size_t i = 0; i < ARRAY_SIZE(nodes); i++)
        blk_drain_end(nodes[other_way ? i : ARRAY_SIZE(nodes) - 1 - i]);
}

/* Never smaller than what the workers use. */
static coroutine_fn void co_resize(void)
{
    struct error *error = NULL;
    uint64_t size = DISK_BYTES + below(4096) * 512;

    need(blk_front_co_truncate(load.front, size, true, "off", &error), error);
}

/* Above the file, or above the image. */
static coroutine_fn void co_insert_filter(void)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;
    char name[32];

    if (filter_count < MAX_FILTERS) {
        snprintf(name, sizeof(name), "filter%u", filter_number++);
        opts_set(opts, "driver", "blkdebug");
        opts_set(opts, "node-name", name);
        struct blk_node *filter = blk_co_insert_filter(below(2) ? file : image, opts, &error);
        if (!filter)
            die("%s", error_text(error));
        filters[filter_count++] = filter;
    }
    opts_free(opts);
}

static coroutine_fn void co_remove_filter(void)
{
    struct error *error = NULL;

    if (filter_count == 0)
        return;
    uint64_t which = below(filter_count);
    struct blk_node *filter = filters[which];
    filters[which] = filters[--filter_count];
    need(blk_co_remove_filter(filter, &error), error);
    need(blk_co_node_unref(filter), NULL);
}

/* A raw node with the same bytes takes the image's place under its parents, and gives it back. */
static coroutine_fn void co_replace(void)
{
    struct error *error = NULL;

    if (raw) {
        need(blk_co_replace(raw, image, &error), error);
        need(blk_co_node_unref(raw), NULL);
        raw = NULL;
        return;
    }
    struct opts *opts = opts_new();
    opts_parse(opts, "driver=raw,node-name=raw,file=image", NULL, OPTS_LAST_WINS, NULL);
    raw = blk_co_open(NULL, opts, image->open_flags, &error);
    opts_free(opts);
    if (!raw)
        die("%s", error_text(error));
    need(blk_co_replace(image, raw, &error), error);
}

/* The backing node reads as zeroes: what shows through is the same with it and without. */
static coroutine_fn void co_change_backing(void)
{
    struct error *error = NULL;

    need(blk_co_set_backing(image, image->backing ? NULL : zeroes, &error), error);
}

static coroutine_fn void co_reopen_mode(void)
{
    static const unsigned modes[] = { 0, BLK_O_DIRECT, BLK_O_DSYNC, BLK_O_DIRECT | BLK_O_DSYNC, BLK_O_NO_FLUSH };
    unsigned mode = modes[below(ARRAY_SIZE(modes))];
    unsigned all = BLK_O_DIRECT | BLK_O_DSYNC | BLK_O_NO_FLUSH;
    struct blk_reopen item = { .node = image, .set = mode, .clear = all & ~mode };
    struct error *error = NULL;

    need(blk_co_reopen(&item, 1, &error), error);
    if (below(3) == 0)
        blk_front_set_write_cache(load.front, below(2));
}

static coroutine_fn void co_reopen_options(void)
{
    struct opts *opts = opts_new();
    struct blk_reopen item = { .node = image, .opts = opts };
    struct error *error = NULL;
    char size[32];

    snprintf(size, sizeof(size), "%" PRIu64, UINT64_C(4096) << below(6));
    opts_set(opts, "l2-cache-size", size);
    opts_set(opts, "detect-zeroes", below(3) ? "off" : "on");
    opts_set(opts, "lazy-refcounts", below(3) ? "off" : "on");
    need(blk_co_reopen(&item, 1, &error), error);
    opts_free(opts);
}

/* The front end writes. */
static coroutine_fn void co_reopen_refused(void)
{
    struct blk_reopen item = { .node = image, .clear = BLK_O_RDWR };
    struct error *error = NULL;

    if (blk_co_reopen(&item, 1, &error) == 0)
        die("an image with a writer became read-only");
    error_free(error);
    if (!blk_node_writable(image))
        die("an image is read-only although that was refused");
}

static const struct event {
    const char *name;
    coroutine_fn void (*co_happen)(void);
} kinds[] = {
    { "drained sections in nests", co_drain_nests },
    { "resize", co_resize },
    { "insert a filter", co_insert_filter },
    { "remove a filter", co_remove_filter },
    { "replace", co_replace },
    { "backing", co_change_backing },
    { "reopen with another cache mode", co_reopen_mode },
    { "reopen with other options", co_reopen_options },
    { "reopen that is refused", co_reopen_refused },
};

/* The file's server, which stops answering for a while, whatever happens meanwhile. */
static coroutine_fn void co_hang(void *arg)
{
    uint64_t *random = arg;

    while (!atomic_load(&load.stop)) {
        co_sleep_ns(random_below(random, 30 * MS));
        memory_node_hold(file, ALL_OPS, 0, UINT64_MAX / 2);
        co_sleep_ns(random_below(random, 8) ? random_below(random, 5 * MS) : random_below(random, 60 * MS));
        memory_node_release(file);
    }
    hanging = false;
}

static coroutine_fn void co_events(unsigned seconds)
{
    uint64_t end = loop_now_ns() + seconds * 1000 * MS;
    unsigned happened[ARRAY_SIZE(kinds)] = { 0 };

    while (loop_now_ns() < end) {
        uint64_t kind = below(ARRAY_SIZE(kinds));
        atomic_store(&doing, kinds[kind].name);
        kinds[kind].co_happen();
        atomic_store(&doing, "nothing");
        atomic_fetch_add(&events, 1);
        happened[kind]++;
        co_sleep_ns(below(3 * MS));
    }
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        printf("  %s: %u\n", kinds[i].name, happened[i]);
}

/* Nothing that has been asked for may take for ever. */
static void *watch(void *arg)
{
    uint64_t last_operations = 0, last_events = 0;
    unsigned still = 0;

    for (;;) {
        sleep(1);
        uint64_t now_operations = atomic_load(&load.operations), now_events = atomic_load(&events);
        still = now_operations == last_operations || now_events == last_events ? still + 1 : 0;
        last_operations = now_operations;
        last_events = now_events;
        if (still > STUCK_SECONDS)
            die("stuck: %" PRIu64 " operations", now_operations);
    }
    return arg;
}

/* ---- the whole ---- */

static coroutine_fn struct blk_node *co_open_line(const char *line, unsigned flags)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;

    opts_parse(opts, line, NULL, OPTS_LAST_WINS, NULL);
    struct blk_node *node = blk_co_open(NULL, opts, flags, &error);
    opts_free(opts);
    if (!node)
        die("%s: %s", line, error_text(error));
    return node;
}

static coroutine_fn void co_open_all(void)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;

    file = co_open_line("driver=memory,node-name=file,size=0,align=512,mem-align=512",
                        BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    zeroes = co_open_line("driver=memory,node-name=zeroes,size=8M", 0);
    opts_set(opts, "cluster_size", "4096");
    struct blk_create create = { .options = opts, .size = DISK_BYTES, .file = file };
    need(blk_driver_find("qcow2")->co_create(&create, &error), error);
    opts_free(opts);
    image = co_open_line("driver=qcow2,node-name=image,file=file,l2-cache-size=8192",
                         BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    load.front = blk_front_new("stress", image, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL, &error);
    if (!load.front)
        die("%s", error_text(error));
}

static coroutine_fn void co_close_all(void)
{
    while (filter_count)
        co_remove_filter();
    if (raw)
        co_replace();
    need(blk_co_front_free(load.front), NULL);
    need(blk_co_node_unref(image), NULL);
    need(blk_co_node_unref(zeroes), NULL);
}

static coroutine_fn void co_verify(void)
{
    struct error *error = NULL;
    struct blk_check check = { 0 };

    image = co_open_line("driver=qcow2,node-name=again,file=file", 0);
    need(blk_co_check(image, &check, 0, &error), error);
    if (check.corruptions || check.leaks || check.check_errors)
        die("check: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors", check.corruptions, check.leaks,
            check.check_errors);
    load.front = blk_front_new("again", image, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, &error);
    if (!load.front)
        die("%s", error_text(error));
    co_overlap_load_read_all(&load);
    need(blk_co_front_free(load.front), NULL);
    need(blk_co_node_unref(image), NULL);
    need(blk_co_node_unref(file), NULL);
}

static coroutine_fn int co_main(void *arg)
{
    uint64_t hanger = load.seed + 99;

    co_open_all();
    overlap_load_start(&load);
    hanging = true;
    co_start(co_hang, &hanger);
    co_events(*(unsigned *)arg);
    atomic_store(&doing, "stopping");
    co_overlap_load_stop(&load);
    while (hanging)
        co_sleep_ns(MS);
    atomic_store(&doing, "closing");
    co_close_all();
    co_verify();
    if (co_count_alive() != 1)
        die("%" PRIu64 " coroutines are left", co_count_alive() - 1);
    printf("%u loops, %" PRIu64 " operations, %" PRIu64 " met others, %" PRIu64 " events\n", load.loop_count,
           atomic_load(&load.operations), load.model.overlapping, atomic_load(&events));
    overlap_load_finish(&load);
    return 0;
}

int main(int argc, char **argv)
{
    pthread_t watchdog;

    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: graph_stress SECONDS SEED [LOOPS]\n");
        return 2;
    }
    unsigned seconds = (unsigned)atoi(argv[1]);
    load.seed = planner = strtoull(argv[2], NULL, 10);
    load.loop_count = argc > 3 ? (unsigned)atoi(argv[3]) : load.loop_count;
    if (load.loop_count < 1 || load.loop_count > OVERLAP_MAX_LOOPS)
        return 2;
    pthread_create(&watchdog, NULL, watch, NULL);
    struct loop *loop = loop_new(NULL);
    int ret = co_run(loop, co_main, &seconds);
    loop_free(loop);
    return ret;
}
