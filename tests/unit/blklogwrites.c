/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blklogwrites and the reader of its logs: what is logged is what happened; a replay of everything is the disk; which
 * writes a power cut may take, at every moment, with writes and flushes that overlap in time.
 */
#include "image.h"

#include <base/checked.h>
#include <block/logwrites.h>

static char *disk, *log_path;

static coroutine_fn struct blk_node *co_logged_on(const char *file, unsigned flags, const char *more)
{
    char *line = xasprintf("driver=blklogwrites,%s,log.driver=file,log.filename=%s%s", file, log_path, more);
    struct error *error = NULL;
    struct blk_node *node = co_open_line(line, flags | BLK_O_RDWR | BLK_O_UNMAP, &error);

    if (!node)
        error_report_free(error);
    free(line);
    return node;
}

static coroutine_fn struct blk_node *co_logged(unsigned flags, const char *more)
{
    char *file = xasprintf("file.driver=file,file.filename=%s", disk);
    struct blk_node *node = co_logged_on(file, flags, more);

    assert_non_null(node);
    free(file);
    return node;
}

static void run_with_files(void **state, int (*fn)(void *arg), void *arg)
{
    disk = path_in(disk_folder, "disk");
    log_path = path_in(disk_folder, "log");
    make_file(disk, MIB);
    make_file(log_path, 0);
    run_co(state, fn, arg);
    unlink(disk);
    unlink(log_path);
    free(disk);
    free(log_path);
}

static struct logwrites *read_log(void)
{
    struct error *error = NULL;
    struct logwrites *log = logwrites_open(log_path, &error);

    if (!log)
        error_report_free(error);
    assert_non_null(log);
    return log;
}

static void assert_entry(const struct logwrites *log, size_t i, unsigned flags, uint64_t offset, uint64_t length)
{
    const struct logwrites_entry *e = logwrites_entry(log, i);

    assert_int_equal(e->flags, flags);
    assert_int_equal(e->offset, offset);
    assert_int_equal(e->length, length);
    assert_true(e->began < e->ended);
}

/* ---- one after the other ---- */

static int co_sequence_test(void *arg)
{
    unsigned cache = *(unsigned *)arg;
    unsigned fua = cache & BLK_O_NO_FLUSH ? 0 : LOGWRITES_FUA;
    unsigned all = cache & BLK_O_DSYNC ? LOGWRITES_FUA : 0;
    uint8_t buffer[4096], back[4096];
    struct blk_node *node = co_logged(cache, "");

    memset(buffer, 1, sizeof(buffer));
    assert_int_equal(blk_co_write(node, 0, buffer, 512, 0), 0);
    assert_int_equal(blk_co_write(node, 4096, buffer, 1024, BLK_REQ_FUA), 0);
    assert_int_equal(blk_co_flush(node), 0);
    assert_int_equal(blk_co_write(node, 4096, buffer, 1024, BLK_REQ_ABSENT_ONLY), -ENOTSUP); /* and leaves no trace */
    assert_int_equal(blk_co_discard(node, 100, 4096), 0);
    assert_int_equal(blk_co_write_zeroes(node, 8192, 8192, 0), 0);
    assert_int_equal(blk_co_write(node, 16 * KIB + 100, buffer, 700, 0), 0);
    assert_int_equal(logwrites_co_mark(node, "here"), 0);
    assert_int_equal(blk_co_truncate(node, MIB / 2, true, "off", NULL), 0);
    uint64_t now = logwrites_now(node);
    assert_int_equal(blk_co_node_unref(node), 0);

    struct logwrites *log = read_log();
    size_t i = 0;
    assert_int_equal(logwrites_count(log), cache & BLK_O_NO_FLUSH ? 8 : 9);
    assert_entry(log, i++, all, 0, 512);
    assert_entry(log, i++, all | fua, 4096, 1024);
    if (!(cache & BLK_O_NO_FLUSH))
        assert_entry(log, i++, LOGWRITES_FLUSH, 0, 0);
    assert_entry(log, i++, LOGWRITES_DISCARD, 512, 3584);
    assert_entry(log, i, all, 8192, 8192);
    assert_int_equal(logwrites_read(log, i++, 4096, back, 4096), 0);
    assert_true(back[0] == 0 && memcmp(back, back + 1, 4095) == 0);
    assert_entry(log, i, all, 16 * KIB, 1024);
    assert_int_equal(logwrites_read(log, i++, 0, back, 1024), 0);
    assert_true(back[99] == 0 && back[100] == 1 && back[799] == 1 && back[800] == 0);
    assert_entry(log, i, LOGWRITES_MARK, 0, 0);
    assert_string_equal(logwrites_entry(log, i++)->mark, "here");
    assert_entry(log, i++, LOGWRITES_DISCARD, MIB / 2, MIB / 2);
    assert_entry(log, i, LOGWRITES_MARK, 0, 0);
    assert_string_equal(logwrites_entry(log, i++)->mark, "truncate 524288");
    assert_true(logwrites_end(log) == now);
    assert_int_equal(logwrites_fate(logwrites_entry(log, 0), now),
                     cache & BLK_O_NO_FLUSH ? LOGWRITES_MAYBE : LOGWRITES_DURABLE);
    assert_int_equal(logwrites_read(log, 0, 1, back, 512), -EINVAL);
    logwrites_close(log);
    return 0;
}

