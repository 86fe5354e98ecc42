/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tests of virtio-blk requests on an empty disk of 16 MiB (the first virtio-blk; serial number TINY-1). */
#include "virtio.h"

void test_blk_basic(void);
void test_blk_layouts(void);
void test_blk_limits(void);
void test_blk_discard(void);
void test_blk_ranges(void);
void test_blk_used_length(void);
void test_blk_indirect(void);
void test_blk_indirect_last(void);
void test_blk_queues(void);
void test_blk_write_cache(void);
void test_blk_busy(void);
void test_write_forever(void);
void test_read_back(void);

#define SECTOR 512

static uint8_t data[65536] __attribute__((aligned(4096)));
static uint8_t back[65536] __attribute__((aligned(4096)));

static void write_read(struct queue *queue, uint64_t sector, uint32_t length, uint32_t seed)
{
    fill_pattern(data, length, seed);
    memset(back, 0xee, length);
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_OUT, sector, data, length));
    CHECK_EQUAL(BLK_OK, blk_request(queue, 3, BLK_IN, sector, back, length));
    CHECK(is_pattern(back, length, seed));
}

static bool is_zero(const void *bytes, size_t length)
{
    const uint32_t *words = bytes;
    for (size_t i = 0; i < length / 4; i++)
        if (words[i])
            return false;
    return true;
}

void test_blk_basic(void)
{
    struct device device;
    device_open(&device, 0);
    device_start(&device, FEATURE(F_BLK_FLUSH), 1, 16);
    struct queue *queue = &device.queues[0];
    CHECK_EQUAL(32768, blk_capacity(&device));
    /* Never written: zeroes. */
    memset(back, 0xee, 4096);
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_IN, 8, back, 4096));
    CHECK(is_zero(back, 4096));
    write_read(queue, 0, SECTOR, 1);
    write_read(queue, 1, SECTOR, 2);
    write_read(queue, 127, 4096, 3); /* over the border of a cluster, unaligned to 4 KiB */
    write_read(queue, 8192, 65536, 4);
    write_read(queue, 32767, SECTOR, 5); /* the last one */
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_FLUSH, 0, NULL, 0));
    /* The first is still there. */
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_IN, 0, back, SECTOR));
    CHECK(is_pattern(back, SECTOR, 1));
    memset(back, 0, 21);
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_GET_ID, 0, back, 20));
    CHECK_EQUAL(0, memcmp(back, "TINY-1\0\0\0\0\0\0\0\0\0\0\0\0\0", 20));
    CHECK_EQUAL(BLK_UNSUPP, blk_request(queue, 0, 77, 0, NULL, 0));
}

/* Header, data and status cut into odd buffers. */
void test_blk_layouts(void)
{
    static uint8_t header[16];
    static volatile uint8_t status;
    struct device device;
    device_open(&device, 0);
    device_start(&device, 0, 1, 64);
    struct queue *queue = &device.queues[0];
    fill_pattern(data, 1024, 7);
    /* A write: the header byte by byte, then data of 1, 511, 500 and 12 bytes. */
    *(struct request_header *)header = (struct request_header){ BLK_OUT, 0, 40 };
    uint16_t d = 0;
    for (; d < 16; d++)
        describe(queue, d, header + d, 1, DESC_NEXT, (uint16_t)(d + 1));
    static const uint16_t cuts[] = { 1, 511, 500, 12 };
    uint32_t at = 0;
    for (unsigned i = 0; i < 4; at += cuts[i++], d++)
        describe(queue, d, data + at, cuts[i], DESC_NEXT, (uint16_t)(d + 1));
    describe(queue, d, (const void *)&status, 1, DESC_WRITE, 0);
    status = 0xff;
    queue_offer(queue, 0);
    queue_ring(queue);
    uint32_t length;
    CHECK_EQUAL(0, queue_take(queue, &length));
    CHECK_EQUAL(BLK_OK, status);
    CHECK_EQUAL(1, length);
    /* A read: the status in the same buffer as the data's end, header and nothing else readable. */
    *(struct request_header *)header = (struct request_header){ BLK_IN, 0, 40 };
    memset(back, 0xee, 2048);
    describe(queue, 5, header, 16, DESC_NEXT, 9);
    describe(queue, 9, back, 1000, DESC_NEXT | DESC_WRITE, 2);
    describe(queue, 2, back + 1000, 25, DESC_WRITE, 0);
    queue_offer(queue, 5);
    queue_ring(queue);
    CHECK_EQUAL(5, queue_take(queue, &length));
    CHECK_EQUAL(1025, length);
    CHECK_EQUAL(BLK_OK, back[1024]);
    CHECK(is_pattern(back, 1024, 7));
    CHECK_EQUAL(0xee, back[1025]);
}

