/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tests of interrupts from a virtio device: MSI-X with its masks, the pin, and the event index. */
#include "virtio.h"

#define VECTOR_CONFIG 0x50
#define VECTOR_QUEUE 0x51
#define VECTOR_PIN 0x52

void test_interrupts(void);
void test_interrupt_pin(void);
void test_increments(void);
void test_event_index(void);
void test_races(void);

static uint8_t sector[512] __attribute__((aligned(512)));

static void start_with_vectors(struct device *device, uint64_t features)
{
    device_open(device, 0);
    CHECK(device_negotiate(device, features | FEATURE(F_VERSION_1)));
    msix_enable(device, true);
    msix_set(device, 0, VECTOR_CONFIG);
    msix_set(device, 1, VECTOR_QUEUE);
    write16(device->common + COMMON_CONFIG_VECTOR, 0);
    CHECK_EQUAL(0, read16(device->common + COMMON_CONFIG_VECTOR));
    queue_setup(device, 0, 16, 1);
    CHECK_EQUAL(1, read16(device->common + COMMON_QUEUE_VECTOR));
    write8(device->common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    interrupts_on();
}

static void read_sector(struct device *device)
{
    CHECK_EQUAL(BLK_OK, blk_request(&device->queues[0], 0, BLK_IN, 0, sector, sizeof(sector)));
}

/* Gives a wrong interrupt time to arrive. */
static void let_time_pass(void)
{
    for (uint64_t start = timer_us(); timer_us() - start < 20000;)
        pause();
}

void test_interrupts(void)
{
    struct device device;
    start_with_vectors(&device, 0);
    for (uint32_t i = 1; i <= 5; i++) {
        read_sector(&device);
        WAIT_FOR(interrupt_count[VECTOR_QUEUE] == i);
    }
    /* Masked: nothing comes, it is pending; unmasked: it comes, once. */
    msix_mask(&device, 1, true);
    read_sector(&device);
    WAIT_FOR(msix_pending(&device, 1));
    let_time_pass();
    CHECK_EQUAL(5, interrupt_count[VECTOR_QUEUE]);
    msix_mask(&device, 1, false);
    WAIT_FOR(interrupt_count[VECTOR_QUEUE] == 6);
    CHECK(!msix_pending(&device, 1));
    read_sector(&device);
    WAIT_FOR(interrupt_count[VECTOR_QUEUE] == 7);
    /* Another vector while in use. */
    msix_mask(&device, 1, true);
    msix_set(&device, 1, VECTOR_QUEUE + 0x10);
    read_sector(&device);
    WAIT_FOR(interrupt_count[VECTOR_QUEUE + 0x10] == 1);
    /* The driver wants none. */
    device.queues[0].avail[0] = 1;
    read_sector(&device);
    let_time_pass();
    CHECK_EQUAL(1, interrupt_count[VECTOR_QUEUE + 0x10]);
    CHECK_EQUAL(7, interrupt_count[VECTOR_QUEUE]);
    CHECK_EQUAL(0, interrupt_count[VECTOR_CONFIG]);
    /* A vector that does not exist reads back as none. */
    write16(device.common + COMMON_CONFIG_VECTOR, 500);
    CHECK_EQUAL(0xffff, read16(device.common + COMMON_CONFIG_VECTOR));
    /* A ring that is broken: the configuration interrupt. */
    write16(device.common + COMMON_CONFIG_VECTOR, 0);
    device.queues[0].avail[0] = 0;
    queue_offer(&device.queues[0], 9999);
    queue_ring(&device.queues[0]);
    WAIT_FOR(interrupt_count[VECTOR_CONFIG] == 1);
    CHECK(device_status(&device) & STATUS_NEEDS_RESET);
}

void test_interrupt_pin(void)
{
    struct device device;
    device_open(&device, 0);
    device_start(&device, 0, 1, 16);
    CHECK_EQUAL(1, pci_read(device.devfn, 0x3d, 1));
    unsigned slot = device.devfn >> 3;
    /* PIRQ E to H in turn by slot, which are the I/O APIC's inputs 20 to 23. */
    ioapic_route(16 + 4 + (slot & 3), VECTOR_PIN, true);
    read_sector(&device);
    /* Level-triggered and off at the processor: the status says why, and reading it lowers the line. */
    WAIT_FOR(pci_read(device.devfn, 6, 2) & 8);
    CHECK_EQUAL(1, read8(device.isr));
    CHECK_EQUAL(0, read8(device.isr));
    CHECK_EQUAL(0, pci_read(device.devfn, 6, 2) & 8);
    /* The pin disabled: the status shows it, no interrupt comes. */
    pci_write(device.devfn, 4, 2, 0x406);
    uint32_t before;
    interrupts_on();
    let_time_pass();
    before = interrupt_count[VECTOR_PIN];
    read_sector(&device);
    WAIT_FOR(pci_read(device.devfn, 6, 2) & 8);
    let_time_pass();
    CHECK_EQUAL(before, interrupt_count[VECTOR_PIN]);
    /* Enabled again, the pending one comes; and comes again as long as nobody reads the status. */
    pci_write(device.devfn, 4, 2, 6);
    WAIT_FOR(interrupt_count[VECTOR_PIN] > before);
    interrupts_off();
    CHECK_EQUAL(1, read8(device.isr));
}

/* The driver asks to be told only of the third completion from now on; the device of the request that it waits for. */
void test_event_index(void)
{
    struct device device;
    start_with_vectors(&device, FEATURE(F_EVENT_IDX));
    struct queue *queue = &device.queues[0];
    volatile uint16_t *used_event = queue->avail + 2 + queue->size;
    read_sector(&device);
    let_time_pass();
    uint32_t before = interrupt_count[VECTOR_QUEUE];
    CHECK(before <= 1);
    *used_event = (uint16_t)(queue->used_index + 2);
    read_sector(&device);
    read_sector(&device);
    let_time_pass();
    CHECK_EQUAL(before, interrupt_count[VECTOR_QUEUE]);
    read_sector(&device);
    WAIT_FOR(interrupt_count[VECTOR_QUEUE] == before + 1);
    /* The device waits for the next one, and has said so. */
    volatile uint16_t *avail_event = queue->used + 2 + queue->size * 4;
    WAIT_FOR(*avail_event == queue->avail_index);
    /* Over the wrap of the 16-bit indices nothing is lost: enough requests for one more turn of the ring many times. */
    for (unsigned i = 0; i < 200; i++) {
        *used_event = queue->used_index;
        uint32_t seen = interrupt_count[VECTOR_QUEUE];
        read_sector(&device);
        WAIT_FOR(interrupt_count[VECTOR_QUEUE] == seen + 1);
    }
    interrupts_off();
}

/* ---- two processors at the device at once ---- */

static struct device shared;
static volatile bool meddling, enough;

/* Everything on the board and of the device that may be touched while requests run. */
static void meddle(void)
{
    meddling = true;
    for (uint32_t i = 0; !enough; i++) {
        msix_mask(&shared, 1, i & 1);
        msix_pending(&shared, 1);
        write16(shared.common + COMMON_CONFIG_VECTOR, (uint16_t)(i & 2 ? 0 : 0xffff));
        device_status(&shared);
        read8(shared.isr);
        read32(shared.config);
        pci_read(shared.devfn, 4, 4);
        pci_write(shared.devfn, 4, 2, i & 4 ? 0x406 : 6);
        pci_read(shared.devfn, 0x20, 4);
        if (i % 16 == 0)
            msix_enable(&shared, i & 16);
        outb(0x70, 0x0b);
        inb(0x71);
        inb(0x3f8 + 2);
        outb(0x3f8 + 1, i & 2);
        timer_us();
    }
    outb(0x3f8 + 1, 0);
    meddling = false;
}

/* Requests, breakage and resets on one processor, registers on the other. For ThreadSanitizer; and nothing may get
 * lost. */
void test_races(void)
{
    device_open(&shared, 0);
    msix_enable(&shared, true);
    msix_set(&shared, 0, VECTOR_CONFIG);
    msix_set(&shared, 1, VECTOR_QUEUE);
    interrupts_on();
    start_processor(1, meddle);
    WAIT_FOR(meddling);
    for (unsigned round = 0; round < 6; round++) {
        CHECK(device_negotiate(&shared, FEATURE(F_VERSION_1) | (round & 1 ? FEATURE(F_EVENT_IDX) : 0)));
        queue_setup(&shared, 0, 16, round & 2 ? 1 : 0xffff);
        write8(shared.common + COMMON_STATUS,
               STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        for (unsigned i = 0; i < 40; i++)
            read_sector(&shared);
        if (round == 4) {
            queue_offer(&shared.queues[0], 9999);
            queue_ring(&shared.queues[0]);
            WAIT_FOR(device_status(&shared) & STATUS_NEEDS_RESET);
        }
        device_reset(&shared);
    }
    enough = true;
    WAIT_FOR(!meddling);
    interrupts_off();
}

/* One instruction reads a register of the device and writes it: a stop between the two loses nothing. */
void test_increments(void)
{
    enum { LASTS_US = 2000000, EACH = 500 };
    struct device device;
    uint32_t expected = 0;
    uint64_t lasted = 0, last = timer_us();

    device_open(&device, 0);
    msix_enable(&device, true);
    msix_mask(&device, 0, true);
    volatile uint32_t *data = msix_data(&device, 0);
    *data = 0;
    for (unsigned round = 0; lasted < LASTS_US; round++) {
        for (unsigned i = 0; i < EACH; i++)
            __asm__ volatile("incl %0" : "+m"(*data) : : "memory");
        expected += EACH;
        CHECK_EQUAL(expected, *data);
        print("round %u\n", (uint64_t)round);
        uint64_t now = timer_us();
        lasted += now > last ? now - last : 0; /* it wraps */
        last = now;
    }
}