static void entries_are_what_happened(void **state)
{
    static unsigned modes[] = { 0, BLK_O_DIRECT, BLK_O_DSYNC, BLK_O_DIRECT | BLK_O_DSYNC, BLK_O_NO_FLUSH };

    for (size_t i = 0; i < ARRAY_SIZE(modes); i++)
        run_with_files(state, co_sequence_test, &modes[i]);
}

/* ---- many at once ---- */

/* Each worker has a slice of the disk of its own: overlapping writes would have no order. */
#define WORKERS 8
#define SLICE (MIB / WORKERS)

struct worker {
    struct blk_node *node;
    uint64_t base;
    unsigned seed;
    unsigned *left;
    struct co *main;
};

static coroutine_fn void worker_co(void *arg)
{
    struct worker *w = arg;
    uint8_t buffer[16384];

    for (int i = 0; i < 60; i++) {
        uint64_t offset = (uint64_t)rand_r(&w->seed) % (SLICE - 2 * sizeof(buffer)),
                 length = 1 + (uint64_t)rand_r(&w->seed) % sizeof(buffer);
        int ret = 0;
        offset += w->base;
        memset(buffer, rand_r(&w->seed), sizeof(buffer));
        switch (rand_r(&w->seed) % 8) {
        case 0: ret = blk_co_flush(w->node); break;
        case 1:
            ret = blk_co_write_zeroes(w->node, align_down(offset, 512), align_up(length, 512), BLK_REQ_MAY_UNMAP);
            break;
        default: ret = blk_co_write(w->node, offset, buffer, length, rand_r(&w->seed) % 4 ? 0 : BLK_REQ_FUA);
        }
        assert_int_equal(ret, 0);
    }
    if (--*w->left == 0)
        co_wake(w->main);
}

/* All writes of the log, in its order, are the disk. */
static int co_replay_test(void *arg)
{
    struct blk_node *node = co_logged(0, ",log-super-update-interval=7");
    unsigned left = WORKERS;
    struct worker workers[WORKERS];
    uint8_t *replayed = xcalloc(1, MIB), *content = xmalloc(MIB);

    for (unsigned i = 0; i < WORKERS; i++)
        workers[i] = (struct worker){
            .node = node, .base = i * SLICE, .seed = i + 1, .left = &left, .main = co_self()
        };
    for (unsigned i = 0; i < WORKERS; i++)
        co_start(worker_co, &workers[i]);
    co_yield();
    assert_int_equal(blk_co_node_unref(node), 0);

    struct logwrites *log = read_log();
    assert_true(logwrites_count(log) == 60 * WORKERS);
    unsigned overlapping = 0;
    for (size_t i = 0; i < logwrites_count(log); i++) {
        const struct logwrites_entry *e = logwrites_entry(log, i);
        if (i > 0 && e->began < logwrites_entry(log, i - 1)->ended)
            overlapping++;
        if (e->length && !(e->flags & LOGWRITES_DISCARD))
            assert_int_equal(logwrites_read(log, i, 0, replayed + e->offset, e->length), 0);
        /* The order of the file alone: nothing stands before a flush that it does not cover. */
        if (e->flags & LOGWRITES_FLUSH) {
            for (size_t before = 0; before < i; before++) {
                const struct logwrites_entry *w = logwrites_entry(log, before);
                assert_true((w->flags & LOGWRITES_FLUSH) || w->ended < e->began);
                assert_true((w->flags & LOGWRITES_FLUSH) || w->durable <= e->ended);
            }
        }
    }
    assert_true(overlapping > 20);
    logwrites_close(log);
    int fd = open(disk, O_RDONLY);
    assert_int_equal(pread(fd, content, MIB, 0), MIB);
    close(fd);
    assert_memory_equal(content, replayed, MIB);
    free(replayed);
    free(content);
    return 0;
}

