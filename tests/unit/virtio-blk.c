/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * virtio-blk without KVM: real rings in guest memory, a real front end and loop, and a node that records what reaches
 * it and fails when it is told to. What must hold: status and used length say what happened (virtio 1.2, 2.7.8,
 * 5.2.6), every range of a discard is carried out or none is, the limits that the device shows are kept.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm/virtio_blk.h"

#include <base/coroutine.h>
#include <base/endian.h>
#include <block/image.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u
#define DISK_SECTORS 8192u
#define MAX_DISCARD 1000u /* sectors, as the device below shows them */
#define MAX_ZEROES 2000u
#define RING_SIZE 32u

/* ---- the node: records, and fails the request that it is told to ---- */

struct record {
    enum blk_op op;
    unsigned flags;
    uint64_t offset, length;
};

static struct record records[64];
static unsigned record_count;
static unsigned fail_at; /* the how manieth from 1; 0: none */
static int fail_with;

static coroutine_fn int recorder_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    (void)opts, (void)flags, (void)errp;
    atomic_store(&node->size, DISK_SECTORS * SECTOR);
    return 0;
}

static void recorder_complete(struct loop_task *task)
{
    struct blk_io *io = container_of(task, struct blk_io, task);
    assert_true(record_count < ARRAY_SIZE(records));
    records[record_count++] = (struct record){ io->op, io->flags, io->offset, io->length };
    if (record_count == fail_at) {
        io->done(io, fail_with);
        return;
    }
    for (int i = 0; io->op == BLK_OP_READ && i < io->iov_count; i++)
        memset(io->iov[i].iov_base, 0x5a, io->iov[i].iov_len);
    io->done(io, 0);
}

static void recorder_submit(struct blk_node *node, struct blk_io *io)
{
    (void)node;
    io->task.fn = recorder_complete;
    loop_defer(io->loop, &io->task);
}

static const struct blk_driver recorder = {
    .name = "recorder",
    .flags = BLK_DRIVER_PROTOCOL,
    .co_open = recorder_co_open,
    .submit = recorder_submit,
};
BLK_DRIVER(recorder)

static void check_record(unsigned i, enum blk_op op, unsigned flags, uint64_t sector, uint64_t sectors)
{
    assert_true(i < record_count);
    assert_int_equal(op, records[i].op);
    assert_int_equal(flags, records[i].flags & BLK_REQ_MAY_UNMAP);
    assert_int_equal(sector * SECTOR, records[i].offset);
    assert_int_equal(sectors * SECTOR, records[i].length);
}

/* ---- in place of the machine ---- */

static unsigned machine_stops, quiesce_count;

void machine_event(struct machine *machine, enum machine_event event, int status)
{
    (void)machine, (void)status;
    assert_int_equal(MACHINE_IO_ERROR, event);
    machine_stops++;
}

void quiesce_hold(struct quiesce *quiesce)
{
    (void)quiesce;
    quiesce_count++;
}

void quiesce_release(struct quiesce *quiesce)
{
    (void)quiesce;
    quiesce_count--;
}

static int no_irq_fd(struct virtio_device *vdev, const struct virtio_queue *queue) { return -1; }

static void no_interrupt(struct virtio_device *vdev) {}

static void no_reset(struct virtio_device *vdev) {}

static void features_set(struct virtio_device *vdev, uint64_t features) {}

static const struct virtio_transport_ops transport = { no_irq_fd, no_interrupt, no_interrupt };
static const struct virtio_device_ops device_ops = {
    .features_set = features_set,
    .queue_prepare = virtio_blk_queue_prepare,
    .queue_release = virtio_blk_queue_release,
    .queue_process = virtio_blk_queue_process,
    .queue_stopping = virtio_blk_queue_stopping,
    .reset = no_reset,
};

/* ---- the device, and its driver ---- */

enum { AT_DESC = 0, AT_AVAIL = 0x1000, AT_USED = 0x2000, AT_HEADER = 0x3000, AT_OUT = 0x4000, AT_IN = 0x10000 };

