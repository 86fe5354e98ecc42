/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Tests of what the guest is told of the machine (ACPI 6.4, section 5), and of the real-time clock (MC146818A). */
#include "tiny.h"

void test_acpi(void);
void test_rtc(void);

/* ---- tables ---- */

static uint8_t sum(uint64_t at, uint32_t length)
{
    uint8_t total = 0;
    for (uint32_t i = 0; i < length; i++)
        total = (uint8_t)(total + read8(at + i));
    return total;
}

static uint64_t read64(uint64_t at) { return read32(at) | (uint64_t)read32(at + 4) << 32; }

/* The n-th table of the XSDT with this signature; every table is whole. */
static uint64_t table(const char *signature)
{
    uint64_t rsdp = *(const uint64_t *)(boot_params + 0x70), xsdt, found = 0;
    CHECK_EQUAL(0, memcmp((const void *)rsdp, "RSD PTR ", 8));
    CHECK_EQUAL(0, sum(rsdp, 20));
    CHECK_EQUAL(36, read32(rsdp + 20));
    CHECK_EQUAL(0, sum(rsdp, 36));
    xsdt = read64(rsdp + 24);
    CHECK_EQUAL(0, memcmp((const void *)xsdt, "XSDT", 4));
    CHECK_EQUAL(0, sum(xsdt, read32(xsdt + 4)));
    for (uint32_t i = 36; i < read32(xsdt + 4); i += 8) {
        uint64_t at = read64(xsdt + i);
        CHECK_EQUAL(0, sum(at, read32(at + 4)));
        if (memcmp((const void *)at, signature, 4) == 0)
            found = at;
    }
    CHECK(found);
    return found;
}

/* Are these bytes somewhere in the DSDT? */
static bool dsdt_has(uint64_t dsdt, const char *bytes, uint32_t length)
{
    for (uint32_t i = 36; i + length <= read32(dsdt + 4); i++)
        if (memcmp((const void *)(dsdt + i), bytes, length) == 0)
            return true;
    return false;
}

static void check_madt(uint64_t madt)
{
    unsigned processors = 0, overrides = 0, ioapics = 0;
    CHECK_EQUAL(0xfee00000, read32(madt + 36));
    for (uint64_t at = madt + 44; at < madt + read32(madt + 4); at += read8(at + 1)) {
        CHECK(read8(at + 1) >= 2);
        if (read8(at) == 0) {
            CHECK_EQUAL(processors, read8(at + 3)); /* its APIC ID */
            CHECK_EQUAL(1, read32(at + 4));
            processors++;
        } else if (read8(at) == 1) {
            CHECK_EQUAL(0xfec00000, read32(at + 4));
            ioapics++;
        } else if (read8(at) == 2 && read8(at + 3) == 0) {
            CHECK_EQUAL(2, read32(at + 4)); /* the timer is on input 2 */
            overrides++;
        } else if (read8(at) == 2 && read8(at + 3) == 9) {
            CHECK_EQUAL(9, read32(at + 4));
            CHECK_EQUAL(0x0d, read16(at + 8)); /* level-triggered, active high */
            overrides++;
        }
    }
    CHECK_EQUAL(2, processors);
    CHECK_EQUAL(1, ioapics);
    CHECK_EQUAL(2, overrides);
}

void test_acpi(void)
{
    uint64_t fadt = table("FACP"), dsdt = read64(fadt + 140);
    CHECK_EQUAL(9, read16(fadt + 46));
    CHECK_EQUAL(0x600, read32(fadt + 56));
    CHECK_EQUAL(0x604, read32(fadt + 64));
    CHECK_EQUAL(0x608, read32(fadt + 76));
    CHECK_EQUAL(0x600, read64(fadt + 152));
    CHECK_EQUAL(0xcf9, read64(fadt + 120)); /* the reset register, and what to write */
    CHECK_EQUAL(0x0f, read8(fadt + 128));
    CHECK_EQUAL(read32(fadt + 40), dsdt);
    CHECK_EQUAL(0, memcmp((const void *)read64(fadt + 132), "FACS", 4));
    CHECK_EQUAL(0, read64(fadt + 132) % 64);
    CHECK_EQUAL(0, memcmp((const void *)dsdt, "DSDT", 4));
    CHECK_EQUAL(0, sum(dsdt, read32(dsdt + 4)));
    CHECK(dsdt_has(dsdt, "PCI0", 4) && dsdt_has(dsdt, "_PRT", 4) && dsdt_has(dsdt, "COM1", 4));
    CHECK(dsdt_has(dsdt, "_S5_", 4));
    check_madt(table("APIC"));
    uint64_t mcfg = table("MCFG");
    CHECK_EQUAL(pci_read(0, 0x60, 4) & 0xf0000000u, read64(mcfg + 44));
    CHECK_EQUAL(255, read8(mcfg + 55));
    /* Enabling and disabling by the command port shows in the control register; what it says is what the tables
     * said. */
    outb((uint16_t)read32(fadt + 48), read8(fadt + 53));
    CHECK_EQUAL(0, inw(0x604) & 1);
    outb((uint16_t)read32(fadt + 48), read8(fadt + 52));
    CHECK_EQUAL(1, inw(0x604) & 1);
}

