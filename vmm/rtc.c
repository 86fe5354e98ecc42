/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Real-time clock and CMOS memory (Motorola MC146818A) at ports 0x70 and 0x71. Guest time is the host's plus an offset
 * that changes when the guest sets the clock: nothing ticks unless an interrupt is enabled. Alarm, update and periodic
 * interrupts come through IRQ 8. Invariant: register C's IRQF and the line are up exactly while an enabled flag is set.
 */
#include "q35.h"

#include <base/compiler.h>
#include <stdlib.h>
#include <time.h>

enum {
    RTC_SECONDS,
    RTC_SECONDS_ALARM,
    RTC_MINUTES,
    RTC_MINUTES_ALARM,
    RTC_HOURS,
    RTC_HOURS_ALARM,
    RTC_WEEKDAY,
    RTC_DAY,
    RTC_MONTH,
    RTC_YEAR,
    RTC_A,
    RTC_B,
    RTC_C,
    RTC_D,
    RTC_CENTURY = 0x32,
};
#define A_UPDATING 0x80u
#define B_SET 0x80u
#define B_BINARY 4u
#define B_24_HOURS 2u
#define FLAG_PERIODIC 0x40u /* in B: enabled, in C: happened */
#define FLAG_ALARM 0x20u
#define FLAG_UPDATE 0x10u
#define FLAG_IRQ 0x80u
#define FLAGS (FLAG_PERIODIC | FLAG_ALARM | FLAG_UPDATE)
#define UPDATE_NS 244000u /* the last part of a second, in which A_UPDATING is seen */
#define NS 1000000000ll
#define RTC_IRQ 8u
#define DONT_CARE 0xc0u

struct rtc {
    struct device device;
    struct io_region ports;
    uint8_t index;
    uint8_t cmos[128];
    int64_t offset_s;      /* guest time minus host time */
    int64_t seen_s;        /* guest time up to which update and alarm have been looked at */
    uint64_t next_tick_ns; /* of the periodic interrupt, monotonic */
    struct machine_timer timer;
};

static int64_t host_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

static int64_t guest_s(const struct rtc *rtc) { return host_ns() / NS + rtc->offset_s; }

/* ---- numbers as the guest wants them ---- */

static uint8_t encode(const struct rtc *rtc, int value)
{
    return (uint8_t)(rtc->cmos[RTC_B] & B_BINARY ? value : value / 10 << 4 | value % 10);
}

static int decode(const struct rtc *rtc, uint8_t value)
{
    return rtc->cmos[RTC_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 15);
}

static uint8_t encode_hour(const struct rtc *rtc, int hour)
{
    if (rtc->cmos[RTC_B] & B_24_HOURS)
        return encode(rtc, hour);
    return (uint8_t)(encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0));
}

static int decode_hour(const struct rtc *rtc, uint8_t value)
{
    if (rtc->cmos[RTC_B] & B_24_HOURS)
        return decode(rtc, value);
    return decode(rtc, value & 0x7f) % 12 + (value & 0x80 ? 12 : 0);
}

static void load_time(struct rtc *rtc)
{
    if (rtc->cmos[RTC_B] & B_SET)
        return; /* the guest is setting it: its bytes stay */
    time_t now = guest_s(rtc);
    struct tm tm;
    gmtime_r(&now, &tm);
    rtc->cmos[RTC_SECONDS] = encode(rtc, tm.tm_sec);
    rtc->cmos[RTC_MINUTES] = encode(rtc, tm.tm_min);
    rtc->cmos[RTC_HOURS] = encode_hour(rtc, tm.tm_hour);
    rtc->cmos[RTC_WEEKDAY] = encode(rtc, tm.tm_wday + 1);
    rtc->cmos[RTC_DAY] = encode(rtc, tm.tm_mday);
    rtc->cmos[RTC_MONTH] = encode(rtc, tm.tm_mon + 1);
    rtc->cmos[RTC_YEAR] = encode(rtc, tm.tm_year % 100);
    rtc->cmos[RTC_CENTURY] = encode(rtc, (tm.tm_year + 1900) / 100);
}

