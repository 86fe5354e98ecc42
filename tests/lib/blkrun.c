/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blkrun: runs a list of block operations on an image, for tests. One command a line on standard input:
 *
 *   create FORMAT FILE SIZE [key=value,…]       open FILE ro|rw [key=value,…]        close
 *   write OFFSET LENGTH BYTE [fua]              writefrom OFFSET LENGTH FILE [fua]   (FILE's bytes at the same offset)
 *   read OFFSET LENGTH BYTE                     verify OFFSET LENGTH FILE            (content must be so)
 *   zero OFFSET LENGTH [unmap] [fua]            discard OFFSET LENGTH                flush
 *   resize SIZE [PREALLOCATION]                 map      info      check [leaks|all]      sleep MS      crash
 *
 * Each prints one line, "ok" or what it found; a failure prints "error: …", and the exit code is 1 unless the line
 * began with "try ". Reads and writes go through a front end, so the mapped path is used where a guest would use it.
 */
#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/size.h>
#include <block/front.h>
#include <block/image.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct blk_front *front;
static struct blk_node *node;
static bool trying, failed;

static void fail(struct error *error, int ret)
{
    printf("error: %s\n", error ? error_text(error) : strerror(-ret));
    error_free(error);
    failed = failed || !trying;
}

static void result(struct error *error, int ret)
{
    if (ret < 0)
        fail(error, ret);
    else
        printf("ok\n");
}

static uint64_t number(const char *text)
{
    uint64_t value = 0;

    if (!text || size_parse(text, 'B', &value) < 0) {
        fprintf(stderr, "blkrun: bad number '%s'\n", text ? text : "(none)");
        exit(2);
    }
    return value;
}

static const char *word(char **rest)
{
    char *w = strtok_r(NULL, " \n", rest);

    return w;
}

static struct opts *options(const char *text, const char *extra)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;

    if ((text && opts_parse(opts, text, NULL, OPTS_LAST_WINS, &error) < 0) ||
        (extra && opts_parse(opts, extra, NULL, OPTS_LAST_WINS, &error) < 0)) {
        fprintf(stderr, "blkrun: %s\n", error_text(error));
        exit(2);
    }
    return opts;
}

/* ---- images ---- */

static coroutine_fn void co_cmd_create(char **rest)
{
    const char *format = word(rest), *file = word(rest);
    uint64_t size = number(word(rest));
    struct opts *opts = options(word(rest), NULL);
    struct error *error = NULL;
    int ret = blk_co_create(format, file, opts, size, &error);

    opts_free(opts);
    result(error, ret);
}

static coroutine_fn void co_cmd_open(char **rest)
{
    const char *file = word(rest), *mode = word(rest);
    unsigned flags = strcmp(mode, "rw") == 0      ? BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP
                     : strcmp(mode, "check") == 0 ? BLK_O_RDWR | BLK_O_CHECK | BLK_O_NO_BACKING
                                                  : 0;
    const char *text = word(rest);
    struct opts *opts = options(text, NULL);
    char *cache = opts_take(opts, "cache");
    bool write_cache = true;
    struct error *error = NULL;

    if (cache)
        blk_cache_mode_parse(cache, &flags, &write_cache);
    free(cache);
    node = blk_co_open(file, opts, flags, &error);
    opts_free(opts);
    if (!node) {
        fail(error, -EIO);
        return;
    }
    unsigned perm = BLK_PERM_CONSISTENT_READ | (flags & BLK_O_RDWR ? BLK_PERM_WRITE | BLK_PERM_RESIZE : 0);
    front = blk_front_new("blkrun", node, perm, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE_UNCHANGED, &error);
    if (!front) {
        blk_co_node_unref(node);
        node = NULL;
        fail(error, -EIO);
        return;
    }
    blk_front_set_write_cache(front, write_cache);
    printf("ok\n");
}

static coroutine_fn void co_cmd_close(char **rest)
{
    int ret = blk_co_front_free(front);
    int close_ret = blk_co_node_unref(node);

    front = NULL;
    node = NULL;
    result(NULL, ret < 0 ? ret : close_ret);
}