/* ---- the clock ---- */

static uint8_t cmos(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

static void set_cmos(uint8_t index, uint8_t value)
{
    outb(0x70, index);
    outb(0x71, value);
}

static void set_time(uint8_t b, uint8_t hour, uint8_t minute, uint8_t second, uint8_t day, uint8_t month, uint8_t year,
                     uint8_t century)
{
    set_cmos(0x0b, b | 0x80);
    set_cmos(0, second);
    set_cmos(2, minute);
    set_cmos(4, hour);
    set_cmos(7, day);
    set_cmos(8, month);
    set_cmos(9, year);
    set_cmos(0x32, century);
    CHECK_EQUAL(minute, cmos(2)); /* while it is set, it stands still */
    set_cmos(0x0b, b);
}

static void check_time(uint8_t hour, uint8_t minute, uint8_t day, uint8_t month, uint8_t year, uint8_t century)
{
    CHECK_EQUAL(hour, cmos(4));
    CHECK_EQUAL(minute, cmos(2));
    CHECK_EQUAL(day, cmos(7));
    CHECK_EQUAL(month, cmos(8));
    CHECK_EQUAL(year, cmos(9));
    CHECK_EQUAL(century, cmos(0x32));
}

/* How often the interrupt comes in a quarter of a second at this rate, by the flags of register C. */
static uint32_t count_periodic(uint8_t rate)
{
    const uint8_t vector = 0x42;
    ioapic_route(8, vector, false);
    set_cmos(0x0a, 0x20 | rate);
    set_cmos(0x0b, 0x42);
    cmos(0x0c);
    uint32_t before = interrupt_count[vector];
    interrupts_on();
    for (uint64_t start = timer_us(); timer_us() - start < 250000;) {
        if (cmos(0x0c) & 0x40)
            pause();
    }
    interrupts_off();
    set_cmos(0x0b, 2);
    cmos(0x0c);
    return interrupt_count[vector] - before;
}

void test_rtc(void)
{
    /* The end of February in a leap year: a carry through every field but the year. In BCD. */
    set_time(2, 0x23, 0x59, 0x59, 0x29, 0x02, 0x24, 0x20);
    WAIT_FOR(cmos(0) != 0x59);
    check_time(0x00, 0x00, 0x01, 0x03, 0x24, 0x20);
    CHECK_EQUAL(6, cmos(6)); /* a Friday */
    /* The turn of the century, in binary. */
    set_time(6, 23, 59, 59, 31, 12, 99, 19);
    WAIT_FOR(cmos(0) != 59);
    check_time(0, 0, 1, 1, 0, 20);
    /* Twelve hours: noon is 12 PM, midnight 12 AM. */
    set_time(4, 0x80 | 12, 30, 0, 5, 6, 30, 20);
    check_time(0x80 | 12, 30, 5, 6, 30, 20);
    set_cmos(0x0b, 6);
    CHECK_EQUAL(12, cmos(4));
    set_time(4, 12, 30, 0, 5, 6, 30, 20);
    set_cmos(0x0b, 6);
    CHECK_EQUAL(0, cmos(4));
    set_cmos(0x0b, 4);
    CHECK_EQUAL(12, cmos(4));
    /* The alarm: at the second that it names, and not before. Hours and minutes of any kind. */
    set_cmos(1, 0x32);
    set_cmos(3, 0xff);
    set_cmos(5, 0xff);
    set_time(2, 0x10, 0x20, 0x30, 0x05, 0x06, 0x30, 0x20);
    cmos(0x0c);
    uint8_t flags, second;
    for (flags = 0, second = 0; second <= 0x32 && !(flags & 0x20); second = cmos(0))
        flags = cmos(0x0c);
    CHECK(flags & 0x20 || cmos(0x0c) & 0x20);
    CHECK(second >= 0x32);
    CHECK_EQUAL(0, cmos(0x0c) & 0x20);
    /* Of the wrong minute: it does not ring. */
    set_cmos(1, 0x02);
    set_cmos(3, 0x59);
    set_time(2, 0x10, 0x20, 0x00, 0x05, 0x06, 0x30, 0x20);
    cmos(0x0c);
    WAIT_FOR(cmos(0) >= 0x03);
    CHECK_EQUAL(0, cmos(0x0c) & 0x20);
    /* Periodic: rate 8 is 256 Hz. A busy host is late, never early; what a poll finds due interrupts too. */
    uint32_t ticks = count_periodic(8);
    print("%u periodic interrupts\n", ticks);
    CHECK(ticks >= 8 && ticks <= 70);
    CHECK_EQUAL(0, count_periodic(0)); /* rate 0: none */
    /* What firmware looks for: memory above 16 MiB in 64 KiB, of 64 MiB. */
    CHECK_EQUAL((64 - 16) * 16, cmos(0x34) | cmos(0x35) << 8);
    CHECK_EQUAL(63 * 1024, cmos(0x30) | cmos(0x31) << 8);
    CHECK_EQUAL(0x80, cmos(0x0d));
}
