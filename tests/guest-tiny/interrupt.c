/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Interrupt table, local APIC, I/O APIC, and the start of other processors. An exception fails the test. */
#include "tiny.h"

#define LAPIC 0xfee00000ull
#define LAPIC_ID 0x20
#define LAPIC_EOI 0xb0
#define LAPIC_SPURIOUS 0xf0
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310
#define IOAPIC 0xfec00000ull
#define SPURIOUS_VECTOR 0xff
#define AP_PAGE 0x8000

struct gate {
    uint16_t low, selector, flags, middle;
    uint32_t high, zero;
};

struct frame {
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

extern uint8_t interrupt_stubs[], ap_start[], ap_end[];

volatile uint32_t interrupt_count[256];
static struct gate idt[256];
static void (*volatile ap_function)(void);
static volatile bool ap_done;

void interrupt(const struct frame *frame);
void interrupt(const struct frame *frame)
{
    if (frame->vector < 32) {
        print("exception %u error %x at %x\n", frame->vector, frame->error, frame->rip);
        fail(__FILE__, __LINE__, "exception");
    }
    interrupt_count[frame->vector]++;
    if (frame->vector != SPURIOUS_VECTOR)
        write32(LAPIC + LAPIC_EOI, 0);
}

static void load_idt(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) idtr = { sizeof(idt) - 1, (uint64_t)idt };
    __asm__ volatile("lidt %0" : : "m"(idtr));
}

void lapic_init(void) { write32(LAPIC + LAPIC_SPURIOUS, 0x100 | SPURIOUS_VECTOR); }

void interrupts_init(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t stub = (uint64_t)interrupt_stubs + i * 16;
        idt[i] = (struct gate){ (uint16_t)stub, 8, 0x8e00, (uint16_t)(stub >> 16), (uint32_t)(stub >> 32), 0 };
    }
    load_idt();
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    lapic_init();
}

uint32_t lapic_id(void) { return read32(LAPIC + LAPIC_ID) >> 24; }

static void ioapic_write(unsigned reg, uint32_t value)
{
    write32(IOAPIC, reg);
    write32(IOAPIC + 0x10, value);
}

void ioapic_route(unsigned pin, uint8_t vector, bool level)
{
    ioapic_write(0x10 + pin * 2 + 1, lapic_id() << 24);
    ioapic_write(0x10 + pin * 2, vector | (level ? 1u << 15 : 0));
}

void ap_main(void);
void ap_main(void)
{
    load_idt();
    lapic_init();
    ap_function();
    ap_done = true;
    for (;;)
        __asm__ volatile("hlt");
}

static void send_ipi(uint8_t apic_id, uint32_t command)
{
    write32(LAPIC + LAPIC_ICR_HIGH, (uint32_t)apic_id << 24);
    write32(LAPIC + LAPIC_ICR_LOW, command);
    WAIT_FOR(!(read32(LAPIC + LAPIC_ICR_LOW) & 1u << 12));
}

void start_processor(uint8_t apic_id, void (*fn)(void))
{
    memcpy((void *)AP_PAGE, ap_start, (size_t)(ap_end - ap_start));
    ap_function = fn;
    barrier();
    send_ipi(apic_id, 0x4500);                 /* INIT */
    send_ipi(apic_id, 0x4600 | AP_PAGE >> 12); /* STARTUP */
}
