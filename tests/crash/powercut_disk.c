/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks as a power cut leaves them: the base with what is durable at that moment, and of the changes that had begun
 * all, none, or a sample, these dropped or torn in 512-byte sectors. A new size is a change like any other.
 */
#include "memory_node.h"
#include "powercut.h"

#include <block/logwrites.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* How many moments a quick run looks at; else it is all. */
#define QUICK_MOMENTS 60u

enum choice { ALL, DURABLE, SAMPLE };

/* ---- making them ---- */

static void apply_size(struct cut *c, const char *mark)
{
    uint64_t size = 0;

    if (!mark || sscanf(mark, "truncate %" SCNu64, &size) != 1 || size > CUT_MAX_DISK)
        return;
    size = align_up(size, 512);
    if (size < c->image_length)
        memset(c->image + size, 0, c->image_length - size);
    c->image_length = size;
}

static void apply(struct cut *c, size_t index, bool torn)
{
    const struct logwrites_entry *e = logwrites_entry(c->log, index);
    static uint8_t data[CUT_MAX_DISK];

    if (e->flags & LOGWRITES_MARK) {
        apply_size(c, e->mark);
        return;
    }
    if (e->length == 0 || !range_inside(e->offset, e->length, CUT_MAX_DISK))
        return;
    if (e->flags & LOGWRITES_DISCARD)
        memset(data, 0, e->length); /* may read as anything of the sort; zeroes are what hosts give */
    else if (logwrites_read(c->log, index, 0, data, e->length) < 0)
        cut_die(c, "the log cannot be read");
    for (uint64_t at = 0; at < e->length; at += 512) {
        if (!torn || cut_below(c, 2))
            memcpy(c->image + e->offset + at, data + at, 512);
    }
    if (!(e->flags & LOGWRITES_DISCARD))
        c->image_length = MAX(c->image_length, e->offset + e->length);
}

static void make_disk(struct cut *c, uint64_t time, enum choice choice)
{
    size_t count = logwrites_count(c->log);
    unsigned chance = 1 + (unsigned)cut_below(c, 9); /* of ten, that a change has landed */

    memset(c->image, 0, MAX(c->image_length, c->base_length));
    memcpy(c->image, c->base, c->base_length);
    c->image_length = c->base_length;
    for (size_t i = 0; i < count; i++) {
        enum logwrites_fate fate = logwrites_fate(logwrites_entry(c->log, i), time);
        if (fate == LOGWRITES_NOT_YET || (choice == DURABLE && fate != LOGWRITES_DURABLE))
            continue;
        if (fate == LOGWRITES_DURABLE || choice == ALL)
            apply(c, i, false);
        else if (cut_below(c, 10) < chance)
            apply(c, i, cut_below(c, 2));
    }
}

/* ---- showing them ---- */

struct judge {
    coroutine_fn void (*co_judge)(struct cut *c, const struct cut_moment *m, void *arg);
    void *arg;
};

static coroutine_fn void co_show(struct cut *c, uint64_t time, enum choice choice, bool by_qemu, const struct judge *j)
{
    static const char *const words[] = { "all that had begun", "only what was durable", "a sample" };
    struct cut_moment m = { time, words[choice], by_qemu };

    make_disk(c, time, choice);
    memory_node_fill(c->state, c->image, c->image_length);
    j->co_judge(c, &m, j->arg);
    c->states++;
}

coroutine_fn void cut_co_each(struct cut *c,
                              coroutine_fn void (*co_judge)(struct cut *c, const struct cut_moment *m, void *arg),
                              void *arg)
{
    struct judge j = { co_judge, arg };
    uint64_t end = logwrites_end(c->log) + 1;
    uint64_t step = c->settings->quick ? MAX(end / QUICK_MOMENTS, UINT64_C(1)) : 1;

    c->image = xcalloc(1, CUT_MAX_DISK);
    c->state = cut_co_memory(c, "state", NULL, 512, "");
    for (uint64_t time = 0; time <= end; time += step) {
        co_show(c, time, ALL, false, &j);
        if (c->order_only)
            continue;
        co_show(c, time, DURABLE, false, &j);
        co_show(c, time, SAMPLE, false, &j);
    }
    for (unsigned i = 0; i < c->settings->samples && !c->order_only; i++)
        co_show(c, cut_below(c, end + 1), SAMPLE, i % 10 == 0, &j);
    blk_co_node_unref(c->state);
    c->state = NULL;
    free(c->image);
}

/* ---- checks ---- */

void cut_check_by_qemu(struct cut *c, const struct cut_moment *m, bool repair)
{
    char *path = xasprintf("%s/state", c->folder);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    ssize_t length = (ssize_t)blk_node_size(c->state);

    cut_need(c, fd >= 0 && pwrite(fd, memory_node(c->state)->data, (size_t)length, 0) == length, "state file", NULL);
    close(fd);
    free(path);
    if (repair)
        cut_shell(c, "qemu-img check -q -r all -f qcow2 state >/dev/null 2>&1");
    int status = cut_shell(c, "qemu-img check -q -f qcow2 state >qemu.out 2>&1");
    status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (status != 0 && status != 3) {
        cut_shell(c, "cat qemu.out >&2");
        cut_die(c, "clock %" PRIu64 ", %s: qemu-img check says %d", m->time, m->what, status);
    }
    c->checked_by_qemu++;
}

static void say_error(struct blk_check *check, bool error, const char *line)
{
    (void)check;
    if (error)
        fprintf(stderr, "%s\n", line);
}

coroutine_fn void cut_co_check(struct cut *c, const struct cut_moment *m, struct blk_node *node)
{
    struct error *error = NULL;
    struct blk_check check = { .report = say_error };
    int ret = blk_co_check(node, &check, 0, &error);

    if (ret < 0 || check.corruptions || check.check_errors) {
        cut_check_by_qemu(c, m, false);
        cut_die(c, "clock %" PRIu64 ", %s: %" PRIu64 " corruptions, %" PRIu64 " errors %s", m->time, m->what,
                check.corruptions, check.check_errors, error ? error_text(error) : "");
    }
}