/* ---- data ---- */

static void load(const char *file, uint64_t offset, uint8_t *buffer, uint64_t length)
{
    int fd = open(file, O_RDONLY);

    memset(buffer, 0, length);
    if (fd < 0 || pread(fd, buffer, length, (off_t)offset) < 0) {
        fprintf(stderr, "blkrun: cannot read %s\n", file);
        exit(2);
    }
    close(fd);
}

static void compare(const uint8_t *wanted, const uint8_t *got, uint64_t offset, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++) {
        if (wanted[i] != got[i]) {
            printf("differs at %" PRIu64 ": expected %02x, got %02x\n", offset + i, wanted[i], got[i]);
            failed = true;
            return;
        }
    }
}

static coroutine_fn void co_cmd_write(char **rest, bool from_file)
{
    uint64_t offset = number(word(rest)), length = number(word(rest));
    const char *source = word(rest), *flag = word(rest);
    uint8_t *buffer = blk_buffer_alloc(node, length + 1);

    if (from_file)
        load(source, offset, buffer, length);
    else
        memset(buffer, (int)number(source), length);
    result(NULL, blk_front_co_write(front, offset, buffer, length, flag ? BLK_REQ_FUA : 0));
    free(buffer);
}

static coroutine_fn void co_cmd_read(char **rest, bool from_file)
{
    uint64_t offset = number(word(rest)), length = number(word(rest));
    const char *source = word(rest);
    uint64_t step = length < (4u << 20) ? length : 4u << 20;
    uint8_t *wanted = malloc(step + 1), *got = blk_buffer_alloc(node, step + 1);
    bool was_failed = failed;
    int ret = 0;

    for (uint64_t at = 0; at < length && ret == 0; at += step) {
        uint64_t part = length - at < step ? length - at : step;
        if (from_file)
            load(source, offset + at, wanted, part);
        else
            memset(wanted, (int)number(source), part);
        ret = blk_front_co_read(front, offset + at, got, part);
        if (ret == 0)
            compare(wanted, got, offset + at, part);
    }
    if (ret < 0)
        fail(NULL, ret);
    else if (failed == was_failed)
        printf("ok\n");
    free(wanted);
    free(got);
}

static coroutine_fn void co_cmd_zero(char **rest)
{
    uint64_t offset = number(word(rest)), length = number(word(rest));
    unsigned flags = 0;

    for (const char *w = word(rest); w; w = word(rest))
        flags |= strcmp(w, "unmap") == 0 ? BLK_REQ_MAY_UNMAP : BLK_REQ_FUA;
    result(NULL, blk_front_co_write_zeroes(front, offset, length, flags));
}

static coroutine_fn void co_cmd_discard(char **rest)
{
    uint64_t offset = number(word(rest)), length = number(word(rest));

    result(NULL, blk_front_co_discard(front, offset, length));
}

/* ---- the image as a whole ---- */

static coroutine_fn void co_cmd_resize(char **rest)
{
    uint64_t size = number(word(rest));
    const char *prealloc = word(rest);
    struct error *error = NULL;
    int ret = blk_front_co_truncate(front, size, true, prealloc ? prealloc : "off", &error);

    result(error, ret);
}

static coroutine_fn void co_cmd_map(char **rest)
{
    uint64_t size = blk_node_size(node);
    struct blk_status st = { 0 };

    for (uint64_t at = 0; at < size; at += st.length) {
        int ret = blk_co_status(node, NULL, at, size - at, &st);
        if (ret < 0) {
            fail(NULL, ret);
            return;
        }
        printf("%" PRIu64 " %" PRIu64 " depth=%u%s%s%s", at, st.length, st.depth, st.present ? " present" : "",
               st.zero ? " zero" : "", st.data ? " data" : "");
        if (st.offset_valid)
            printf(" offset=%" PRIu64, st.offset);
        printf("\n");
    }
    printf("ok\n");
}

