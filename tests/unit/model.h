/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A model of a disk: random writes, zeroes, discards, reads and flushes of any alignment on a node, each checked
 * against an array. SEED in the environment repeats a run.
 */
#pragma once

#include "image.h"

#include <base/checked.h>

#define MODEL_MAX (3u * MIB)

struct model {
    uint8_t *data, *buffer;
    uint64_t size;
    bool grows; /* writes may end behind the size */
};

static uint64_t random_state;

static inline void model_seed(void)
{
    const char *seed = getenv("SEED");

    random_state = seed ? strtoull(seed, NULL, 0) : 42;
    print_message("SEED=%llu\n", (unsigned long long)random_state);
}

static inline uint64_t random_below(uint64_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % bound;
}

/* The content is zeroes. */
static inline void model_init(struct model *m, uint64_t size, bool grows)
{
    *m = (struct model){ .data = xcalloc(1, MODEL_MAX), .buffer = xmalloc(MODEL_MAX), .size = size, .grows = grows };
}

static inline void model_finish(struct model *m)
{
    free(m->data);
    free(m->buffer);
}

static inline int random_iov(uint8_t *buffer, uint64_t length, struct iovec *iov, int max)
{
    int count = 0;

    while (length > 0 && count < max - 1) {
        uint64_t part = 1 + random_below(length);
        iov[count++] = (struct iovec){ buffer, part };
        buffer += part;
        length -= part;
    }
    if (length > 0)
        iov[count++] = (struct iovec){ buffer, length };
    return count;
}

struct model_range {
    uint64_t offset, length;
};

static inline struct model_range random_range(const struct model *m)
{
    struct model_range r = { random_below(m->grows ? 2 * MIB : m->size),
                             1 + random_below(random_below(2) ? 200 * KIB : 5000) };

    if (random_below(2)) {
        r.offset = align_down(r.offset, 4096);
        r.length = align_up(r.length, 4096);
    }
    if (!m->grows)
        r.length = MIN(r.length, m->size - r.offset);
    return r;
}

/* A node that needs whole blocks grows by whole blocks. */
static inline void model_change(struct model *m, const struct blk_node *node, const struct model_range *r)
{
    if (r->offset + r->length > m->size)
        m->size = align_up(r->offset + r->length, MAX(512u, node->limits.request_alignment));
}

static inline coroutine_fn void co_model_step(struct model *m, struct blk_node *node)
{
    struct model_range r = random_range(m);
    unsigned flags = random_below(3) ? 0 : BLK_REQ_FUA;
    uint8_t *buffer = m->buffer;
    struct iovec iov[7];
    int count = random_iov(buffer, r.length, iov, 1 + (int)random_below(ARRAY_SIZE(iov)));

    switch (random_below(6)) {
    case 0:
    case 1:
        memset(buffer, (int)(1 + random_below(255)), r.length);
        buffer[0] = (uint8_t)random_below(256);
        memcpy(m->data + r.offset, buffer, r.length);
        assert_int_equal(blk_co_writev(node, r.offset, r.length, iov, count, flags), 0);
        model_change(m, node, &r);
        break;
    case 2:
        memset(m->data + r.offset, 0, r.length);
        assert_int_equal(
            blk_co_write_zeroes(node, r.offset, r.length, flags | (random_below(2) ? BLK_REQ_MAY_UNMAP : 0)), 0);
        model_change(m, node, &r);
        break;
    case 3:
        r.offset = MIN(r.offset, m->size);
        r.length = MIN(r.length, m->size - r.offset);
        assert_int_equal(blk_co_discard(node, r.offset, r.length), 0);
        assert_int_equal(blk_co_read(node, r.offset, buffer, r.length), 0);
        for (uint64_t i = 0; i < r.length; i++) /* each byte as it was, or zero */
            assert_true(buffer[i] == m->data[r.offset + i] || buffer[i] == 0);
        memcpy(m->data + r.offset, buffer, r.length);
        break;
    case 4: assert_int_equal(blk_co_flush(node), 0); break;
    default:
        memset(buffer, 0xa5, r.length);
        assert_int_equal(blk_co_readv(node, r.offset, r.length, iov, count), 0);
        assert_memory_equal(buffer, m->data + r.offset, r.length);
        break;
    }
    assert_int_equal(blk_node_size(node), m->size);
}

static inline coroutine_fn void co_model_steps(struct model *m, struct blk_node *node, unsigned steps)
{
    for (unsigned i = 0; i < steps; i++)
        co_model_step(m, node);
    memset(m->buffer, 0xa5, m->size);
    assert_int_equal(blk_co_read(node, 0, m->buffer, m->size), 0);
    assert_memory_equal(m->buffer, m->data, m->size);
}
