/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which format an image is in, and that no guest of a guessed raw disk can change the answer.
 *
 * The heads and tails are those of the formats' specifications. tests/cli/foreign-formats has what qemu-img makes.
 */
#include "model.h"

#include <block/probe.h>

enum place { AT_HEAD, AT_TAIL };

static const struct sample {
    const char *format;
    enum place place;
    unsigned offset; /* from the head's or the tail's beginning */
    const char *bytes;
    size_t length;
} samples[] = {
#define SAMPLE(format, place, offset, bytes) \
    { \
        format, place, offset, bytes, sizeof(bytes) - 1 \
    }
    SAMPLE("qcow2", AT_HEAD, 0, "QFI\xfb\0\0\0\2"),
    SAMPLE("qcow2", AT_HEAD, 0, "QFI\xfb\0\0\0\3"),
    SAMPLE("qcow", AT_HEAD, 0, "QFI\xfb"),
    SAMPLE("qed", AT_HEAD, 0, "QED\0"),
    SAMPLE("vmdk", AT_HEAD, 0, "KDMV"),
    SAMPLE("vmdk", AT_HEAD, 0, "COWD"),
    SAMPLE("vmdk", AT_HEAD, 0, "\xbe\xba\xfe\xca\0\0\0\0"),
    SAMPLE("vmdk", AT_HEAD, 0, "# Disk DescriptorFile"),
    SAMPLE("vmdk", AT_HEAD, 0, "#\n#\n\n \t\n# made by hand\n  # disk descriptorfile"),
    SAMPLE("vmdk", AT_HEAD, 0, "#\r\nversion=1"),
    SAMPLE("vdi", AT_HEAD, 64, "\x7f\x10\xda\xbe"),
    SAMPLE("vpc", AT_HEAD, 0, "conectix"),
    SAMPLE("vpc", AT_TAIL, 0, "conectix"),
    SAMPLE("vhdx", AT_HEAD, 0, "vhdxfile"),
    SAMPLE("parallels", AT_HEAD, 0, "WithoutFreeSpace"),
    SAMPLE("parallels", AT_HEAD, 0, "WithouFreSpacExt"),
    SAMPLE("luks", AT_HEAD, 0, "LUKS\xba\xbe"),
    SAMPLE("bochs", AT_HEAD, 0, "Bochs Virtual HD Image"),
    SAMPLE("cloop", AT_HEAD, 0, "#!/bin/sh\n#V2.0 Format\n"),
    SAMPLE("cow", AT_HEAD, 0, "OOOM"),
    SAMPLE("dmg", AT_TAIL, 0, "koly\0\0\0\4\0\0\2\0"),
#undef SAMPLE
};

/* ---- recognition ---- */

/* Each part in memory of exactly its size, so that a sanitizer sees who reads on. NULL: there is none. */
static const char *format_of(const void *head, size_t head_length, const void *tail)
{
    uint8_t *head_copy = xmalloc(head_length ? head_length : 1), *tail_copy = tail ? xmalloc(BLK_PROBE_TAIL) : NULL;

    if (head_length)
        memcpy(head_copy, head, head_length);
    if (tail)
        memcpy(tail_copy, tail, BLK_PROBE_TAIL);
    const char *format = blk_probe_format(&(struct blk_probe){ head_copy, head_length, tail_copy });
    free(head_copy);
    free(tail_copy);
    return format;
}

static void each_format_is_known_by_its_marks(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(samples); i++) {
        const struct sample *sample = &samples[i];
        uint8_t head[BLK_PROBE_HEAD] = { 0 }, tail[BLK_PROBE_TAIL] = { 0 };
        uint8_t *at = (sample->place == AT_HEAD ? head : tail) + sample->offset;
        bool at_head = sample->place == AT_HEAD;

        assert_string_equal(format_of(head, sizeof(head), tail), "raw");
        memcpy(at, sample->bytes, sample->length);
        print_message("%s, sample %zu\n", sample->format, i);
        assert_string_equal(format_of(head, sizeof(head), tail), sample->format);
        assert_string_equal(format_of(head, sizeof(head), NULL), at_head ? sample->format : "raw");
        if (at_head)
            assert_string_equal(format_of(head, sample->offset + sample->length, NULL), sample->format);
        /* One byte less, or another one, is something else: no probe is too easy to please. */
        at[sample->length - 1] = 1;
        assert_string_not_equal(format_of(head, sizeof(head), tail), sample->format);
        if (at_head)
            assert_string_not_equal(format_of(head, sample->offset + sample->length - 1, NULL), sample->format);
    }
}

