/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Parts of the machine that need no KVM: guest memory's bounds, dispatch by address, AML's encodings, the ring's
 * arithmetic where indices wrap.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm/address_space.h"
#include "../../vmm/aml.h"
#include "../../vmm/memory.h"
#include "../../vmm/virtqueue.h"

#include <base/compiler.h>
#include <base/endian.h>

#include <errno.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

/* ---- memory ---- */

static void memory_is_bounded(void **state)
{
    struct guest_memory memory;
    /* 3 GiB: 2 below the hole, 1 above it. */
    assert_int_equal(0, memory_init(&memory, 3ull << 30, NULL));
    assert_int_equal(2, memory.block_count);
    const uint64_t low = 2ull << 30, high = 1ull << 32, top = high + (1ull << 30);
    assert_non_null(memory_at(&memory, 0, low));
    assert_null(memory_at(&memory, 0, low + 1));
    assert_non_null(memory_at(&memory, low - 1, 1));
    assert_null(memory_at(&memory, low - 1, 2));
    assert_null(memory_at(&memory, low, 1));
    assert_null(memory_at(&memory, high - 1, 1));
    assert_null(memory_at(&memory, high - 1, 2));
    assert_non_null(memory_at(&memory, high, 1ull << 30));
    assert_null(memory_at(&memory, high + 1, 1ull << 30));
    assert_non_null(memory_at(&memory, top - 1, 1));
    assert_null(memory_at(&memory, top, 1));
    assert_null(memory_at(&memory, UINT64_MAX, 1));
    assert_null(memory_at(&memory, UINT64_MAX - 10, 100));
    assert_null(memory_at(&memory, 4096, UINT64_MAX));
    /* The blocks are where they say. */
    uint8_t byte = 0x77, back = 0;
    assert_true(memory_copy_to(&memory, high + 5, &byte, 1));
    assert_true(memory_copy_from(&memory, high + 5, &back, 1));
    assert_int_equal(0x77, back);
    assert_ptr_equal(memory.blocks[1].host + 5, memory_at(&memory, high + 5, 1));
    assert_false(memory_copy_to(&memory, top - 1, "ab", 2));
    assert_false(memory_fill(&memory, low, 0, 1));
    memory_finish(&memory);

    /* What fits below the hole is not split. */
    assert_int_equal(0, memory_init(&memory, MEMORY_HOLE_START, NULL));
    assert_int_equal(1, memory.block_count);
    assert_non_null(memory_at(&memory, 0, MEMORY_HOLE_START));
    memory_finish(&memory);
}

/* ---- address space ---- */

static uint64_t name_read(void *opaque, uint64_t offset, unsigned length) { return *(uint64_t *)opaque + offset; }

