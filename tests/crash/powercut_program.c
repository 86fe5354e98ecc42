/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts on what another program makes of a qcow2 image: the one that $QEMU_IO names, with the commands of qemu-io.
 * It writes, zeroes, discards and flushes through its own `blklogwrites` node; disks are made of its log and judged
 * here. Nothing dies of a finding: they are counted, so that programs can be compared.
 *
 * The log of another program has no clock. It is read as one thing after the other; and an operation begins after all
 * that was in the log before its command was given, and has ended before all that came into the log after the prompt
 * was back. Of commands that overlap (aio_write … aio_flush) nobody knows more than when all began and all had ended.
 * Where an entry may be under way at such a moment, the operation is given the longer time, so that nobody is accused
 * wrongly.
 */
#include "crash_model.h"
#include "memory_node.h"
#include "powercut.h"
#include "program.h"

#include <block/logwrites.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_OPERATIONS 150u /* a byte for each: less than FILL */
#define FILL 201u

/* The log's reader ticks twice an entry; between two of its ticks there is room for all operations. */
#define TICKS (UINT64_C(4) * MAX_OPERATIONS)

struct run {
    struct cut *c;
    const char *command;
    char options[120];
    uint64_t size, cluster;
    struct crash_model model;
    struct program program;
    struct program_time begins[MAX_OPERATIONS], ends[MAX_OPERATIONS]; /* by the model's operation */
    unsigned began_at[MAX_OPERATIONS], ended_at[MAX_OPERATIONS];      /* order, among all begins and ends */
    unsigned order;
};

/* ---- the image ---- */

/* Clusters that are free and have another's content: what must not show. */
static coroutine_fn void co_make_base(struct run *r)
{
    static const unsigned clusters[] = { 512, 1024, 4096, 4096, 16384, 65536 };
    struct cut *c = r->c;

    r->cluster = clusters[cut_below(c, ARRAY_SIZE(clusters))];
    r->size = align_up((cut_below(c, 700) + 100) * 512, r->cluster);
    bool v2 = cut_below(c, 6) == 0;
    snprintf(r->options, sizeof(r->options), "cluster_size=%" PRIu64 ",compat=%s%s", r->cluster, v2 ? "0.10" : "1.1",
             cut_subclusters(c, r->cluster, v2));
    cut_co_make_image(c, r->options, r->size);
    uint64_t kept = align_down(cut_below(c, r->size), r->cluster);
    int status = cut_shell(c,
                           "%s -f qcow2 -d unmap -c 'write -q -P %u 0 %" PRIu64 "' -c 'discard -q %" PRIu64 " %" PRIu64
                           "' base >out 2>&1",
                           r->command, FILL, r->size, kept, r->size - kept);
    cut_need(c, status == 0, "the program does not prepare the image", NULL);
    cut_load_base(c, "base");
    snprintf(c->label, sizeof(c->label), "%s, %s", r->command, r->options);
}

static coroutine_fn void co_read_initial(struct run *r)
{
    struct error *error = NULL;
    struct blk_node *memory = cut_co_memory(r->c, "before", r->c->base, r->c->base_length, "");
    struct blk_node *node = cut_co_open("before", NULL, 0, &error);

    cut_need(r->c, node, "open the image", error);
    crash_model_init(&r->model, r->size / 512);
    cut_need(r->c, blk_co_read(node, 0, r->model.initial, r->size) == 0, "read the image", NULL);
    blk_co_node_unref(node);
    blk_co_node_unref(memory);
}

/* ---- the workload ---- */

static void choose_range(struct run *r, struct crash_op *op)
{
    struct cut *c = r->c;
    uint64_t sectors = r->size / 512, unit = cut_below(c, 2) ? r->cluster / 512 : 1;

    op->first = align_down(cut_below(c, cut_below(c, 3) ? sectors : MIN(sectors, UINT64_C(64))), unit);
    op->count = MIN(align_up(1 + cut_below(c, cut_below(c, 4) ? 8 : 3 * r->cluster / 512), unit), sectors - op->first);
}

static size_t index_of(const struct run *r) { return r->model.count - 1; }

static struct crash_op *begin_operation(struct run *r, enum crash_kind kind)
{
    struct crash_op *op = crash_model_add(&r->model, 0, 0);