static void store_time(struct rtc *rtc)
{
    const uint8_t *cmos = rtc->cmos;
    struct tm tm = {
        .tm_sec = decode(rtc, cmos[RTC_SECONDS]),
        .tm_min = decode(rtc, cmos[RTC_MINUTES]),
        .tm_hour = decode_hour(rtc, cmos[RTC_HOURS]),
        .tm_mday = decode(rtc, cmos[RTC_DAY]),
        .tm_mon = decode(rtc, cmos[RTC_MONTH]) - 1,
        .tm_year = decode(rtc, cmos[RTC_CENTURY]) * 100 + decode(rtc, cmos[RTC_YEAR]) - 1900,
    };
    rtc->offset_s = timegm(&tm) - host_ns() / NS;
    rtc->seen_s = guest_s(rtc);
}

/* ---- interrupts ---- */

static bool alarm_matches(const struct rtc *rtc, int64_t second)
{
    time_t at = second;
    struct tm tm;
    gmtime_r(&at, &tm);
    const uint8_t *cmos = rtc->cmos;
    return (cmos[RTC_SECONDS_ALARM] >= DONT_CARE || decode(rtc, cmos[RTC_SECONDS_ALARM]) == tm.tm_sec) &&
           (cmos[RTC_MINUTES_ALARM] >= DONT_CARE || decode(rtc, cmos[RTC_MINUTES_ALARM]) == tm.tm_min) &&
           ((cmos[RTC_HOURS_ALARM] & DONT_CARE) == DONT_CARE || decode_hour(rtc, cmos[RTC_HOURS_ALARM]) == tm.tm_hour);
}

static uint64_t period_ns(const struct rtc *rtc)
{
    unsigned rate = rtc->cmos[RTC_A] & 15;
    if (!rate)
        return 0;
    if (rate <= 2)
        rate += 7; /* 1 and 2 are 256 and 128 Hz */
    return (uint64_t)NS * (1u << (rate - 1)) / 32768u;
}

/* Sets the flags for what has happened since the last look. */
static void catch_up(struct rtc *rtc)
{
    uint64_t period = period_ns(rtc), now_ns = loop_now_ns();
    if (period && now_ns >= rtc->next_tick_ns) {
        if (rtc->next_tick_ns)
            rtc->cmos[RTC_C] |= FLAG_PERIODIC;
        rtc->next_tick_ns = now_ns - (rtc->next_tick_ns ? (now_ns - rtc->next_tick_ns) % period : 0) + period;
    }
    if (rtc->cmos[RTC_B] & B_SET)
        return;
    int64_t now = guest_s(rtc);
    if (now != rtc->seen_s)
        rtc->cmos[RTC_C] |= FLAG_UPDATE;
    if (rtc->seen_s < now - 86400 || rtc->seen_s > now)
        rtc->seen_s = now - 1; /* the host's clock jumped, or nobody looked for a day */
    while (rtc->seen_s < now)
        if (alarm_matches(rtc, ++rtc->seen_s))
            rtc->cmos[RTC_C] |= FLAG_ALARM;
}

static void update_interrupt(struct rtc *rtc)
{
    catch_up(rtc);
    bool level = rtc->cmos[RTC_C] & rtc->cmos[RTC_B] & FLAGS;
    rtc->cmos[RTC_C] = (uint8_t)((rtc->cmos[RTC_C] & FLAGS) | (level ? FLAG_IRQ : 0));
    kvm_irq_line(&rtc->device.machine->kvm, RTC_IRQ, level);
    uint64_t deadline = 0;
    if (!level && rtc->cmos[RTC_B] & (FLAG_ALARM | FLAG_UPDATE))
        deadline = loop_now_ns() + (uint64_t)(NS - host_ns() % NS) + 1000;
    if (!level && rtc->cmos[RTC_B] & FLAG_PERIODIC && period_ns(rtc) && (!deadline || rtc->next_tick_ns < deadline))
        deadline = rtc->next_tick_ns;
    machine_timer_set(&rtc->timer, deadline);
}

static void timer_due(struct machine_timer *timer) { update_interrupt(container_of(timer, struct rtc, timer)); }

/* ---- ports ---- */

static uint64_t rtc_read(void *opaque, uint64_t offset, unsigned length)
{
    struct rtc *rtc = opaque;
    if (offset == 0)
        return 0xff;
    uint8_t value;
    switch (rtc->index) {
    case RTC_A:
        value = rtc->cmos[RTC_A] & (uint8_t)~A_UPDATING;
        return value | (!(rtc->cmos[RTC_B] & B_SET) && host_ns() % NS >= NS - UPDATE_NS ? A_UPDATING : 0);
    case RTC_C:
        update_interrupt(rtc); /* what is due interrupts, also if the guest sees its flag before the timer does */
        value = rtc->cmos[RTC_C];
        rtc->cmos[RTC_C] = 0;
        update_interrupt(rtc);
        return value;
    default: load_time(rtc); return rtc->cmos[rtc->index];
    }
}