void test_blk_limits(void)
{
    struct device device;
    device_open(&device, 0);
    device_start(&device, 0, 1, 16);
    struct queue *queue = &device.queues[0];
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_IN, 32768, back, SECTOR));
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_OUT, 32767, data, 1024));
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_IN, 1ull << 63, back, SECTOR));
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_OUT, ~0ull, data, SECTOR));
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_IN, (1ull << 55) - 1, back, SECTOR));
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_IN, 0, back, 100));
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_OUT, 0, data, 513));
    /* The device goes on. */
    write_read(queue, 100, 4096, 9);
}

static uint8_t ranges(struct queue *queue, uint32_t type, uint64_t sector, uint32_t count, uint32_t flags)
{
    static struct range range;
    range = (struct range){ sector, count, flags };
    return blk_request(queue, 0, type, 0, &range, sizeof(range));
}

void test_blk_discard(void)
{
    struct device device;
    device_open(&device, 0);
    uint64_t offered = FEATURE(F_BLK_DISCARD) | FEATURE(F_BLK_WRITE_ZEROES);
    CHECK_EQUAL(offered, device_features(&device) & offered);
    device_start(&device, offered, 1, 16);
    struct queue *queue = &device.queues[0];
    write_read(queue, 256, 65536, 11);
    write_read(queue, 384, 65536, 12);
    /* Zeroes in the middle, with and without giving space back. */
    CHECK_EQUAL(BLK_OK, ranges(queue, BLK_WRITE_ZEROES, 257, 3, 0));
    CHECK_EQUAL(BLK_OK, ranges(queue, BLK_WRITE_ZEROES, 384, 127, 1));
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_IN, 256, back, 65536));
    fill_pattern(data, 65536, 11);
    memset(data + SECTOR, 0, 3 * SECTOR);
    CHECK_EQUAL(0, memcmp(data, back, 4096));
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_IN, 384, back, 65536));
    CHECK(is_zero(back, 127 * SECTOR));
    fill_pattern(data, 65536, 12);
    CHECK_EQUAL(0, memcmp(data + 127 * SECTOR, back + 127 * SECTOR, SECTOR));
    /* A discard leaves what is beside it alone. */
    write_read(queue, 1024, 65536, 13);
    CHECK_EQUAL(BLK_OK, ranges(queue, BLK_DISCARD, 1025, 126, 0));
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_IN, 1024, back, 65536));
    fill_pattern(data, 65536, 13);
    CHECK_EQUAL(0, memcmp(data, back, SECTOR));
    CHECK_EQUAL(0, memcmp(data + 127 * SECTOR, back + 127 * SECTOR, SECTOR));
    /* Refused: flags that mean nothing, ranges beyond the end, none at all. */
    CHECK_EQUAL(BLK_UNSUPP, ranges(queue, BLK_WRITE_ZEROES, 0, 1, 2));
    CHECK_EQUAL(BLK_UNSUPP, ranges(queue, BLK_DISCARD, 0, 1, 1));
    CHECK_EQUAL(BLK_IOERR, ranges(queue, BLK_DISCARD, 32768, 1, 0));
    CHECK_EQUAL(BLK_IOERR, ranges(queue, BLK_WRITE_ZEROES, ~0ull, 1, 0));
    CHECK_EQUAL(BLK_IOERR, ranges(queue, BLK_DISCARD, 0, 0xffffffff, 0));
}

#define MAX_RANGES 16
#define MAX_SECTORS 1000 /* what the device is told to show, of discards and of write zeroes */

static struct range range_list[MAX_RANGES + 1];

static uint8_t range_request(struct queue *queue, uint32_t type, unsigned count)
{
    return blk_request(queue, 0, type, 0, range_list, count * (uint32_t)sizeof(range_list[0]));
}

static void check_zero_sectors(struct queue *queue, uint64_t first, uint64_t from, uint64_t to, uint32_t seed)
{
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_IN, first, back, 65536));
    fill_pattern(data, 65536, seed);
    memset(data + (from - first) * SECTOR, 0, (to - from) * SECTOR);
    CHECK_EQUAL(0, memcmp(data, back, 65536));
}