static void the_whole_log_is_the_disk(void **state) { run_with_files(state, co_replay_test, NULL); }

/* ---- a write and a flush that overlap ---- */

struct slow_write {
    struct blk_node *node;
    uint64_t offset;
    bool done;
};

static coroutine_fn void slow_write_co(void *arg)
{
    struct slow_write *w = arg;
    uint8_t buffer[512] = { 3 };

    assert_int_equal(blk_co_write(w->node, w->offset, buffer, 512, 0), 0);
    w->done = true;
}

/* A: sector 0, before everything. B: sector 8, still under way when the flush begins and ends. C: after. */
static int co_overlap_test(void *arg)
{
    char *file = xasprintf(
        "file.driver=blkdebug,file.image.driver=file,file.image.filename=%s,file.inject-error.0.iotype=write,"
        "file.inject-error.0.sector=8,file.inject-error.0.errno=0,file.inject-error.0.delay-ns=50000000,"
        "file.inject-error.1.iotype=write,file.inject-error.1.sector=24",
        disk);
    struct blk_node *node = co_logged_on(file, 0, "");
    uint8_t buffer[512] = { 1 };

    assert_non_null(node);
    uint64_t at_start = logwrites_now(node);
    assert_int_equal(blk_co_write(node, 0, buffer, 512, 0), 0);
    uint64_t after_a = logwrites_now(node);
    struct slow_write b = { .node = node, .offset = 4096 };
    co_start(slow_write_co, &b);
    assert_false(b.done);
    assert_int_equal(blk_co_flush(node), 0);
    assert_false(b.done);
    uint64_t after_flush = logwrites_now(node);
    while (!b.done)
        co_sleep_ns(1000000);
    uint64_t after_b = logwrites_now(node);
    assert_int_equal(blk_co_write(node, 8192, buffer, 512, BLK_REQ_FUA), 0);
    assert_int_equal(blk_co_write(node, 12288, buffer, 512, 0), -EIO); /* sector 24 */
    assert_int_equal(blk_co_flush(node), 0);
    uint64_t at_end = logwrites_now(node);
    assert_int_equal(blk_co_node_unref(node), 0);
    free(file);

    struct logwrites *log = read_log();
    assert_int_equal(logwrites_count(log), 6);
    const struct logwrites_entry *a = logwrites_entry(log, 0), *f = logwrites_entry(log, 1),
                                 *late = logwrites_entry(log, 2), *fua = logwrites_entry(log, 3),
                                 *failed = logwrites_entry(log, 4);
    assert_int_equal(f->flags, LOGWRITES_FLUSH);
    assert_int_equal(late->offset, 4096);
    assert_int_equal(logwrites_fate(a, at_start), LOGWRITES_NOT_YET);
    assert_int_equal(logwrites_fate(a, after_a), LOGWRITES_MAYBE);
    assert_int_equal(logwrites_fate(a, after_flush), LOGWRITES_DURABLE);
    assert_int_equal(logwrites_fate(late, after_a), LOGWRITES_NOT_YET);
    assert_int_equal(logwrites_fate(late, after_flush),
                     LOGWRITES_MAYBE); /* may have landed before the flush had ended */
    assert_int_equal(logwrites_fate(late, f->began + 1), LOGWRITES_MAYBE);
    assert_int_equal(logwrites_fate(late, after_b), LOGWRITES_MAYBE);
    assert_int_equal(logwrites_fate(late, at_end), LOGWRITES_DURABLE);
    assert_int_equal(logwrites_fate(fua, fua->ended), LOGWRITES_MAYBE);
    assert_int_equal(logwrites_fate(fua, fua->ended + 1), LOGWRITES_DURABLE);
    assert_int_equal(failed->ended, LOGWRITES_NEVER);
    assert_int_equal(logwrites_fate(failed, at_end), LOGWRITES_MAYBE);
    logwrites_close(log);
    return 0;
}

