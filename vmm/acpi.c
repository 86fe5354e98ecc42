/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ACPI tables for direct boot (ACPI 6.4, section 5): RSDP, XSDT, FADT, FACS, MADT, MCFG, WAET and a DSDT with the PCI
 * root bridge, its interrupt routing, the serial port, the clock, and power-off. They lie in the BIOS area, marked as
 * ACPI data.
 * Invariant: what they say is what q35.c and the in-kernel interrupt controllers do.
 */
#include "aml.h"
#include "boot.h"
#include "cmdline.h"
#include "pci.h"
#include "q35.h"
#include "vcpu.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TABLE_HEADER 36u
#define FADT_LENGTH 244u /* revision 3 */
#define FACS_LENGTH 64u
#define LAPIC_ADDRESS 0xfee00000u
#define IOAPIC_ADDRESS 0xfec00000u

struct tables {
    uint8_t *base; /* BOOT_ACPI in host memory */
    uint64_t used;
    uint32_t list[8]; /* physical addresses, for the XSDT */
    unsigned count;
    bool full;
};

static uint8_t checksum(const uint8_t *data, size_t length)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < length; i++)
        sum = (uint8_t)(sum + data[i]);
    return (uint8_t)-sum;
}

static uint8_t *reserve(struct tables *tables, uint64_t length, uint64_t alignment, uint32_t *address)
{
    uint64_t at = align_up(tables->used, alignment);
    if (!range_inside(at, length, BOOT_ACPI_ROOM)) {
        tables->full = true;
        return NULL;
    }
    tables->used = at + length;
    *address = (uint32_t)(BOOT_ACPI + at);
    memset(tables->base + at, 0, length);
    return tables->base + at;
}

/* Puts a table together from its body, header and checksum included; returns its address. */
static uint32_t add_table(struct tables *tables, const char *signature, uint8_t revision, const uint8_t *body,
                          size_t body_length)
{
    uint32_t address = 0;
    size_t length = TABLE_HEADER + body_length;
    uint8_t *table = reserve(tables, length, 16, &address);
    if (!table)
        return 0;
    memcpy(table, signature, 4);
    store_le32(table + 4, (uint32_t)length);
    table[8] = revision;
    memcpy(table + 10, "VMM   ", 6);
    memcpy(table + 16, "VMMQ35  ", 8);
    store_le32(table + 24, 1);
    memcpy(table + 28, "VMM ", 4);
    store_le32(table + 32, 1);
    memcpy(table + TABLE_HEADER, body, body_length);
    table[9] = checksum(table, length);
    return address;
}

static void list_table(struct tables *tables, uint32_t address) { tables->list[tables->count++] = address; }

/* ---- DSDT ---- */

static void describe_interrupts(struct aml *aml)
{
    aml_name(aml, "_PRT");
    aml_begin_package(aml, 32 * 4);
    for (unsigned slot = 0; slot < 32; slot++) {
        for (unsigned pin = 0; pin < 4; pin++) {
            aml_begin_package(aml, 4);
            aml_integer(aml, slot << 16 | 0xffff);
            aml_integer(aml, pin);
            aml_integer(aml, 0);
            aml_integer(aml, Q35_PIRQ_GSI + q35_pirq(slot, pin));
            aml_end(aml);
        }
    }
    aml_end(aml);
}

static void describe_isa(struct machine *machine, struct aml *aml)
{
    aml_begin_device(aml, "ISA_");
    aml_name(aml, "_ADR");
    aml_integer(aml, (uint64_t)Q35_LPC_SLOT << 16);
    aml_begin_device(aml, "RTC_");
    aml_name(aml, "_HID");
    aml_eisa_id(aml, "PNP0B00");
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_resource_io(aml, 0x70, 2);
    aml_resource_irq(aml, 8);
    aml_end(aml);
    aml_end(aml);
    struct device *device;
    list_for_each(device, &machine->devices, link)
        if (device->ops->describe)
            device->ops->describe(device, aml);
    aml_end(aml);
}

