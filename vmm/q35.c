/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The board: host bridge (82G33-like, 8086:29c0) with the ECAM window, ISA bridge (ICH9 LPC, 8086:2918) with the
 * interrupt routing registers and the power-management base, reset control at port 0xcf9 and port 0x92. Register
 * numbers: Intel 3 Series Express Chipset datasheet (5.1), ICH9 datasheet (13.1). Invariant: the level of an 8259 input
 * is the OR of the PIRQ lines that are routed to it now.
 */
#include "q35.h"

#include "pci.h"

#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <stdlib.h>

#define MCH_PCIEXBAR 0x60u
#define MCH_PCIEXBAR_BYTES 8u
#define MCH_PCIEXBAR_ENABLE 1u
#define MCH_PAM 0x90u
#define MCH_SMRAM 0x9du
#define LPC_PMBASE 0x40u
#define LPC_ACPI_CONTROL 0x44u
#define LPC_ACPI_ENABLE 0x80u
#define LPC_PIRQ_A 0x60u
#define LPC_PIRQ_E 0x68u
#define LPC_PIRQ_OFF 0x80u
#define LPC_RCBA 0xf0u
#define RESET_CPU 4u

struct q35 {
    struct device device;
    struct pci_device host, lpc;
    uint8_t reset_control;
    struct io_region port92;
    uint8_t port92_value;
    pthread_mutex_t pirq_lock; /* both below; a leaf but for KVM's line */
    uint8_t pirq_levels;       /* bit 0: A */
    uint16_t isa_levels;       /* 8259 inputs that we hold up */
};

/* ---- PCI interrupts ---- */

static unsigned isa_irq_of(const struct q35 *q35, unsigned pirq)
{
    unsigned at = pirq < 4 ? LPC_PIRQ_A + pirq : LPC_PIRQ_E + pirq - 4;
    uint8_t route = __atomic_load_n(&q35->lpc.config[at], __ATOMIC_RELAXED);
    return route & LPC_PIRQ_OFF ? 0 : route & 15u;
}

static void update_isa_lines(struct q35 *q35)
{
    uint16_t levels = 0;
    for (unsigned pirq = 0; pirq < 8; pirq++)
        if (q35->pirq_levels & 1u << pirq)
            levels |= (uint16_t)(1u << isa_irq_of(q35, pirq));
    levels &= 0xdef8; /* those of 3-15 that may be routed to */
    for (unsigned irq = 0; irq < 16; irq++)
        if ((levels ^ q35->isa_levels) & 1u << irq)
            kvm_irq_line(&q35->device.machine->kvm, irq, levels & 1u << irq);
    q35->isa_levels = levels;
}

void q35_set_pirq(struct machine *machine, unsigned pirq, bool level)
{
    struct q35 *q35 = machine->q35;
    pthread_mutex_lock(&q35->pirq_lock);
    q35->pirq_levels = (uint8_t)((q35->pirq_levels & ~(1u << pirq)) | (unsigned)level << pirq);
    kvm_irq_line(&machine->kvm, Q35_PIRQ_GSI + pirq, level);
    update_isa_lines(q35);
    pthread_mutex_unlock(&q35->pirq_lock);
}

/* ---- host bridge ---- */

static void update_ecam(struct q35 *q35)
{
    uint64_t value = load_le64(q35->host.config + MCH_PCIEXBAR);
    pci_set_ecam(q35->device.machine, value & MCH_PCIEXBAR_ENABLE ? value & 0xff0000000ull : 0);
}

static void host_written(struct pci_device *device, unsigned offset, unsigned length)
{
    if (offset < MCH_PCIEXBAR + MCH_PCIEXBAR_BYTES && offset + length > MCH_PCIEXBAR)
        update_ecam(container_of(device, struct q35, host));
}

static const struct pci_device_ops host_ops = { .config_written = host_written };

static int init_host_bridge(struct q35 *q35, struct error **errp)
{
    struct pci_device *host = &q35->host;
    pci_init_device(host, q35->device.machine, &host_ops, 0x8086, 0x29c0, 0x060000, 0);
    host->name = "mch";
    store_le64(host->writable + MCH_PCIEXBAR, 0xff0000000ull | 7);
    for (unsigned i = 0; i < 7; i++)
        host->writable[MCH_PAM + i] = 0x33;
    host->writable[MCH_SMRAM] = 0x78;
    return pci_add(host, "0.0", errp);
}

/* ---- ISA bridge ---- */

static void update_pm_base(struct q35 *q35)
{
    const uint8_t *config = q35->lpc.config;
    bool on = config[LPC_ACPI_CONTROL] & LPC_ACPI_ENABLE;
    acpi_pm_set_base(q35->device.machine, on ? load_le16(config + LPC_PMBASE) & 0xff80u : 0);
}

