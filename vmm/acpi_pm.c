/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ACPI power management of the ICH9 (datasheet 13.8.3; ACPI 6.4, 4.8): PM1 status, enable and control, the 24-bit timer
 * of 3.579545 MHz, GPE0, and the SMI command port that switches ACPI mode on. Registers may be accessed in any size, so
 * they are bytes here. Invariant: the SCI line is up exactly while an enabled event is pending in ACPI mode.
 */
#include "q35.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <stdlib.h>

#define PM_SIZE 0x80u
#define TIMER_HZ 3579545u
#define TIMER_STATUS 1u
#define POWER_BUTTON_STATUS (1u << 8)
#define SCI_ENABLE 1u
#define SLEEP_ENABLE (1u << 13)
#define SLEEP_TYPE_SHIFT 10
#define GPE0_STATUS Q35_GPE0
#define GPE0_ENABLE (Q35_GPE0 + Q35_GPE0_LENGTH / 2)

struct acpi_pm {
    struct device device;
    struct io_region ports, smi;
    uint8_t registers[PM_SIZE];
    uint8_t smi_command[2];
    uint64_t origin_ns;
    uint64_t timer_epoch; /* counts half periods of the timer already seen, for TIMER_STATUS */
    struct machine_timer timer;
};

static uint64_t ticks(const struct acpi_pm *pm)
{
    return (uint64_t)((unsigned __int128)(loop_now_ns() - pm->origin_ns) * TIMER_HZ / 1000000000u);
}

static uint16_t get16(const struct acpi_pm *pm, unsigned offset) { return load_le16(pm->registers + offset); }

/* The status bit is set whenever the timer's top bit (23) changes. */
static void update_timer_status(struct acpi_pm *pm)
{
    uint64_t epoch = ticks(pm) >> 23;
    if (epoch != pm->timer_epoch)
        pm->registers[Q35_PM1_STATUS] |= TIMER_STATUS;
    pm->timer_epoch = epoch;
}

static void update_sci(struct acpi_pm *pm)
{
    update_timer_status(pm);
    bool level = get16(pm, Q35_PM1_STATUS) & get16(pm, Q35_PM1_ENABLE);
    for (unsigned i = 0; i < Q35_GPE0_LENGTH / 2; i++)
        level |= pm->registers[GPE0_STATUS + i] & pm->registers[GPE0_ENABLE + i];
    kvm_irq_line(&pm->device.machine->kvm, Q35_SCI_IRQ, level && get16(pm, Q35_PM1_CONTROL) & SCI_ENABLE);
    uint64_t deadline = 0;
    if (get16(pm, Q35_PM1_ENABLE) & TIMER_STATUS)
        deadline = pm->origin_ns +
                   (uint64_t)(((unsigned __int128)(pm->timer_epoch + 1) << 23) * 1000000000u / TIMER_HZ) + 1000;
    machine_timer_set(&pm->timer, deadline);
}

static void timer_due(struct machine_timer *timer) { update_sci(container_of(timer, struct acpi_pm, timer)); }

static void sleep_now(struct acpi_pm *pm)
{
    unsigned type = get16(pm, Q35_PM1_CONTROL) >> SLEEP_TYPE_SHIFT & 7;
    if (type == Q35_SLEEP_TYPE_S5)
        machine_event(pm->device.machine, MACHINE_SHUTDOWN, 0);
}

/* ---- registers ---- */

static uint64_t pm_read(void *opaque, uint64_t offset, unsigned length)
{
    struct acpi_pm *pm = opaque;
    update_timer_status(pm);
    store_le32(pm->registers + Q35_PM_TIMER, (uint32_t)ticks(pm) & 0xffffff);
    uint64_t value = 0;
    for (unsigned i = 0; i < length; i++)
        value |= (uint64_t)pm->registers[offset + i] << 8 * i;
    return value;
}

