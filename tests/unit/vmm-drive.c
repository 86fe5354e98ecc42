/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The end of drives (vmm/drive.c), with the server of tests/lib/toy_server.c: side by side, one that hangs delays no
 * other, only what hangs is given up, and the rest of the end is in order. The device is the test itself.
 */
#include "image.h"
#include "toy_server.h"

#include "../../vmm/cmdline.h"
#include "../../vmm/drive.h"

#define MS UINT64_C(1000000)
#define QUICKLY (10000 * MS)

enum { HANGS, WORKS };
static const char *const names[] = { "hangs", "works" };
static struct toy_server servers[2];
static int folder; /* a socket's name is short, that of a test's folder need not be */
static struct config_item items[2];
static struct config config = { .blockdevs = { items, 2 } };
static struct machine machine = { .config = &config };

/* drive.c makes devices for drives with if=virtio: there are none here. */
coroutine_fn int device_co_create(struct machine *of, const struct opts *options, struct error **errp)
{
    return error_set(errp, -ENOTSUP, "there are no devices");
}

/* Two -blockdev of these drivers, each on a server of its own in the place `toy`. */
static coroutine_fn void co_begin(const char *drivers, const char *toy, const uint8_t *content)
{
    struct error *error = NULL;

    folder = open(disk_folder, O_DIRECTORY | O_CLOEXEC);
    for (unsigned i = 0; i < ARRAY_SIZE(servers); i++) {
        servers[i].path = xasprintf("/proc/self/fd/%d/%s", folder, names[i]);
        memcpy(servers[i].data, content, TOY_BYTES);
        memset(servers[i].durable, 0, TOY_BYTES);
        atomic_store(&servers[i].hangs, false);
        toy_server_start(&servers[i], false);
        char *line = xasprintf("%s,node-name=%s,%s.driver=toy,%s.path=%s,%s.reconnect-delay=20000", drivers, names[i],
                               toy, toy, servers[i].path, toy);
        items[i] = (struct config_item){ "-blockdev", names[i], opts_new() };
        assert_int_equal(opts_parse(items[i].opts, line, NULL, 0, NULL), 0);
        free(line);
    }
    if (drives_co_open(&machine, &error) < 0)
        fail_msg("%s", error_text(error));
}

static void end(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(servers); i++) {
        toy_server_stop(&servers[i]);
        free(servers[i].path);
        opts_free(items[i].opts);
    }
    close(folder);
}

static coroutine_fn struct blk_front *co_attach(unsigned i)
{
    struct drive_attachment attachment;

    assert_int_equal(drive_co_attach(names[i], false, &attachment, NULL), 0);
    return attachment.front;
}

static bool is_open(unsigned i) { return blk_node_find(names[i]) != NULL; }

struct ending {
    int ret;
    bool done;
};

static coroutine_fn void co_wait_for_end(void *arg)
{
    struct ending *e = arg;

    e->ret = drives_co_end();
    e->done = true;
}

static coroutine_fn void co_expect_end(const struct ending *e, int ret)
{
    for (uint64_t late = loop_now_ns() + QUICKLY; !e->done && loop_now_ns() < late;)
        co_sleep_ns(MS);
    assert_true(e->done);
    assert_int_equal(e->ret, ret);
}

/* It has begun to close at least. */
static coroutine_fn void co_expect_closed(unsigned i)
{
    for (uint64_t late = loop_now_ns() + QUICKLY; is_open(i) && loop_now_ns() < late;)
        co_sleep_ns(MS);
    assert_false(is_open(i));
}

static bool is_durable(struct toy_server *server)
{
    pthread_mutex_lock(&server->lock);
    bool same = memcmp(server->data, server->durable, TOY_BYTES) == 0;
    pthread_mutex_unlock(&server->lock);
    return same;
}

static const uint8_t zeroes[TOY_BYTES];

