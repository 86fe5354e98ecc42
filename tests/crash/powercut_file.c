/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The file of a power-cut workload (powercut.h): made, opened, changed through a log. */
#include "damage.h"
#include "memory_node.h"
#include "powercut.h"
#include "random.h"

#include <block/logwrites.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

uint64_t cut_below(struct cut *c, uint64_t bound) { return random_below(&c->random, bound); }

const char *cut_subclusters(const struct cut *c, uint64_t cluster, bool v2)
{
    return !v2 && cluster >= 16384 && c->seed % 3 ? ",extended_l2=on" : "";
}

void cut_die(struct cut *c, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fprintf(stderr, "powercut: %s, seed %" PRIu64 " (%s): ", c->settings->kind, c->seed, c->label);
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\nrepeat: powercut %s 1 %u %" PRIu64 "\n", c->settings->kind, c->settings->samples, c->seed);
    va_end(args);
    exit(1);
}

void cut_need(struct cut *c, bool ok, const char *what, struct error *error)
{
    if (!ok)
        cut_die(c, "%s: %s", what, error ? error_text(error) : "failed");
}

int cut_shell(struct cut *c, const char *fmt, ...)
{
    va_list args;
    char text[2048];

    va_start(args, fmt);
    int n = snprintf(text, sizeof(text), "cd %s && ", c->folder);
    vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, args);
    va_end(args);
    return system(text);
}

/* ---- the base ---- */

void cut_load_base(struct cut *c, const char *name)
{
    char *path = xasprintf("%s/%s", c->folder, name);
    int fd = open(path, O_RDONLY);

    cut_need(c, fd >= 0, "open base", NULL);
    free(c->base);
    c->base = xcalloc(1, CUT_MAX_DISK);
    ssize_t n = pread(fd, c->base, CUT_MAX_DISK, 0);
    cut_need(c, n > 0 && n < (ssize_t)CUT_MAX_DISK, "read base", NULL);
    c->base_length = align_up((uint64_t)n, 512);
    close(fd);
    free(path);
}

coroutine_fn void cut_co_take_base(struct cut *c, struct blk_node *file)
{
    uint64_t length = blk_node_size(file);

    free(c->base);
    c->base_length = align_up(length, 512);
    c->base = xcalloc(1, c->base_length);
    cut_need(c, blk_co_read(file, 0, c->base, length) == 0, "read the image", NULL);
    cut_need(c, blk_co_node_unref(file) == 0, "close the image", NULL);
}

void cut_compare(struct cut *c, const struct cut_moment *m, const char *whose, const uint8_t *content,
                 const uint8_t *wanted, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++) {
        if (content[i] != wanted[i])
            cut_die(c, "clock %" PRIu64 ", %s: sector %" PRIu64 " of %s is another", m->time, m->what, i / 512, whose);
    }
}

coroutine_fn void cut_co_judge(struct cut *c, const struct cut_moment *m, struct blk_node *node, const uint8_t *wanted,
                               uint64_t length)
{
    uint8_t *content = xmalloc(length);

    cut_co_check(c, m, node);
    cut_need(c, blk_co_read(node, 0, content, length) == 0, "read", NULL);
    cut_compare(c, m, "the disk", content, wanted, length);
    free(content);
    cut_need(c, blk_co_node_unref(node) == 0, "close", NULL);
}

coroutine_fn void cut_co_make_image(struct cut *c, const char *options, uint64_t size)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;
    char *path = xasprintf("%s/base", c->folder);

    opts_parse(opts, options, NULL, OPTS_LAST_WINS, NULL);
    cut_need(c, blk_co_create("qcow2", path, opts, size, &error) == 0, "create", error);
    opts_free(opts);
    free(path);
}

/* ---- nodes ---- */

coroutine_fn struct blk_node *cut_co_memory(struct cut *c, const char *name, const uint8_t *content, uint64_t length,
                                            const char *more)
{
    char *line = xasprintf("driver=memory,node-name=%s,size=%" PRIu64 "%s", name, length, more);
    struct opts *opts = opts_new();
    struct error *error = NULL;

    opts_parse(opts, line, NULL, OPTS_LAST_WINS, NULL);
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_RESIZE, &error);
    cut_need(c, node, "memory node", error);
    if (content)
        memory_node_fill(node, content, length);
    opts_free(opts);
    free(line);
    return node;
}

static coroutine_fn struct blk_node *co_open_with(struct opts *opts, const char *backing, unsigned flags,
                                                  struct error **errp)
{
    opts_set(opts, "driver", "qcow2");
    if (backing)
        opts_set(opts, "backing", backing);
    struct blk_node *node = blk_co_open(NULL, opts, backing ? flags : flags | BLK_O_NO_BACKING, errp);
    opts_free(opts);
    return node;
}