static void descriptors_of_text(void **state)
{
    static const char *const vmdk[] = {
        "# Disk DescriptorFile\nversion=1\n",
        "# disk descriptorfile\r\nversion=1\r\n",
        "#Disk DescriptorFile",
        "\xef\xbb\xbf# Disk DescriptorFile\n",
        "\n\n\t\n# Disk DescriptorFile\n",
        "# made by a program\n# Disk DescriptorFile\nCID=1\n",
        "version=1\n",
        "#\nversion=2\n",
        "#\n\n  version = 3 \r\n",
        "#\nVersion=4",
    };
    static const char *const raw[] = {
        "Disk DescriptorFile\nversion=1\n",
        "CID=1\nversion=1\n",
        "#\nversion=12\n",
        "#\nversion=0\n",
        "#\nversion=5\n",
        "#\nversion\n",
        "#\nversion=\n",
        "version",
        "version=",
        "#",
        "\n",
        "",
        " ",
        "# Disk\n",
        "#!/bin/sh\necho version=1\n",
        "# Disk Descriptor\nversions=1\n",
    };
    char head[BLK_PROBE_HEAD];

    for (size_t i = 0; i < ARRAY_SIZE(vmdk); i++) {
        print_message("%s\n", vmdk[i]);
        assert_string_equal(format_of(vmdk[i], strlen(vmdk[i]), NULL), "vmdk");
    }
    for (size_t i = 0; i < ARRAY_SIZE(raw); i++) {
        print_message("%s\n", raw[i]);
        assert_string_equal(format_of(raw[i], strlen(raw[i]), NULL), "raw");
    }
    /* As late as a probe can see it; qemu-img looks at 512 bytes, others at more. */
    memset(head, '#', sizeof(head));
    assert_string_equal(format_of(head, sizeof(head), NULL), "raw");
    memcpy(head + sizeof(head) - 11, "\nversion=1\n", 11);
    assert_string_equal(format_of(head, sizeof(head), NULL), "vmdk");
    memset(head, '\n', sizeof(head));
    memcpy(head + sizeof(head) - 21, "# Disk DescriptorFile", 21);
    assert_string_equal(format_of(head, sizeof(head), NULL), "vmdk");
}

/* Heads decide before tails do: the end of a qcow2 file may be any guest's data. */
static void the_head_decides(void **state)
{
    uint8_t tail[BLK_PROBE_TAIL] = "conectix";

    assert_string_equal(format_of("QFI\xfb\0\0\0\3", 8, tail), "qcow2");
    assert_string_equal(format_of("KDMV", 4, tail), "vmdk");
}

/* Any bytes, and bytes that begin as marks do: nothing is read that is not there. */
static void any_bytes(void **state)
{
    uint8_t head[BLK_PROBE_HEAD], tail[BLK_PROBE_TAIL] = { 0 };
    static const char letters[] = "# \n\r\tversion=1";

    for (int i = 0; i < 20000; i++) {
        size_t length = random_below(random_below(2) ? 100 : sizeof(head) + 1);
        for (size_t j = 0; j < length; j++)
            head[j] = (uint8_t)letters[random_below(sizeof(letters))];
        const struct sample *sample = &samples[random_below(ARRAY_SIZE(samples))];
        size_t room = length > sample->offset ? length - sample->offset : 0;
        memcpy(head + sample->offset, sample->bytes, MIN(room, sample->length));
        assert_non_null(format_of(head, length, random_below(2) ? tail : NULL));
    }
}

/* ---- the guard ---- */

struct guarded {
    struct blk_front *front;
    int fd;
    uint8_t *model;                                 /* the file as it is, filled up with zeroes */
    uint64_t file_size;                             /* in whole sectors */
    uint64_t start, end;                            /* where the disk is in the file; it may end behind it */
    unsigned refused[ARRAY_SIZE(samples)], allowed; /* by the sample that was played with */
};

enum { GUARDED_MAX = 64 << 10 };

static bool model_is_raw(const uint8_t *data, uint64_t size)
{
    size_t length = (size_t)MIN(size, (uint64_t)BLK_PROBE_HEAD);

    return !strcmp(format_of(data, length, size >= BLK_PROBE_TAIL ? data + size - BLK_PROBE_TAIL : NULL), "raw");
}

static void read_file(struct guarded *g, uint8_t *found)
{
    memset(found, 0, GUARDED_MAX);
    ssize_t length = pread(g->fd, found, GUARDED_MAX, 0);
    assert_true(length >= 0 && (uint64_t)length <= g->file_size);
}