static void regions_answer(void **state)
{
    static const struct io_ops ops = { .read = name_read };
    struct address_space space = { 0 };
    uint64_t names[4] = { 1000, 2000, 3000, 4000 };
    struct io_region regions[] = {
        { "c", 0x300, 0x10, &ops, &names[0] },
        { "a", 0x100, 0x10, &ops, &names[1] },
        { "b", 0x110, 0xf0, &ops, &names[2] },
        { "top", UINT64_MAX - 7, 8, &ops, &names[3] },
    };
    for (size_t i = 0; i < ARRAY_SIZE(regions); i++)
        assert_int_equal(0, address_space_add(&space, &regions[i]));
    assert_int_equal(1000, address_space_read(&space, 0x300, 1));
    assert_int_equal(1015, address_space_read(&space, 0x30f, 1));
    assert_int_equal(2012, address_space_read(&space, 0x10c, 4));
    assert_int_equal(3000, address_space_read(&space, 0x110, 4));
    assert_int_equal(4000, address_space_read(&space, UINT64_MAX - 7, 8));
    /* Over an edge, beside, between: nobody. */
    assert_true(address_space_read(&space, 0x10e, 4) == UINT64_MAX);
    assert_true(address_space_read(&space, 0xff, 1) == UINT64_MAX);
    assert_true(address_space_read(&space, 0x200, 1) == UINT64_MAX);
    assert_true(address_space_read(&space, UINT64_MAX - 6, 8) == UINT64_MAX);
    /* What overlaps, is empty or wraps is refused. */
    struct io_region bad[] = {
        { "over the start", 0x2f8, 0x9, &ops, NULL },
        { "over the end", 0x30f, 1, &ops, NULL },
        { "around", 0, 0x1000, &ops, NULL },
        { "inside", 0x150, 1, &ops, NULL },
        { "empty", 0x500, 0, &ops, NULL },
        { "wraps", UINT64_MAX - 20, 40, &ops, NULL },
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_true(address_space_add(&space, &bad[i]) < 0);
    address_space_remove(&space, &regions[2]);
    address_space_remove(&space, &bad[3]); /* is not there */
    assert_true(address_space_read(&space, 0x110, 4) == UINT64_MAX);
    assert_int_equal(2012, address_space_read(&space, 0x10c, 4));
    assert_int_equal(0, address_space_add(&space, &bad[3]));
    address_space_finish(&space);
}

/* A device of 16 bytes that notes which accesses it gets. */
struct noted {
    uint8_t bytes[16];
    char accesses[64];
};

static void note(struct noted *noted, char kind, uint64_t offset, unsigned length)
{
    size_t used = strlen(noted->accesses);

    assert_true(length == 1 || length == 2 || length == 4 || length == 8);
    snprintf(noted->accesses + used, sizeof(noted->accesses) - used, "%c%u@%u ", kind, length, (unsigned)offset);
}

static uint64_t noted_read(void *opaque, uint64_t offset, unsigned length)
{
    struct noted *noted = opaque;
    uint64_t value = 0;

    note(noted, 'r', offset, length);
    memcpy(&value, noted->bytes + offset, length);
    return value;
}

static void noted_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct noted *noted = opaque;

    note(noted, 'w', offset, length);
    assert_true(length == 8 || value >> 8 * length == 0);
    memcpy(noted->bytes + offset, &value, length);
}

/* What a processor may do to memory, and no device expects. */
static void odd_lengths_come_in_pieces(void **state)
{
    static const struct io_ops ops = { noted_read, noted_write };
    struct address_space space = { 0 };
    struct noted noted = { 0 };
    struct io_region region = { "noted", 0x100, 16, &ops, &noted };

    assert_int_equal(0, address_space_add(&space, &region));
    address_space_write(&space, 0x101, 7, UINT64_C(0xff77665544332211));
    assert_string_equal(noted.accesses, "w1@1 w2@2 w4@4 ");
    for (unsigned i = 0; i < 7; i++)
        assert_int_equal(noted.bytes[1 + i], 0x11 * (i + 1));
    assert_int_equal(noted.bytes[8], 0);
    noted.accesses[0] = 0;
    assert_true(address_space_read(&space, 0x101, 7) == UINT64_C(0x77665544332211));
    assert_true(address_space_read(&space, 0x102, 3) == 0x443322);
    assert_true(address_space_read(&space, 0x101, 4) == 0x44332211); /* as it is */
    assert_string_equal(noted.accesses, "r1@1 r2@2 r4@4 r2@2 r1@4 r4@1 ");
    assert_true(address_space_read(&space, 0x10e, 3) >> 16 == UINT64_MAX >> 16); /* the last byte is nobody's */
    address_space_remove(&space, &region);
    address_space_finish(&space);
}

/* ---- AML ---- */

static void check_bytes(struct aml *aml, const void *expected, size_t length)
{
    assert_int_equal(length, aml->length);
    assert_memory_equal(expected, aml->data, length);
    free(aml->data);
}

static void aml_terms(void **state)
{
    struct aml aml = { 0 };
    aml_eisa_id(&aml, "PNP0A08");
    check_bytes(&aml, "\x0c\x41\xd0\x0a\x08", 5);
    aml = (struct aml){ 0 };
    aml_integer(&aml, 1);
    aml_integer(&aml, 2);
    aml_integer(&aml, 0x1234);
    aml_integer(&aml, 0x12345678);
    aml_integer(&aml, 1ull << 32);
    check_bytes(&aml, "\x01\x0a\x02\x0b\x34\x12\x0c\x78\x56\x34\x12\x0e\0\0\0\0\x01\0\0\0", 20);
    aml = (struct aml){ 0 };
    aml_begin_scope(&aml, "\\_SB");
    aml_name(&aml, "X");
    aml_string(&aml, "hi");
    aml_end(&aml);
    check_bytes(&aml, "\x10\x0f\\_SB_\x08X___\x0dhi\0", 16);
}