static void describe_pci(struct machine *machine, struct aml *aml)
{
    aml_begin_device(aml, "PCI0");
    aml_name(aml, "_HID");
    aml_eisa_id(aml, "PNP0A08");
    aml_name(aml, "_CID");
    aml_eisa_id(aml, "PNP0A03");
    aml_name(aml, "_UID");
    aml_integer(aml, 0);
    aml_name(aml, "_SEG");
    aml_integer(aml, 0);
    aml_name(aml, "_BBN");
    aml_integer(aml, 0);
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_resource_bus_window(aml, 0, 255);
    aml_resource_io(aml, 0xcf8, 8);
    aml_resource_io_window(aml, 0, 0xcf7);
    aml_resource_io_window(aml, 0xd00, 0xffff);
    aml_resource_memory_window(aml, PCI_WINDOW_START, PCI_WINDOW_END - 1);
    aml_end(aml);
    describe_interrupts(aml);
    describe_isa(machine, aml);
    aml_end(aml);
}

static uint32_t add_dsdt(struct tables *tables, struct machine *machine)
{
    struct aml aml = { 0 };
    aml_begin_scope(&aml, "\\_SB");
    describe_pci(machine, &aml);
    aml_end(&aml);
    aml_name(&aml, "\\_S5");
    aml_begin_package(&aml, 4);
    for (unsigned i = 0; i < 4; i++)
        aml_integer(&aml, Q35_SLEEP_TYPE_S5);
    aml_end(&aml);
    uint32_t address = add_table(tables, "DSDT", 2, aml.data, aml.length);
    free(aml.data);
    return address;
}

/* ---- FADT ---- */

/* Generic address structure for a register in port space. */
static void put_port(uint8_t *gas, uint16_t port, uint8_t bytes)
{
    gas[0] = 1;
    gas[1] = (uint8_t)(bytes * 8);
    gas[3] = bytes == 1 ? 1 : bytes == 2 ? 2 : 3;
    store_le64(gas + 4, port);
}

static void add_fadt(struct tables *tables, uint32_t dsdt)
{
    uint32_t facs_address = 0;
    uint8_t *facs = reserve(tables, FACS_LENGTH, 64, &facs_address);
    if (!facs)
        return;
    memcpy(facs, "FACS", 4);
    store_le32(facs + 4, FACS_LENGTH);
    facs[32] = 2;

    uint8_t fadt[FADT_LENGTH] = { 0 }; /* offsets as in the specification, header included */
    store_le32(fadt + 36, facs_address);
    store_le32(fadt + 40, dsdt);
    fadt[45] = 0; /* no preferred profile */
    store_le16(fadt + 46, Q35_SCI_IRQ);
    store_le32(fadt + 48, Q35_SMI_PORT);
    fadt[52] = Q35_ACPI_ENABLE;
    fadt[53] = Q35_ACPI_DISABLE;
    store_le32(fadt + 56, Q35_PM_BASE + Q35_PM1_STATUS);
    store_le32(fadt + 64, Q35_PM_BASE + Q35_PM1_CONTROL);
    store_le32(fadt + 76, Q35_PM_BASE + Q35_PM_TIMER);
    store_le32(fadt + 80, Q35_PM_BASE + Q35_GPE0);
    fadt[88] = 4;
    fadt[89] = 2;
    fadt[91] = 4;
    fadt[92] = Q35_GPE0_LENGTH;
    store_le16(fadt + 96, 0xfff);  /* no C2 */
    store_le16(fadt + 98, 0xfff);  /* no C3 */
    fadt[108] = 0x32;              /* century in CMOS */
    store_le16(fadt + 109, 1 | 4); /* has legacy devices, no VGA; no 8042 keyboard to look for */
    /* WBINVD works, C1 on all, no fixed sleep button, reset register */
    store_le32(fadt + 112, 1u << 0 | 1u << 2 | 1u << 5 | 1u << 10);
    put_port(fadt + 116, Q35_RESET_PORT, 1);
    fadt[128] = 0x0f;
    store_le64(fadt + 132, facs_address);
    store_le64(fadt + 140, dsdt);
    put_port(fadt + 148, Q35_PM_BASE + Q35_PM1_STATUS, 4);
    put_port(fadt + 172, Q35_PM_BASE + Q35_PM1_CONTROL, 2);
    put_port(fadt + 208, Q35_PM_BASE + Q35_PM_TIMER, 4);
    put_port(fadt + 220, Q35_PM_BASE + Q35_GPE0, 4);
    fadt[221] = Q35_GPE0_LENGTH * 8;
    list_table(tables, add_table(tables, "FACP", 3, fadt + TABLE_HEADER, FADT_LENGTH - TABLE_HEADER));
}