static struct loop *loop;
static struct machine machine;
static struct virtio_blk blk;
static struct virtio_blk_queue blk_queue;
static uint16_t available, used_seen;
static uint8_t *out_bytes, *in_bytes; /* what the driver gives and gets, behind the header and in front of the status */

static int co_open_front(void *argument)
{
    struct error *error = NULL;
    struct opts *opts = opts_new();
    opts_set(opts, "driver", "recorder");
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_UNMAP, &error);
    opts_free(opts);
    if (!node)
        fail_msg("%s", error_text(error));
    blk.front = blk_front_new("virtio-blk", node, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL, &error);
    if (!blk.front)
        fail_msg("%s", error_text(error));
    blk_co_node_unref(node);
    return 0;
}

static int co_close_front(void *argument) { return blk_co_front_free(blk.front); }

static void start_queue(uint64_t features)
{
    struct virtio_queue *queue = &blk.vdev.queues[0];
    uint8_t *bytes = memory_at(&machine.memory, 0, 1u << 20);
    memset(bytes, 0, 1u << 20);
    out_bytes = bytes + AT_OUT;
    in_bytes = bytes + AT_IN;
    available = used_seen = 0;
    blk.vdev.features = features | 1ull << VIRTIO_F_VERSION_1;
    blk.vdev.host_features |= features;
    queue->size = RING_SIZE;
    queue->desc = AT_DESC;
    queue->avail = AT_AVAIL;
    queue->used = AT_USED;
    queue->enabled = true;
    virtio_set_status(&blk.vdev, VIRTIO_CONFIG_S_FEATURES_OK);
    virtio_set_status(&blk.vdev, VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
    assert_true(queue->running);
}

static int setup(void **state)
{
    memset(&machine, 0, sizeof(machine));
    memset(&blk, 0, sizeof(blk));
    record_count = fail_at = machine_stops = 0;
    loop = loop_new(NULL);
    machine.loop = loop;
    pthread_mutex_init(&machine.device_lock, NULL);
    assert_int_equal(0, memory_init(&machine.memory, 2u << 20, NULL));
    virtio_init(&blk.vdev, &machine, "virtio-blk-test", &device_ops, 1, 256);
    assert_int_equal(0, virtio_init_queue(&blk.vdev.queues[0], loop, NULL));
    blk.vdev.transport = &transport;
    blk.blk_queues = &blk_queue;
    blk_queue = (struct virtio_blk_queue){ .queue = &blk.vdev.queues[0] };
    blk.serial = "serial-number";
    blk.max_discard_sectors = MAX_DISCARD;
    blk.max_zeroes_sectors = MAX_ZEROES;
    co_run(loop, co_open_front, NULL);
    start_queue(1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES);
    return 0;
}

/* Stops the queue, as a reset of the machine does, and waits until it is back. */
static void stop_queue(void)
{
    struct quiesce quiesce = { 0 };
    device_lock(&machine);
    virtio_quiesce(&blk.vdev, &quiesce);
    device_unlock(&machine);
    while (quiesce_count)
        loop_step(loop, true);
    assert_false(blk.vdev.queues[0].running);
    assert_int_equal(0, blk.vdev.queues[0].in_flight);
}

static int teardown(void **state)
{
    stop_queue();
    co_run(loop, co_close_front, NULL);
    virtio_finish(&blk.vdev);
    memory_finish(&machine.memory);
    pthread_mutex_destroy(&machine.device_lock);
    loop_free(loop);
    return 0;
}

static void describe(unsigned i, uint64_t address, uint32_t length, bool writes, bool more)
{
    struct vring_desc *desc = memory_at(&machine.memory, AT_DESC + i * sizeof(*desc), sizeof(*desc));
    *desc = (struct vring_desc){ htole64(address), htole32(length),
                                 htole16(
                                     (uint16_t)((writes ? VRING_DESC_F_WRITE : 0) | (more ? VRING_DESC_F_NEXT : 0))),
                                 htole16((uint16_t)(i + 1)) };
}

/* Makes a request available: header and `out` bytes, then room for `in` bytes and the status. */
static void offer(uint32_t type, uint64_t sector, uint32_t out, uint32_t in)
{
    struct virtio_blk_outhdr header = { .type = htole32(type), .sector = htole64(sector) };
    struct vring_avail *avail = memory_at(&machine.memory, AT_AVAIL, 6 + 2 * RING_SIZE);
    assert_true(memory_copy_to(&machine.memory, AT_HEADER, &header, sizeof(header)));
    memset(in_bytes, 0xee, in + 1 + 16);
    describe(0, AT_HEADER, sizeof(header), false, true);
    if (out)
        describe(1, AT_OUT, out, false, true);
    describe(out ? 2 : 1, AT_IN, in + 1, true, false);
    if (!out)
        describe(2, 0, 0, false, false);
    avail->ring[available % RING_SIZE] = 0;
    avail->idx = ++available;
    virtio_queue_ring(&blk.vdev.queues[0]);
}

static bool completed(void)
{
    const struct vring_used *used = memory_at(&machine.memory, AT_USED, 6 + 8 * RING_SIZE);
    return used->idx != used_seen;
}

/* The used length of the request that completes next; it is published exactly once. */
static uint32_t take_used(void)
{
    const struct vring_used *used = memory_at(&machine.memory, AT_USED, 6 + 8 * RING_SIZE);
    while (!completed())
        loop_step(loop, true);
    const struct vring_used_elem *elem = &used->ring[used_seen % RING_SIZE];
    assert_int_equal((uint16_t)(used_seen + 1), used->idx);
    used_seen++;
    assert_int_equal(0, elem->id);
    return le32toh(elem->len);
}

/* Carries one out: status and used length must be these, and nothing behind the status may be touched. */
static void check_request(uint32_t type, uint64_t sector, uint32_t out, uint32_t in, uint8_t status, uint32_t written)
{
    offer(type, sector, out, in);
    uint32_t length = take_used();
    assert_int_equal(status, in_bytes[in]);
    assert_int_equal(written, length);
    for (unsigned i = 1; i <= 16; i++)
        assert_int_equal(0xee, in_bytes[in + i]);
}

static void check_filled(const uint8_t *bytes, uint8_t byte, size_t length)
{
    for (size_t i = 0; i < length; i++)
        assert_int_equal(byte, bytes[i]);
}

/* ---- used lengths ---- */

static void used_length_of_success(void **state)
{
    check_request(VIRTIO_BLK_T_IN, 8, 0, 4096, VIRTIO_BLK_S_OK, 4097);
    check_filled(in_bytes, 0x5a, 4096);
    check_request(VIRTIO_BLK_T_IN, 8, 0, 0, VIRTIO_BLK_S_OK, 1);
    check_request(VIRTIO_BLK_T_OUT, 8, 1024, 0, VIRTIO_BLK_S_OK, 1);
    check_record(1, BLK_OP_WRITE, 0, 8, 2);
    check_request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, VIRTIO_BLK_S_OK, 1);
    assert_int_equal(BLK_OP_FLUSH, records[record_count - 1].op);
    check_request(VIRTIO_BLK_T_GET_ID, 0, 0, 20, VIRTIO_BLK_S_OK, 21);
    assert_memory_equal("serial-number\0\0\0\0\0\0\0", in_bytes, 20);
}

