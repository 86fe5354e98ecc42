/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2: writing compressed clusters. Where their bytes lie, who shares a host cluster, what is refused, and that bytes
 * are never given to two, whatever is freed meanwhile.
 */
#include "compress.h"
#include "entropy.h"
#include "qcow2_disk.h"
#include "random.h"
#include "state.h"

#include <base/testpoint.h>
#include <malloc.h>
#include <zstd.h>

#define CLUSTER 4096u
#define DISCARDS (1u << BLK_OP_DISCARD)
#define WRITES (1u << BLK_OP_WRITE)

struct disk {
    struct blk_node *file, *node;
};

static coroutine_fn void co_disk_open(struct disk *d)
{
    d->node = co_open_words("driver=qcow2,file=mem", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
}

static coroutine_fn void co_disk_begin(struct disk *d, uint64_t size, const char *refcount_bits)
{
    AUTO_FREE char *options = xasprintf("cluster_size=4096,refcount_bits=%s", refcount_bits);

    d->file = co_open_words("driver=memory,node-name=mem,size=0", BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    co_create_qcow2_with(d->file, size, options);
    co_disk_open(d);
}

static coroutine_fn void co_disk_end(struct disk *d)
{
    assert_int_equal(blk_co_node_unref(d->node), 0);
    co_assert_clean();
    assert_int_equal(blk_co_node_unref(d->file), 0);
    testpoint_reset();
}

static struct qcow2 *state_of(const struct disk *d) { return d->node->state; }

/* Half of it is noise, so that it does not become smaller than half a cluster. */
static void fill(uint8_t *data, uint8_t value)
{
    uint32_t noise = value * 2654435761u + 1;

    memset(data, value, CLUSTER);
    for (unsigned i = 0; i < CLUSTER / 2; i++) {
        noise = noise * 1664525u + 1013904223u;
        data[i] = (uint8_t)(noise >> 24);
    }
}

static coroutine_fn int co_put(struct disk *d, unsigned number, uint8_t value)
{
    uint8_t data[CLUSTER];

    fill(data, value);
    return blk_co_write(d->node, (uint64_t)number * CLUSTER, data, CLUSTER, BLK_REQ_COMPRESSED);
}

/* A few bytes of host space. */
static coroutine_fn int co_put_small(struct disk *d, unsigned number, uint8_t value)
{
    uint8_t data[CLUSTER];

    memset(data, value, CLUSTER);
    return blk_co_write(d->node, (uint64_t)number * CLUSTER, data, CLUSTER, BLK_REQ_COMPRESSED);
}

static coroutine_fn void co_expect(struct disk *d, unsigned number, const uint8_t *expected)
{
    uint8_t data[CLUSTER];

    assert_int_equal(blk_co_read(d->node, (uint64_t)number * CLUSTER, data, CLUSTER), 0);
    assert_memory_equal(data, expected, CLUSTER);
}

static coroutine_fn void co_expect_noise(struct disk *d, unsigned number, uint8_t value)
{
    uint8_t expected[CLUSTER];

    fill(expected, value);
    co_expect(d, number, expected);
}

static coroutine_fn void co_expect_all(struct disk *d, unsigned number, uint8_t value)
{
    uint8_t expected[CLUSTER];

    memset(expected, value, CLUSTER);
    co_expect(d, number, expected);
}

static uint64_t host_clusters(const struct disk *d) { return div_round_up(blk_node_size(d->file), CLUSTER); }

/* One behind the other, also across the end of a host cluster if the next is free; the file ends with a sector. */
TEST_CO(clusters_share_host_clusters)
{
    struct disk d;

    co_disk_begin(&d, MIB, "16");
    uint64_t before = host_clusters(&d);
    for (unsigned i = 0; i < 24; i++) {
        assert_int_equal(co_put(&d, i, (uint8_t)(i + 1)), 0);
        assert_int_equal(blk_node_size(d.file) % BLK_SECTOR_SIZE, 0);
    }
    assert_int_equal(blk_co_flush(d.node), 0);
    assert_true(host_clusters(&d) - before <= 1 + 16); /* the L2 table; 24 times somewhat more than a half */
    for (unsigned i = 0; i < 24; i++)
        co_expect_noise(&d, i, (uint8_t)(i + 1));
    assert_int_equal(blk_co_node_unref(d.node), 0);
    co_assert_clean();
    co_disk_open(&d);
    for (unsigned i = 0; i < 24; i++)
        co_expect_noise(&d, i, (uint8_t)(i + 1));
    co_disk_end(&d);
    return 0;
}

/* A refcount that can go no higher ends it. */
TEST_CO(narrow_refcounts_are_kept_to)
{
    static const struct {
        const char *bits;
        unsigned max;
    } widths[] = { { "1", 1 }, { "2", 3 }, { "4", 15 } };

    for (size_t w = 0; w < ARRAY_SIZE(widths); w++) {
        struct disk d;
        co_disk_begin(&d, MIB, widths[w].bits);
        uint64_t before = host_clusters(&d);
        for (unsigned i = 0; i < 30; i++)
            assert_int_equal(co_put_small(&d, i, (uint8_t)(i + 1)), 0);
        assert_int_equal(host_clusters(&d) - before, 1 + 30 / widths[w].max + (30 % widths[w].max > 0));
        for (unsigned i = 0; i < 30; i++)
            co_expect_all(&d, i, (uint8_t)(i + 1));
        co_disk_end(&d);
    }
    return 0;
}

TEST_CO(what_is_no_compressed_write)
{
    static uint8_t data[2 * CLUSTER];
    struct disk d;

    co_disk_begin(&d, MIB + 512, "16");
    assert_int_equal(blk_co_write(d.node, 512, data, CLUSTER, BLK_REQ_COMPRESSED), -EINVAL);
    assert_int_equal(blk_co_write(d.node, 0, data, CLUSTER + 512, BLK_REQ_COMPRESSED), -EINVAL);
    assert_int_equal(blk_co_write(d.file, 0, data, CLUSTER, BLK_REQ_COMPRESSED), -ENOTSUP);
    /* There are data: compressed or not, at the place itself or a part of it. */
    assert_int_equal(co_put(&d, 0, 1), 0);
    assert_int_equal(co_put(&d, 0, 2), -EIO);
    co_expect_noise(&d, 0, 1);
    assert_int_equal(blk_co_write(d.node, CLUSTER + 1024, data, 512, 0), 0);
    assert_int_equal(co_put(&d, 1, 2), -EIO);
    assert_int_equal(co_put(&d, 1, 2), -EIO);
    co_expect_all(&d, 1, 0);
    /* Zeroes are none, and the disk's end may cut the last. */
    assert_int_equal(blk_co_write_zeroes(d.node, CLUSTER, CLUSTER, 0), 0);
    assert_int_equal(co_put(&d, 1, 2), 0);
    co_expect_noise(&d, 1, 2);
    memset(data, 7, sizeof(data));
    assert_int_equal(blk_co_write(d.node, MIB, data, 512, BLK_REQ_COMPRESSED), 0);
    uint8_t end[512];
    assert_int_equal(blk_co_read(d.node, MIB, end, 512), 0);
    assert_memory_equal(end, data, 512);
    co_disk_end(&d);
    return 0;
}

/* A front end passes it on, and looks for no mapping first: an allocated cluster would have one. */
TEST_CO(front_ends_pass_it_on)
{
    struct disk d;
    uint8_t data[CLUSTER];

    co_disk_begin(&d, MIB, "16");
    struct blk_front *front = test_front(d.node);
    memset(data, 3, sizeof(data));
    assert_int_equal(blk_front_co_write(front, 0, data, CLUSTER, 0), 0);
    assert_int_equal(blk_front_co_write(front, 0, data, CLUSTER, BLK_REQ_COMPRESSED), -EIO);
    assert_int_equal(blk_front_co_write(front, CLUSTER, data, CLUSTER, BLK_REQ_COMPRESSED), 0);
    assert_true(state_of(&d)->free_bytes != 0);
    co_expect_all(&d, 1, 3);
    assert_int_equal(blk_co_front_free(front), 0);
    co_disk_end(&d);
    return 0;
}

/* All that a host cluster had is discarded, and somebody else gets it: no compressed cluster goes there any more. */
TEST_CO(a_freed_host_cluster_gets_no_more)
{
    uint8_t data[CLUSTER];
    struct disk d;

    co_disk_begin(&d, MIB, "16");
    state_of(&d)->pass_discard[QCOW2_FREED_BY_REQUEST] = false;
    assert_int_equal(co_put_small(&d, 0, 1), 0);
    assert_int_equal(blk_co_discard(d.node, 0, CLUSTER), 0);
    assert_int_equal(blk_co_flush(d.node), 0);
    memset(data, 9, sizeof(data));
    for (unsigned i = 1; i < 4; i++)
        assert_int_equal(blk_co_write(d.node, i * CLUSTER, data, CLUSTER, 0), 0);
    assert_int_equal(co_put_small(&d, 4, 2), 0);
    for (unsigned i = 1; i < 4; i++)
        co_expect_all(&d, i, 9);
    co_expect_all(&d, 4, 2);
    co_disk_end(&d);
    return 0;
}

/* The same while the host is being given it back: what is written then must not go with it. */
TEST_CO(a_host_cluster_that_is_given_back_gets_no_more)
{
    struct disk d;

    co_disk_begin(&d, MIB, "16");
    assert_int_equal(co_put_small(&d, 0, 1), 0);
    assert_int_equal(blk_co_discard(d.node, 0, CLUSTER), 0);
    memory_node_hold(d.file, DISCARDS, 0, MIB);
    assert_int_equal(blk_co_flush(d.node), 0);
    memory_node_co_wait_held(d.file, 1);
    assert_int_equal(co_put_small(&d, 1, 2), 0);
    memory_node_release(d.file);
    assert_int_equal(blk_co_flush(d.node), 0);
    assert_int_equal(blk_co_node_unref(d.node), 0);
    co_disk_open(&d);
    co_expect_all(&d, 1, 2);
    co_disk_end(&d);
    return 0;
}

/* One of several goes: the others stay, the host cluster too. */
TEST_CO(discarding_one_leaves_the_others)
{
    struct disk d;

    co_disk_begin(&d, MIB, "16");
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(co_put_small(&d, i, (uint8_t)(i + 1)), 0);
    for (unsigned i = 0; i < 5; i += 2)
        assert_int_equal(blk_co_discard(d.node, i * CLUSTER, CLUSTER), 0);
    assert_int_equal(blk_co_flush(d.node), 0);
    assert_int_equal(co_put_small(&d, 0, 9), 0);
    co_expect_all(&d, 0, 9);
    co_expect_all(&d, 1, 2);
    co_expect_all(&d, 2, 0);
    co_expect_all(&d, 3, 4);
    co_disk_end(&d);
    return 0;
}

struct writer {
    struct disk *d;
    unsigned number;
    int ret;
    bool done;
};

static coroutine_fn void co_writer(void *arg)
{
    struct writer *w = arg;

    w->ret = co_put(w->d, w->number, (uint8_t)(w->number + 1));
    w->done = true;
}

/* Who makes the file longer writes zeroes over the rest of a sector: nobody gets bytes there before that is done. */
TEST_CO(the_longer_file_overwrites_nobody)
{
    struct writer w[6];
    struct disk d;

    co_disk_begin(&d, MIB, "16");
    assert_int_equal(co_put_small(&d, 20, 1), 0); /* begins a host cluster */
    memory_node_hold(d.file, WRITES | 1u << BLK_OP_WRITE_ZEROES, 0, MIB);
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        w[i] = (struct writer){ .d = &d, .number = i };
        co_start(co_writer, &w[i]);
    }
    memory_node_co_wait_held(d.file, 1);
    co_sleep_ns(2000000);
    memory_node_release(d.file);
    for (unsigned i = 0; i < ARRAY_SIZE(w); i++) {
        while (!w[i].done)
            co_sleep_ns(100000);
        assert_int_equal(w[i].ret, 0);
        co_expect_noise(&d, i, (uint8_t)(i + 1));
    }
    co_disk_end(&d);
    return 0;
}

/* What cannot be written gives its bytes back, and no more than its own. */
TEST_CO(a_failed_write_gives_back_its_own)
{
    struct disk d;

    co_disk_begin(&d, MIB, "16");
    assert_int_equal(co_put_small(&d, 0, 1), 0);
    unsigned fail_at = 0;
    int ret;
    do {
        memory_node_fail(d.file, (struct memory_faults){ .fail_at = ++fail_at, .with = -EIO });
        ret = co_put(&d, 1, 2);
        memory_node_fail(d.file, (struct memory_faults){ 0 });
        assert_true(ret == 0 || ret == -EIO);
    } while (ret < 0);
    assert_int_equal(fail_at, 3); /* the file's end, and the bytes themselves */
    co_expect_noise(&d, 1, 2);
    co_expect_all(&d, 0, 1);
    co_disk_end(&d);
    return 0;
}

/* ---- what is not worth it ---- */

enum { LONG = 65536 };

static void fill_randomly(uint8_t *data, size_t length)
{
    uint64_t seed = 7;

    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)random_below(&seed, 256);
}