static void a_flush_covers_what_ended_before_it_began(void **state) { run_with_files(state, co_overlap_test, NULL); }

/* A write that ends while a flush is under way is not covered by it. */
static int co_during_flush_test(void *arg)
{
    char *file = xasprintf("file.driver=blkdebug,file.image.driver=file,file.image.filename=%s,"
                           "file.inject-error.0.iotype=flush,file.inject-error.0.errno=0,"
                           "file.inject-error.0.delay-ns=50000000,file.inject-error.0.once=on,"
                           "file.inject-error.1.iotype=write,file.inject-error.1.sector=8,file.inject-error.1.errno=0,"
                           "file.inject-error.1.delay-ns=5000000",
                           disk);
    struct blk_node *node = co_logged_on(file, 0, "");

    assert_non_null(node);
    struct slow_write w = { .node = node, .offset = 4096 };
    co_start(slow_write_co, &w);
    assert_int_equal(blk_co_flush(node), 0);
    assert_true(w.done);
    uint64_t after = logwrites_now(node);
    assert_int_equal(blk_co_flush(node), 0);
    uint64_t end = logwrites_now(node);
    assert_int_equal(blk_co_node_unref(node), 0);
    free(file);

    struct logwrites *log = read_log();
    assert_int_equal(logwrites_count(log), 3);
    const struct logwrites_entry *f = logwrites_entry(log, 0), *e = logwrites_entry(log, 1);
    assert_int_equal(f->flags, LOGWRITES_FLUSH);
    assert_true(f->began < e->ended && e->ended < f->ended);
    assert_int_equal(logwrites_fate(e, after), LOGWRITES_MAYBE);
    assert_int_equal(logwrites_fate(e, end), LOGWRITES_DURABLE);
    logwrites_close(log);
    return 0;
}

static void a_flush_does_not_cover_what_ends_meanwhile(void **state)
{
    run_with_files(state, co_during_flush_test, NULL);
}

/* ---- parts of one sector, by many ---- */

#define PARTS 5u
#define PART 100u

struct part_writer {
    struct blk_node *node;
    unsigned index, *left;
    struct co *main;
};

static coroutine_fn void part_writer_co(void *arg)
{
    struct part_writer *w = arg;
    uint8_t buffer[PART], back[PART];

    for (unsigned i = 1; i <= 40; i++) {
        memset(buffer, (int)(w->index * 50 + i), PART);
        assert_int_equal(blk_co_write(w->node, w->index * PART, buffer, PART, 0), 0);
        co_relax();
        assert_int_equal(blk_co_read(w->node, w->index * PART, back, PART), 0);
        assert_memory_equal(buffer, back, PART);
    }
    if (--*w->left == 0)
        co_wake(w->main);
}

