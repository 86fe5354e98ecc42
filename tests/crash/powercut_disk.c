/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Disks as a power cut leaves them: the base with what is durable at that moment, and of the changes that had begun
 * all, none, a sample dropped or torn in 512-byte sectors, all but a single sector, or a single sector alone. A new
 * size is a change like any other.
 *
 * As a disk is the same from one change to the next while more and more is promised, each is shown at the last moment
 * before it changes. The single sectors are those that are not durable when a flush ends: all that may have landed in
 * any order. Whatever must not land before something else is seen when that is the sector which is missing, by chance
 * only where there are more than cut.single_sectors of them.
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

/* How many moments a quick run looks at, or one of disks so large that copies of them take long; else it is all. */
#define FEWER_MOMENTS 60u
#define LARGE_DISK (4u << 20)

#define MAX_SINGLE_SECTORS 64u

enum choice { ALL, DURABLE, SAMPLE, ALL_BUT_ONE, ONLY_ONE };

/* A 512-byte piece of a change. */
struct sector {
    size_t index; /* in the log */
    uint64_t number;
};

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

/* Which sectors of a change land. */
struct landing {
    bool torn;
    const struct sector *but, *only;
};

static bool lands(struct cut *c, const struct landing *l, size_t index, uint64_t number)
{
    if (l->but)
        return l->but->index != index || l->but->number != number;
    if (l->only)
        return l->only->index == index && l->only->number == number;
    return !l->torn || cut_below(c, 2);
}

static void apply(struct cut *c, size_t index, const struct landing *landing)
{
    const struct logwrites_entry *e = logwrites_entry(c->log, index);
    static uint8_t data[CUT_MAX_DISK];

    if (e->flags & LOGWRITES_MARK) {
        if (lands(c, &(struct landing){ .but = landing->but, .only = landing->only }, index, 0))
            apply_size(c, e->mark);
        return;
    }
    if (e->length == 0)
        return;
    if (!range_inside(e->offset, e->length, CUT_MAX_DISK))
        cut_die(c, "the disk grows past what there is room for");
    if (e->flags & LOGWRITES_DISCARD)
        memset(data, 0, e->length); /* may read as anything of the sort; zeroes are what hosts give */
    else if (logwrites_read(c->log, index, 0, data, e->length) < 0)
        cut_die(c, "the log cannot be read");
    for (uint64_t at = 0; at < e->length; at += 512) {
        if (lands(c, landing, index, at / 512))
            memcpy(c->image + e->offset + at, data + at, 512);
    }
    if (!(e->flags & LOGWRITES_DISCARD))
        c->image_length = MAX(c->image_length, e->offset + e->length);
}

static void make_disk(struct cut *c, uint64_t time, enum choice choice, const struct sector *sector)
{
    static const struct landing whole;
    struct landing one = { .but = choice == ALL_BUT_ONE ? sector : NULL, .only = choice == ONLY_ONE ? sector : NULL };
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
            apply(c, i, &whole);
        else if (sector)
            apply(c, i, &one);
        else if (cut_below(c, 10) < chance)
            apply(c, i, &(struct landing){ .torn = cut_below(c, 2) });
    }
}

/* ---- showing them ---- */

struct judge {
    coroutine_fn void (*co_judge)(struct cut *c, const struct cut_moment *m, void *arg);
    void *arg;
};

static coroutine_fn void co_show(struct cut *c, uint64_t time, enum choice choice, const struct sector *sector,
                                 bool by_qemu, const struct judge *j)
{
    static const char *const words[] = { "all that had begun", "only what was durable", "a sample", "all but a sector",
                                         "a sector alone" };
    char what[100];
    struct cut_moment m = { time, what, by_qemu };

    snprintf(what, sizeof(what), "%s", words[choice]);
    if (sector)
        snprintf(what, sizeof(what), "%s (%#" PRIx64 ", of change %zu)", words[choice],
                 logwrites_entry(c->log, sector->index)->offset + sector->number * 512, sector->index);
    make_disk(c, time, choice, sector);
    memory_node_fill(c->state, c->image, c->image_length);
    j->co_judge(c, &m, j->arg);
    c->states++;
}

/* ---- moments ---- */

