/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A driver that does wrong: the device must ask for a reset, go on after it, and never touch what is not its own. */
#include "virtio.h"

void test_negotiation(void);
void test_negotiation_refused(void);
void test_malformed(void);
void test_malformed_memory(void);
void test_reset_busy(void);
void test_reset_races(void);

#define NOWHERE 0x60000000000ull /* far above any memory */
#define HOLE 0xd0000000ull       /* the PCI window */

static uint8_t data[4096] __attribute__((aligned(4096)));
static struct request_header header;
static volatile uint8_t status;
static struct desc table[64] __attribute__((aligned(16)));

void test_negotiation(void)
{
    struct device device;
    device_open(&device, 0);
    uint64_t features = device_features(&device);
    CHECK(features & FEATURE(F_VERSION_1));
    CHECK(device_negotiate(&device, FEATURE(F_VERSION_1)));
    /* Queue registers hold what is written; the size that is offered is the largest. */
    write16(device.common + COMMON_QUEUE_SELECT, 0);
    CHECK_EQUAL(0, read16(device.common + COMMON_QUEUE_ENABLE));
    uint16_t most = read16(device.common + COMMON_QUEUE_SIZE);
    CHECK(most >= 128);
    queue_setup(&device, 0, 16, 0xffff);
    CHECK_EQUAL(16, read16(device.common + COMMON_QUEUE_SIZE));
    CHECK_EQUAL(1, read16(device.common + COMMON_QUEUE_ENABLE));
    CHECK_EQUAL((uint32_t)(uint64_t)device.queues[0].desc, read32(device.common + COMMON_QUEUE_DESC));
    device_reset(&device);
    write16(device.common + COMMON_QUEUE_SELECT, 0);
    CHECK_EQUAL(most, read16(device.common + COMMON_QUEUE_SIZE));
    CHECK_EQUAL(0, read16(device.common + COMMON_QUEUE_ENABLE));
}

/* Neither a driver of the legacy kind nor one that wants what is not offered. (QEMU lets both pass.) */
void test_negotiation_refused(void)
{
    struct device device;
    device_open(&device, 0);
    CHECK(!device_negotiate(&device, 0));
    device_reset(&device);
    CHECK(!device_negotiate(&device, FEATURE(F_VERSION_1) | FEATURE(60)));
    /* DRIVER_OK without FEATURES_OK starts nothing. */
    write8(device.common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK);
    CHECK(!(device_status(&device) & STATUS_DRIVER_OK));
    device_reset(&device);
    CHECK(device_negotiate(&device, FEATURE(F_VERSION_1)));
}

/* ---- what can be wrong with a ring ---- */

static void good_request(struct queue *queue)
{
    header = (struct request_header){ BLK_IN, 0, 0 };
    describe(queue, 0, &header, 16, DESC_NEXT, 1);
    describe(queue, 1, data, 512, DESC_NEXT | DESC_WRITE, 2);
    describe(queue, 2, (const void *)&status, 1, DESC_WRITE, 0);
}

static void head_too_large(struct queue *queue) { queue_offer(queue, 16); }

static void index_jumps(struct queue *queue)
{
    queue->avail_index = (uint16_t)(queue->avail_index + 100);
    queue_offer(queue, 0);
}

static void next_too_large(struct queue *queue)
{
    queue->desc[1].next = 300;
    queue_offer(queue, 0);
}

static void chain_loops(struct queue *queue)
{
    queue->desc[1].next = 1;
    queue_offer(queue, 0);
}

static void address_nowhere(struct queue *queue)
{
    queue->desc[1].address = NOWHERE;
    queue_offer(queue, 0);
}

static void length_wraps(struct queue *queue)
{
    queue->desc[1].address = ~0ull - 100;
    queue_offer(queue, 0);
}

static void address_in_hole(struct queue *queue)
{
    queue->desc[1].address = HOLE;
    queue_offer(queue, 0);
}

static void address_over_end(struct queue *queue)
{
    queue->desc[1].address = 64ull * 1024 * 1024 - 256; /* of 512 bytes; the guest has 64 MiB */
    queue_offer(queue, 0);
}

static void head_twice(struct queue *queue)
{
    queue_offer(queue, 0);
    queue_offer(queue, 0);
}

static void writable_first(struct queue *queue)
{
    queue->desc[0].flags |= DESC_WRITE;
    queue->desc[1].flags &= (uint16_t)~DESC_WRITE;
    queue_offer(queue, 0);
}

static void empty_buffer(struct queue *queue)
{
    queue->desc[1].length = 0;
    queue_offer(queue, 0);
}