/* The device vouches for bytes that it has written, from the first on: all of them or none. */
static void used_length_counts_what_was_written(void **state)
{
    /* Room that a request has no use for is not written: only the status behind it is. */
    check_request(VIRTIO_BLK_T_OUT, 8, 512, 100, VIRTIO_BLK_S_OK, 0);
    check_filled(in_bytes, 0xee, 100);
    check_request(VIRTIO_BLK_T_FLUSH, 0, 0, 100, VIRTIO_BLK_S_OK, 0);
    check_filled(in_bytes, 0xee, 100);
    /* A serial number has 20 bytes, whatever room there is. */
    check_request(VIRTIO_BLK_T_GET_ID, 0, 0, 21, VIRTIO_BLK_S_OK, 0);
    assert_memory_equal("serial-number\0\0\0\0\0\0\0\xee", in_bytes, 21);
    check_request(VIRTIO_BLK_T_GET_ID, 0, 0, 6, VIRTIO_BLK_S_OK, 7);
    assert_memory_equal("serial", in_bytes, 6);
    blk.serial = NULL;
    check_request(VIRTIO_BLK_T_GET_ID, 0, 0, 20, VIRTIO_BLK_S_OK, 21);
    check_filled(in_bytes, 0, 20);
}

static void used_length_of_failure(void **state)
{
    fail_at = 1;
    fail_with = -EIO;
    check_request(VIRTIO_BLK_T_IN, 8, 0, 4096, VIRTIO_BLK_S_IOERR, 0);
    check_filled(in_bytes, 0xee, 4096);
    fail_at = 2;
    check_request(VIRTIO_BLK_T_OUT, 8, 4096, 0, VIRTIO_BLK_S_IOERR, 1);
    fail_at = 3;
    check_request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, VIRTIO_BLK_S_IOERR, 1);
    /* Refused before anything is read or written. */
    check_request(VIRTIO_BLK_T_IN, DISK_SECTORS - 1, 0, 1024, VIRTIO_BLK_S_IOERR, 0);
    check_request(VIRTIO_BLK_T_IN, 0, 0, 1000, VIRTIO_BLK_S_IOERR, 0);
    check_request(77, 0, 0, 512, VIRTIO_BLK_S_UNSUPP, 0);
    check_request(77, 0, 0, 0, VIRTIO_BLK_S_UNSUPP, 1);
    assert_int_equal(3, record_count);
}