/* `data` looks random, and deflate agrees; or else deflate makes it smaller. */
static void expect_random(const uint8_t *data, bool random)
{
    static uint8_t out[LONG];

    assert_int_equal(qcow2_looks_random(data, LONG), random);
    size_t got = qcow2_compress(QCOW2_ZLIB, data, LONG, out, LONG - 1);
    if (random)
        assert_int_equal(got, 0);
    else
        assert_in_range(got, 1, LONG - LONG / 256);
}

static void only_noise_is_not_compressed(void **state)
{
    static uint8_t data[LONG];

    (void)state;
    fill_randomly(data, LONG);
    expect_random(data, true);
    memset(data + 1000, 0, 700); /* a run */
    expect_random(data, false);
    fill_randomly(data, LONG);
    for (unsigned i = 0; i < LONG; i += 32) /* a byte that is somewhat too frequent */
        data[i] = ' ';
    expect_random(data, false);
    fill_randomly(data, LONG);
    memcpy(data + 9000, data + 5500, 900); /* within the window of 4 KiB */
    expect_random(data, false);
    fill_randomly(data, LONG);
    memcpy(data + 20000, data + 5000, 5000); /* outside */
    expect_random(data, true);
    assert_false(qcow2_looks_random(data, 8192)); /* too short to say */
}