static void no_status(struct queue *queue)
{
    queue->desc[0].flags = 0;
    queue_offer(queue, 0);
}

static void short_header(struct queue *queue)
{
    queue->desc[0].length = 8;
    queue_offer(queue, 0);
}

static void table_odd_length(struct queue *queue)
{
    describe(queue, 0, table, 40, DESC_INDIRECT, 0);
    queue_offer(queue, 0);
}

static void table_nowhere(struct queue *queue)
{
    describe(queue, 0, (const void *)NOWHERE, 64, DESC_INDIRECT, 0);
    queue_offer(queue, 0);
}

static void table_in_table(struct queue *queue)
{
    table[0] = (struct desc){ (uint64_t)(table + 8), 32, DESC_INDIRECT, 0 };
    describe(queue, 0, table, 32, DESC_INDIRECT, 0);
    queue_offer(queue, 0);
}

static void table_loops(struct queue *queue)
{
    table[0] = (struct desc){ (uint64_t)&header, 16, DESC_NEXT, 1 };
    table[1] = (struct desc){ (uint64_t)data, 512, DESC_NEXT | DESC_WRITE, 1 };
    describe(queue, 0, table, sizeof(table), DESC_INDIRECT, 0);
    queue_offer(queue, 0);
}

static void table_next_too_large(struct queue *queue)
{
    table[0] = (struct desc){ (uint64_t)&header, 16, DESC_NEXT, 4 };
    describe(queue, 0, table, 64, DESC_INDIRECT, 0);
    queue_offer(queue, 0);
}

struct mistake {
    const char *name;
    void (*spoil)(struct queue *queue);
};

static const struct mistake mistakes[] = {
    { "head too large", head_too_large },
    { "available index jumps", index_jumps },
    { "next too large", next_too_large },
    { "chain loops", chain_loops },
    { "readable after writable", writable_first },
    { "empty buffer", empty_buffer },
    { "no status", no_status },
    { "short header", short_header },
    { "table of odd length", table_odd_length },
    { "table in a table", table_in_table },
    { "table loops", table_loops },
    { "table's next too large", table_next_too_large },
};

/* QEMU sees nothing wrong with buffers outside memory. */
static const struct mistake memory_mistakes[] = {
    { "buffer nowhere", address_nowhere },
    { "length wraps", length_wraps },
    { "buffer in the PCI window", address_in_hole },
    { "buffer over the end of memory", address_over_end },
    { "table nowhere", table_nowhere },
    { "head used twice", head_twice },
};

static void make(const struct mistake *mistake, unsigned count)
{
    struct device device;
    device_open(&device, 0);
    for (unsigned i = 0; i < count; i++) {
        print("%s\n", mistake[i].name);
        device_start(&device, FEATURE(F_INDIRECT), 1, 16);
        struct queue *queue = &device.queues[0];
        CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_IN, 0, data, 512));
        good_request(queue);
        mistake[i].spoil(queue);
        queue_ring(queue);
        WAIT_FOR(device_status(&device) & STATUS_NEEDS_RESET);
        device_reset(&device);
    }
    /* And it works. */
    device_start(&device, 0, 1, 16);
    CHECK_EQUAL(BLK_OK, blk_request(&device.queues[0], 0, BLK_IN, 0, data, 512));
}

void test_malformed(void) { make(mistakes, sizeof(mistakes) / sizeof(mistakes[0])); }