/* rerror=ignore says OK to the guest, but what was not read is not said to be written. */
static void used_length_of_an_ignored_error(void **state)
{
    blk_front_set_on_error(blk.front, BLK_ON_ERROR_IGNORE, BLK_ON_ERROR_IGNORE);
    fail_at = 1;
    fail_with = -EIO;
    check_request(VIRTIO_BLK_T_IN, 8, 0, 512, VIRTIO_BLK_S_OK, 0);
    fail_at = 2;
    check_request(VIRTIO_BLK_T_OUT, 8, 512, 0, VIRTIO_BLK_S_OK, 1);
    check_request(VIRTIO_BLK_T_IN, 8, 0, 512, VIRTIO_BLK_S_OK, 513);
}

/* ---- ranges of discard and write zeroes ---- */

static void put_range(unsigned i, uint64_t sector, uint32_t sectors, uint32_t flags)
{
    struct virtio_blk_discard_write_zeroes range = { htole64(sector), htole32(sectors), htole32(flags) };
    memcpy(out_bytes + i * sizeof(range), &range, sizeof(range));
}

static void check_ranges(uint32_t type, unsigned count, uint8_t status)
{
    check_request(type, 0, count * (uint32_t)sizeof(struct virtio_blk_discard_write_zeroes), 0, status, 1);
}

static void every_range_is_done(void **state)
{
    put_range(0, 8, 16, 0);
    put_range(1, 100, 1, 0);
    put_range(2, DISK_SECTORS - 7, 7, 0);
    check_ranges(VIRTIO_BLK_T_DISCARD, 3, VIRTIO_BLK_S_OK);
    assert_int_equal(3, record_count);
    check_record(0, BLK_OP_DISCARD, 0, 8, 16);
    check_record(1, BLK_OP_DISCARD, 0, 100, 1);
    check_record(2, BLK_OP_DISCARD, 0, DISK_SECTORS - 7, 7);
    /* Each has its own flags. */
    put_range(0, 8, 16, 0);
    put_range(1, 200, 9, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
    put_range(2, 300, 9, 0);
    check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 3, VIRTIO_BLK_S_OK);
    assert_int_equal(6, record_count);
    check_record(3, BLK_OP_WRITE_ZEROES, 0, 8, 16);
    check_record(4, BLK_OP_WRITE_ZEROES, BLK_REQ_MAY_UNMAP, 200, 9);
    check_record(5, BLK_OP_WRITE_ZEROES, 0, 300, 9);
    /* A shorter request afterwards does not go on with the ranges of the one before. */
    put_range(0, 50, 2, 0);
    check_ranges(VIRTIO_BLK_T_DISCARD, 1, VIRTIO_BLK_S_OK);
    assert_int_equal(7, record_count);
}

