/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Console, time, ends, memory functions, and the choice of the test by the kernel command line. */
#include "tiny.h"

#include <stdarg.h>

#define COM1 0x3f8
#define DEBUG_EXIT 0x501
#define PM_BASE 0x600

/* By eight bytes where that comes out even: instructions are interpreted one by one on a software KVM. */
void *memcpy(void *to, const void *from, size_t size)
{
    void *result = to;
    if (size % 8 == 0) {
        size /= 8;
        __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
        return result;
    }
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return result;
}

void *memset(void *to, int byte, size_t size)
{
    void *result = to;
    if (size % 8 == 0) {
        size /= 8;
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(size) : "a"((uint8_t)byte * 0x0101010101010101ull) : "memory");
        return result;
    }
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
    return result;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *x = a, *y = b;
    for (; size; size--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

size_t strlen(const char *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (uint8_t)*a - (uint8_t)*b;
}

uint64_t timer_us(void) { return (uint64_t)(inl(PM_BASE + 8) & 0xffffff) * 1000000 / 3579545; }

static void put(char c)
{
    while (!(inb(COM1 + 5) & 0x20))
        pause();
    outb(COM1, (uint8_t)c);
}

static void put_number(uint64_t value, unsigned base)
{
    char digits[24];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count)
        put(digits[--count]);
}

void print(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            put(*fmt);
            continue;
        }
        fmt++;
        if (*fmt == 's')
            for (const char *text = va_arg(args, const char *); *text; text++)
                put(*text);
        else if (*fmt == 'x')
            put_number(va_arg(args, uint64_t), 16);
        else
            put_number(va_arg(args, uint64_t), 10);
    }
    va_end(args);
}

void fail(const char *file, int line, const char *what)
{
    print("FAILED: %s:%u: %s\n", file, (uint64_t)line, what);
    for (;;) {
        outb(DEBUG_EXIT, 1);
        __asm__ volatile("hlt");
    }
}

void power_off(void)
{
    for (;;)
        outw(PM_BASE + 4, 1u << 13);
}

/* "… test=NAME …" */
static const char *find_name(const char *cmdline, char *name, size_t size)
{
    for (; *cmdline; cmdline++) {
        if (memcmp(cmdline, "test=", 5) != 0)
            continue;
        size_t i = 0;
        for (cmdline += 5; *cmdline && *cmdline != ' ' && i < size - 1; i++)
            name[i] = *cmdline++;
        name[i] = 0;
        return name;
    }
    return NULL;
}

const uint8_t *boot_params;

void main64(const char *cmdline, const uint8_t *params);
void main64(const char *cmdline, const uint8_t *params)
{
    char name[32];
    boot_params = params;
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    if (!find_name(cmdline, name, sizeof(name)))
        fail(__FILE__, __LINE__, "no test= on the kernel command line");
    for (const struct test *test = tests; test->name; test++) {
        if (strcmp(test->name, name) == 0) {
            interrupts_init();
            test->run();
            print("passed: %s\n", name);
            power_off();
        }
    }
    fail(__FILE__, __LINE__, "there is no such test");
}