enum moment { BEGINS = 1u << 0, BECOMES_DURABLE = 1u << 1, LAST = 1u << 2 };

/* What the disk is after each clock and was not before it. */
static uint8_t *find_moments(struct cut *c, uint64_t end)
{
    uint8_t *moments = xcalloc(end + 1, 1);

    for (size_t i = 0; i < logwrites_count(c->log); i++) {
        const struct logwrites_entry *e = logwrites_entry(c->log, i);
        if (e->flags & LOGWRITES_FLUSH)
            continue;
        moments[MIN(e->began, end)] |= BEGINS;
        if (e->durable != LOGWRITES_NEVER)
            moments[MIN(e->durable, end)] |= BECOMES_DURABLE;
    }
    moments[end] |= BEGINS | BECOMES_DURABLE | LAST;
    return moments;
}

/* All sectors that may have landed or not: each change's at random if there are too many. */
static unsigned choose_sectors(struct cut *c, uint64_t time, struct sector *out, unsigned max)
{
    size_t count = logwrites_count(c->log), maybe = 0;
    uint64_t sectors = 0;
    unsigned chosen = 0;
    size_t *indices = xmalloc((count + 1) * sizeof(*indices));

    for (size_t i = 0; i < count; i++) {
        const struct logwrites_entry *e = logwrites_entry(c->log, i);
        if (logwrites_fate(e, time) != LOGWRITES_MAYBE || (e->flags & LOGWRITES_FLUSH))
            continue;
        indices[maybe++] = i;
        sectors += MAX(e->length / 512, UINT64_C(1));
    }
    for (size_t i = 0; i < maybe && sectors <= max; i++) {
        for (uint64_t n = 0; n < MAX(logwrites_entry(c->log, indices[i])->length / 512, UINT64_C(1)); n++)
            out[chosen++] = (struct sector){ indices[i], n };
    }
    while (maybe && sectors > max && chosen < max) {
        size_t i = indices[cut_below(c, maybe)];
        out[chosen++] = (struct sector){ i, cut_below(c, MAX(logwrites_entry(c->log, i)->length / 512, UINT64_C(1))) };
    }
    free(indices);
    return chosen;
}

static coroutine_fn void co_show_single_sectors(struct cut *c, uint64_t time, const struct judge *j)
{
    struct sector sectors[MAX_SINGLE_SECTORS];
    unsigned count = choose_sectors(c, time, sectors, MIN(c->single_sectors, MAX_SINGLE_SECTORS));

    for (unsigned i = 0; i < count; i++) {
        co_show(c, time, ALL_BUT_ONE, &sectors[i], false, j);
        if (cut_below(c, 2))
            co_show(c, time, ONLY_ONE, &sectors[i], false, j);
    }
}

coroutine_fn void cut_co_each(struct cut *c,
                              coroutine_fn void (*co_judge)(struct cut *c, const struct cut_moment *m, void *arg),
                              void *arg)
{
    struct judge j = { co_judge, arg };
    uint64_t end = logwrites_end(c->log) + 1;
    bool fewer = c->settings->quick || c->base_length > LARGE_DISK;
    uint64_t skip = fewer ? MAX(end / FEWER_MOMENTS, UINT64_C(1)) : 1;
    uint8_t *moments = find_moments(c, end);

    c->image = xcalloc(1, CUT_MAX_DISK);
    c->state = cut_co_memory(c, "state", NULL, 512, "");
    for (uint64_t time = 0; time <= end; time++) {
        if (cut_below(c, skip) && !(moments[time] & LAST) && !c->every_moment)
            continue;
        if (moments[time] & BEGINS)
            co_show(c, time, ALL, NULL, false, &j);
        if (c->order_only)
            continue;
        co_show(c, time, SAMPLE, NULL, false, &j);
        if (moments[time] & BECOMES_DURABLE) {
            co_show(c, time, DURABLE, NULL, false, &j);
            co_show_single_sectors(c, time, &j);
        }
    }
    for (unsigned i = 0; i < c->settings->samples && !c->order_only; i++)
        co_show(c, cut_below(c, end + 1), SAMPLE, NULL, i % 10 == 0, &j);
    blk_co_node_unref(c->state);
    c->state = NULL;
    free(moments);
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