TEST_CO(one_that_hangs_delays_no_other)
{
    static const uint8_t data[512] = { 1, 2, 3 };
    struct ending e = { 0 };

    co_begin("driver=raw", "file", zeroes);
    struct blk_front *hanging = co_attach(HANGS), *front = co_attach(WORKS);
    atomic_store(&servers[HANGS].hangs, true);
    assert_int_equal(blk_front_co_write(front, 0, data, sizeof(data), 0), 0);
    assert_memory_equal(servers[WORKS].durable, zeroes, sizeof(data));
    drives_begin_end();
    while (blk_front_busy(front))
        co_sleep_ns(MS);
    assert_memory_equal(servers[WORKS].durable, data, sizeof(data)); /* though its device is not quiet yet */
    assert_true(is_open(WORKS));
    drive_detach(front);
    co_expect_closed(WORKS);
    drive_detach(hanging);
    co_start(co_wait_for_end, &e);
    co_sleep_ns(100 * MS);
    assert_false(e.done);
    drives_give_up();
    co_expect_end(&e, -ECANCELED);
    assert_false(is_open(HANGS));
    end();
    return 0;
}

/* One that is idle waits for a machine that waits for another, and loses nothing by it. */
TEST_CO(only_what_hangs_is_given_up)
{
    static const uint8_t data[512] = { 4, 5, 6 };
    struct ending e = { 0 };

    co_begin("driver=raw", "file", zeroes);
    struct blk_front *front = co_attach(WORKS);
    co_attach(HANGS);
    atomic_store(&servers[HANGS].hangs, true);
    drives_begin_end();
    while (blk_front_busy(front))
        co_sleep_ns(MS);
    drives_give_up();
    assert_int_equal(blk_front_co_write(front, 0, data, sizeof(data), 0), 0);
    co_start(co_wait_for_end, &e);
    co_expect_end(&e, -ECANCELED);
    assert_memory_equal(servers[WORKS].durable, data, sizeof(data));
    end();
    return 0;
}

/* A small image that fits on a server. */
static coroutine_fn const uint8_t *co_make_image(void)
{
    static uint8_t content[TOY_BYTES];
    char *path = path_in(disk_folder, "image");
    struct opts *opts = opts_new();

    opts_set(opts, "cluster_size", "512");
    assert_int_equal(blk_co_create("qcow2", path, opts, 16384, NULL), 0);
    opts_free(opts);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    memset(content, 0, sizeof(content));
    assert_true(read(fd, content, sizeof(content)) > 0);
    close(fd);
    unlink(path);
    free(path);
    return content;
}

/* What hangs is the write-back of the node below the filter, which no link leads to any more. */
TEST_CO(one_that_hangs_while_it_closes)
{
    static const uint8_t data[512] = { 7, 8, 9 };
    const uint8_t *image = co_make_image();
    struct ending e = { 0 };

    co_begin("driver=copy-on-read,file.driver=qcow2", "file.file", image);
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        assert_int_equal(blk_co_write(blk_node_find(names[i]), 0, data, sizeof(data), 0), 0);
    atomic_store(&servers[HANGS].hangs, true);
    drives_begin_end();
    for (uint64_t late = loop_now_ns() + QUICKLY; !is_durable(&servers[WORKS]) && loop_now_ns() < late;)
        co_sleep_ns(MS);
    assert_true(is_durable(&servers[WORKS])); /* it was written back */
    co_start(co_wait_for_end, &e);
    co_sleep_ns(100 * MS);
    assert_false(e.done);
    drives_give_up();
    co_expect_end(&e, -ECANCELED);
    end();
    return 0;
}

TEST_CO(all_is_well)
{
    struct ending e = { 0 };

    co_begin("driver=raw", "file", zeroes);
    co_attach(HANGS);
    drives_begin_end();
    co_start(co_wait_for_end, &e);
    co_expect_end(&e, 0);
    end();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(one_that_hangs_delays_no_other),
        LOOP_TEST(only_what_hangs_is_given_up),
        LOOP_TEST(one_that_hangs_while_it_closes),
        LOOP_TEST(all_is_well),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