/* The length of a package counts its own bytes: one up to 63, two up to 4095, then three. */
static void aml_package_lengths(void **state)
{
    for (size_t content = 50; content < 5000; content++) {
        struct aml aml = { 0 };
        aml_begin_package(&aml, 0);
        for (size_t i = 1; i < content; i++)
            aml_byte(&aml, 0);
        aml_end(&aml);
        const uint8_t *at = aml.data + 1;
        size_t more = at[0] >> 6, length = more ? at[0] & 15u : at[0];
        for (size_t i = 1; i <= more; i++)
            length |= (size_t)at[i] << (4 + 8 * (i - 1));
        assert_int_equal(aml.length - 1, length);
        assert_int_equal(content + 1 + more, length);
        assert_int_equal(content + 1 <= 63 ? 0 : content + 2 <= 4095 ? 1 : 2, more);
        free(aml.data);
    }
}

/* ---- virtqueue ---- */

#define RING_SIZE 8u

struct ring {
    struct guest_memory memory;
    struct virtqueue vq;
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
};

static void make_ring(struct ring *ring, bool event_idx)
{
    assert_int_equal(0, memory_init(&ring->memory, 2u << 20, NULL));
    ring->desc = memory_at(&ring->memory, 0, 4096);
    ring->avail = memory_at(&ring->memory, 4096, 4096);
    ring->used = memory_at(&ring->memory, 8192, 4096);
    assert_int_equal(0, virtqueue_init(&ring->vq, &ring->memory, RING_SIZE, 0, 4096, 8192, event_idx, true));
}

/* Through all 65536 indices and over their wrap: every chain comes once, interrupts come exactly where asked for. */
static void ring_wraps(void **state)
{
    for (int event_idx = 0; event_idx < 2; event_idx++) {
        struct ring ring;
        make_ring(&ring, event_idx);
        uint16_t head;
        unsigned interrupts = 0;
        for (uint32_t i = 0; i < 70000; i++) {
            ring.avail->ring[i % RING_SIZE] = (uint16_t)(i * 3 % RING_SIZE);
            if (event_idx)
                ring.avail->ring[RING_SIZE] = (uint16_t)(i / 4 * 4 + 3); /* used_event: every fourth */
            ring.avail->idx = (uint16_t)(i + 1);
            assert_int_equal(1, virtqueue_next(&ring.vq, &head));
            assert_int_equal(i * 3 % RING_SIZE, head);
            assert_int_equal(0, virtqueue_next(&ring.vq, &head));
            virtqueue_put(&ring.vq, head, i);
            interrupts += virtqueue_publish(&ring.vq);
            assert_int_equal((uint16_t)(i + 1), ring.used->idx);
            assert_int_equal(i, ring.used->ring[i % RING_SIZE].len);
            assert_false(virtqueue_enable_doorbell(&ring.vq));
            if (event_idx)
                assert_int_equal((uint16_t)(i + 1), *(uint16_t *)&ring.used->ring[RING_SIZE]);
        }
        /* The first publication always interrupts: what the driver had asked for before is not known. */
        assert_int_equal(event_idx ? 70000 / 4 + 1 : 70000, interrupts);
        memory_finish(&ring.memory);
    }
}

/* A doorbell that is not rung is not needed: what came while it was off is seen when it is turned on. */
static void doorbell_is_not_lost(void **state)
{
    struct ring ring;
    uint16_t head;
    make_ring(&ring, false);
    virtqueue_disable_doorbell(&ring.vq);
    assert_int_equal(VRING_USED_F_NO_NOTIFY, ring.used->flags);
    assert_int_equal(0, virtqueue_next(&ring.vq, &head));
    ring.avail->idx = 1;
    assert_true(virtqueue_enable_doorbell(&ring.vq));
    assert_int_equal(0, ring.used->flags);
    assert_int_equal(1, virtqueue_next(&ring.vq, &head));
    assert_false(virtqueue_enable_doorbell(&ring.vq));
    ring.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
    virtqueue_put(&ring.vq, head, 0);
    assert_false(virtqueue_publish(&ring.vq));
    memory_finish(&ring.memory);
}