static void write_byte(struct acpi_pm *pm, uint64_t offset, uint8_t value)
{
    static const struct {
        uint8_t offset, writable, clears; /* `clears`: ones clear the bit */
    } rules[] = {
        { Q35_PM1_STATUS, 0, 0x31 },     { Q35_PM1_STATUS + 1, 0, 0xc5 }, { Q35_PM1_ENABLE, 0x21, 0 },
        { Q35_PM1_ENABLE + 1, 0x45, 0 }, { Q35_PM1_CONTROL, 0x03, 0 },    { Q35_PM1_CONTROL + 1, 0x1c, 0 },
    };
    uint8_t *reg = &pm->registers[offset];
    if (offset >= GPE0_STATUS && offset < GPE0_ENABLE)
        *reg &= (uint8_t)~value;
    else if (offset >= GPE0_ENABLE && offset < GPE0_ENABLE + Q35_GPE0_LENGTH / 2)
        *reg = value;
    for (unsigned i = 0; i < ARRAY_SIZE(rules); i++) {
        if (rules[i].offset != offset)
            continue;
        *reg = (uint8_t)((*reg & ~rules[i].writable) | (value & rules[i].writable));
        *reg &= (uint8_t) ~(value & rules[i].clears);
    }
    if (offset == Q35_PM1_CONTROL + 1 && value & SLEEP_ENABLE >> 8)
        sleep_now(pm);
}

static void pm_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct acpi_pm *pm = opaque;
    update_timer_status(pm);
    for (unsigned i = 0; i < length; i++)
        write_byte(pm, offset + i, (uint8_t)(value >> 8 * i));
    update_sci(pm);
}

static uint64_t smi_read(void *opaque, uint64_t offset, unsigned length)
{
    struct acpi_pm *pm = opaque;
    return pm->smi_command[offset];
}

static void smi_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct acpi_pm *pm = opaque;
    pm->smi_command[offset] = (uint8_t)value;
    if (offset == 0 && value == Q35_ACPI_ENABLE)
        pm->registers[Q35_PM1_CONTROL] |= SCI_ENABLE;
    else if (offset == 0 && value == Q35_ACPI_DISABLE)
        pm->registers[Q35_PM1_CONTROL] &= (uint8_t)~SCI_ENABLE;
    update_sci(pm);
}

static const struct io_ops pm_ops = { pm_read, pm_write };
static const struct io_ops smi_ops = { smi_read, smi_write };

/* ---- for the board and the monitor ---- */

void acpi_pm_set_base(struct machine *machine, uint16_t base)
{
    struct acpi_pm *pm = machine->pm;
    if (pm->ports.base == base)
        return;
    if (pm->ports.base)
        address_space_remove(&machine->ports, &pm->ports);
    pm->ports.base = base;
    if (base && address_space_add(&machine->ports, &pm->ports) < 0)
        pm->ports.base = 0;
}

void acpi_pm_enable(struct machine *machine) { machine->pm->registers[Q35_PM1_CONTROL] |= SCI_ENABLE; }

void acpi_pm_power_button(struct machine *machine)
{
    machine->pm->registers[Q35_PM1_STATUS + 1] |= POWER_BUTTON_STATUS >> 8;
    update_sci(machine->pm);
}

static void pm_reset(struct device *device)
{
    struct acpi_pm *pm = container_of(device, struct acpi_pm, device);
    for (unsigned i = 0; i < PM_SIZE; i++)
        pm->registers[i] = 0;
    pm->timer_epoch = ticks(pm) >> 23;
    update_sci(pm);
}

static void pm_free(struct device *device)
{
    struct acpi_pm *pm = container_of(device, struct acpi_pm, device);
    machine_timer_finish(&pm->timer);
    acpi_pm_set_base(device->machine, 0);
    address_space_remove(&device->machine->ports, &pm->smi);
    device->machine->pm = NULL;
    free(pm);
}

static const struct device_ops device_ops = { .reset = pm_reset, .free = pm_free };

int acpi_pm_init(struct machine *machine, struct error **errp)
{
    struct acpi_pm *pm = machine->pm = xcalloc(1, sizeof(*pm));
    pm->origin_ns = loop_now_ns();
    pm->ports = (struct io_region){ .name = "acpi-pm", .size = PM_SIZE, .ops = &pm_ops, .opaque = pm };
    pm->smi = (struct io_region){ .name = "apm", .base = Q35_SMI_PORT, .size = 2, .ops = &smi_ops, .opaque = pm };
    machine_timer_init(&pm->timer, machine, timer_due);
    machine_add_device(machine, &pm->device, &device_ops);
    int err = address_space_add(&machine->ports, &pm->smi);
    return err ? error_set_errno(errp, err, "cannot place port 0x%x", Q35_SMI_PORT) : 0;
}
