/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the tiny guests stand on: ports, memory, console, interrupts, PCI. No library, no compiler helpers. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- processor ---- */

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline void outw(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline uint8_t inb(uint16_t port)
{
    uint8_t v;
    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
    return v;
}
static inline uint16_t inw(uint16_t port)
{
    uint16_t v;
    __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory");
    return v;
}
static inline uint32_t inl(uint16_t port)
{
    uint32_t v;
    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory");
    return v;
}
static inline uint8_t read8(uint64_t at) { return *(volatile uint8_t *)at; }
static inline uint16_t read16(uint64_t at) { return *(volatile uint16_t *)at; }
static inline uint32_t read32(uint64_t at) { return *(volatile uint32_t *)at; }
static inline void write8(uint64_t at, uint8_t v) { *(volatile uint8_t *)at = v; }
static inline void write16(uint64_t at, uint16_t v) { *(volatile uint16_t *)at = v; }
static inline void write32(uint64_t at, uint32_t v) { *(volatile uint32_t *)at = v; }
static inline void barrier(void) { __asm__ volatile("mfence" : : : "memory"); }
static inline void pause(void) { __asm__ volatile("pause" : : : "memory"); }
static inline void interrupts_on(void) { __asm__ volatile("sti" : : : "memory"); }
static inline void interrupts_off(void) { __asm__ volatile("cli" : : : "memory"); }
uint64_t timer_us(void); /* by the ACPI timer; wraps after 4.6 s */

void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);
int strcmp(const char *a, const char *b);

/* ---- console and the end ---- */

/* %s %u %x %d, as usual; 64 bits each. */
void print(const char *fmt, ...);
/* Ends the machine, with status 3 through isa-debug-exit. */
__attribute__((noreturn)) void fail(const char *file, int line, const char *what);
/* Ends it by ACPI, with status 0. */
__attribute__((noreturn)) void power_off(void);

#define CHECK(condition) \
    do { \
        if (!(condition)) \
            fail(__FILE__, __LINE__, #condition); \
    } while (0)
/* Both sides are shown where they differ. */
#define CHECK_EQUAL(expected, actual) \
    do { \
        uint64_t expected_ = (uint64_t)(expected), actual_ = (uint64_t)(actual); \
        if (expected_ != actual_) { \
            print("expected %x, got %x\n", expected_, actual_); \
            fail(__FILE__, __LINE__, #actual); \
        } \
    } while (0)
/* Waits up to two seconds. */
#define WAIT_FOR(condition) \
    do { \
        for (uint64_t waited_ = 0, last_ = timer_us(); !(condition); pause()) { \
            uint64_t now_ = timer_us(); \
            waited_ += now_ - last_ < 4000000 ? now_ - last_ : 0; \
            last_ = now_; \
            if (waited_ > 8000000) \
                fail(__FILE__, __LINE__, "timeout: " #condition); \
        } \
    } while (0)

/* ---- tests ---- */

extern const uint8_t *boot_params; /* what the boot loader left: Linux's zero page */

struct test {
    const char *name;
    void (*run)(void);
};
extern const struct test tests[]; /* the last has no name */

/* ---- interrupts (interrupt.c) ---- */

extern volatile uint32_t interrupt_count[256];
void interrupts_init(void); /* IDT, local APIC on, PICs masked */
void lapic_init(void);      /* on another processor too */
/* Routes an input of the I/O APIC to a vector of this processor; level-triggered or edge. */
void ioapic_route(unsigned pin, uint8_t vector, bool level);
/* Starts processor `apic_id` with INIT and SIPI; it runs fn, once. */
void start_processor(uint8_t apic_id, void (*fn)(void));
uint32_t lapic_id(void);

/* ---- PCI (pci.c) ---- */

uint32_t pci_read(unsigned devfn, unsigned offset, unsigned size);
void pci_write(unsigned devfn, unsigned offset, unsigned size, uint32_t value);
/* The n-th function with these IDs; -1 where there is none. */
int pci_find(uint16_t vendor, uint16_t device, unsigned n);
/* First capability of this type after `after` (0: from the start); 0 where there is none. */
unsigned pci_capability(unsigned devfn, uint8_t type, unsigned after);
uint64_t pci_bar(unsigned devfn, unsigned bar);