static void chain_of_full_length(void **state)
{
    struct ring ring;
    struct iovec iov[RING_SIZE];
    struct virtq_chain chain = { .iov = iov };
    make_ring(&ring, false);
    for (uint16_t i = 0; i < RING_SIZE; i++)
        ring.desc[i] = (struct vring_desc){ 65536u + i * 512u, 512,
                                            (uint16_t)((i >= 3 ? VRING_DESC_F_WRITE : 0) |
                                                       (i < RING_SIZE - 1 ? VRING_DESC_F_NEXT : 0)),
                                            (uint16_t)(i + 1) };
    assert_int_equal(0, virtqueue_read_chain(&ring.vq, 0, &chain));
    assert_int_equal(3, chain.out_count);
    assert_int_equal(5, chain.in_count);
    assert_int_equal(1536, chain.out_length);
    assert_int_equal(2560, chain.in_length);
    assert_ptr_equal(memory_at(&ring.memory, 65536 + 7 * 512, 1), iov[7].iov_base);
    /* One more and it is too long: it can only loop. */
    ring.desc[RING_SIZE - 1].flags |= VRING_DESC_F_NEXT;
    ring.desc[RING_SIZE - 1].next = 7;
    assert_int_equal(-EINVAL, virtqueue_read_chain(&ring.vq, 0, &chain));
    assert_string_equal("a chain is longer than the queue, or loops", ring.vq.error);
    memory_finish(&ring.memory);
}

/* ---- what can be wrong with a ring ---- */

enum { OUT_AT = 65536, TABLE_AT = 131072, INSIDE = 2 << 20 };

struct mistake {
    const char *error;
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
    struct vring_desc table[2];
};

static const struct mistake mistakes[] = {
    { "a descriptor is empty", OUT_AT, 0, 0, 0, { { 0 } } },
    { "a descriptor points outside memory", INSIDE - 511, 512, 0, 0, { { 0 } } },
    { "a descriptor points outside memory", INSIDE, 1, 0, 0, { { 0 } } },
    { "a descriptor points outside memory", UINT64_MAX - 5, 16, 0, 0, { { 0 } } },
    { "a descriptor's next is beyond its table", OUT_AT, 512, VRING_DESC_F_NEXT, RING_SIZE, { { 0 } } },
    { "a descriptor's next is beyond its table", OUT_AT, 512, VRING_DESC_F_NEXT, UINT16_MAX, { { 0 } } },
    { "a chain is longer than the queue, or loops", OUT_AT, 512, VRING_DESC_F_NEXT, 2, { { 0 } } },
    { "an indirect descriptor has a next one", TABLE_AT, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1, { { 0 } } },
    { "an indirect table's length is not a multiple of 16", TABLE_AT, 0, VRING_DESC_F_INDIRECT, 0, { { 0 } } },
    { "an indirect table's length is not a multiple of 16",
      TABLE_AT,
      24,
      VRING_DESC_F_INDIRECT,
      0,
      { { OUT_AT, 8, 0, 0 } } },
    { "an indirect table is not in memory", INSIDE - 16, 32, VRING_DESC_F_INDIRECT, 0, { { 0 } } },
    { "an indirect descriptor is in an indirect table",
      TABLE_AT,
      16,
      VRING_DESC_F_INDIRECT,
      0,
      { { TABLE_AT, 16, VRING_DESC_F_INDIRECT, 0 } } },
    { "a descriptor's next is beyond its table",
      TABLE_AT,
      16,
      VRING_DESC_F_INDIRECT,
      0,
      { { OUT_AT, 8, VRING_DESC_F_NEXT, 1 } } },
    { "a chain is longer than the queue, or loops",
      TABLE_AT,
      32,
      VRING_DESC_F_INDIRECT,
      0,
      { { OUT_AT, 8, VRING_DESC_F_NEXT, 1 }, { OUT_AT, 8, VRING_DESC_F_NEXT, 0 } } },
    { "a readable descriptor follows a writable one",
      TABLE_AT,
      32,
      VRING_DESC_F_INDIRECT,
      0,
      { { OUT_AT, 8, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1 }, { OUT_AT, 8, 0, 0 } } },
};