static coroutine_fn void co_cmd_info(char **rest)
{
    struct blk_info info;
    struct error *error = NULL;
    int ret = blk_co_info(node, &info, &error);

    if (ret < 0) {
        fail(error, ret);
        return;
    }
    char *text = info.format_specific ? json_dumps(info.format_specific, 0) : NULL;
    printf("size=%" PRIu64 " cluster=%" PRIu64 " dirty=%d corrupt=%d backing=%s %s\n", info.virtual_size,
           info.cluster_size, info.dirty, info.corrupt, info.backing_file ? info.backing_file : "-", text ? text : "");
    free(text);
    blk_info_finish(&info);
}

static void report_line(struct blk_check *check, bool error, const char *line)
{
    (void)check, (void)error;
    printf("%s\n", line);
}

static coroutine_fn void co_cmd_check(char **rest)
{
    const char *how = word(rest);
    unsigned fix = !how ? 0 : strcmp(how, "all") == 0 ? BLK_FIX_LEAKS | BLK_FIX_ERRORS : BLK_FIX_LEAKS;
    struct blk_check check = { .report = report_line };
    struct error *error = NULL;
    int ret = blk_co_check(node, &check, fix, &error);

    if (ret < 0) {
        fail(error, ret);
        return;
    }
    printf("corruptions=%" PRIu64 " leaks=%" PRIu64 " errors=%" PRIu64 " fixed=%" PRIu64 "/%" PRIu64 " end=%" PRIu64
           " clusters=%" PRIu64 "/%" PRIu64 "/%" PRIu64 "/%" PRIu64 "\n",
           check.corruptions, check.leaks, check.check_errors, check.corruptions_fixed, check.leaks_fixed,
           check.image_end_offset, check.allocated_clusters, check.total_clusters, check.fragmented_clusters,
           check.compressed_clusters);
    if (check.corruptions || check.check_errors)
        failed = failed || !trying;
}

static coroutine_fn void co_command(const char *name, char **rest)
{
    if (strcmp(name, "create") == 0)
        co_cmd_create(rest);
    else if (strcmp(name, "open") == 0)
        co_cmd_open(rest);
    else if (strcmp(name, "close") == 0)
        co_cmd_close(rest);
    else if (strcmp(name, "write") == 0 || strcmp(name, "writefrom") == 0)
        co_cmd_write(rest, name[5]);
    else if (strcmp(name, "read") == 0 || strcmp(name, "verify") == 0)
        co_cmd_read(rest, name[0] == 'v');
    else if (strcmp(name, "zero") == 0)
        co_cmd_zero(rest);
    else if (strcmp(name, "discard") == 0)
        co_cmd_discard(rest);
    else if (strcmp(name, "flush") == 0)
        result(NULL, blk_front_co_flush(front));
    else if (strcmp(name, "resize") == 0)
        co_cmd_resize(rest);
    else if (strcmp(name, "map") == 0)
        co_cmd_map(rest);
    else if (strcmp(name, "info") == 0)
        co_cmd_info(rest);
    else if (strcmp(name, "check") == 0)
        co_cmd_check(rest);
    else if (strcmp(name, "sleep") == 0)
        co_sleep_ns(number(word(rest)) * 1000000);
    else if (strcmp(name, "crash") == 0)
        _exit(0);
    else {
        fprintf(stderr, "blkrun: unknown command '%s'\n", name);
        exit(2);
    }
}

static coroutine_fn int co_main(void *arg)
{
    char line[4096];

    while (fgets(line, sizeof(line), stdin)) {
        char *rest = NULL, *start = line;
        trying = strncmp(line, "try ", 4) == 0;
        start += trying ? 4 : 0;
        char *name = strtok_r(start, " \n", &rest);
        if (!name || name[0] == '#')
            continue;
        co_command(name, &rest);
        fflush(stdout);
    }
    if (front) {
        char *rest = NULL;
        co_cmd_close(&rest);
    }
    return failed;
}

int main(int argc, char **argv)
{
    struct error *error = NULL;

    error_set_program(argv[0]);
    struct loop *loop = loop_new(&error);
    if (!loop) {
        error_report_free(error);
        return 2;
    }
    int ret = co_run(loop, co_main, NULL);
    loop_free(loop);
    return ret ? 1 : 0;
}