static void rtc_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct rtc *rtc = opaque;
    uint8_t byte = (uint8_t)value, old;
    if (offset == 0) {
        rtc->index = byte & 0x7f;
        return;
    }
    switch (rtc->index) {
    case RTC_A:
        rtc->cmos[RTC_A] = byte & (uint8_t)~A_UPDATING;
        rtc->next_tick_ns = 0;
        update_interrupt(rtc);
        break;
    case RTC_B:
        load_time(rtc);
        old = rtc->cmos[RTC_B];
        rtc->cmos[RTC_B] = byte;
        if (old & B_SET && !(byte & B_SET))
            store_time(rtc);
        update_interrupt(rtc);
        break;
    case RTC_C:
    case RTC_D: break;
    default:
        load_time(rtc);
        rtc->cmos[rtc->index] = byte;
        if ((rtc->index <= RTC_YEAR && rtc->index % 2 == 0) || rtc->index == RTC_DAY || rtc->index == RTC_YEAR ||
            rtc->index == RTC_CENTURY)
            if (!(rtc->cmos[RTC_B] & B_SET))
                store_time(rtc);
    }
}

static const struct io_ops rtc_ops = { rtc_read, rtc_write };

/* ---- life ---- */

/* Where firmware looks for the size of memory. */
static void store_memory_size(struct rtc *rtc)
{
    const struct guest_memory *memory = &rtc->device.machine->memory;
    uint64_t low = memory->blocks[0].size;
    uint64_t above_1m = low > 1u << 20 ? (low - (1u << 20)) >> 10 : 0;
    uint64_t above_16m = low > 16u << 20 ? (low - (16u << 20)) >> 16 : 0;
    above_1m = MIN(above_1m, 65535u);
    uint64_t above_4g = memory->block_count > 1 ? memory->blocks[1].size >> 16 : 0;
    rtc->cmos[0x15] = 640 & 0xff;
    rtc->cmos[0x16] = 640 >> 8;
    rtc->cmos[0x17] = rtc->cmos[0x30] = (uint8_t)above_1m;
    rtc->cmos[0x18] = rtc->cmos[0x31] = (uint8_t)(above_1m >> 8);
    rtc->cmos[0x34] = (uint8_t)above_16m;
    rtc->cmos[0x35] = (uint8_t)(above_16m >> 8);
    rtc->cmos[0x5b] = (uint8_t)above_4g;
    rtc->cmos[0x5c] = (uint8_t)(above_4g >> 8);
    rtc->cmos[0x5d] = (uint8_t)(above_4g >> 16);
}

/* The clock goes on over a reset, as its battery has it: only interrupts stop. */
static void rtc_reset(struct device *device)
{
    struct rtc *rtc = container_of(device, struct rtc, device);
    rtc->cmos[RTC_B] &= (uint8_t) ~(FLAGS | B_SET);
    rtc->cmos[RTC_C] = 0;
    update_interrupt(rtc);
}

static void rtc_free(struct device *device)
{
    struct rtc *rtc = container_of(device, struct rtc, device);
    machine_timer_finish(&rtc->timer);
    address_space_remove(&device->machine->ports, &rtc->ports);
    free(rtc);
}

static const struct device_ops device_ops = { .reset = rtc_reset, .free = rtc_free };

int rtc_init(struct machine *machine, struct error **errp)
{
    struct rtc *rtc = xcalloc(1, sizeof(*rtc));
    rtc->cmos[RTC_A] = 0x26; /* 32.768 kHz, 1024 Hz */
    rtc->cmos[RTC_B] = B_24_HOURS;
    rtc->cmos[RTC_D] = 0x80; /* the battery is good */
    machine_timer_init(&rtc->timer, machine, timer_due);
    machine_add_device(machine, &rtc->device, &device_ops);
    rtc->seen_s = guest_s(rtc);
    store_memory_size(rtc);
    rtc->ports = (struct io_region){ .name = "rtc", .base = 0x70, .size = 2, .ops = &rtc_ops, .opaque = rtc };
    int err = address_space_add(&machine->ports, &rtc->ports);
    return err ? error_set_errno(errp, err, "cannot place the real-time clock") : 0;
}