static void lpc_written(struct pci_device *device, unsigned offset, unsigned length)
{
    struct q35 *q35 = container_of(device, struct q35, lpc);
    if (offset < LPC_ACPI_CONTROL + 1 && offset + length > LPC_PMBASE)
        update_pm_base(q35);
    pthread_mutex_lock(&q35->pirq_lock);
    update_isa_lines(q35);
    pthread_mutex_unlock(&q35->pirq_lock);
}

static const struct pci_device_ops lpc_ops = { .config_written = lpc_written };

static int init_lpc(struct q35 *q35, struct error **errp)
{
    struct pci_device *lpc = &q35->lpc;
    pci_init_device(lpc, q35->device.machine, &lpc_ops, 0x8086, 0x2918, 0x060100, 2);
    lpc->name = "ICH9-LPC";
    lpc->config[PCI_HEADER_TYPE] = 0x80;
    store_le32(lpc->config + LPC_PMBASE, 1);
    store_le32(lpc->writable + LPC_PMBASE, 0xff80);
    lpc->writable[LPC_ACPI_CONTROL] = 0x87;
    for (unsigned i = 0; i < 4; i++) {
        lpc->config[LPC_PIRQ_A + i] = lpc->config[LPC_PIRQ_E + i] = LPC_PIRQ_OFF;
        lpc->writable[LPC_PIRQ_A + i] = lpc->writable[LPC_PIRQ_E + i] = 0x8f;
    }
    store_le32(lpc->writable + LPC_RCBA, 0xffffc001);
    return pci_add(lpc, "1f.0", errp);
}

/* ---- reset ports ---- */

static uint64_t reset_control_read(void *opaque, uint64_t offset, unsigned length)
{
    struct q35 *q35 = opaque;
    return q35->reset_control;
}

static void reset_control_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct q35 *q35 = opaque;
    if (value & RESET_CPU)
        machine_event(q35->device.machine, MACHINE_RESET, 0);
    q35->reset_control = (uint8_t)value & 0x0a;
}

static uint64_t port92_read(void *opaque, uint64_t offset, unsigned length)
{
    struct q35 *q35 = opaque;
    return q35->port92_value;
}

static void port92_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct q35 *q35 = opaque;
    if (value & 1 && !(q35->port92_value & 1))
        machine_event(q35->device.machine, MACHINE_RESET, 0);
    q35->port92_value = (uint8_t)value | 2; /* A20 is never off */
}

static const struct io_ops reset_control_ops = { reset_control_read, reset_control_write };
static const struct io_ops port92_ops = { port92_read, port92_write };

/* ---- the board ---- */

void q35_setup_for_direct_boot(struct machine *machine)
{
    struct q35 *q35 = machine->q35;
    store_le64(q35->host.config + MCH_PCIEXBAR, Q35_ECAM_BASE | MCH_PCIEXBAR_ENABLE);
    update_ecam(q35);
    store_le16(q35->lpc.config + LPC_PMBASE, Q35_PM_BASE | 1);
    q35->lpc.config[LPC_ACPI_CONTROL] = LPC_ACPI_ENABLE;
    update_pm_base(q35);
    for (unsigned i = 0; i < 4; i++) {
        q35->lpc.config[LPC_PIRQ_A + i] = Q35_PIRQ_ISA_IRQ(i);
        q35->lpc.config[LPC_PIRQ_E + i] = Q35_PIRQ_ISA_IRQ(i);
    }
    acpi_pm_enable(machine);
}

static void q35_reset(struct device *device)
{
    struct q35 *q35 = container_of(device, struct q35, device);
    pci_reset(&q35->host);
    pci_reset(&q35->lpc);
    update_ecam(q35);
    update_pm_base(q35);
    q35->reset_control = 0;
    q35->port92_value = 2;
}

static void q35_free(struct device *device)
{
    struct q35 *q35 = container_of(device, struct q35, device);
    address_space_remove(&device->machine->ports, &q35->port92);
    pci_remove(&q35->lpc);
    pci_remove(&q35->host);
    pthread_mutex_destroy(&q35->pirq_lock);
    device->machine->q35 = NULL;
    free(q35);
}

static const struct device_ops q35_ops = { .reset = q35_reset, .free = q35_free };

int q35_init(struct machine *machine, struct error **errp)
{
    struct q35 *q35 = machine->q35 = xcalloc(1, sizeof(*q35));
    pthread_mutex_init(&q35->pirq_lock, NULL);
    q35->port92_value = 2;
    machine_add_device(machine, &q35->device, &q35_ops);
    pci_set_reset_control(machine, &reset_control_ops, q35);
    q35->port92 = (struct io_region){ .name = "port92", .base = 0x92, .size = 1, .ops = &port92_ops, .opaque = q35 };
    int err = init_host_bridge(q35, errp);
    if (!err)
        err = init_lpc(q35, errp);
    if (!err && address_space_add(&machine->ports, &q35->port92) < 0)
        err = error_set(errp, -EBUSY, "port 0x92 is taken");
    return err;
}