/* Several ranges in one request, and the limits that configuration space shows. (QEMU shows one range.) */
void test_blk_ranges(void)
{
    struct device device;
    device_open(&device, 0);
    device_start(&device, FEATURE(F_BLK_DISCARD) | FEATURE(F_BLK_WRITE_ZEROES), 1, 16);
    struct queue *queue = &device.queues[0];
    CHECK_EQUAL(MAX_SECTORS, read32(device.config + 36));
    CHECK_EQUAL(MAX_RANGES, read32(device.config + 40));
    CHECK(read32(device.config + 44) >= 1);
    CHECK_EQUAL(MAX_SECTORS, read32(device.config + 48));
    CHECK_EQUAL(MAX_RANGES, read32(device.config + 52));
    CHECK_EQUAL(1, read8(device.config + 56));
    for (unsigned i = 0; i < 3; i++)
        write_read(queue, i * 1024, 65536, 61 + i);
    /* All three are done, and nothing between them. */
    range_list[0] = (struct range){ 1, 2, 0 };
    range_list[1] = (struct range){ 1024 + 10, 20, 1 };
    range_list[2] = (struct range){ 2048, 128, 0 };
    CHECK_EQUAL(BLK_OK, range_request(queue, BLK_WRITE_ZEROES, 3));
    check_zero_sectors(queue, 0, 1, 3, 61);
    check_zero_sectors(queue, 1024, 1024 + 10, 1024 + 30, 62);
    check_zero_sectors(queue, 2048, 2048, 2048 + 128, 63);
    /* One that is wrong, at the end: none is done. */
    range_list[0] = (struct range){ 100, 20, 0 };
    range_list[1] = (struct range){ 32768 - 10, 11, 0 };
    CHECK_EQUAL(BLK_IOERR, range_request(queue, BLK_WRITE_ZEROES, 2));
    range_list[1] = (struct range){ 0, MAX_SECTORS + 1, 0 };
    CHECK_EQUAL(BLK_IOERR, range_request(queue, BLK_WRITE_ZEROES, 2));
    range_list[1] = (struct range){ 0, 1, 4 };
    CHECK_EQUAL(BLK_UNSUPP, range_request(queue, BLK_WRITE_ZEROES, 2));
    check_zero_sectors(queue, 0, 1, 3, 61);
    /* As many as shown, of the length shown, and no more. */
    for (unsigned i = 0; i <= MAX_RANGES; i++)
        range_list[i] = (struct range){ 4096 + i * MAX_SECTORS, MAX_SECTORS, 0 };
    write_read(queue, 4096 + 15 * MAX_SECTORS, 65536, 64);
    CHECK_EQUAL(BLK_IOERR, range_request(queue, BLK_DISCARD, MAX_RANGES + 1));
    CHECK_EQUAL(BLK_IOERR, range_request(queue, BLK_WRITE_ZEROES, MAX_RANGES + 1));
    CHECK_EQUAL(BLK_OK, range_request(queue, BLK_DISCARD, MAX_RANGES));
    CHECK_EQUAL(BLK_OK, range_request(queue, BLK_WRITE_ZEROES, MAX_RANGES));
    check_zero_sectors(queue, 4096 + 15 * MAX_SECTORS, 4096 + 15 * MAX_SECTORS, 4096 + 15 * MAX_SECTORS + 128, 64);
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_DISCARD, 0, range_list, 24));
    CHECK_EQUAL(BLK_IOERR, blk_request(queue, 0, BLK_DISCARD, 0, NULL, 0));
}

/* What the used ring says was written: all up to the status, or (where that is not all) nothing. */
static void check_used(struct queue *queue, uint32_t type, uint64_t sector, uint32_t in, uint8_t status,
                       uint32_t written)
{
    static struct request_header header;
    uint32_t length;
    header = (struct request_header){ type, 0, sector };
    memset(back, 0xee, in + 9);
    describe(queue, 0, &header, sizeof(header), DESC_NEXT, 1);
    describe(queue, 1, back, in + 1, DESC_WRITE, 0);
    queue_offer(queue, 0);
    queue_ring(queue);
    CHECK_EQUAL(0, queue_take(queue, &length));
    CHECK_EQUAL(status, back[in]);
    CHECK_EQUAL(written, length);
    CHECK_EQUAL(0xee, back[in + 1]);
}

void test_blk_used_length(void)
{
    struct device device;
    device_open(&device, 0);
    device_start(&device, FEATURE(F_BLK_FLUSH), 1, 16);
    struct queue *queue = &device.queues[0];
    check_used(queue, BLK_IN, 0, 4096, BLK_OK, 4097);
    check_used(queue, BLK_GET_ID, 0, 20, BLK_OK, 21);
    check_used(queue, BLK_GET_ID, 0, 30, BLK_OK, 0);
    check_used(queue, BLK_FLUSH, 0, 0, BLK_OK, 1);
    check_used(queue, BLK_FLUSH, 0, 511, BLK_OK, 0);
    check_used(queue, BLK_IN, 32768, 512, BLK_IOERR, 0);
    check_used(queue, BLK_IN, 0, 100, BLK_IOERR, 0);
    check_used(queue, 77, 0, 512, BLK_UNSUPP, 0);
    check_used(queue, 77, 0, 0, BLK_UNSUPP, 1);
}

