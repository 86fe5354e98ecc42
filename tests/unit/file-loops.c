/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Several loops on one file node at once, each through blk_submit() on its own ring: reads, writes, zeroes, discards
 * and flushes, growing the file together. Each loop has blocks of its own, striped over the file, and knows what is
 * in them. In the suite `threads`: ThreadSanitizer watches.
 */
#include "image.h"

#include <base/checked.h>

#define BLOCK 4096u
#define LOOPS 3u
#define DEPTH 8u
#define REQUESTS 1500u
#define BLOCKS_EACH 96u /* of a loop */

struct slot {
    struct blk_request request;
    struct iovec iov;
    uint8_t *buffer;
    struct stripe *stripe;
    unsigned block; /* the n-th of this loop */
};

struct stripe {
    struct blk_front *front;
    struct loop *loop;
    struct loop_post start;
    unsigned index, seed;
    unsigned issued, running;
    uint8_t value[BLOCKS_EACH]; /* what each block is filled with */
    bool busy[BLOCKS_EACH];
    struct slot slots[DEPTH];
    atomic_uint *left;
    struct co *main;
};

static uint64_t offset_of(const struct stripe *s, unsigned block)
{
    return ((uint64_t)block * LOOPS + s->index) * BLOCK;
}

static unsigned free_block(struct stripe *s)
{
    unsigned block;

    do {
        block = (unsigned)rand_r(&s->seed) % BLOCKS_EACH;
    } while (s->busy[block]);
    s->busy[block] = true;
    return block;
}

static void next(struct slot *slot)
{
    struct stripe *s = slot->stripe;
    struct blk_request *r = &slot->request;
    unsigned choice = (unsigned)rand_r(&s->seed) % 16;

    if (s->issued++ >= REQUESTS) {
        if (--s->running == 0 && atomic_fetch_sub(s->left, 1) == 1)
            co_wake(s->main);
        return;
    }
    slot->block = free_block(s);
    r->flags = 0;
    r->offset = offset_of(s, slot->block);
    r->length = BLOCK;
    r->iov_count = 1; /* blk_submit() clears it where there are no buffers */
    r->op = choice < 6    ? BLK_OP_READ
            : choice < 12 ? BLK_OP_WRITE
            : choice < 14 ? BLK_OP_WRITE_ZEROES
            : choice < 15 ? BLK_OP_DISCARD
                          : BLK_OP_FLUSH;
    if (r->op == BLK_OP_WRITE) {
        s->value[slot->block] = (uint8_t)(1 + rand_r(&s->seed) % 255);
        memset(slot->buffer, s->value[slot->block], BLOCK);
        r->flags = choice == 11 ? BLK_REQ_FUA : 0;
    } else if (r->op == BLK_OP_WRITE_ZEROES || r->op == BLK_OP_DISCARD) {
        s->value[slot->block] = 0;
        r->flags = r->op == BLK_OP_WRITE_ZEROES && choice == 12 ? BLK_REQ_MAY_UNMAP : 0;
    } else if (r->op == BLK_OP_FLUSH) {
        r->offset = r->length = 0;
    }
    blk_submit(s->front, r);
}

static void done(struct blk_request *request, int result)
{
    struct slot *slot = container_of(request, struct slot, request);
    struct stripe *s = slot->stripe;

    assert_int_equal(result, 0);
    if (request->op == BLK_OP_READ) {
        for (unsigned i = 0; i < BLOCK; i++)
            assert_int_equal(slot->buffer[i], s->value[slot->block]);
    }
    s->busy[slot->block] = false;
    next(slot);
}

static void start(struct loop_post *post)
{
    struct stripe *s = container_of(post, struct stripe, start);

    s->running = DEPTH;
    for (unsigned i = 0; i < DEPTH; i++)
        next(&s->slots[i]);
}

static void stripe_init(struct stripe *s, struct blk_front *front, unsigned index, atomic_uint *left)
{
    *s = (struct stripe){
        .front = front, .index = index, .seed = index + 1, .left = left, .main = co_self(), .start.fn = start
    };
    s->loop = loop_thread_start("worker", NULL);
    assert_non_null(s->loop);
    for (unsigned i = 0; i < DEPTH; i++) {
        struct slot *slot = &s->slots[i];
        slot->stripe = s;
        slot->buffer = aligned_alloc(BLOCK, BLOCK);
        slot->iov = (struct iovec){ slot->buffer, BLOCK };
        slot->request.iov = &slot->iov;
        slot->request.iov_count = 1;
        slot->request.done = done;
    }
}