/* Each is refused with its own sentence, so no other check stands in for it. */
static void malformed_chains_are_told(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(mistakes); i++) {
        struct ring ring;
        struct iovec iov[RING_SIZE];
        struct virtq_chain chain = { .iov = iov };
        make_ring(&ring, false);
        ring.desc[2] = (struct vring_desc){ mistakes[i].address, mistakes[i].length, mistakes[i].flags,
                                            mistakes[i].next };
        assert_true(memory_copy_to(&ring.memory, TABLE_AT, mistakes[i].table, sizeof(mistakes[i].table)));
        assert_int_equal(-EINVAL, virtqueue_read_chain(&ring.vq, 2, &chain));
        assert_string_equal(mistakes[i].error, ring.vq.error);
        memory_finish(&ring.memory);
    }
    /* Not negotiated, an indirect descriptor is refused whatever it says. */
    struct ring ring;
    struct iovec iov[RING_SIZE];
    struct virtq_chain chain = { .iov = iov };
    make_ring(&ring, false);
    ring.vq.indirect = false;
    ring.desc[0] = (struct vring_desc){ TABLE_AT, 16, VRING_DESC_F_INDIRECT, 0 };
    assert_int_equal(-EINVAL, virtqueue_read_chain(&ring.vq, 0, &chain));
    assert_string_equal("an indirect descriptor was not negotiated", ring.vq.error);
    memory_finish(&ring.memory);
}

static void malformed_indices_are_told(void **state)
{
    struct ring ring;
    uint16_t head;
    make_ring(&ring, false);
    ring.avail->idx = RING_SIZE; /* as many as there can be */
    assert_int_equal(1, virtqueue_next(&ring.vq, &head));
    ring.avail->idx = RING_SIZE + 2;
    assert_int_equal(-EINVAL, virtqueue_next(&ring.vq, &head));
    assert_string_equal("the available index jumped by more than the queue size", ring.vq.error);
    memory_finish(&ring.memory);
    make_ring(&ring, false);
    ring.avail->idx = 1;
    ring.avail->ring[0] = RING_SIZE;
    assert_int_equal(-EINVAL, virtqueue_next(&ring.vq, &head));
    assert_string_equal("an available entry is beyond the descriptor table", ring.vq.error);
    memory_finish(&ring.memory);
}

static void malformed_rings_are_told(void **state)
{
    static const struct {
        const char *error;
        uint16_t size;
        uint64_t desc, avail, used;
    } cases[] = {
        { "the queue size is not a power of two up to 1024", 0, 0, 4096, 8192 },
        { "the queue size is not a power of two up to 1024", 12, 0, 4096, 8192 },
        { "the queue size is not a power of two up to 1024", 2048, 0, 65536, 131072 },
        { "a ring is not aligned", 8, 8, 4096, 8192 },
        { "a ring is not aligned", 8, 0, 4097, 8192 },
        { "a ring is not aligned", 8, 0, 4096, 8194 },
        { "a ring is not in memory", 8, INSIDE - 8 * 16 + 16, 4096, 8192 },
        { "a ring is not in memory", 8, 0, INSIDE - 20, 8192 },
        { "a ring is not in memory", 8, 0, 4096, INSIDE - 68 },
        { "a ring is not in memory", 8, 0, 4096, UINT64_MAX - 3 },
    };
    struct guest_memory memory;
    struct virtqueue vq;
    assert_int_equal(0, memory_init(&memory, INSIDE, NULL));
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(-EINVAL, virtqueue_init(&vq, &memory, cases[i].size, cases[i].desc, cases[i].avail,
                                                 cases[i].used, false, true));
        assert_string_equal(cases[i].error, vq.error);
    }
    /* At the very end of memory, each fits. */
    assert_int_equal(0, virtqueue_init(&vq, &memory, 8, INSIDE - 8 * 16, 4096, 8192, false, true));
    assert_int_equal(0, virtqueue_init(&vq, &memory, 8, 0, INSIDE - 22, 8192, false, true));
    assert_int_equal(0, virtqueue_init(&vq, &memory, 8, 0, 4096, INSIDE - 72, false, true));
    memory_finish(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(malformed_chains_are_told),
        cmocka_unit_test(malformed_indices_are_told),
        cmocka_unit_test(malformed_rings_are_told),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(regions_answer),
        cmocka_unit_test(odd_lengths_come_in_pieces),
        cmocka_unit_test(aml_terms),
        cmocka_unit_test(aml_package_lengths),
        cmocka_unit_test(ring_wraps),
        cmocka_unit_test(doorbell_is_not_lost),
        cmocka_unit_test(chain_of_full_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
