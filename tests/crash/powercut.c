/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Power cuts on qcow2: powercut KIND WORKLOADS SAMPLES SEED.
 *
 * A workload changes an image through a node that logs each change with its begin and end (block/logwrites.h). Then,
 * for moments all along the log, disks as a power cut at that moment may leave them are made of it: with everything
 * that had begun, with nothing but what was durable, and with samples of the rest dropped and torn (powercut_disk.c).
 * The workload judges each such disk; the installed qemu-img checks a sample of them.
 *
 * KIND is a cache mode or `reftable` (guest requests: powercut_guest.c), or one of the workloads below; `program` runs
 * another program, and judges what that writes (powercut_program.c).
 */
#include "powercut.h"

#include <block/logwrites.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct workload {
    const char *kind;
    coroutine_fn void (*co_work)(struct cut *c);
} workloads[] = {
    { "create", powercut_co_create },     { "resize", powercut_co_resize },   { "tables", powercut_co_resize },
    { "repair", powercut_co_repair },     { "opening", powercut_co_repair },  { "reftable", powercut_co_guest },
    { "snapshot", powercut_co_snapshot }, { "errors", powercut_co_guest },    { "reopen", powercut_co_guest },
    { "compressed", powercut_co_guest },  { "backing", powercut_co_backing }, { "empty", powercut_co_empty },
    { "amend", powercut_co_amend },       { "bitmaps", powercut_co_bitmaps }, { "compact", powercut_co_compact },
    { "data-file", powercut_co_guest },   { "program", powercut_co_program },
};

static coroutine_fn void (*find_workload(const char *kind))(struct cut *c)
{
    unsigned flags;
    bool write_cache;

    for (size_t i = 0; i < ARRAY_SIZE(workloads); i++) {
        if (strcmp(workloads[i].kind, kind) == 0)
            return workloads[i].co_work;
    }
    return blk_cache_mode_parse(kind, &flags, &write_cache) == 0 ? powercut_co_guest : NULL;
}

/* Are there any? */
static bool add_findings(struct cut_findings *to, const struct cut_findings *from)
{
    to->refused += from->refused;
    to->corrupt += from->corrupt;
    to->lost += from->lost;
    to->stale += from->stale;
    return from->refused || from->corrupt || from->lost || from->stale;
}

static coroutine_fn int co_main(void *arg)
{
    const struct settings *settings = arg;
    coroutine_fn void (*co_work)(struct cut * c) = find_workload(settings->kind);
    struct cut_findings all = { 0 };
    uint64_t states = 0, checked = 0, workloads_with = 0;

    for (unsigned i = 0; i < settings->workloads; i++) {
        struct cut c = { .settings = settings, .seed = settings->seed + i, .random = settings->seed + i };
        c.single_sectors = settings->quick ? 4 : 12;
        const char *memory = getenv("TEST_SHM"), *disk = getenv("TMPDIR");
        snprintf(c.folder, sizeof(c.folder), "%s/powercut-XXXXXX", memory ? memory : disk ? disk : ".");
        cut_need(&c, mkdtemp(c.folder), "folder", NULL);
        c.log_path = xasprintf("%s/log", c.folder);
        co_work(&c);
        cut_shell(&c, "rm -f log state base data two stamps out qemu.out");
        rmdir(c.folder);
        logwrites_close(c.log);
        free(c.log_path);
        free(c.base);
        states += c.states;
        checked += c.checked_by_qemu;
        workloads_with += add_findings(&all, &c.findings);
    }
    printf("%s: %u workloads, %" PRIu64 " disks after a cut, %" PRIu64 " of them checked by qemu-img too\n",
           settings->kind, settings->workloads, states, checked);
    if (!workloads_with)
        return 0;
    printf("%" PRIu64 " workloads with findings; of the disks %" PRIu64 " are refused, %" PRIu64 " corrupt, %" PRIu64
           " have lost what was flushed, %" PRIu64 " have sectors with what was never written there\n",
           workloads_with, all.refused, all.corrupt, all.lost, all.stale);
    return 1;
}

int main(int argc, char **argv)
{
    const char *quick = getenv("QUICK");

    if (argc != 5 || !find_workload(argv[1])) {
        fprintf(stderr, "usage: powercut KIND WORKLOADS SAMPLES SEED\n");
        return 2;
    }
    struct settings settings = { .kind = argv[1],
                                 .workloads = (unsigned)atoi(argv[2]),
                                 .samples = (unsigned)atoi(argv[3]),
                                 .seed = strtoull(argv[4], NULL, 10),
                                 .quick = quick && *quick == '1' };
    struct loop *loop = loop_new(NULL);
    int ret = co_run(loop, co_main, &settings);
    loop_free(loop);
    return ret;
}
