/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files on tmpfs: the file driver copies, zeroes and discards there and then, without the ring, and still completes
 * later. What the requests do to the bytes is tested by file-driver.c, on disk and on tmpfs.
 */
#include "image.h"

/* The longest that is done at once on tmpfs, and more than that. */
#define COPY_MAX (2 * MIB)
#define FILE_SIZE (3 * MIB)

struct opened {
    const char *folder, *aio;
    char *path;
    struct blk_front *front;
};

static int co_open_file(void *arg)
{
    struct opened *o = arg;
    char *line;

    o->path = path_in(o->folder, "file");
    make_file(o->path, FILE_SIZE);
    line = xasprintf("driver=file,filename=%s,aio=%s", o->path, o->aio);
    struct blk_node *node = co_open_words(line, BLK_O_RDWR | BLK_O_UNMAP);
    o->front = test_front(node);
    free(line);
    return blk_co_node_unref(node);
}

static int co_close_file(void *arg)
{
    struct opened *o = arg;

    assert_int_equal(blk_co_front_free(o->front), 0);
    unlink(o->path);
    free(o->path);
    return 0;
}

struct request {
    struct blk_request blk;
    struct iovec iov;
    bool submitting, done;
};

static void request_done(struct blk_request *blk, int result)
{
    struct request *r = container_of(blk, struct request, blk);

    assert_false(r->submitting);
    assert_int_equal(result, 0);
    r->done = true;
}

/* Returns how many SQEs it took. */
static uint64_t perform_flags(struct opened *o, enum blk_op op, void *buffer, uint64_t length, unsigned flags)
{
    struct loop *loop = loop_current();
    uint64_t before = loop_stats(loop)->submitted;
    struct request r = { .iov = { buffer, length }, .submitting = true };

    r.blk = (struct blk_request){
        .op = op, .length = length, .flags = flags, .iov = &r.iov, .iov_count = 1, .done = request_done
    };
    blk_submit(o->front, &r.blk);
    r.submitting = false;
    while (!r.done)
        loop_step(loop, true);
    return loop_stats(loop)->submitted - before;
}

static uint64_t perform(struct opened *o, enum blk_op op, void *buffer, uint64_t length)
{
    return perform_flags(o, op, buffer, length, 0);
}

/* `copies`: without the ring, up to COPY_MAX. */
static void check_file(void **state, const char *folder, bool copies)
{
    static const uint64_t lengths[] = { 1, 512, 4 * KIB, 128 * KIB, COPY_MAX, COPY_MAX + KIB, FILE_SIZE };
    struct opened o = { .folder = folder, .aio = "io_uring" };
    uint8_t *data = xmalloc(FILE_SIZE), *back = xmalloc(FILE_SIZE);

    run_co(state, co_open_file, &o);
    loop_step(test_loop(state), false); /* what the loop submits for itself */
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        bool copied = copies && lengths[i] <= COPY_MAX;
        memset(data, (int)i + 1, lengths[i]);
        memset(back, 0, lengths[i]);
        assert_int_equal(perform(&o, BLK_OP_WRITE, data, lengths[i]) == 0, copied);
        assert_int_equal(perform(&o, BLK_OP_READ, back, lengths[i]) == 0, copied);
        assert_memory_equal(data, back, lengths[i]);
    }
    run_co(state, co_close_file, &o);
    free(data);
    free(back);
}

static void transfers_on_tmpfs_are_copies(void **state) { check_file(state, memory_folder, true); }

static void transfers_on_a_disk_are_not(void **state)
{
    SKIP_WITHOUT_DISK();
    check_file(state, disk_folder, false);
}

/* Flushes, and short zeroes and discards: no ring, and no kernel thread. */
static void check_steps(void **state, const char *folder, bool at_once)
{
    static const uint64_t lengths[] = { 4 * KIB, COPY_MAX, COPY_MAX + 4 * KIB };
    struct opened o = { .folder = folder, .aio = "io_uring" };
    uint8_t *data = xmalloc(FILE_SIZE), *back = xmalloc(FILE_SIZE), *zeroes = xcalloc(1, FILE_SIZE);

    run_co(state, co_open_file, &o);
    loop_step(test_loop(state), false);
    memset(data, 9, FILE_SIZE);
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        bool quick = at_once && lengths[i] <= COPY_MAX;
        for (unsigned how = 0; how < 3; how++) {
            perform(&o, BLK_OP_WRITE, data, FILE_SIZE);
            enum blk_op op = how ? BLK_OP_WRITE_ZEROES : BLK_OP_DISCARD;
            unsigned flags = BLK_REQ_FUA | (how == 2 ? BLK_REQ_MAY_UNMAP : 0);
            assert_int_equal(perform_flags(&o, op, NULL, lengths[i], flags) == 0, quick);
            perform(&o, BLK_OP_READ, back, FILE_SIZE);
            assert_memory_equal(back, zeroes, lengths[i]);
            assert_memory_equal(back + lengths[i], data, FILE_SIZE - lengths[i]);
        }
    }
    assert_int_equal(perform_flags(&o, BLK_OP_WRITE, data, 4 * KIB, BLK_REQ_FUA) == 0, at_once);
    assert_int_equal(perform(&o, BLK_OP_FLUSH, NULL, 0) == 0, at_once);
    run_co(state, co_close_file, &o);
    free(data);
    free(back);
    free(zeroes);
}

static void short_steps_on_tmpfs_are_made_at_once(void **state) { check_steps(state, memory_folder, true); }

static void steps_on_a_disk_are_not(void **state) { check_steps(state, disk_folder, false); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(transfers_on_tmpfs_are_copies),
        LOOP_TEST(transfers_on_a_disk_are_not),
        LOOP_TEST(short_steps_on_tmpfs_are_made_at_once),
        LOOP_TEST(steps_on_a_disk_are_not),
    };
    unsetenv("VMM_NO_URING");
    int failed = image_tests_begin() ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
    return image_tests_end(failed);
}