/* Rings themselves in the wrong place. */
static void start_with_ring(struct device *device, unsigned reg, uint64_t address)
{
    device_open(device, 0);
    CHECK(device_negotiate(device, FEATURE(F_VERSION_1)));
    queue_setup(device, 0, 16, 0xffff);
    device_reset(device);
    CHECK(device_negotiate(device, FEATURE(F_VERSION_1)));
    write16(device->common + COMMON_QUEUE_SELECT, 0);
    write16(device->common + COMMON_QUEUE_SIZE, 16);
    for (unsigned i = 0; i < 3; i++)
        write32(device->common + COMMON_QUEUE_DESC + i * 8, (uint32_t)(uint64_t)device->queues[0].desc + i * 4096);
    write32(device->common + reg, (uint32_t)address);
    write32(device->common + reg + 4, (uint32_t)(address >> 32));
    write16(device->common + COMMON_QUEUE_ENABLE, 1);
    write8(device->common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

void test_malformed_memory(void)
{
    static const uint64_t wrong[] = { NOWHERE, HOLE, ~0ull & ~15ull, 64ull * 1024 * 1024 - 16 };
    struct device device;
    make(memory_mistakes, sizeof(memory_mistakes) / sizeof(memory_mistakes[0]));
    for (unsigned reg = COMMON_QUEUE_DESC; reg <= COMMON_QUEUE_USED; reg += 8) {
        for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
            start_with_ring(&device, reg, wrong[i]);
            WAIT_FOR(device_status(&device) & STATUS_NEEDS_RESET);
        }
    }
    start_with_ring(&device, COMMON_QUEUE_DESC, (uint64_t)table + 4);
    WAIT_FOR(device_status(&device) & STATUS_NEEDS_RESET);
}

/* Reset while requests are in flight, many times: none of the old ones comes back later. */
void test_reset_busy(void)
{
    static uint8_t big[8][65536] __attribute__((aligned(4096)));
    static struct request_header headers[8];
    static volatile uint8_t statuses[8];
    struct device device;
    device_open(&device, 0);
    for (unsigned round = 0; round < 10; round++) {
        device_start(&device, 0, 1, 64);
        struct queue *queue = &device.queues[0];
        for (uint16_t i = 0; i < 8; i++) {
            headers[i] = (struct request_header){ BLK_OUT, 0, i * 128u };
            describe(queue, (uint16_t)(i * 3), &headers[i], 16, DESC_NEXT, (uint16_t)(i * 3 + 1));
            describe(queue, (uint16_t)(i * 3 + 1), big[i], 65536, DESC_NEXT, (uint16_t)(i * 3 + 2));
            describe(queue, (uint16_t)(i * 3 + 2), (const void *)&statuses[i], 1, DESC_WRITE, 0);
            queue_offer(queue, (uint16_t)(i * 3));
        }
        queue_ring(queue);
        device_reset(&device);
        memset((void *)queue->used, 0, 64);
        for (unsigned i = 0; i < 8; i++)
            statuses[i] = 0xaa;
        for (uint64_t start = timer_us(); timer_us() - start < 10000;)
            pause();
        CHECK_EQUAL(0, queue->used[1]);
        for (unsigned i = 0; i < 8; i++)
            CHECK_EQUAL(0xaa, statuses[i]);
    }
    device_start(&device, 0, 1, 16);
    CHECK_EQUAL(BLK_OK, blk_request(&device.queues[0], 0, BLK_IN, 0, data, 512));
}

/* ---- a reset, while another processor enables a queue ---- */

static struct device raced;
static volatile unsigned resets_begun, enables_done;
static volatile bool race_over;

static void enable_at_reset(void)
{
    while (!race_over) {
        if (enables_done == resets_begun)
            continue;
        write16(raced.common + COMMON_QUEUE_ENABLE, 1);
        enables_done++;
    }
}

/* Does a queue of a device that has been reset go on? It is offered a read. */
static bool is_alive(struct queue *queue)
{
    static struct request_header read;
    static volatile uint8_t done;

    done = 0xaa;
    describe(queue, 0, &read, sizeof(read), DESC_NEXT, 1);
    describe(queue, 1, data, 512, DESC_NEXT | DESC_WRITE, 2);
    describe(queue, 2, (const void *)&done, 1, DESC_WRITE, 0);
    queue_offer(queue, 0);
    queue_ring(queue);
    for (uint64_t start = timer_us(); timer_us() - start < 3000;)
        pause();
    return done != 0xaa;
}

void test_reset_races(void)
{
    enum { ROUNDS = 80 };
    static uint8_t big[65536] __attribute__((aligned(4096)));
    static struct request_header write = { BLK_OUT, 0, 0 };
    static volatile uint8_t written;

    device_open(&raced, 0);
    start_processor(1, enable_at_reset);
    for (unsigned round = 0; round < ROUNDS; round++) {
        device_start(&raced, FEATURE(F_BLK_MQ), 1, 16);
        queue_place(&raced, 1, 16, 0xffff);
        describe(&raced.queues[0], 0, &write, sizeof(write), DESC_NEXT, 1);
        describe(&raced.queues[0], 1, big, sizeof(big), DESC_NEXT, 2);
        describe(&raced.queues[0], 2, (const void *)&written, 1, DESC_WRITE, 0);
        queue_offer(&raced.queues[0], 0);
        queue_ring(&raced.queues[0]);
        resets_begun++;
        device_reset(&raced);
        WAIT_FOR(enables_done == resets_begun);
        CHECK(!is_alive(&raced.queues[1]));
        device_reset(&raced);
    }
    race_over = true;
}