/* A write, or zeroes, at `offset` of the file: done if the result is raw, refused whole if it is not. */
static coroutine_fn void co_change(struct guarded *g, unsigned sample, uint64_t offset, uint8_t *data, uint64_t length)
{
    uint8_t *after = xmalloc(GUARDED_MAX), *found = xmalloc(GUARDED_MAX);
    uint64_t after_size = MAX(g->file_size, align_up(offset + length, 512));
    struct iovec iov[5];
    int ret;

    memcpy(after, g->model, GUARDED_MAX);
    if (data) {
        memcpy(after + offset, data, length);
        ret = blk_front_co_writev(g->front, offset - g->start, length, iov, random_iov(data, length, iov, 5), 0);
    } else {
        memset(after + offset, 0, length);
        ret = blk_front_co_write_zeroes(g->front, offset - g->start, length, random_below(2) ? BLK_REQ_MAY_UNMAP : 0);
    }
    bool raw = model_is_raw(after, after_size);
    if (ret != (raw ? 0 : -EPERM))
        print_message("%s of %llu bytes at %llu, sample %u: %d\n", data ? "write" : "zeroes",
                      (unsigned long long)length, (unsigned long long)offset, sample, ret);
    assert_int_equal(ret, raw ? 0 : -EPERM);
    if (raw) {
        memcpy(g->model, after, GUARDED_MAX);
        g->file_size = after_size;
        g->allowed++;
    } else {
        g->refused[sample]++;
    }
    read_file(g, found);
    assert_memory_equal(found, g->model, g->file_size);
    free(after);
    free(found);
}

/* A discard leaves the edges; between them it leaves zeroes, or nothing changed. */
static coroutine_fn void co_discard(struct guarded *g, uint64_t offset, uint64_t length)
{
    uint8_t *found = xmalloc(GUARDED_MAX);

    assert_int_equal(blk_front_co_discard(g->front, offset - g->start, length), 0);
    read_file(g, found);
    assert_true(model_is_raw(found, g->file_size));
    for (uint64_t i = 0; i < g->file_size; i++) {
        bool edge = i < BLK_PROBE_HEAD || i + BLK_PROBE_TAIL >= g->file_size;
        bool zeroed = i >= offset && i < offset + length && !edge && found[i] == 0;
        assert_true(found[i] == g->model[i] || zeroed);
        g->model[i] = found[i];
    }
    free(found);
}

/* Plays with a mark: a part of it, or more than it, or what may stand before it, at its place or near; or takes some
 * away. */
static coroutine_fn void co_play(struct guarded *g)
{
    static const char filler[] = "#\n \0 QEKCOWLv";
    unsigned number = (unsigned)random_below(ARRAY_SIZE(samples));
    const struct sample *sample = &samples[number];
    uint64_t place = sample->offset, data_size = sample->length + 2 * random_below(2) * random_below(2000);
    uint8_t *data = xmalloc(data_size + sample->length);

    if (sample->place == AT_TAIL)
        place += g->file_size >= BLK_PROBE_TAIL ? g->file_size - BLK_PROBE_TAIL : 0;
    for (uint64_t i = 0; i < data_size; i++)
        data[i] = (uint8_t)filler[random_below(sizeof(filler))];
    uint64_t before = random_below(2) ? 0 : random_below(MIN(place, data_size - sample->length) + 1);
    memcpy(data + before, sample->bytes, sample->length);
    uint64_t from = random_below(2) ? 0 : random_below(data_size), offset = place - before + from;
    uint64_t length = 1 + random_below(data_size - from);
    if (random_below(2))
        length = data_size - from;
    if (offset >= g->start && offset < g->end) {
        length = MIN(length, g->end - offset);
        switch (random_below(8)) {
        case 0: co_change(g, number, offset, NULL, length); break;
        case 1: co_discard(g, offset, length); break;
        default: co_change(g, number, offset, data + from, length);
        }
    }
    free(data);
}

static coroutine_fn void co_guard_file(const char *path, uint64_t file_size, uint64_t start, unsigned *refused)
{
    struct guarded g = { .file_size = align_up(file_size, 512), .start = start };
    struct opts *opts = opts_new();
    char *offset = xasprintf("%llu", (unsigned long long)start);

    make_file(path, file_size);
    opts_set(opts, "discard", "unmap");
    opts_set(opts, "offset", offset);
    struct blk_node *node = blk_co_open(path, opts, BLK_O_RDWR, NULL);
    assert_non_null(node);
    assert_string_equal(node->driver->name, "raw");
    g.end = start + blk_node_size(node);
    g.front = blk_front_new("guest", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL, NULL);
    assert_non_null(g.front);
    assert_int_equal(blk_co_node_unref(node), 0);
    opts_free(opts);
    g.model = xcalloc(1, GUARDED_MAX);
    g.fd = open(path, O_RDONLY);
    for (int i = 0; i < 2000; i++)
        co_play(&g);
    for (unsigned i = 0; i < ARRAY_SIZE(samples); i++)
        refused[i] += g.refused[i];
    assert_true(g.allowed > 20);
    assert_int_equal(blk_co_front_free(g.front), 0);
    free(offset);
    close(g.fd);
    free(g.model);
    unlink(path);
}