/* The request ends with the range that fails; what is behind it is not tried. */
static void a_range_that_fails_ends_it(void **state)
{
    for (unsigned i = 0; i < 3; i++) {
        record_count = 0;
        fail_at = i + 1;
        fail_with = -EIO;
        for (unsigned j = 0; j < 3; j++)
            put_range(j, 8 + j * 100, 8, 0);
        check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 3, VIRTIO_BLK_S_IOERR);
        assert_int_equal(i + 1, record_count);
    }
}

/* A bad range, wherever it stands, keeps all others from being carried out (5.2.6.2). */
static void a_bad_range_undoes_all(void **state)
{
    static const struct {
        uint64_t sector;
        uint32_t sectors, flags;
        uint8_t discard, zeroes; /* the status */
    } bad[] = {
        { DISK_SECTORS, 1, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR },
        { DISK_SECTORS - 1, 2, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR },
        { UINT64_MAX, 1, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR },
        { 1ull << 55, 8, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR }, /* times 512 it wraps to 0 */
        { 0, 0, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR },
        { 0, MAX_ZEROES + 1, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR },
        { 0, UINT32_MAX, 0, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_IOERR },
        { 0, 1, 2, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_UNSUPP },
        { 0, 1, 1u << 31, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_UNSUPP },
        { 0, 1, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_S_OK },
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        for (unsigned place = 0; place < 3; place++) {
            for (unsigned j = 0; j < 3; j++)
                put_range(j, 8 + j * 100, 8, 0);
            put_range(place, bad[i].sector, bad[i].sectors, bad[i].flags);
            record_count = 0;
            check_ranges(VIRTIO_BLK_T_DISCARD, 3, bad[i].discard);
            assert_int_equal(0, record_count);
            check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 3, bad[i].zeroes);
            assert_int_equal(bad[i].zeroes == VIRTIO_BLK_S_OK ? 3 : 0, record_count);
        }
    }
}

static void limits_are_kept(void **state)
{
    const uint32_t size = sizeof(struct virtio_blk_discard_write_zeroes);
    /* Sectors: as many as shown, and not one more; each of the two has its own limit. */
    put_range(0, 0, MAX_DISCARD, 0);
    check_ranges(VIRTIO_BLK_T_DISCARD, 1, VIRTIO_BLK_S_OK);
    put_range(0, 0, MAX_DISCARD + 1, 0);
    check_ranges(VIRTIO_BLK_T_DISCARD, 1, VIRTIO_BLK_S_IOERR);
    put_range(0, 0, MAX_ZEROES, 0);
    check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 1, VIRTIO_BLK_S_OK);
    put_range(0, 0, MAX_ZEROES + 1, 0);
    check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 1, VIRTIO_BLK_S_IOERR);
    /* Ranges: the same. */
    for (unsigned i = 0; i <= VIRTIO_BLK_MAX_SEGMENTS; i++)
        put_range(i, i * 10, 5, 0);
    record_count = 0;
    check_ranges(VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_MAX_SEGMENTS, VIRTIO_BLK_S_OK);
    assert_int_equal(VIRTIO_BLK_MAX_SEGMENTS, record_count);
    for (unsigned i = 0; i < record_count; i++)
        check_record(i, BLK_OP_DISCARD, 0, i * 10, 5);
    record_count = 0;
    check_ranges(VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_MAX_SEGMENTS + 1, VIRTIO_BLK_S_IOERR);
    check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_MAX_SEGMENTS + 1, VIRTIO_BLK_S_IOERR);
    /* None, and parts of one. */
    for (uint32_t length = 0; length < 3 * size; length++)
        if (length % size || !length)
            check_request(VIRTIO_BLK_T_DISCARD, 0, length, 0, VIRTIO_BLK_S_IOERR, 1);
    assert_int_equal(0, record_count);
}