static int co_loops_test(void *arg)
{
    const char *options = arg;
    char *path = path_in(disk_folder, "shared"), *line = xasprintf("driver=file,filename=%s%s", path, options);
    struct stripe *stripes = xcalloc(LOOPS, sizeof(*stripes));
    atomic_uint left = LOOPS;
    uint64_t whole = (uint64_t)BLOCKS_EACH * LOOPS * BLOCK;

    /* Long enough: a front end does not grow a node. Growth is the other test. */
    make_file(path, whole);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR | BLK_O_UNMAP, NULL);
    assert_non_null(node);
    struct blk_front *front = blk_front_new("loops", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL,
                                            NULL);
    assert_non_null(front);
    for (unsigned i = 0; i < LOOPS; i++)
        stripe_init(&stripes[i], front, i, &left);
    for (unsigned i = 0; i < LOOPS; i++)
        loop_post(stripes[i].loop, &stripes[i].start);
    co_yield();
    for (unsigned i = 0; i < LOOPS; i++)
        loop_thread_stop(stripes[i].loop);

    uint8_t *buffer = aligned_alloc(BLOCK, BLOCK);
    for (unsigned i = 0; i < LOOPS; i++) {
        for (unsigned block = 0; block < BLOCKS_EACH; block++) {
            assert_int_equal(blk_front_co_read(front, offset_of(&stripes[i], block), buffer, BLOCK), 0);
            assert_true(buffer[0] == stripes[i].value[block] && memcmp(buffer, buffer + 1, BLOCK - 1) == 0);
        }
        for (unsigned slot = 0; slot < DEPTH; slot++)
            free(stripes[i].slots[slot].buffer);
    }
    struct blk_stats stats;
    blk_front_stats(front, &stats);
    assert_int_equal(stats.slow, 0);
    assert_int_equal(stats.mapped, LOOPS * (REQUESTS + BLOCKS_EACH)); /* the last pass, too */
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(stripes);
    free(buffer);
    free(path);
    free(line);
    return 0;
}

static void loops_share_a_node(void **state)
{
    run_co(state, co_loops_test, "");
    run_co(state, co_loops_test, ",cache.direct=on");
    run_co(state, co_loops_test, ",aio=threads");
}

/* ---- growing together ---- */

struct grower {
    struct blk_node *node;
    struct loop *loop;
    unsigned index;
    atomic_uint *left;
    struct co *main;
};

static coroutine_fn void grower_co(void *arg)
{
    struct grower *g = arg;
    uint8_t buffer[BLOCK];

    memset(buffer, (int)g->index + 1, BLOCK);
    for (unsigned i = 0; i < 100; i++) {
        uint64_t offset = ((uint64_t)i * LOOPS + g->index) * BLOCK;
        if (i % 4 == 3)
            assert_int_equal(blk_co_write_zeroes(g->node, offset, BLOCK, i % 8 == 7 ? BLK_REQ_MAY_UNMAP : 0), 0);
        else
            assert_int_equal(blk_co_write(g->node, offset, buffer, BLOCK, 0), 0);
        assert_true(blk_node_size(g->node) >= offset + BLOCK);
    }
    if (atomic_fetch_sub(g->left, 1) == 1)
        co_wake(g->main);
}

static int co_grow_test(void *arg)
{
    char *path = path_in(disk_folder, "grown"), *line = xasprintf("driver=file,filename=%s%s", path, (const char *)arg);
    struct grower growers[LOOPS];
    atomic_uint left = LOOPS;
    uint8_t buffer[BLOCK];
    struct stat st;

    make_file(path, 0);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR, NULL);
    assert_non_null(node);
    for (unsigned i = 0; i < LOOPS; i++) {
        growers[i] = (struct grower){ node, loop_thread_start("grower", NULL), i, &left, co_self() };
        co_start_on(growers[i].loop, grower_co, &growers[i]);
    }
    co_yield();
    for (unsigned i = 0; i < LOOPS; i++)
        loop_thread_stop(growers[i].loop);
    assert_int_equal(blk_node_size(node), 100 * LOOPS * BLOCK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 100 * LOOPS * BLOCK);
    for (unsigned i = 0; i < 100 * LOOPS; i++) {
        assert_int_equal(blk_co_read(node, (uint64_t)i * BLOCK, buffer, BLOCK), 0);
        assert_true(buffer[0] == (i / LOOPS % 4 == 3 ? 0 : i % LOOPS + 1) &&
                    memcmp(buffer, buffer + 1, BLOCK - 1) == 0);
    }
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    free(line);
    return 0;
}

static void loops_grow_a_node_together(void **state)
{
    run_co(state, co_grow_test, "");
    run_co(state, co_grow_test, ",aio=threads");
}

int main(void)
{
    const struct CMUnitTest tests[] = { LOOP_TEST(loops_share_a_node), LOOP_TEST(loops_grow_a_node_together) };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