static int co_guard_test(void *arg)
{
    static const struct {
        uint64_t size, start;
    } files[] = {
        { 12, 0 },   { 300, 0 },   { 512, 0 },         { 1000, 0 }, { 2048, 0 },   { 5000, 0 },
        { 8192, 0 }, { 60000, 0 }, { GUARDED_MAX, 0 }, { 8192, 1 }, { 3072, 513 }, { 20480, 5000 },
    };
    unsigned refused[ARRAY_SIZE(samples)] = { 0 };
    char *path = path_in(disk_folder, "guarded");

    for (size_t i = 0; i < ARRAY_SIZE(files); i++)
        co_guard_file(path, files[i].size, files[i].start, refused);
    for (unsigned i = 0; i < ARRAY_SIZE(samples); i++) {
        print_message("%s, sample %u: refused %u times\n", samples[i].format, i, refused[i]);
        assert_true(refused[i] > 0);
    }
    free(path);
    return 0;
}

static void no_changes_make_another_format(void **state) { run_co(state, co_guard_test, NULL); }

/* ---- at the same time ---- */

static coroutine_fn struct blk_node *co_open_guessed(const char *path, uint64_t size)
{
    make_file(path, size);
    struct blk_node *node = blk_co_open(path, NULL, BLK_O_RDWR, NULL);
    assert_non_null(node);
    return node;
}

static void assert_not_in_file(const char *path, uint64_t offset, const char *mark)
{
    char found[16];
    int fd = open(path, O_RDONLY);

    assert_int_equal(pread(fd, found, strlen(mark), (off_t)offset), strlen(mark));
    assert_memory_not_equal(found, mark, strlen(mark));
    close(fd);
}

/* A guest that changes its memory while the check goes on. */
struct race {
    char *memory;
    const char *mark;
    bool done;
};

static coroutine_fn void co_flip(void *arg)
{
    struct race *race = arg;

    while (!race->done) {
        memcpy(race->memory, race->mark, strlen(race->mark));
        co_sleep_ns(1000);
        memset(race->memory, 0, strlen(race->mark));
        co_sleep_ns(1000);
    }
    free(race->memory);
    free(race);
}

static coroutine_fn void co_race(const char *path, uint64_t size, const char *mark, uint64_t offset, uint64_t length)
{
    struct race *race = xcalloc(1, sizeof(*race));
    struct blk_node *node = co_open_guessed(path, size);

    *race = (struct race){ .memory = xcalloc(1, 8192), .mark = mark };
    co_start(co_flip, race);
    for (int i = 0; i < 300; i++) {
        int ret = blk_co_write(node, offset, race->memory, length, 0);
        assert_true(ret == 0 || ret == -EPERM);
        assert_not_in_file(path, offset, mark);
    }
    race->done = true;
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
}

static int co_race_test(void *arg)
{
    char *path = path_in(disk_folder, "raced");

    co_race(path, 64 * KIB, "KDMV", 0, 512);
    co_race(path, 64 * KIB, "KDMV", 0, 8192);
    /* One sector is in both edges. */
    co_race(path, 1024, "conectix", 512, 512);
    free(path);
    return 0;
}

static void what_was_checked_is_written(void **state) { run_co(state, co_race_test, NULL); }

/* Two writes, each harmless, at once. */
struct half {
    struct blk_node *node;
    const char *bytes;
    uint64_t offset;
    int ret;
    unsigned *running;
};

static coroutine_fn void co_write_half(void *arg)
{
    struct half *half = arg;

    half->ret = blk_co_write(half->node, half->offset, half->bytes, strlen(half->bytes), 0);
    --*half->running;
}

static int co_halves_test(void *arg)
{
    char *path = path_in(disk_folder, "halves");
    struct blk_node *node = co_open_guessed(path, 64 * KIB);

    for (int i = 0; i < 100; i++) {
        unsigned running = 2;
        struct half halves[] = { { node, "KD", 0, 1, &running }, { node, "MV", 2, 1, &running } };
        assert_int_equal(blk_co_write_zeroes(node, 0, 512, 0), 0);
        co_start(co_write_half, &halves[0]);
        co_start(co_write_half, &halves[1]);
        while (running)
            co_sleep_ns(10000);
        assert_int_equal(halves[0].ret + halves[1].ret, -EPERM);
        assert_not_in_file(path, 0, "KDMV");
    }
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    return 0;
}

static void two_halves_at_once_make_no_whole(void **state) { run_co(state, co_halves_test, NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(each_format_is_known_by_its_marks),
        LOOP_TEST(descriptors_of_text),
        LOOP_TEST(the_head_decides),
        LOOP_TEST(any_bytes),
        LOOP_TEST(no_changes_make_another_format),
        LOOP_TEST(what_was_checked_is_written),
        LOOP_TEST(two_halves_at_once_make_no_whole),
    };

    model_seed();
    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