static void set_small_caches(struct opts *opts)
{
    opts_set(opts, "l2-cache-size", "512");
    opts_set(opts, "refcount-cache-size", "512");
}

static coroutine_fn struct blk_node *co_open(const char *file, const char *backing, unsigned flags, bool small,
                                             struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "file", file);
    if (small)
        set_small_caches(opts);
    return co_open_with(opts, backing, flags, errp);
}

coroutine_fn struct blk_node *cut_co_before(struct cut *c, const char *options, uint64_t size)
{
    cut_co_make_image(c, options, size);
    cut_load_base(c, "base");
    return cut_co_memory(c, "before", c->base, c->base_length, "");
}

coroutine_fn struct blk_node *cut_co_open(const char *file, const char *backing, unsigned flags, struct error **errp)
{
    return co_open(file, backing, flags, false, errp);
}

coroutine_fn struct blk_node *cut_co_open_small(const char *file, const char *backing, unsigned flags,
                                                struct error **errp)
{
    return co_open(file, backing, flags, true, errp);
}

/* Options of a node that is a part of `file`. */
static void set_part(struct opts *opts, const char *role, const char *file, uint64_t offset, uint64_t size)
{
    char *line = xasprintf("%s.driver=part,%s.file=%s,%s.offset=%" PRIu64 ",%s.size=%" PRIu64, role, role, file, role,
                           offset, role, size);

    opts_parse(opts, line, NULL, OPTS_LAST_WINS, NULL);
    free(line);
}

coroutine_fn struct blk_node *cut_co_open_apart(const char *file, const char *backing, unsigned flags,
                                                struct error **errp)
{
    struct opts *opts = opts_new();

    set_part(opts, "file", file, 0, CUT_APART);
    set_part(opts, "data-file", file, CUT_APART, CUT_APART);
    set_small_caches(opts);
    return co_open_with(opts, backing, flags, errp);
}

void cut_load_base_apart(struct cut *c, const char *data)
{
    uint8_t *image, *both = xcalloc(2, CUT_APART);

    cut_load_base(c, "base");
    image = c->base;
    cut_need(c, c->base_length <= CUT_APART, "size of the image", NULL);
    memcpy(both, image, c->base_length);
    free(image);
    c->base = NULL;
    cut_load_base(c, data);
    cut_need(c, c->base_length <= CUT_APART, "size of the data file", NULL);
    memcpy(both + CUT_APART, c->base, c->base_length);
    free(c->base);
    c->base = both;
    c->base_length = 2 * CUT_APART;
}

coroutine_fn void cut_co_read_snapshot(struct cut *c, struct blk_node *file, const char *backing, uint8_t *content,
                                       uint64_t size)
{
    static uint8_t copy[CUT_MAX_DISK];
    uint64_t length = blk_node_size(file);
    struct error *error = NULL;

    memcpy(copy, memory_node(file)->data, length);
    damage_show_snapshot(copy);
    struct blk_node *shown = cut_co_memory(c, "shown", copy, length, "");
    struct blk_node *node = cut_co_open("shown", backing, BLK_O_CHECK, &error);
    cut_need(c, node, "open the snapshot", error);
    cut_need(c, blk_node_size(node) == size, "size of the snapshot", NULL);
    cut_need(c, blk_co_read(node, 0, content, size) == 0, "read the snapshot", NULL);
    blk_co_node_unref(node);
    blk_co_node_unref(shown);
}

coroutine_fn void cut_co_start(struct cut *c, const char *more)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;
    char *line = xasprintf("driver=blklogwrites,node-name=logging,file=disk,log.driver=file,log.filename=%s",
                           c->log_path);
    int fd = open(c->log_path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    cut_need(c, fd >= 0, "log", NULL);
    close(fd);
    c->disk = cut_co_memory(c, "disk", c->base, c->base_length, more);
    opts_parse(opts, line, NULL, OPTS_LAST_WINS, NULL);
    c->file = blk_co_open(NULL, opts, c->log_flags | BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, &error);
    cut_need(c, c->file, "log node", error);
    opts_free(opts);
    free(line);
}

coroutine_fn void cut_co_finish(struct cut *c)
{
    struct error *error = NULL;

    blk_co_node_unref(c->file);
    blk_co_node_unref(c->disk);
    c->log = logwrites_open(c->log_path, &error);
    cut_need(c, c->log, "read the log", error);
}