/* ---- what a thread keeps for the next cluster ---- */

/* A frame that asks whoever decodes it for a window of 128 MiB. */
static size_t encode_with_window(const uint8_t *data, size_t length, uint8_t *out, size_t out_length)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_inBuffer first = { data, length / 2, 0 }, rest = { data + length / 2, length - length / 2, 0 };
    ZSTD_outBuffer output = { out, out_length, 0 };

    assert_non_null(context);
    assert_false(ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, 27)));
    assert_false(ZSTD_isError(ZSTD_compressStream2(context, &output, &first, ZSTD_e_flush)));
    assert_int_equal(ZSTD_compressStream2(context, &output, &rest, ZSTD_e_end), 0);
    ZSTD_freeCCtx(context);
    return output.pos;
}

static void a_large_window_is_given_back(void **state)
{
    static uint8_t data[LONG], in[2 * LONG], out[LONG];
    size_t length;

    (void)state;
    fill_randomly(data, LONG);
    length = encode_with_window(data, LONG, in, sizeof(in));
    size_t before = mallinfo2().hblkhd; /* of a sanitizer: always 0 */
    for (unsigned i = 0; i < 2; i++) {
        memset(out, 0, LONG);
        assert_int_equal(qcow2_decompress(QCOW2_ZSTD, in, length, out, LONG), 0);
        assert_memory_equal(out, data, LONG);
        assert_true(mallinfo2().hblkhd < before + (64 << 20));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_noise_is_not_compressed), cmocka_unit_test(a_large_window_is_given_back),
        LOOP_TEST(clusters_share_host_clusters),        LOOP_TEST(narrow_refcounts_are_kept_to),
        LOOP_TEST(what_is_no_compressed_write),         LOOP_TEST(front_ends_pass_it_on),
        LOOP_TEST(a_freed_host_cluster_gets_no_more),   LOOP_TEST(a_host_cluster_that_is_given_back_gets_no_more),
        LOOP_TEST(discarding_one_leaves_the_others),    LOOP_TEST(the_longer_file_overwrites_nobody),
        LOOP_TEST(a_failed_write_gives_back_its_own),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