static void what_was_not_negotiated_is_unsupported(void **state)
{
    put_range(0, 0, 8, 0);
    stop_queue();
    virtio_power_on(&blk.vdev);
    start_queue(1ull << VIRTIO_BLK_F_DISCARD);
    put_range(0, 0, 8, 0);
    check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 1, VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(0, record_count);
    check_ranges(VIRTIO_BLK_T_DISCARD, 1, VIRTIO_BLK_S_OK);
    stop_queue();
    virtio_power_on(&blk.vdev);
    start_queue(1ull << VIRTIO_BLK_F_WRITE_ZEROES);
    put_range(0, 0, 8, 0);
    check_ranges(VIRTIO_BLK_T_DISCARD, 1, VIRTIO_BLK_S_UNSUPP);
    assert_int_equal(1, record_count);
    check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 1, VIRTIO_BLK_S_OK);
}

static void read_only_refuses_changes(void **state)
{
    blk.read_only = true;
    put_range(0, 0, 8, 0);
    check_ranges(VIRTIO_BLK_T_DISCARD, 1, VIRTIO_BLK_S_IOERR);
    check_ranges(VIRTIO_BLK_T_WRITE_ZEROES, 1, VIRTIO_BLK_S_IOERR);
    check_request(VIRTIO_BLK_T_OUT, 0, 512, 0, VIRTIO_BLK_S_IOERR, 1);
    assert_int_equal(0, record_count);
    check_request(VIRTIO_BLK_T_IN, 0, 0, 512, VIRTIO_BLK_S_OK, 513);
}

/* ---- werror=stop ---- */

static void step_until_stopped(void)
{
    while (!machine_stops)
        loop_step(loop, true);
    for (unsigned i = 0; i < 10; i++)
        loop_step(loop, false);
    assert_int_equal(1, machine_stops);
    assert_false(completed());
}

/* A request that stopped the machine goes on with the range that failed, not with the first. */
static void a_stopped_request_goes_on(void **state)
{
    blk_front_set_on_error(blk.front, BLK_ON_ERROR_STOP, BLK_ON_ERROR_STOP);
    fail_at = 2;
    fail_with = -ENOSPC;
    for (unsigned j = 0; j < 3; j++)
        put_range(j, 8 + j * 100, 8, 0);
    offer(VIRTIO_BLK_T_WRITE_ZEROES, 0, 3 * 16, 0);
    step_until_stopped();
    virtio_blk_retry(&blk);
    assert_int_equal(1, take_used());
    assert_int_equal(VIRTIO_BLK_S_OK, in_bytes[0]);
    assert_int_equal(4, record_count);
    check_record(0, BLK_OP_WRITE_ZEROES, 0, 8, 8);
    check_record(1, BLK_OP_WRITE_ZEROES, 0, 108, 8);
    check_record(2, BLK_OP_WRITE_ZEROES, 0, 108, 8);
    check_record(3, BLK_OP_WRITE_ZEROES, 0, 208, 8);
}

/* A reset forgets what waits, without a word to the guest's memory; the queue works afterwards. */
static void a_stopped_request_is_forgotten(void **state)
{
    blk_front_set_on_error(blk.front, BLK_ON_ERROR_STOP, BLK_ON_ERROR_STOP);
    fail_at = 1;
    fail_with = -ENOSPC;
    offer(VIRTIO_BLK_T_OUT, 0, 512, 0);
    step_until_stopped();
    stop_queue();
    assert_false(completed());
    assert_int_equal(0xee, in_bytes[0]);
    virtio_blk_retry(&blk); /* nothing runs: nothing is tried again */
    virtio_power_on(&blk.vdev);
    start_queue(0);
    check_request(VIRTIO_BLK_T_OUT, 0, 512, 0, VIRTIO_BLK_S_OK, 1);
    assert_int_equal(2, record_count);
}