/* ---- MADT ---- */

static void put_cpu(struct aml *out, const struct config *config, unsigned index)
{
    uint32_t id = vcpu_apic_id(config, index);
    if (id < 255) {
        uint8_t lapic[8] = { 0, 8, (uint8_t)index, (uint8_t)id, 1 };
        aml_bytes(out, lapic, sizeof(lapic));
        return;
    }
    uint8_t x2apic[16] = { 9, 16 };
    store_le32(x2apic + 4, id);
    store_le32(x2apic + 8, 1);
    store_le32(x2apic + 12, index);
    aml_bytes(out, x2apic, sizeof(x2apic));
}

static void put_override(struct aml *out, uint8_t irq, uint8_t gsi, uint8_t flags)
{
    uint8_t override[10] = { 2, 10, 0, irq, gsi, 0, 0, 0, flags, 0 };
    aml_bytes(out, override, sizeof(override));
}

static void add_madt(struct tables *tables, const struct machine *machine)
{
    struct aml out = { 0 };
    uint8_t head[8] = { 0 };
    store_le32(head, LAPIC_ADDRESS);
    store_le32(head + 4, 1); /* has PICs too */
    aml_bytes(&out, head, sizeof(head));
    for (unsigned i = 0; i < machine->cpu_count; i++)
        put_cpu(&out, machine->config, i);
    uint8_t ioapic[12] = { 1, 12, 0, 0 };
    store_le32(ioapic + 4, IOAPIC_ADDRESS);
    aml_bytes(&out, ioapic, sizeof(ioapic));
    put_override(&out, 0, 2, 0);
    /* Those that PCI interrupts and the SCI may use: level-triggered, active high. */
    for (unsigned i = 0; i < 4; i++) {
        static const uint8_t irqs[] = { 5, 9, 10, 11 };
        put_override(&out, irqs[i], irqs[i], 0x0d);
    }
    static const uint8_t nmi[6] = { 4, 6, 0xff, 0, 0, 1 };
    aml_bytes(&out, nmi, sizeof(nmi));
    list_table(tables, add_table(tables, "APIC", 3, out.data, out.length));
    free(out.data);
}

/* ---- all ---- */

static void add_mcfg(struct tables *tables)
{
    uint8_t body[24] = { 0 };
    store_le64(body + 8, Q35_ECAM_BASE);
    body[19] = 255; /* last bus */
    list_table(tables, add_table(tables, "MCFG", 1, body, sizeof(body)));
}

static void add_roots(struct tables *tables)
{
    uint8_t entries[ARRAY_SIZE(tables->list) * 8];
    for (unsigned i = 0; i < tables->count; i++)
        store_le64(entries + i * 8, tables->list[i]);
    uint32_t xsdt = add_table(tables, "XSDT", 1, entries, tables->count * 8u);
    uint8_t *rsdp = tables->base;
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "VMM   ", 6);
    rsdp[15] = 2;
    store_le32(rsdp + 20, 36);
    store_le64(rsdp + 24, xsdt);
    rsdp[8] = checksum(rsdp, 20);
    rsdp[32] = checksum(rsdp, 36);
}

int acpi_build(struct machine *machine, struct error **errp)
{
    struct tables tables = { .base = memory_at(&machine->memory, BOOT_ACPI, BOOT_ACPI_ROOM) };
    uint32_t rsdp;
    if (!tables.base || !reserve(&tables, 36, 16, &rsdp))
        return error_set(errp, -ENOMEM, "the guest has too little memory for ACPI tables");
    add_fadt(&tables, add_dsdt(&tables, machine));
    add_madt(&tables, machine);
    add_mcfg(&tables);
    static const uint8_t waet[4] = { 3 }; /* RTC and PM timer need no workarounds */
    list_table(&tables, add_table(&tables, "WAET", 1, waet, sizeof(waet)));
    add_roots(&tables);
    return tables.full ? error_set(errp, -ENOSPC, "the ACPI tables do not fit for so many vCPUs") : 0;
}