    op->kind = kind;
    if (kind != CRASH_FLUSH)
        choose_range(r, op);
    r->begins[index_of(r)] = program_now(&r->program);
    r->began_at[index_of(r)] = r->order++;
    return op;
}

static void end_operations(struct run *r, size_t first)
{
    struct program_time now = program_now(&r->program);

    for (size_t i = first; i < r->model.count; i++) {
        r->ends[i] = now;
        r->ended_at[i] = r->order++;
    }
}

__attribute__((format(printf, 2, 3))) static void run_command(struct run *r, const char *fmt, ...)
{
    char command[600];
    va_list args;

    va_start(args, fmt);
    vsnprintf(command, sizeof(command), fmt, args);
    va_end(args);
    if (!program_run(&r->program, command))
        cut_die(r->c, "the program ends, or hangs, at '%s': %s", command, r->program.output);
    if (strstr(r->program.output, "failed") || strstr(r->program.output, "rror"))
        cut_die(r->c, "'%s': %s", command, r->program.output);
}

/* A file with the stamps of a write, which goes into the image as it is. */
static void write_stamps(struct run *r, const struct crash_op *op)
{
    char *path = xasprintf("%s/stamps", r->c->folder);
    FILE *file = fopen(path, "w");
    uint8_t sector[512];

    cut_need(r->c, file, "stamps", NULL);
    for (uint64_t i = 0; i < op->count; i++) {
        crash_stamp(sector, op->value, op->first + i);
        fwrite(sector, sizeof(sector), 1, file);
    }
    cut_need(r->c, fclose(file) == 0, "stamps", NULL);
    free(path);
}

static void run_write(struct run *r)
{
    struct crash_op *op = begin_operation(r, CRASH_WRITE);

    op->fua = cut_below(r->c, 8) == 0;
    write_stamps(r, op);
    run_command(r, "write %s-s %s/stamps %" PRIu64 " %" PRIu64, op->fua ? "-f " : "", r->c->folder, op->first * 512,
                op->count * 512);
}

static void run_zero(struct run *r)
{
    struct crash_op *op = begin_operation(r, CRASH_ZERO);

    run_command(r, "write -z %s%" PRIu64 " %" PRIu64, cut_below(r->c, 2) ? "-u " : "", op->first * 512,
                op->count * 512);
}

/* Whole clusters: the rest of what is discarded may or may not be zero. */
static void run_discard(struct run *r)
{
    struct crash_op *op = begin_operation(r, CRASH_ZERO);
    uint64_t unit = r->cluster / 512;

    op->count = align_up(op->first % unit + op->count, unit);
    op->first = align_down(op->first, unit);
    run_command(r, "discard %" PRIu64 " %" PRIu64, op->first * 512, op->count * 512);
}

/* Overlapping ones, which may end in any order. */
static void run_group(struct run *r)
{
    unsigned count = 2 + (unsigned)cut_below(r->c, 3);

    for (unsigned i = 0; i < count; i++) {
        struct crash_op *op = begin_operation(r, CRASH_FILL);
        run_command(r, "aio_write -P %u %" PRIu64 " %" PRIu64, (unsigned)op->value, op->first * 512, op->count * 512);
    }
    run_command(r, "aio_flush");
}

static void run_flush(struct run *r)
{
    begin_operation(r, CRASH_FLUSH);
    run_command(r, "flush");
}

static void work(struct run *r)
{
    unsigned commands = r->c->settings->quick ? 12 : 30;

    for (unsigned i = 0; i < commands; i++) {
        size_t first = r->model.count;
        switch (cut_below(r->c, 12)) {
        case 0: run_zero(r); break;
        case 1: run_discard(r); break;
        case 2:
        case 3: run_flush(r); break;
        case 4:
        case 5: run_group(r); break;
        default: run_write(r);
        }
        end_operations(r, first);
    }
}

/* ---- times ---- */

static uint64_t entries_before(const struct run *r, uint64_t bytes)
{
    const struct logwrites *log = r->c->log;
    size_t count = 0;

    while (count < logwrites_count(log) && logwrites_entry(log, count)->data <= bytes) /* its head lies before it */
        count++;
    return count;
}