void test_blk_indirect(void)
{
    static struct desc table[16] __attribute__((aligned(16)));
    static struct request_header header;
    static volatile uint8_t status;
    struct device device;
    device_open(&device, 0);
    CHECK(device_features(&device) & FEATURE(F_INDIRECT));
    device_start(&device, FEATURE(F_INDIRECT), 1, 16);
    struct queue *queue = &device.queues[0];
    fill_pattern(data, 4096, 21);
    for (unsigned pass = 0; pass < 2; pass++) {
        uint16_t write = pass ? DESC_WRITE : 0;
        uint8_t *bytes = pass ? back : data;
        header = (struct request_header){ pass ? BLK_IN : BLK_OUT, 0, 64 };
        status = 0xff;
        table[0] = (struct desc){ (uint64_t)&header, 16, DESC_NEXT, 3 };
        for (uint16_t i = 0; i < 8; i++)
            table[3 + i] = (struct desc){ (uint64_t)(bytes + i * 512), 512, (uint16_t)(DESC_NEXT | write),
                                          (uint16_t)(4 + i) };
        table[11] = (struct desc){ (uint64_t)&status, 1, DESC_WRITE, 0 };
        describe(queue, 7, table, sizeof(table), DESC_INDIRECT, 0);
        queue_offer(queue, 7);
        queue_ring(queue);
        CHECK_EQUAL(7, queue_take(queue, NULL));
        CHECK_EQUAL(BLK_OK, status);
    }
    CHECK(is_pattern(back, 4096, 21));
}

/* A direct descriptor, then a table as the chain's last (2.7.5.3.2 has devices take it; QEMU does not). */
void test_blk_indirect_last(void)
{
    static struct desc table[2] __attribute__((aligned(16)));
    static struct request_header header;
    static volatile uint8_t status;
    struct device device;
    device_open(&device, 0);
    device_start(&device, FEATURE(F_INDIRECT), 1, 16);
    struct queue *queue = &device.queues[0];
    write_read(queue, 64, 4096, 22);
    memset(back, 0, 4096);
    header = (struct request_header){ BLK_IN, 0, 64 };
    describe(queue, 1, &header, 16, DESC_NEXT, 2);
    describe(queue, 2, table, sizeof(table), DESC_INDIRECT, 0);
    table[0] = (struct desc){ (uint64_t)back, 4096, DESC_NEXT | DESC_WRITE, 1 };
    table[1] = (struct desc){ (uint64_t)&status, 1, DESC_WRITE, 0 };
    status = 0xff;
    queue_offer(queue, 1);
    queue_ring(queue);
    CHECK_EQUAL(1, queue_take(queue, NULL));
    CHECK_EQUAL(BLK_OK, status);
    CHECK(is_pattern(back, 4096, 22));
}

/* ---- several queues ---- */

static struct device shared;
static volatile bool other_started, other_done;
static uint8_t other_data[4096] __attribute__((aligned(4096))), other_back[4096] __attribute__((aligned(4096)));

static void hammer(struct queue *queue, uint64_t sector, uint8_t *out, uint8_t *in)
{
    for (uint32_t i = 0; i < 20; i++) {
        fill_pattern(out, 4096, 100 + i + (uint32_t)sector);
        CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_OUT, sector + i * 8, out, 4096));
        CHECK_EQUAL(BLK_OK, blk_request(queue, 3, BLK_IN, sector + i * 8, in, 4096));
        CHECK(is_pattern(in, 4096, 100 + i + (uint32_t)sector));
    }
}

static void run_other(void)
{
    other_started = true;
    hammer(&shared.queues[1], 4096, other_data, other_back);
    other_done = true;
}

