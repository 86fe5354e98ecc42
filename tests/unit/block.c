/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The block core alone, on a node in memory and a layer that maps as the tests say: mapped path, parts, alignment and
 * read-modify-write, tracked ranges, drain, permissions, options. Formats and files have tests of their own.
 */
#include "memory_node.h"

#include <base/coroutine.h>
#include <base/loop.h>
#include <base/testpoint.h>
#include <block/front.h>
#include <block/image.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
/* cmocka last: it redefines assert-like words */
#include <cmocka.h>

#define KIB 1024u

static struct loop *loop;

/* ---- a layer for tests: 4 KiB blocks, mapped as a table says ---- */

#define BLOCK 4096u
#define BLOCKS 64u

enum place { PLACE_ABSENT, PLACE_ZERO, PLACE_COLD, PLACE_SLOW, PLACE_AT }; /* PLACE_AT + n: block n of the file */

struct layer {
    unsigned place[BLOCKS];
    unsigned loads, slow_reads, slow_writes;
};

static coroutine_fn int layer_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct layer *layer = node->state;
    int ret = blk_co_open_child(node, "file", opts, node->filename, flags, false, errp);

    if (ret == 0)
        ret = blk_co_open_child(node, "backing", opts, NULL, flags, true, errp);
    for (unsigned i = 0; i < BLOCKS; i++)
        layer->place[i] = PLACE_AT + i;
    atomic_store(&node->size, BLOCKS * BLOCK);
    return ret;
}

static void layer_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                      struct blk_extent *e)
{
    struct layer *layer = node->state;

    (void)flags;
    if (op == BLK_OP_FLUSH) {
        e->kind = BLK_DATA;
        e->child = node->file;
        e->child_offset = 0;
        return;
    }
    unsigned block = (unsigned)(offset / BLOCK), place = layer->place[block];
    e->length = MIN(length, BLOCK - offset % BLOCK);
    /* Neighbours that lie next to each other are one extent. */
    for (unsigned next = block + 1;
         place >= PLACE_AT && e->length < length && next < BLOCKS && layer->place[next] == place + (next - block);
         next++)
        e->length = MIN(length, e->length + BLOCK);
    if (place >= PLACE_AT) {
        e->kind = BLK_DATA;
        e->child = node->file;
        e->child_offset = (place - PLACE_AT) * BLOCK + offset % BLOCK;
    } else {
        e->kind = place == PLACE_ABSENT ? BLK_ABSENT : place == PLACE_ZERO ? BLK_ZERO : BLK_SLOW;
        e->flags = place == PLACE_COLD ? BLK_EXTENT_COLD : 0;
    }
}

static coroutine_fn int layer_co_load(struct blk_node *node, enum blk_op op, uint64_t offset, uint64_t length)
{
    struct layer *layer = node->state;

    (void)op, (void)length;
    co_relax();
    layer->loads++;
    layer->place[offset / BLOCK] = PLACE_AT + (unsigned)(offset / BLOCK);
    return 0;
}

static coroutine_fn int layer_co_read(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                      int iov_count)
{
    struct layer *layer = node->state;

    (void)offset, (void)length;
    layer->slow_reads++;
    for (int i = 0; i < iov_count; i++)
        memset(iov[i].iov_base, 0x55, iov[i].iov_len);
    return 0;
}

static coroutine_fn int layer_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                       int iov_count, unsigned flags)
{
    struct layer *layer = node->state;

    layer->slow_writes++;
    for (uint64_t at = offset; at < offset + length; at += BLOCK)
        layer->place[at / BLOCK] = PLACE_AT + (unsigned)(at / BLOCK);
    return blk_co_writev(node->file, offset, length, iov, iov_count, flags);
}

static const struct blk_driver layer_driver = {
    .name = "layer",
    .flags = BLK_DRIVER_FORMAT | BLK_DRIVER_BACKING,
    .state_size = sizeof(struct layer),
    .co_open = layer_co_open,
    .map = layer_map,
    .co_load = layer_co_load,
    .co_read = layer_co_read,
    .co_write = layer_co_write,
};
BLK_DRIVER(layer_driver)

/* ---- helpers ---- */

static struct blk_node *open_text(const char *text, unsigned flags, struct error **errp)
{
    struct opts *opts = opts_new();

    assert_int_equal(opts_parse(opts, text, NULL, 0, NULL), 0);
    struct blk_node *node = blk_co_open(NULL, opts, flags, errp);
    opts_free(opts);
    return node;
}

static struct blk_front *front_on(struct blk_node *node)
{
    struct error *error = NULL;
    struct blk_front *front = blk_front_new("test", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL,
                                            &error);