/* Operations between entry n - 1 and entry n stand, in their order, before clock 2 n of the log, at which a disk may
 * have entry n - 1 and has none of n. */
static void set_times(struct run *r)
{
    for (size_t i = 0; i < r->model.count; i++) {
        struct crash_op *op = r->model.ops[i];
        op->start = (2 * entries_before(r, r->begins[i].whole) + 1) * TICKS + r->began_at[i];
        op->end = (2 * entries_before(r, r->ends[i].any) + 1) * TICKS + r->ended_at[i];
    }
}

static uint64_t model_time(uint64_t log_time) { return (log_time + 2) * TICKS; }

/* ---- judging a disk ---- */

/* The first finding of a workload is reported, the first about content in full. */
static void report(struct run *r, const struct cut_moment *m, const char *what)
{
    struct cut *c = r->c;
    uint64_t others = c->findings.refused + c->findings.corrupt + c->findings.lost + c->findings.stale;

    if (others == 0)
        fprintf(stderr, "seed %" PRIu64 " (%s), clock %" PRIu64 ", %s: %s\n", c->seed, c->label, m->time, m->what,
                what);
}

static void judge_content(struct run *r, const struct cut_moment *m, const uint8_t *content)
{
    uint64_t bad, time = model_time(m->time);
    bool lost = false, stale = false;

    if (crash_model_allows(&r->model, content, time, &bad))
        return;
    for (uint64_t i = bad; i < r->model.sectors; i++) {
        if (!crash_model_allows_sector(&r->model, content, i, time)) {
            bool known = crash_model_knows(&r->model, content, i);
            lost |= known;
            stale |= !known;
        }
    }
    report(r, m, stale ? "a sector holds what was never written there" : "what was flushed is lost");
    if (r->c->findings.lost + r->c->findings.stale == 0)
        crash_model_explain(&r->model, content, time, bad, stderr);
    r->c->findings.lost += lost;
    r->c->findings.stale += stale;
}

static coroutine_fn void co_judge(struct cut *c, const struct cut_moment *m, void *arg)
{
    static uint8_t content[1u << 20];
    struct run *r = arg;
    struct error *error = NULL;
    struct blk_check check = { 0 };
    struct blk_node *node = cut_co_open("state", NULL, 0, &error);

    if (!node || blk_co_check(node, &check, 0, &error) < 0) {
        report(r, m, error_text(error));
        c->findings.refused++;
        error_free(error);
    } else if (check.corruptions || check.check_errors) {
        report(r, m, "the check finds corruptions");
        c->findings.corrupt++;
    }
    if (node && blk_co_read(node, 0, content, r->size) < 0) {
        report(r, m, "it cannot be read");
        c->findings.refused++;
    } else if (node) {
        judge_content(r, m, content);
    }
    blk_co_node_unref(node);
    if (m->by_qemu && !c->findings.corrupt)
        cut_check_by_qemu(c, m, false);
}

/* ---- a workload from beginning to end ---- */

coroutine_fn void powercut_co_program(struct cut *c)
{
    const char *command = getenv("QEMU_IO");
    struct run r = { .c = c, .command = command ? command : "qemu-io" };
    struct error *error = NULL;

    co_make_base(&r);
    co_read_initial(&r);
    char *opts = xasprintf("driver=qcow2,discard=unmap,file.driver=blklogwrites,file.log-super-update-interval=1,"
                           "file.file.driver=file,file.file.filename=%s/base,file.log.driver=file,file.log.filename=%s",
                           c->folder, c->log_path);
    if (!program_start(&r.program, r.command, opts, c->log_path))
        cut_die(c, "'%s' does not start: %s", r.command, r.program.output);
    work(&r);
    int status = program_end(&r.program);
    cut_need(c, WIFEXITED(status) && WEXITSTATUS(status) == 0, "the program fails when it ends", NULL);
    cut_need(c, program_strip_clock(c->log_path), "the log", NULL);
    c->log = logwrites_open(c->log_path, &error);
    cut_need(c, c->log, "read the log", error);
    set_times(&r);
    cut_co_each(c, co_judge, &r);
    crash_model_finish(&r.model);
    free(opts);
}