/* ---- the state of the device ---- */

static void status_follows_the_rules(void **state)
{
    struct virtio_device *vdev = &blk.vdev;
    stop_queue();
    virtio_power_on(vdev);
    assert_int_equal(0, atomic_load(&vdev->status));
    /* A feature that is not offered, and a driver that is not of this generation. */
    vdev->features = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_BLK_F_GEOMETRY;
    virtio_set_status(vdev, VIRTIO_CONFIG_S_FEATURES_OK);
    assert_int_equal(0, atomic_load(&vdev->status));
    vdev->features = 1ull << VIRTIO_BLK_F_DISCARD;
    virtio_set_status(vdev, VIRTIO_CONFIG_S_FEATURES_OK);
    assert_int_equal(0, atomic_load(&vdev->status));
    virtio_set_status(vdev, VIRTIO_CONFIG_S_DRIVER_OK);
    assert_int_equal(0, atomic_load(&vdev->status));
    /* Only the device says that it needs a reset. */
    virtio_set_status(vdev, VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_int_equal(VIRTIO_CONFIG_S_DRIVER, atomic_load(&vdev->status));
    start_queue(0);
    virtio_broken(vdev, 0, "for a test");
    assert_true(atomic_load(&vdev->status) & VIRTIO_CONFIG_S_NEEDS_RESET);
    /* A broken device takes nothing more. */
    offer(VIRTIO_BLK_T_IN, 0, 0, 512);
    for (unsigned i = 0; i < 20; i++)
        loop_step(loop, false);
    assert_false(completed());
    assert_int_equal(0, record_count);
    stop_queue();
    virtio_power_on(vdev);
    assert_int_equal(0, atomic_load(&vdev->status));
    start_queue(0);
    check_request(VIRTIO_BLK_T_IN, 0, 0, 512, VIRTIO_BLK_S_OK, 513);
}

/* A queue that is enabled after DRIVER_OK runs too. */
static void a_queue_may_come_late(void **state)
{
    struct virtio_queue *queue = &blk.vdev.queues[0];
    stop_queue();
    virtio_power_on(&blk.vdev);
    blk.vdev.features = 1ull << VIRTIO_F_VERSION_1;
    virtio_set_status(&blk.vdev, VIRTIO_CONFIG_S_FEATURES_OK);
    virtio_set_status(&blk.vdev, VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
    assert_false(queue->running);
    assert_int_equal(256, queue->size); /* as offered, after the reset */
    queue->size = RING_SIZE;
    queue->desc = AT_DESC;
    queue->avail = AT_AVAIL;
    queue->used = AT_USED;
    memset(memory_at(&machine.memory, 0, AT_HEADER), 0, AT_HEADER);
    available = used_seen = 0;
    virtio_enable_queue(queue);
    assert_true(queue->running);
    check_request(VIRTIO_BLK_T_IN, 0, 0, 512, VIRTIO_BLK_S_OK, 513);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(used_length_of_success),
        TEST(used_length_counts_what_was_written),
        TEST(used_length_of_failure),
        TEST(used_length_of_an_ignored_error),
        TEST(every_range_is_done),
        TEST(a_range_that_fails_ends_it),
        TEST(a_bad_range_undoes_all),
        TEST(limits_are_kept),
        TEST(what_was_not_negotiated_is_unsupported),
        TEST(read_only_refuses_changes),
        TEST(a_stopped_request_goes_on),
        TEST(a_stopped_request_is_forgotten),
        TEST(status_follows_the_rules),
        TEST(a_queue_may_come_late),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
