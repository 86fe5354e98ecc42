/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tests of the board: ways to end, clock, serial port, processors, PCI. */
#include "virtio.h"

void test_hello(void);
void test_reset_port(void);
void test_reset_keyboard(void);
void test_triple_fault(void);
void test_exit_port(void);
void test_panic_port(void);
void test_board(void);
void test_echo(void);
void test_flood(void);
void test_power_button(void);
void test_boot_params(void);
void test_cpuid(void);
void test_processors(void);
void test_pci_access(void);
void test_pci_bars(void);

void test_hello(void) { print("hello from a tiny guest\n"); }

static void __attribute__((noreturn)) wait_for_the_end(void)
{
    for (uint64_t start = timer_us(); timer_us() - start < 2000000;)
        pause();
    fail(__FILE__, __LINE__, "the machine did not reset");
}

void test_reset_port(void)
{
    print("resetting\n");
    outb(0xcf9, 2);
    outb(0xcf9, 6);
    wait_for_the_end();
}

void test_reset_keyboard(void)
{
    print("resetting\n");
    outb(0x64, 0xfe);
    wait_for_the_end();
}

void test_triple_fault(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) none = { 0, 0 };
    print("resetting\n");
    __asm__ volatile("lidt %0; int3" : : "m"(none));
    wait_for_the_end();
}

void test_exit_port(void)
{
    outb(0x501, 0x15);
    wait_for_the_end();
}

void test_panic_port(void)
{
    CHECK(inb(0x505) & 1);
    print("panicking\n");
    outb(0x505, 1);
    wait_for_the_end();
}

/* ---- clock, timer, serial ---- */