static int co_parts_test(void *arg)
{
    struct blk_node *node = co_logged(0, "");
    struct part_writer writers[PARTS];
    unsigned left = PARTS;
    uint8_t replayed[512] = { 0 }, content[512];

    for (unsigned i = 0; i < PARTS; i++)
        writers[i] = (struct part_writer){ node, i, &left, co_self() };
    for (unsigned i = 0; i < PARTS; i++)
        co_start(part_writer_co, &writers[i]);
    co_yield();
    assert_int_equal(blk_co_read(node, 0, content, 512), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    struct logwrites *log = read_log();
    assert_int_equal(logwrites_count(log), 40 * PARTS);
    for (size_t i = 0; i < logwrites_count(log); i++) {
        assert_entry(log, i, 0, 0, 512);
        assert_int_equal(logwrites_read(log, i, 0, replayed, 512), 0);
    }
    assert_memory_equal(content, replayed, 512);
    logwrites_close(log);
    return 0;
}

static void writers_of_one_sector_lose_nothing(void **state) { run_with_files(state, co_parts_test, NULL); }

/* ---- logs that go on, of others, and broken ones ---- */

static int co_append_test(void *arg)
{
    uint8_t buffer[4096] = { 9 };
    static const char *const refused[][2] = {
        { ",log-sector-size=500", "Invalid log sector size 500" },
        { ",log-sector-size=16777216", "Invalid log sector size 16777216" },
        { ",log-super-update-interval=0", "Invalid log superblock update interval 0" },
        { ",log-append=on,log-sector-size=512", "log-append and log-sector-size are mutually exclusive" },
    };

    for (int round = 0; round < 3; round++) {
        struct blk_node *node = co_logged(0, round ? ",log-append=on" : ",log-sector-size=4096");
        assert_int_equal(blk_co_write(node, 4096, buffer, 4096, 0), 0);
        assert_int_equal(blk_co_node_unref(node), 0);
        struct logwrites *log = read_log();
        assert_int_equal(logwrites_count(log), round + 1);
        assert_int_equal(logwrites_sector_size(log), 4096);
        for (int i = 0; i <= round; i++) {
            assert_entry(log, (size_t)i, 0, 4096, 4096);
            assert_true(i == 0 || logwrites_entry(log, (size_t)i)->began > logwrites_entry(log, (size_t)i - 1)->ended);
        }
        logwrites_close(log);
    }
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        char *line = xasprintf(
            "driver=blklogwrites,file.driver=file,file.filename=%s,log.driver=file,log.filename=%s%s", disk, log_path,
            refused[i][0]);
        co_assert_refused(line, BLK_O_RDWR, refused[i][1]);
        free(line);
    }
    /* Begun anew, shorter: what is left of the old log is not read. */
    struct blk_node *node = co_logged(0, ",log-sector-size=4096");
    assert_int_equal(blk_co_write(node, 4096, buffer, 4096, 0), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    struct logwrites *log = read_log();
    assert_int_equal(logwrites_count(log), 1);
    logwrites_close(log);

    make_file(log_path, 8192);
    struct error *error = NULL;
    assert_null(logwrites_open(log_path, &error));
    error_free(error);
    char *line = xasprintf(
        "driver=blklogwrites,file.driver=file,file.filename=%s,log.driver=file,log.filename=%s,log-append=on", disk,
        log_path);
    co_assert_refused(line, BLK_O_RDWR, "Invalid log superblock magic");
    free(line);
    return 0;
}

static void logs_go_on_or_begin_anew(void **state) { run_with_files(state, co_append_test, NULL); }

/* What qemu-io's blklogwrites wrote is read, and gone on with. */
static int co_foreign_test(void *arg)
{
    uint8_t buffer[512] = { 9 };
    char *command = xasprintf(
        "qemu-io --image-opts driver=blklogwrites,file.driver=file,file.filename=%s,log.driver=file,log.filename=%s "
        "-c 'write -P 7 4k 1k' -c flush -c 'discard 0 4k' -c 'write -P 8 0 512' >/dev/null",
        disk, log_path);

    assert_int_equal(system(command), 0);
    free(command);
    for (int round = 0; round < 2; round++) {
        struct logwrites *log = read_log();
        size_t i = 0, writes = 0;
        for (; i < logwrites_count(log); i++) {
            const struct logwrites_entry *e = logwrites_entry(log, i);
            writes += !e->flags && e->length;
            if (e->offset == 4096)
                assert_int_equal(e->durable != LOGWRITES_NEVER, 1);
        }
        assert_int_equal(writes, 2 + round);
        logwrites_close(log);
        if (round == 0) {
            struct blk_node *node = co_logged(0, ",log-append=on");
            assert_int_equal(blk_co_write(node, 8192, buffer, 512, 0), 0);
            assert_int_equal(blk_co_node_unref(node), 0);
        }
    }
    return 0;
}

static void logs_of_qemu_are_read(void **state)
{
    if (system("command -v qemu-io >/dev/null") != 0) {
        print_message("needs the program 'qemu-io'\n");
        skip();
    }
    run_with_files(state, co_foreign_test, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(entries_are_what_happened),
        LOOP_TEST(the_whole_log_is_the_disk),
        LOOP_TEST(a_flush_covers_what_ended_before_it_began),
        LOOP_TEST(a_flush_does_not_cover_what_ends_meanwhile),
        LOOP_TEST(writers_of_one_sector_lose_nothing),
        LOOP_TEST(logs_go_on_or_begin_anew),
        LOOP_TEST(logs_of_qemu_are_read),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
