/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How our block layer alone scales with the number of loops: random 4k requests to the allocated clusters of one qcow2
 * image, whose file is plain memory without a lock, unlike a host's file, in which one thread writes at a time.
 *
 *   loops read|write LOOPS REQUESTS      prints requests a second, of all loops together
 */
#include "../../img-tool/bench.h"

#include <base/coroutine.h>
#include <block/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LOOPS = 16, DISK_BYTES = 128 << 20, FILE_BYTES = 160 << 20, DEPTH = 64, BLOCK = 4096 };

static _Noreturn void die(const char *what, struct error *error)
{
    fprintf(stderr, "loops: %s: %s\n", what, error ? error_text(error) : "failed");
    exit(1);
}

/* ---- the file ---- */

static uint8_t *content;

static coroutine_fn int store_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    (void)opts, (void)flags, (void)errp;
    node->limits.request_alignment = node->limits.memory_alignment = 1;
    atomic_store(&node->size, FILE_BYTES);
    return 0;
}

static coroutine_fn int store_co_close(struct blk_node *node)
{
    (void)node;
    return 0;
}

static void store_done(struct loop_task *task)
{
    struct blk_io *io = container_of(task, struct blk_io, task);
    io->done(io, 0);
}

/* Every request is inside: the node does not grow. */
static void store_submit(struct blk_node *node, struct blk_io *io)
{
    uint8_t *at = content + io->offset;
    (void)node;
    if (io->op == BLK_OP_WRITE_ZEROES)
        memset(at, 0, io->length);
    for (int i = 0; i < io->iov_count && io->op <= BLK_OP_WRITE; at += io->iov[i++].iov_len) {
        if (io->op == BLK_OP_READ)
            memcpy(io->iov[i].iov_base, at, io->iov[i].iov_len);
        else
            memcpy(at, io->iov[i].iov_base, io->iov[i].iov_len);
    }
    io->task.fn = store_done;
    loop_defer(io->loop, &io->task);
}

static const struct blk_driver store_driver = {
    .name = "store",
    .flags = BLK_DRIVER_PROTOCOL,
    .co_open = store_co_open,
    .co_close = store_co_close,
    .submit = store_submit,
};
BLK_DRIVER(store_driver)

/* ---- the image ---- */

static coroutine_fn struct blk_node *co_open(const char *line)
{
    struct error *error = NULL;
    struct opts *opts = opts_new();
    opts_parse(opts, line, NULL, 0, NULL);
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR, &error);
    opts_free(opts);
    if (!node)
        die(line, error);
    return node;
}

static coroutine_fn struct blk_front *co_make_image(void)
{
    struct error *error = NULL;
    struct blk_node *store = co_open("driver=store,node-name=store");
    struct opts *options = opts_new();
    struct blk_create create = { .options = options, .size = DISK_BYTES, .file = store };
    if (blk_driver_find("qcow2")->co_create(&create, &error) < 0)
        die("create", error);
    opts_free(options);
    struct blk_node *node = co_open("driver=qcow2,file=store");
    struct blk_front *front = blk_front_new("loops", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL,
                                            &error);
    if (!front)
        die("front end", error);
    uint64_t piece = 1 << 20;
    uint8_t *buffer = xcalloc(1, piece);
    for (uint64_t offset = 0; offset < DISK_BYTES; offset += piece) {
        memset(buffer, (int)(offset / piece) + 1, piece);
        if (blk_front_co_write(front, offset, buffer, piece, 0) < 0)
            die("write", NULL);
    }
    free(buffer);
    if (blk_front_co_flush(front) < 0)
        die("flush", NULL);
    blk_co_node_unref(node);
    blk_co_node_unref(store);
    return front;
}

/* ---- the work ---- */

struct lane_thread {
    struct bench_lane lane;
    struct loop *loop;
    struct loop_post start, ended;
};

struct run {
    bool write;
    unsigned loops, running;
    uint64_t requests;
    struct loop *main_loop;
    struct co *waiting;
};
static struct run run;

static void start_lane(struct loop_post *post)
{
    bench_lane_start(&container_of(post, struct lane_thread, start)->lane);
}

static void lane_ended(struct loop_post *post)
{
    (void)post;
    if (--run.running == 0)
        co_wake(run.waiting);
}

static void lane_done(struct bench_lane *lane)
{
    struct lane_thread *thread = container_of(lane, struct lane_thread, lane);
    thread->ended.fn = lane_ended;
    loop_post(run.main_loop, &thread->ended);
}

static coroutine_fn void co_run_lanes(struct blk_front *front, struct lane_thread *threads)
{
    struct error *error = NULL;
    for (unsigned i = 0; i < run.loops; i++) {
        struct lane_thread *t = &threads[i];
        t->lane = (struct bench_lane){ .front = front,
                                       .write = run.write,
                                       .random = true,
                                       .count = run.requests / run.loops,
                                       .depth = DEPTH,
                                       .size = BLOCK,
                                       .step = BLOCK,
                                       .image_size = DISK_BYTES,
                                       .random_state = i + 1,
                                       .done = lane_done };
        t->loop = loop_thread_start("loops", &error);
        if (!t->loop || bench_lane_init(&t->lane) < 0)
            die("thread", error);
        t->start.fn = start_lane;
    }
    run.running = run.loops;
    run.waiting = co_self();
    for (unsigned i = 0; i < run.loops; i++)
        loop_post(threads[i].loop, &threads[i].start);
    co_yield();
}

static coroutine_fn int co_main(void *arg)
{
    static struct lane_thread threads[MAX_LOOPS];
    struct blk_front *front = co_make_image();
    uint64_t start = UINT64_MAX, end = 0, completed = 0;
    struct blk_stats stats, before;
    (void)arg;
    blk_front_stats(front, &before);
    co_run_lanes(front, threads);
    blk_front_stats(front, &stats);
    for (unsigned i = 0; i < run.loops; i++) {
        struct bench_lane *lane = &threads[i].lane;
        if (lane->error)
            die("request", NULL);
        start = MIN(start, lane->start_ns);
        end = MAX(end, lane->end_ns);
        completed += lane->completed;
        loop_thread_stop(threads[i].loop);
        bench_lane_finish(lane);
    }
    if (stats.mapped - before.mapped != completed)
        die("requests left the mapped path", NULL);
    printf("%.0f\n", (double)completed * 1e9 / (double)(end - start));
    return blk_co_front_free(front);
}

int main(int argc, char **argv)
{
    if (argc != 4 || atoi(argv[2]) < 1 || atoi(argv[2]) > MAX_LOOPS) {
        fprintf(stderr, "usage: loops read|write LOOPS REQUESTS\n");
        return 2;
    }
    run.write = !strcmp(argv[1], "write");
    run.loops = (unsigned)atoi(argv[2]);
    run.requests = strtoull(argv[3], NULL, 10);
    content = xcalloc(1, FILE_BYTES);
    run.main_loop = loop_new(NULL);
    if (!run.main_loop)
        die("loop", NULL);
    int ret = co_run(run.main_loop, co_main, NULL);
    loop_free(run.main_loop);
    free(content);
    return ret < 0;
}