static uint8_t cmos(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

static void check_clock(void)
{
    CHECK_EQUAL(0x80, cmos(0x0d) & 0x80);
    while (cmos(0x0a) & 0x80)
        pause();
    CHECK(cmos(0) <= 0x59 && cmos(2) <= 0x59 && cmos(4) <= 0x23);
    CHECK(cmos(0x32) == 0x20); /* the century, in BCD */
    uint8_t second = cmos(0);
    WAIT_FOR(cmos(0) != second);
    cmos(0x0c);
    /* Update interrupts, through the I/O APIC. */
    ioapic_route(8, 0x40, false);
    interrupts_on();
    uint8_t b = cmos(0x0b);
    outb(0x71, b | 0x10);
    uint32_t before = interrupt_count[0x40];
    WAIT_FOR(interrupt_count[0x40] != before);
    CHECK_EQUAL(0x90, cmos(0x0c) & 0x90);
    WAIT_FOR(!(cmos(0x0c) & 0xf0)); /* reading cleared it, but the next second comes */
    outb(0x70, 0x0b);
    outb(0x71, b);
    interrupts_off();
}

static void check_serial(void)
{
    const uint16_t com1 = 0x3f8;
    outb(com1 + 7, 0x5a);
    CHECK_EQUAL(0x5a, inb(com1 + 7));
    /* FIFOs on, loopback: what is sent is received, 16 bytes at most. */
    outb(com1 + 2, 7);
    outb(com1 + 4, 0x10);
    CHECK_EQUAL(0xc0, inb(com1 + 2) & 0xc0);
    for (unsigned i = 0; i < 16; i++) {
        WAIT_FOR(inb(com1 + 5) & 0x20);
        outb(com1, (uint8_t)(0x30 + i));
        WAIT_FOR(inb(com1 + 5) & 1 || i);
    }
    WAIT_FOR(inb(com1 + 5) & 0x40);
    for (unsigned i = 0; i < 16; i++) {
        WAIT_FOR(inb(com1 + 5) & 1);
        CHECK_EQUAL(0x30 + i, inb(com1));
    }
    CHECK_EQUAL(0, inb(com1 + 5) & 1);
    /* Modem lines in loopback: DTR and RTS come back as DSR and CTS. */
    outb(com1 + 4, 0x13);
    CHECK_EQUAL(0x30, inb(com1 + 6) & 0xf0);
    outb(com1 + 4, 0x0b);
    /* The divisor latch. */
    outb(com1 + 3, 0x83);
    outb(com1, 1);
    outb(com1 + 1, 0);
    CHECK_EQUAL(1, inb(com1));
    outb(com1 + 3, 3);
    /* The sender-empty interrupt, once for each time it is enabled or a byte was sent. */
    inb(com1 + 2);
    outb(com1 + 1, 2);
    CHECK_EQUAL(2, inb(com1 + 2) & 0x0f);
    CHECK_EQUAL(1, inb(com1 + 2) & 0x0f);
    outb(com1 + 1, 0);
}

void test_board(void)
{
    uint64_t start = timer_us();
    WAIT_FOR(timer_us() != start);
    check_serial();
    check_clock();
    /* A port where nothing answers. */
    CHECK_EQUAL(0xff, inb(0x2f0));
    CHECK_EQUAL(0xffff, inw(0x2f0));
}

/* ---- for tests of what is at the other end of the serial port ---- */

/* Sends back what it gets, in capital letters, up to a full stop. */
void test_echo(void)
{
    const uint16_t com1 = 0x3f8;
    outb(com1 + 2, 7);
    print("ready\n");
    for (uint8_t c = 0; c != '.';) {
        while (!(inb(com1 + 5) & 1))
            pause();
        c = inb(com1);
        while (!(inb(com1 + 5) & 0x20))
            pause();
        outb(com1, c >= 'a' && c <= 'z' ? (uint8_t)(c - 32) : c);
    }
    print("\n");
}

/* More than any buffer on the way takes; a dot on the second port, if there is one, for each line that was taken. */
void test_flood(void)
{
    for (uint64_t i = 0; i < 6000; i++) {
        print("line %u of the flood, long enough to fill\n", i);
        outb(0x2f8, '.');
    }
}

/* ---- ACPI ---- */

/* The button sets its status bit and, enabled, the system control interrupt; ones written clear it. */
void test_power_button(void)
{
    const uint16_t status = 0x600, enable = 0x602;
    const uint8_t vector = 0x41;
    ioapic_route(9, vector, true);
    CHECK_EQUAL(0, inw(status) & 0x100);
    print("waiting for the button\n");
    while (!(inw(status) & 0x100))
        pause();
    interrupts_on();
    for (uint64_t start = timer_us(); timer_us() - start < 20000;)
        pause();
    CHECK_EQUAL(0, interrupt_count[vector]); /* not enabled */
    outw(enable, 0x100);
    WAIT_FOR(interrupt_count[vector]);
    interrupts_off();
    outw(status, 0x100);
    CHECK_EQUAL(0, inw(status) & 0x100);
    uint32_t seen = interrupt_count[vector];
    interrupts_on();
    for (uint64_t start = timer_us(); timer_us() - start < 20000;)
        pause();
    interrupts_off();
    CHECK(interrupt_count[vector] - seen <= 1); /* one may have been pending; the line is low now */
    /* Pressed while enabled: the interrupt comes by itself. */
    seen = interrupt_count[vector];
    interrupts_on();
    print("waiting for the button again\n");
    while (interrupt_count[vector] == seen)
        pause();
    interrupts_off();
    CHECK_EQUAL(0x100, inw(status) & 0x100);
}

/* ---- what the boot loader left ---- */

static uint32_t load32(const uint8_t *at) { return *(const uint32_t *)at; }

static uint64_t load64(const uint8_t *at) { return *(const uint64_t *)at; }

/* Where the initrd is and what is in it; which memory is there. */
void test_boot_params(void)
{
    uint64_t image = load32(boot_params + 0x218), size = load32(boot_params + 0x21c), sum = 0;
    /* Of a large one only the first and the last page: a KVM in software is slow. */
    bool large = size > 1u << 16;
    for (uint64_t i = 0; i < (large ? 4096 : size); i++)
        sum = sum * 31 + read8(image + i);
    for (uint64_t i = size - 4096; large && i < size; i++)
        sum = sum * 31 + read8(image + i);
    print("initrd at %u size %u sum %x\n", image, size, sum & 0xffffffff);
    print("loader %x cmdline %s\n", boot_params[0x210], (const char *)(uint64_t)load32(boot_params + 0x228));
    for (unsigned i = 0; i < boot_params[0x1e8]; i++) {
        const uint8_t *entry = boot_params + 0x2d0 + i * 20;
        print("e820 %x+%x type %u\n", load64(entry), load64(entry + 8), load32(entry + 16));
    }
}

/* Every leaf that the -cpu option can change. */
void test_cpuid(void)
{
    static const uint32_t leaves[][2] = { { 1, 0 },          { 6, 0 },          { 7, 0 },
                                          { 7, 1 },          { 0xd, 1 },        { 0x80000001, 0 },
                                          { 0x80000007, 0 }, { 0x80000008, 0 }, { 0x40000001, 0 } };
    for (unsigned i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
        uint32_t a, b, c, d;
        __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaves[i][0]), "c"(leaves[i][1]));
        print("%x.%u %x %x %x %x\n", leaves[i][0], leaves[i][1], a, b, c, d);
    }
}