/* Two processors, each with its own queue, at once; the other queues exist and work too. */
void test_blk_queues(void)
{
    device_open(&shared, 0);
    CHECK(device_features(&shared) & FEATURE(F_BLK_MQ));
    CHECK_EQUAL(4, read16(shared.config + 34));
    CHECK_EQUAL(4, read16(shared.common + COMMON_NUM_QUEUES));
    device_start(&shared, FEATURE(F_BLK_MQ), 4, 64);
    start_processor(1, run_other);
    WAIT_FOR(other_started);
    hammer(&shared.queues[0], 0, data, back);
    WAIT_FOR(other_done);
    hammer(&shared.queues[2], 8192, data, back);
    hammer(&shared.queues[3], 12288, data, back);
    /* A fifth does not exist. */
    write16(shared.common + COMMON_QUEUE_SELECT, 4);
    CHECK_EQUAL(0, read16(shared.common + COMMON_QUEUE_SIZE));
}

void test_blk_write_cache(void)
{
    struct device device;
    device_open(&device, 0);
    uint64_t offered = FEATURE(F_BLK_FLUSH) | FEATURE(F_BLK_CONFIG_WCE);
    CHECK_EQUAL(offered, device_features(&device) & offered);
    device_start(&device, offered, 1, 16);
    struct queue *queue = &device.queues[0];
    CHECK_EQUAL(1, read8(device.config + 32));
    write_read(queue, 0, 4096, 31);
    write8(device.config + 32, 0);
    CHECK_EQUAL(0, read8(device.config + 32));
    write_read(queue, 8, 4096, 32);
    write8(device.config + 32, 1);
    CHECK_EQUAL(1, read8(device.config + 32));
    write_read(queue, 16, 4096, 33);
    CHECK_EQUAL(BLK_OK, blk_request(queue, 0, BLK_FLUSH, 0, NULL, 0));
    /* After a reset it is as at first. */
    write8(device.config + 32, 0);
    device_reset(&device);
    device_start(&device, offered, 1, 16);
    CHECK_EQUAL(1, read8(device.config + 32));
}

/* The whole queue at once, completions in any order, several times. */
void test_blk_busy(void)
{
    static struct request_header headers[64];
    static volatile uint8_t statuses[64];
    struct device device;
    device_open(&device, 0);
    device_start(&device, FEATURE(F_EVENT_IDX), 1, 256);
    struct queue *queue = &device.queues[0];
    fill_pattern(data, 65536, 41);
    for (unsigned round = 0; round < 4; round++) {
        bool reads = round & 1;
        for (uint16_t i = 0; i < 64; i++) {
            headers[i] = (struct request_header){ reads ? BLK_IN : BLK_OUT, 0, 2048 + i * 2u };
            statuses[i] = 0xff;
            describe(queue, (uint16_t)(i * 3), &headers[i], 16, DESC_NEXT, (uint16_t)(i * 3 + 1));
            describe(queue, (uint16_t)(i * 3 + 1), (reads ? back : data) + i * 1024, 1024,
                     (uint16_t)(DESC_NEXT | (reads ? DESC_WRITE : 0)), (uint16_t)(i * 3 + 2));
            describe(queue, (uint16_t)(i * 3 + 2), (const void *)&statuses[i], 1, DESC_WRITE, 0);
            queue_offer(queue, (uint16_t)(i * 3));
        }
        queue_ring(queue);
        uint64_t seen = 0;
        for (unsigned i = 0; i < 64; i++)
            seen |= 1ull << queue_take(queue, NULL) / 3;
        CHECK_EQUAL(~0ull, seen);
        for (unsigned i = 0; i < 64; i++)
            CHECK_EQUAL(BLK_OK, statuses[i]);
    }
    CHECK(is_pattern(back, 65536, 41));
}

/* ---- for tests that end the monitor in the middle ---- */

/* Writes block after block, each with its number, and prints the number when it is flushed. */
void test_write_forever(void)
{
    struct device device;
    device_open(&device, 0);
    device_start(&device, FEATURE(F_BLK_FLUSH), 1, 16);
    for (uint32_t i = 0;; i++) {
        fill_pattern(data, 4096, i);
        CHECK_EQUAL(BLK_OK, blk_request(&device.queues[0], 0, BLK_OUT, i % 4096 * 8, data, 4096));
        CHECK_EQUAL(BLK_OK, blk_request(&device.queues[0], 0, BLK_FLUSH, 0, NULL, 0));
        print("flushed %u\n", (uint64_t)i);
    }
}

/* What write_forever left: as many blocks as hold, from the first on. */
void test_read_back(void)
{
    struct device device;
    device_open(&device, 0);
    device_start(&device, 0, 1, 16);
    uint32_t i = 0;
    for (; i < 4096; i++) {
        CHECK_EQUAL(BLK_OK, blk_request(&device.queues[0], 0, BLK_IN, i * 8, back, 4096));
        if (!is_pattern(back, 4096, i))
            break;
    }
    print("found %u\n", (uint64_t)i);
}