    if (!front)
        fail_msg("%s", error_text(error));
    blk_co_node_unref(node); /* the front end holds it */
    return front;
}

static struct blk_front *layer_front(const char *file)
{
    char text[200];

    snprintf(text, sizeof(text), "driver=layer,file.driver=memory,%s", file);
    struct blk_node *node = open_text(text, BLK_O_RDWR | BLK_O_UNMAP, NULL);
    assert_non_null(node);
    return front_on(node);
}

static uint8_t byte_at(uint64_t i) { return (uint8_t)(i * 7 + i / 4096); }

static void fill(struct blk_node *memory)
{
    struct memory_node *m = memory_node(memory);

    for (uint64_t i = 0; i < m->capacity; i++)
        m->data[i] = byte_at(i);
}

#define TEST_CO(name) \
    static int co_##name(void *arg); \
    static void test_##name(void **state) \
    { \
        (void)state; \
        assert_int_equal(co_run(loop, co_##name, NULL), 0); \
    } \
    static coroutine_fn int co_##name(void *arg __attribute__((unused)))

/* ---- the mapped path ---- */

TEST_CO(mapped_read_needs_no_coroutine)
{
    struct blk_front *front = layer_front("file.size=1M");
    struct layer *layer = blk_front_node(front)->state;
    uint8_t buffer[3 * BLOCK];
    struct blk_stats stats;

    fill(blk_front_node(front)->file);
    layer->place[1] = PLACE_AT + 9;
    layer->place[2] = PLACE_ZERO;
    uint64_t before = co_count_started();
    assert_int_equal(blk_front_co_read(front, 100, buffer, BLOCK), 0); /* two places: two parts */
    for (unsigned i = 0; i < BLOCK; i++)
        assert_int_equal(buffer[i], byte_at(100 + i < BLOCK ? 100 + i : 9 * BLOCK + (100 + i - BLOCK)));
    memset(buffer, 1, sizeof(buffer));
    assert_int_equal(blk_front_co_read(front, 0, buffer, sizeof(buffer)), 0);
    for (unsigned i = 0; i < BLOCK; i++)
        assert_int_equal(buffer[2 * BLOCK + i], 0);
    assert_int_equal(co_count_started(), before);
    blk_front_stats(front, &stats);
    assert_int_equal(stats.mapped, 2);
    assert_int_equal(stats.slow, 0);
    assert_int_equal(stats.bytes[BLK_OP_READ], 4 * BLOCK);
    return blk_co_front_free(front);
}

TEST_CO(cold_and_slow_places_start_one)
{
    struct blk_front *front = layer_front("file.size=1M");
    struct layer *layer = blk_front_node(front)->state;
    uint8_t buffer[4 * BLOCK];

    fill(blk_front_node(front)->file);
    layer->place[1] = PLACE_COLD;
    layer->place[2] = PLACE_SLOW;
    assert_int_equal(blk_front_co_read(front, 0, buffer, sizeof(buffer)), 0);
    assert_int_equal(layer->loads, 1);
    assert_int_equal(layer->slow_reads, 1);
    assert_int_equal(buffer[BLOCK + 5], byte_at(BLOCK + 5));
    assert_int_equal(buffer[2 * BLOCK + 5], 0x55);
    assert_int_equal(buffer[3 * BLOCK + 5], byte_at(3 * BLOCK + 5));
    return blk_co_front_free(front);
}

TEST_CO(absent_places_ask_the_backing_child)
{
    struct error *error = NULL;
    struct blk_node *node = open_text(
        "driver=layer,file.driver=memory,file.size=1M,backing.driver=memory,backing.size=6k", BLK_O_RDWR, &error);
    uint8_t buffer[3 * BLOCK];

    assert_non_null(node);
    struct blk_front *front = front_on(node);
    struct layer *layer = node->state;
    fill(node->backing);
    layer->place[0] = layer->place[1] = layer->place[2] = PLACE_ABSENT;
    memset(buffer, 1, sizeof(buffer));
    assert_int_equal(blk_front_co_read(front, 0, buffer, sizeof(buffer)), 0);
    for (unsigned i = 0; i < sizeof(buffer); i++)
        assert_int_equal(buffer[i], i < 6 * KIB ? byte_at(i) : 0);
    /* A write does not go below; the layer has to act. */
    assert_int_equal(blk_front_co_write(front, 0, buffer, BLOCK, 0), 0);
    assert_int_equal(layer->slow_writes, 1);
    assert_int_equal(memory_node(node->backing)->writes, 0);
    return blk_co_front_free(front);
}

TEST_CO(errors_and_bounds)
{
    struct blk_front *front = layer_front("file.size=1M");
    struct memory_node *m = memory_node(blk_front_node(front)->file);
    uint8_t buffer[BLOCK] = { 0 };

    assert_int_equal(blk_front_co_read(front, BLOCKS * BLOCK - 10, buffer, 11), -EIO);
    assert_int_equal(blk_front_co_read(front, UINT64_MAX - 5, buffer, 11), -EIO);
    assert_int_equal(blk_front_co_read(front, BLOCKS * BLOCK, buffer, 0), 0);
    memory_node_fail(blk_front_node(front)->file, (struct memory_faults){ .fail_at = 1, .with = -ENOSPC });
    assert_int_equal(blk_front_co_write(front, 0, buffer, BLOCK, 0), -ENOSPC);
    assert_int_equal(blk_front_co_write(front, 0, buffer, BLOCK, BLK_REQ_FUA), 0);
    assert_int_equal(m->fua, 1);
    blk_front_set_write_cache(front, false);
    assert_int_equal(blk_front_co_write(front, 0, buffer, BLOCK, 0), 0);
    assert_int_equal(m->fua, 2);
    assert_int_equal(blk_front_co_flush(front), 0);
    assert_int_equal(m->flushes, 1);
    return blk_co_front_free(front);
}

/* A read or write of blocks 0 and 1, which lie apart: two parts. */
static coroutine_fn int co_two_parts(struct blk_front *front, bool write, struct iovec *iov, int iov_count)
{
    return write ? blk_front_co_writev(front, 0, 2 * BLOCK, iov, iov_count, 0)
                 : blk_front_co_readv(front, 0, 2 * BLOCK, iov, iov_count);
}

TEST_CO(the_error_of_any_part_is_the_request_s)
{
    struct blk_front *front = layer_front("file.size=1M");
    struct layer *layer = blk_front_node(front)->state;
    uint8_t buffer[2 * BLOCK] = { 0 };
    struct iovec iov = { buffer, sizeof(buffer) };
    struct blk_stats stats;

    layer->place[1] = PLACE_AT + 9;
    for (unsigned failing = 1; failing <= 2; failing++) {
        for (unsigned write = 0; write < 2; write++) {
            memory_node_fail(blk_front_node(front)->file, (struct memory_faults){ .fail_at = failing, .with = -EIO });
            assert_int_equal(co_two_parts(front, write, &iov, 1), -EIO);
            assert_int_equal(memory_node(blk_front_node(front)->file)->faults.requests, 2);
        }
    }
    blk_front_stats(front, &stats);
    assert_int_equal(stats.mapped, 4);
    assert_int_equal(stats.failed[BLK_OP_READ], 2);
    assert_int_equal(stats.failed[BLK_OP_WRITE], 2);
    assert_int_equal(stats.bytes[BLK_OP_WRITE], 0);
    return blk_co_front_free(front);
}

/* ---- alignment and limits ---- */

/* The memory node asserts that it gets what it asked for. */
TEST_CO(memory_of_each_part_is_aligned)
{
    struct blk_front *front = layer_front("file.size=1M,file.align=512,file.mem-align=512");
    struct layer *layer = blk_front_node(front)->state;
    static uint8_t memory[3 * BLOCK] __attribute__((aligned(BLOCK)));
    struct blk_stats stats;

    layer->place[1] = PLACE_AT + 9;
    for (unsigned write = 0; write < 2; write++) {
        struct iovec shifted = { memory + 8, 2 * BLOCK };
        struct iovec second_shifted[2] = { { memory, BLOCK }, { memory + BLOCK + 8, BLOCK } };
        struct iovec odd_lengths[2] = { { memory, 2 * BLOCK - 100 }, { memory + 2 * BLOCK, 100 } };
        struct iovec plain = { memory, 2 * BLOCK };
        memset(memory, 7, sizeof(memory));
        assert_int_equal(co_two_parts(front, write, &shifted, 1), 0);
        assert_int_equal(co_two_parts(front, write, second_shifted, 2), 0);
        assert_int_equal(co_two_parts(front, write, odd_lengths, 2), 0);
        blk_front_stats(front, &stats);
        assert_int_equal(stats.mapped, write);
        assert_int_equal(co_two_parts(front, write, &plain, 1), 0);
        blk_front_stats(front, &stats);
        assert_int_equal(stats.mapped, write + 1);
    }
    return blk_co_front_free(front);
}

static coroutine_fn int co_random_request(struct blk_front *front, unsigned *seed, uint8_t *model, uint8_t *buffer)
{
    uint64_t unit = rand_r(seed) % 2 ? 4096 : 512, size = blk_front_size(front);
    uint64_t offset = (unsigned)rand_r(seed) % (size / unit) * unit;
    uint64_t length = MIN((1 + (unsigned)rand_r(seed) % 40) * unit, size - offset),
             piece = (length / 512 + 7) / 8 * 512;
    struct iovec iov[8];
    int count = 0;

    for (uint64_t done = 0; done < length; done += iov[count++].iov_len)
        iov[count] = (struct iovec){ buffer + done, MIN(piece, length - done) };
    switch (rand_r(seed) % 5) {
    case 0:
        memset(buffer, rand_r(seed), length);
        memcpy(model + offset, buffer, length);
        return blk_front_co_writev(front, offset, length, iov, count, 0);
    case 1: memset(model + offset, 0, length); return blk_front_co_write_zeroes(front, offset, length, 0);
    case 2: return blk_front_co_discard(front, offset, length); /* which leaves memory as it was */
    case 3: return blk_front_co_flush(front);
    default:
        assert_int_equal(blk_front_co_readv(front, offset, length, iov, count), 0);
        assert_memory_equal(buffer, model + offset, length);
        return 0;
    }
}

/* Each limit by itself, and all at once, each checked by the memory node; small requests go the mapped way all the
 * same. */
TEST_CO(the_limits_of_a_node_hold_on_the_mapped_path)
{
    static const char *const limits[] = { "max-iov=3",
                                          "max-transfer=8k",
                                          "max-discard=16k",
                                          "discard-align=4k",
                                          "max-zeroes=12k",
                                          "zeroes-align=4k",
                                          "max-iov=2,max-transfer=16k,max-discard=64k,discard-align=8k,max-zeroes=32k,"
                                          "zeroes-align=4k" };
    static uint8_t model[512 * KIB], buffer[512 * KIB];
    unsigned seed = 3;

    for (unsigned i = 0; i < ARRAY_SIZE(limits); i++) {
        char text[200];
        struct blk_stats stats;
        snprintf(text, sizeof(text), "driver=memory,size=512k,align=512,%s", limits[i]);
        struct blk_front *front = front_on(open_text(text, BLK_O_RDWR | BLK_O_UNMAP, NULL));
        memset(model, 0, sizeof(model));
        for (unsigned j = 0; j < 1000; j++)
            assert_int_equal(co_random_request(front, &seed, model, buffer), 0);
        blk_front_stats(front, &stats);
        assert_true(stats.mapped > 200);
        assert_true(memory_node(blk_front_node(front))->discards > 10);
        assert_true(memory_node(blk_front_node(front))->zeroes > 10);
        assert_int_equal(blk_co_front_free(front), 0);
    }
    return 0;
}

/* Random requests at any alignment on a node that wants 512 bytes and aligned memory, against a plain array. */
TEST_CO(unaligned_requests_do_what_aligned_ones_do)
{
    struct blk_node *node = open_text("driver=memory,size=64k,align=512,mem-align=512", BLK_O_RDWR, NULL);
    static uint8_t model[64 * KIB], buffer[8 * KIB + 64], check[64 * KIB];
    unsigned seed = 1;

    for (unsigned i = 0; i < 2000; i++) {
        uint64_t offset = (unsigned)rand_r(&seed) % sizeof(model);
        uint64_t length = MIN((uint64_t)(unsigned)rand_r(&seed) % (8 * KIB), sizeof(model) - offset);
        uint8_t *data = buffer + (unsigned)rand_r(&seed) % 64;
        struct iovec iov[2] = { { data, length / 3 }, { data + length / 3, length - length / 3 } };
        switch (rand_r(&seed) % 3) {
        case 0:
            memset(data, (int)i, length);
            memcpy(model + offset, data, length);
            assert_int_equal(blk_co_writev(node, offset, length, iov, 2, 0), 0);
            break;
        case 1:
            memset(model + offset, 0, length);
            assert_int_equal(blk_co_write_zeroes(node, offset, length, 0), 0);
            break;
        default:
            assert_int_equal(blk_co_readv(node, offset, length, iov, 2), 0);
            assert_memory_equal(data, model + offset, length);
        }
    }
    assert_int_equal(blk_co_read(node, 0, check, sizeof(check)), 0);
    assert_memory_equal(check, model, sizeof(model));
    return blk_co_node_unref(node);
}

struct neighbour {
    struct blk_front *front;
    uint64_t offset, length;
    uint8_t value;
    unsigned *running;
};

static coroutine_fn void neighbour_co(void *arg)
{
    struct neighbour *n = arg;
    uint8_t data[512];

    for (unsigned i = 0; i < 50; i++) {
        memset(data, n->value + (int)i % 3, n->length);
        assert_int_equal(blk_front_co_write(n->front, n->offset, data, n->length, 0), 0);
        memset(data, 0, n->length);
        assert_int_equal(blk_front_co_read(n->front, n->offset, data, n->length), 0);
        for (unsigned j = 0; j < n->length; j++)
            assert_int_equal(data[j], n->value + i % 3);
    }
    --*n->running;
}

/* Writers of neighbouring parts of one aligned block, some of whole blocks on the mapped path: nobody's bytes are
 * lost. */
TEST_CO(read_modify_write_loses_no_neighbour)
{
    struct blk_node *node = open_text("driver=memory,size=64k,align=512,latency-ns=20000", BLK_O_RDWR, NULL);
    struct blk_front *front = front_on(node);
    static struct neighbour all[16];
    unsigned running = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
        all[i] = (struct neighbour){ front, i * 128, i % 4 ? 128 : 100, (uint8_t)(10 + i * 8), &running };
        running++;
    }
    for (unsigned i = 0; i < ARRAY_SIZE(all); i++)
        co_start(neighbour_co, &all[i]);
    while (running)
        co_relax();
    return blk_co_front_free(front);
}

/* ---- tracked ranges: each step held until the other has come ---- */

struct background {
    struct blk_front *front;
    uint64_t offset, length;
    uint8_t value;
    bool done;
    int result;
    uint8_t data[BLOCK];
};

static coroutine_fn void background_write_co(void *arg)
{
    struct background *b = arg;

    memset(b->data, b->value, b->length);
    b->result = blk_front_co_write(b->front, b->offset, b->data, b->length, 0);
    b->done = true;
}

static coroutine_fn void co_wait_background(struct background *b)
{
    while (!b->done)
        co_sleep_ns(100000);
    assert_int_equal(b->result, 0);
}

static coroutine_fn void co_let_others_run(void)
{
    for (unsigned i = 0; i < 20; i++)
        co_relax();
}

/* A write of the whole block was mapped before the rewrite of a part of it began, and lands late. */
TEST_CO(a_rewrite_waits_for_mapped_writes_of_its_block)
{
    struct blk_front *front = front_on(open_text("driver=memory,size=64k,align=512", BLK_O_RDWR, NULL));
    struct blk_node *node = blk_front_node(front);
    struct background whole = { .front = front, .offset = 0, .length = 512, .value = 'w' };
    struct background part = { .front = front, .offset = 100, .length = 50, .value = 'p' };
    uint8_t data[512];

    memory_node_hold(node, 1u << BLK_OP_WRITE, 0, 512);
    co_start(background_write_co, &whole);
    memory_node_co_wait_held(node, 1);
    memory_node_hold(node, 0, 0, 0);
    testpoint_hold("block-rewrite-read");
    co_start(background_write_co, &part);
    co_let_others_run();
    memory_node_release(node);
    co_wait_background(&whole);
    testpoint_release("block-rewrite-read");
    co_wait_background(&part);
    assert_int_equal(blk_front_co_read(front, 0, data, sizeof(data)), 0);
    for (unsigned i = 0; i < sizeof(data); i++)
        assert_int_equal(data[i], i >= 100 && i < 150 ? 'p' : 'w');
    testpoint_reset();
    return blk_co_front_free(front);
}

/* A write of the whole block comes while the rewrite has read it and has not written it yet: it waits. */
TEST_CO(a_write_waits_for_the_rewrite_of_its_block)
{
    struct blk_front *front = front_on(open_text("driver=memory,size=64k,align=512", BLK_O_RDWR, NULL));
    struct background part = { .front = front, .offset = 100, .length = 50, .value = 'p' };
    struct background whole = { .front = front, .offset = 0, .length = 1024, .value = 'w' };
    uint8_t data[1024];

    testpoint_hold("block-rewrite-read");
    co_start(background_write_co, &part);
    testpoint_co_wait_held("block-rewrite-read");
    co_start(background_write_co, &whole);
    co_let_others_run();
    assert_false(whole.done);
    testpoint_release("block-rewrite-read");
    co_wait_background(&part);
    co_wait_background(&whole);
    assert_int_equal(blk_front_co_read(front, 0, data, sizeof(data)), 0);
    for (unsigned i = 0; i < sizeof(data); i++)
        assert_int_equal(data[i], 'w');
    testpoint_reset();
    return blk_co_front_free(front);
}

/* Zeroes beside a rewrite are zeroes still, not buffers; those that meet it wait. */
TEST_CO(zeroes_beside_a_rewrite_stay_zeroes)
{
    struct blk_front *front = front_on(open_text("driver=memory,size=64k,align=512", BLK_O_RDWR, NULL));
    struct memory_node *m = memory_node(blk_front_node(front));
    struct background part = { .front = front, .offset = 100, .length = 50, .value = 'p' };
    uint8_t data[512];

    testpoint_hold("block-rewrite-read");
    co_start(background_write_co, &part);
    testpoint_co_wait_held("block-rewrite-read");
    uint64_t writes = m->writes, zeroes = m->zeroes;
    assert_int_equal(blk_co_write_zeroes(blk_front_node(front), 4096, 8192, BLK_REQ_NO_FALLBACK), 0);
    assert_int_equal(m->writes, writes);
    assert_int_equal(m->zeroes, zeroes + 1);
    testpoint_release("block-rewrite-read");
    assert_int_equal(blk_co_write_zeroes(blk_front_node(front), 0, 512, 0), 0);
    co_wait_background(&part);
    assert_int_equal(blk_front_co_read(front, 0, data, sizeof(data)), 0);
    assert_int_equal(data[100], 0); /* it came later */
    testpoint_reset();
    return blk_co_front_free(front);
}

/* While a rewrite waits for its turn the block moves elsewhere: it walks again. */
TEST_CO(a_rewrite_that_waited_looks_where_its_block_is_now)
{
    struct blk_front *front = layer_front("file.size=1M,file.align=512");
    struct layer *layer = blk_front_node(front)->state;
    struct memory_node *m = memory_node(blk_front_node(front)->file);
    struct background first = { .front = front, .offset = 10, .length = 20, .value = '1' };
    struct background second = { .front = front, .offset = 50, .length = 20, .value = '2' };

    fill(blk_front_node(front)->file);
    testpoint_hold("block-rewrite-read");
    co_start(background_write_co, &first);
    testpoint_co_wait_held("block-rewrite-read");
    co_start(background_write_co, &second);
    co_let_others_run();
    layer->place[0] = PLACE_AT + 9;
    testpoint_release("block-rewrite-read");
    co_wait_background(&first);
    co_wait_background(&second);
    assert_int_equal(m->data[10], '1');
    assert_int_equal(m->data[50], byte_at(50));
    assert_int_equal(m->data[9 * BLOCK + 50], '2');
    assert_int_equal(m->data[9 * BLOCK + 70], byte_at(9 * BLOCK + 70));
    testpoint_reset();
    return blk_co_front_free(front);
}

/* ---- what the slow way adds ---- */

TEST_CO(zeroes_written_as_data_are_as_durable)
{
    struct blk_front *front = front_on(
        open_text("driver=memory,size=64k,align=512,zeroes-align=4k", BLK_O_RDWR | BLK_O_UNMAP, NULL));
    struct memory_node *m = memory_node(blk_front_node(front));

    fill(blk_front_node(front));
    assert_int_equal(blk_front_co_write_zeroes(front, 512, 512, BLK_REQ_FUA), 0);
    assert_int_equal(m->fua, 1);
    assert_int_equal(m->data[511], byte_at(511));
    assert_int_equal(m->data[512] | m->data[1023], 0);
    assert_int_equal(m->data[1024], byte_at(1024));
    assert_int_equal(m->zeroes, 0);
    assert_int_equal(blk_co_write_zeroes(blk_front_node(front), 512, 512, BLK_REQ_NO_FALLBACK), -ENOTSUP);
    return blk_co_front_free(front);
}

TEST_CO(long_zeroes_and_discards_go_out_in_pieces)
{
    struct blk_front *front = front_on(open_text(
        "driver=memory,size=64k,max-zeroes=12k,max-discard=20k,discard-align=4k", BLK_O_RDWR | BLK_O_UNMAP, NULL));
    struct memory_node *m = memory_node(blk_front_node(front));

    assert_int_equal(blk_front_co_write_zeroes(front, 0, 64 * KIB, 0), 0);
    assert_int_equal(m->zeroes, 6);
    assert_int_equal(m->writes, 0);
    assert_int_equal(blk_front_co_discard(front, 512, 60 * KIB), 0);
    assert_int_equal(m->discards, 3); /* 4k … 60k */
    return blk_co_front_free(front);
}

TEST_CO(a_node_reads_zeroes_past_its_end_and_takes_no_write_there)
{
    struct blk_node *node = open_text("driver=layer,file.driver=memory,file.size=1M", BLK_O_RDWR, NULL);
    uint8_t data[BLOCK];

    fill(node->file);
    memset(data, 1, sizeof(data));
    assert_int_equal(blk_co_read(node, BLOCKS * BLOCK - 512, data, sizeof(data)), 0);
    assert_int_equal(data[511], byte_at(BLOCKS * BLOCK - 1));
    for (unsigned i = 512; i < sizeof(data); i++)
        assert_int_equal(data[i], 0);
    assert_int_equal(blk_co_write(node, BLOCKS * BLOCK - 512, data, 1024, 0), -EIO);
    assert_int_equal(blk_co_write(node, INT64_MAX - 5, data, 1024, 0), -EFBIG);
    return blk_co_node_unref(node);
}

TEST_CO(what_an_image_was_not_opened_for_is_not_done)
{
    struct blk_node *node = open_text("driver=memory,size=64k,node-name=m", 0, NULL);
    struct error *error = NULL;
    uint8_t data[512] = { 0 };

    assert_null(blk_front_new("w", node, BLK_PERM_WRITE, BLK_PERM_ALL, &error));
    error_free(error);
    struct blk_front *front = blk_front_new("r", node, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, NULL);
    assert_int_equal(blk_front_co_write(front, 0, data, sizeof(data), 0), -EPERM);
    assert_int_equal(blk_front_co_write_zeroes(front, 0, 512, 0), -EPERM);
    assert_int_equal(blk_co_write(node, 0, data, sizeof(data), 0), -EPERM);
    assert_int_equal(memory_node(node)->writes + memory_node(node)->zeroes, 0);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(blk_co_node_unref(node), 0);

    /* Without discard=unmap a discard goes nowhere. */
    front = front_on(open_text("driver=memory,size=64k", BLK_O_RDWR, NULL));
    assert_int_equal(blk_front_co_discard(front, 0, 4096), 0);
    assert_int_equal(blk_co_discard(blk_front_node(front), 0, 4096), 0);
    assert_int_equal(memory_node(blk_front_node(front))->discards, 0);
    return blk_co_front_free(front);
}

/* ---- drain ---- */

struct flood {
    struct blk_front *front;
    struct loop *loop;
    unsigned depth;
    atomic_bool stop;
    _Atomic unsigned in_flight;
    _Atomic uint64_t completed;
};

struct flood_request {
    struct blk_request request;
    struct loop_post post;
    struct flood *flood;
    struct iovec iov;
    uint8_t data[512];
    unsigned seed;
};

static void flood_next(struct flood_request *r)
{
    r->request.op = r->seed % 3 ? BLK_OP_WRITE : BLK_OP_READ;
    r->request.flags = 0;
    /* Every fifth is unaligned, so that both ways are in flight. */
    r->request.offset = ((unsigned)rand_r(&r->seed) % 256) * 512 + (r->seed % 5 ? 0 : 13);
    r->request.length = r->iov.iov_len = r->seed % 5 ? 512 : 77;
    r->request.iov = &r->iov;
    r->request.iov_count = 1;
    blk_submit(r->flood->front, &r->request);
}

static void flood_done(struct blk_request *request, int result)
{
    struct flood_request *r = container_of(request, struct flood_request, request);

    assert_int_equal(result, 0);
    r->flood->completed++;
    if (atomic_load(&r->flood->stop))
        r->flood->in_flight--;
    else
        flood_next(r);
}

static void flood_start(struct loop_post *post) { flood_next(container_of(post, struct flood_request, post)); }

TEST_CO(drain_waits_for_every_loop)
{
    struct blk_node *node = open_text("driver=memory,size=256k,align=512,latency-ns=1000", BLK_O_RDWR, NULL);
    struct blk_front *front = front_on(node);
    struct loop *loops[2] = { loop_thread_start("one", NULL), loop_thread_start("two", NULL) };
    struct flood flood = { .front = front };
    static struct flood_request requests[16];

    for (unsigned i = 0; i < ARRAY_SIZE(requests); i++) {
        struct flood_request *r = &requests[i];
        memset(r, 0, sizeof(*r));
        r->request.done = flood_done;
        r->flood = &flood;
        r->iov.iov_base = r->data;
        r->seed = i + 1;
        r->post.fn = flood_start;
        flood.in_flight++;
        loop_post(loops[i % 2], &r->post);
    }
    for (unsigned round = 0; round < 20; round++) {
        co_sleep_ns(2000000);
        blk_co_drain_begin(node);
        uint64_t writes = memory_node(node)->writes, reads = memory_node(node)->reads;
        co_sleep_ns(2000000);
        assert_int_equal(memory_node(node)->writes, writes);
        assert_int_equal(memory_node(node)->reads, reads);
        blk_drain_end(node);
    }
    assert_true(flood.completed > 20);
    atomic_store(&flood.stop, true);
    while (atomic_load(&flood.in_flight))
        co_sleep_ns(1000000);
    int ret = blk_co_front_free(front);
    loop_thread_stop(loops[0]);
    loop_thread_stop(loops[1]);
    return ret;
}

/* ---- options and permissions ---- */

static void expect_refused(const char *text, unsigned flags, const char *message)
{
    struct error *error AUTO_ERROR = NULL;

    assert_null(open_text(text, flags, &error));
    assert_non_null(error);
    assert_string_equal(error_text(error), message);
}

TEST_CO(bad_options_are_refused_by_name)
{
    expect_refused("driver=memory,siez=5", 0, "Block protocol 'memory' doesn't support the option 'siez'");
    expect_refused("driver=layer,file.driver=memory,foo.bar=1", 0,
                   "Block format 'layer' does not support the option 'foo.bar'");
    expect_refused("driver=nothing", 0, "Unknown driver 'nothing'");
    expect_refused("driver=layer", 0, "A block device must be specified for \"file\"");
    expect_refused("driver=layer,file=nobody", 0, "Cannot find device='nobody' nor node-name='nobody'");
    expect_refused("node-name=x", 0, "Must specify either driver or file");
    return 0;
}

TEST_CO(permissions_of_two_users_must_agree)
{
    struct blk_node *node = open_text("driver=memory,node-name=m", BLK_O_RDWR, NULL);
    struct error *error = NULL;
    struct blk_front *writer = blk_front_new("w", node, BLK_PERM_WRITE, BLK_PERM_CONSISTENT_READ, &error);

    assert_non_null(writer);
    assert_null(blk_front_new("w2", node, BLK_PERM_WRITE, BLK_PERM_ALL, &error));
    assert_string_equal(error_text(error),
                        "Conflicts with use by a front end as 'root', which does not allow 'write' on m");
    error_free(error);
    error = NULL;
    struct blk_front *reader = blk_front_new("r", node, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, &error);
    assert_non_null(reader);
    assert_int_equal(blk_co_front_free(reader), 0);
    blk_co_front_free(writer);
    writer = blk_front_new("w2", node, BLK_PERM_WRITE, BLK_PERM_ALL, &error);
    assert_non_null(writer);
    /* What is refused leaves all as it was: another writer gets in. */
    reader = blk_front_new("r", node, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, NULL);
    assert_int_equal(blk_front_set_perm(reader, BLK_PERM_CONSISTENT_READ, BLK_PERM_CONSISTENT_READ, NULL), -EPERM);
    struct blk_front *other = blk_front_new("w3", node, BLK_PERM_WRITE, BLK_PERM_ALL, NULL);
    assert_non_null(other);
    blk_co_front_free(other);
    blk_co_front_free(reader);
    blk_co_front_free(writer);
    assert_ptr_equal(blk_node_find("m"), node);
    blk_co_node_unref(node);
    assert_null(blk_node_find("m"));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mapped_read_needs_no_coroutine),
        cmocka_unit_test(test_cold_and_slow_places_start_one),
        cmocka_unit_test(test_absent_places_ask_the_backing_child),
        cmocka_unit_test(test_errors_and_bounds),
        cmocka_unit_test(test_the_error_of_any_part_is_the_request_s),
        cmocka_unit_test(test_memory_of_each_part_is_aligned),
        cmocka_unit_test(test_the_limits_of_a_node_hold_on_the_mapped_path),
        cmocka_unit_test(test_unaligned_requests_do_what_aligned_ones_do),
        cmocka_unit_test(test_read_modify_write_loses_no_neighbour),
        cmocka_unit_test(test_a_rewrite_waits_for_mapped_writes_of_its_block),
        cmocka_unit_test(test_a_write_waits_for_the_rewrite_of_its_block),
        cmocka_unit_test(test_zeroes_beside_a_rewrite_stay_zeroes),
        cmocka_unit_test(test_a_rewrite_that_waited_looks_where_its_block_is_now),
        cmocka_unit_test(test_zeroes_written_as_data_are_as_durable),
        cmocka_unit_test(test_long_zeroes_and_discards_go_out_in_pieces),
        cmocka_unit_test(test_a_node_reads_zeroes_past_its_end_and_takes_no_write_there),
        cmocka_unit_test(test_what_an_image_was_not_opened_for_is_not_done),
        cmocka_unit_test(test_drain_waits_for_every_loop),
        cmocka_unit_test(test_bad_options_are_refused_by_name),
        cmocka_unit_test(test_permissions_of_two_users_must_agree),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    loop = loop_new(NULL);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    loop_free(loop);
    return failed;
}