/* ---- processors ---- */

static volatile uint32_t other_id = 0xffffffff;

static void run_other(void) { other_id = lapic_id(); }

void test_processors(void)
{
    CHECK_EQUAL(0, lapic_id());
    start_processor(1, run_other);
    WAIT_FOR(other_id != 0xffffffff);
    CHECK_EQUAL(1, other_id);
}

/* ---- PCI ---- */

void test_pci_access(void)
{
    uint32_t base = pci_read(0, 0x60, 4);
    CHECK_EQUAL(0x29c08086, pci_read(0, 0, 4));
    CHECK_EQUAL(0x29188086, pci_read(31 << 3, 0, 4));
    CHECK_EQUAL(0xffffffff, pci_read(30 << 3, 0, 4));
    CHECK(base & 1);
    uint64_t ecam = base & 0xf0000000u;
    for (unsigned devfn = 0; devfn < 256; devfn++)
        CHECK_EQUAL(pci_read(devfn, 0, 4), read32(ecam + devfn * 4096));
    /* The second bus has nothing; nor has extended configuration space of a device without any. */
    CHECK_EQUAL(0xffffffff, read32(ecam + (1 << 20)));
    CHECK_EQUAL(0xffffffff, read32(ecam + 256));
    /* Parts of a register, and read-only bits. */
    CHECK_EQUAL(0x29c0, pci_read(0, 2, 2));
    CHECK_EQUAL(0x29, pci_read(0, 3, 1));
    pci_write(0, 0, 4, 0);
    CHECK_EQUAL(0x29c08086, pci_read(0, 0, 4));
}

/* Moves a BAR and finds the device at the new place; sizes it; reaches it through configuration space. */
void test_pci_bars(void)
{
    struct device device;
    device_open(&device, 0);
    uint64_t capacity = blk_capacity(&device);
    uint64_t old = pci_bar(device.devfn, 4);
    pci_write(device.devfn, 4, 2, 0);
    pci_write(device.devfn, 0x20, 4, 0xffffffff);
    pci_write(device.devfn, 0x24, 4, 0xffffffff);
    uint32_t size = ~(pci_read(device.devfn, 0x20, 4) & ~15u) + 1;
    CHECK_EQUAL(0x4000, size);
    CHECK_EQUAL(0xffffffff, pci_read(device.devfn, 0x24, 4));
    uint64_t place = 0xe0000000;
    pci_write(device.devfn, 0x20, 4, (uint32_t)place);
    pci_write(device.devfn, 0x24, 4, 0);
    pci_write(device.devfn, 4, 2, 6);
    CHECK(read32(device.config) != (uint32_t)capacity);
    device.config = device.config - old + place;
    CHECK_EQUAL(capacity, blk_capacity(&device));
    /* The doorbell moved too. */
    device.common = device.common - old + place;
    device.notify = device.notify - old + place;
    device_start(&device, 0, 1, 16);
    static uint8_t sector[512];
    CHECK_EQUAL(BLK_OK, blk_request(&device.queues[0], 0, BLK_IN, 0, sector, sizeof(sector)));
    unsigned at = 0;
    while ((at = pci_capability(device.devfn, 9, at)) && pci_read(device.devfn, at + 3, 1) != 5)
        ;
    CHECK(at);
    pci_write(device.devfn, at + 4, 1, 4);
    pci_write(device.devfn, at + 8, 4, (uint32_t)(device.config - place));
    pci_write(device.devfn, at + 12, 4, 4);
    CHECK_EQUAL((uint32_t)capacity, pci_read(device.devfn, at + 16, 4));
}
