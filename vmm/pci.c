/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PCI bus 0: configuration space, BARs, interrupt pins (PCI Local Bus 3.0, PCI Express Base 4.0 section 7.2.2 for
 * ECAM).
 * Invariant: a BAR is in its address space exactly while decoding is on and its range overlaps nobody else's; a BAR
 * that found its place taken is tried again whenever another one moves.
 */
#include "pci.h"

#include "q35.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEVFN_COUNT 256u
#define CONFIG_ENABLE (1u << 31)
#define PIRQ_COUNT 8u

struct pci_bus {
    struct machine *machine;
    struct pci_device *devices[DEVFN_COUNT];
    uint32_t address; /* port 0xcf8 */
    struct io_region ports, ecam;
    const struct io_ops *reset_ops;
    void *reset_opaque;
    pthread_mutex_t pins_lock; /* pins and counts; a leaf but for KVM's line */
    unsigned raised[PIRQ_COUNT];
};

/* ---- BARs ---- */

static uint64_t bar_address(const struct pci_device *device, unsigned bar)
{
    uint64_t value = load_le32(device->config + PCI_BASE_ADDRESS_0 + bar * 4);
    if (device->bars[bar].wide)
        value |= (uint64_t)load_le32(device->config + PCI_BASE_ADDRESS_0 + bar * 4 + 4) << 32;
    return value & ~15ull;
}

static bool bar_decoded(const struct pci_device *device)
{
    return load_le16(device->config + PCI_COMMAND) & PCI_COMMAND_MEMORY;
}

static void map_bar(struct pci_device *device, unsigned bar)
{
    struct pci_bar *b = &device->bars[bar];
    if (!b->region.size || b->mapped || !bar_decoded(device))
        return;
    b->region.base = bar_address(device, bar);
    if (b->region.base == 0 || address_space_add(b->space, &b->region) < 0)
        return;
    b->mapped = true;
    if (device->ops->bar_moved)
        device->ops->bar_moved(device, bar, true);
}

static void unmap_bar(struct pci_device *device, unsigned bar)
{
    struct pci_bar *b = &device->bars[bar];
    if (!b->mapped)
        return;
    if (device->ops->bar_moved)
        device->ops->bar_moved(device, bar, false);
    address_space_remove(b->space, &b->region);
    b->mapped = false;
}

static void update_bars(struct pci_device *device)
{
    bool moved = false;
    for (unsigned bar = 0; bar < ARRAY_SIZE(device->bars); bar++) {
        const struct pci_bar *b = &device->bars[bar];
        if (b->mapped && (!bar_decoded(device) || bar_address(device, bar) != b->region.base)) {
            unmap_bar(device, bar);
            moved = true;
        }
        map_bar(device, bar);
    }
    struct pci_bus *bus = device->machine->pci;
    for (unsigned i = 0; moved && i < DEVFN_COUNT; i++)
        for (unsigned bar = 0; bus->devices[i] && bar < ARRAY_SIZE(device->bars); bar++)
            map_bar(bus->devices[i], bar);
}

void pci_init_bar(struct pci_device *device, unsigned bar, uint64_t size, bool wide, bool prefetchable,
                  const struct io_ops *ops, void *opaque, const char *name)
{
    unsigned offset = PCI_BASE_ADDRESS_0 + bar * 4;
    device->bars[bar] = (struct pci_bar){
        .region = { .name = name, .size = size, .ops = ops, .opaque = opaque },
        .space = &device->machine->mmio,
        .wide = wide,
    };
    store_le32(device->config + offset,
               (wide ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0u) | (prefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0u));
    store_le32(device->writable + offset, (uint32_t) ~(size - 1));
    if (wide)
        store_le32(device->writable + offset + 4, (uint32_t)(~(size - 1) >> 32));
}

void pci_assign(struct machine *machine)
{
    uint64_t next = PCI_WINDOW_START;
    for (unsigned i = 0; i < DEVFN_COUNT; i++) {
        struct pci_device *device = machine->pci->devices[i];
        if (!device)
            continue;
        for (unsigned bar = 0; bar < ARRAY_SIZE(device->bars); bar++) {
            const struct pci_bar *b = &device->bars[bar];
            uint64_t at = b->region.size ? align_up(next, b->region.size) : 0;
            if (!b->region.size || !range_inside(at, b->region.size, PCI_WINDOW_END))
                continue;
            uint8_t *reg = device->config + PCI_BASE_ADDRESS_0 + bar * 4;
            store_le32(reg, (uint32_t)at | (load_le32(reg) & 15u));
            next = at + b->region.size;
        }
        if (device->config[PCI_INTERRUPT_PIN])
            device->config[PCI_INTERRUPT_LINE] = Q35_PIRQ_ISA_IRQ(
                q35_pirq(device->devfn >> 3, device->config[PCI_INTERRUPT_PIN] - 1u));
        uint8_t *command = device->config + PCI_COMMAND;
        *command |= device->writable[PCI_COMMAND] & (PCI_COMMAND_MEMORY | PCI_COMMAND_IO);
        update_bars(device);
    }
}

/* ---- interrupt pins ---- */

/* Pins lock held. */
static void update_pin(struct pci_device *device)
{
    struct pci_bus *bus = device->machine->pci;
    bool visible = device->pin_raised && !device->pin_disabled;
    if (visible == device->pin_visible)
        return;
    device->pin_visible = visible;
    unsigned pirq = q35_pirq(device->devfn >> 3, 0);
    unsigned before = bus->raised[pirq];
    bus->raised[pirq] = visible ? before + 1 : before - 1;
    if (!before != !bus->raised[pirq])
        q35_set_pirq(device->machine, pirq, visible);
}

void pci_set_pin(struct pci_device *device, bool raised)
{
    struct pci_bus *bus = device->machine->pci;
    pthread_mutex_lock(&bus->pins_lock);
    device->pin_raised = raised;
    update_pin(device);
    pthread_mutex_unlock(&bus->pins_lock);
}

/* The command register has changed. Device lock. */
static void update_pin_disabled(struct pci_device *device)
{
    struct pci_bus *bus = device->machine->pci;
    pthread_mutex_lock(&bus->pins_lock);
    device->pin_disabled = load_le16(device->config + PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE;
    update_pin(device);
    pthread_mutex_unlock(&bus->pins_lock);
}

static bool pin_raised(struct pci_device *device)
{
    struct pci_bus *bus = device->machine->pci;
    pthread_mutex_lock(&bus->pins_lock);
    bool raised = device->pin_raised;
    pthread_mutex_unlock(&bus->pins_lock);
    return raised;
}

/* ---- configuration space ---- */

static uint32_t config_read(struct pci_bus *bus, unsigned devfn, unsigned offset, unsigned length)
{
    struct pci_device *device = bus->devices[devfn];
    if (!device)
        return UINT32_MAX;
    if (!range_inside(offset, length, PCI_CONFIG_SIZE))
        return UINT32_MAX; /* none of the devices has extended configuration space */
    if (device->ops->config_read)
        device->ops->config_read(device, offset, length);
    uint8_t bytes[4] = { 0 };
    memcpy(bytes, device->config + offset, MIN(length, 4u));
    if (ranges_overlap(offset, length, PCI_STATUS, 1) && pin_raised(device))
        bytes[PCI_STATUS - offset] |= PCI_STATUS_INTERRUPT;
    return load_le32(bytes);
}

static void config_write(struct pci_bus *bus, unsigned devfn, unsigned offset, unsigned length, uint32_t value)
{
    struct pci_device *device = bus->devices[devfn];
    if (!device || !range_inside(offset, length, PCI_CONFIG_SIZE))
        return;
    for (unsigned i = 0; i < length; i++) {
        uint8_t mask = device->writable[offset + i];
        uint8_t *byte = &device->config[offset + i];
        *byte = (uint8_t)((*byte & ~mask) | ((value >> 8 * i) & mask));
    }
    if (ranges_overlap(offset, length, PCI_COMMAND, 2))
        update_pin_disabled(device);
    if (ranges_overlap(offset, length, PCI_COMMAND, 2) || ranges_overlap(offset, length, PCI_BASE_ADDRESS_0, 24))
        update_bars(device);
    if (device->msix)
        msix_config_written(device);
    if (device->ops->config_written)
        device->ops->config_written(device, offset, length);
}

/* Ports 0xcf8-0xcff; a byte access to 0xcf9 is the reset control register. */
static bool data_port(const struct pci_bus *bus, uint64_t offset, unsigned length)
{
    return offset >= 4 && length <= 4 && bus->address & CONFIG_ENABLE && !(bus->address >> 16 & 0xff);
}

static uint64_t ports_read(void *opaque, uint64_t offset, unsigned length)
{
    struct pci_bus *bus = opaque;
    if (offset == 0 && length == 4)
        return bus->address;
    if (offset == 1 && length == 1 && bus->reset_ops)
        return bus->reset_ops->read(bus->reset_opaque, 0, 1);
    if (data_port(bus, offset, length))
        return config_read(bus, bus->address >> 8 & 0xff, (bus->address & 0xfc) + (unsigned)(offset - 4), length);
    return UINT64_MAX;
}

static void ports_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct pci_bus *bus = opaque;
    if (offset == 0 && length == 4)
        bus->address = (uint32_t)value & ~3u;
    else if (offset == 1 && length == 1 && bus->reset_ops)
        bus->reset_ops->write(bus->reset_opaque, 0, 1, value);
    else if (data_port(bus, offset, length))
        config_write(bus, bus->address >> 8 & 0xff, (bus->address & 0xfc) + (unsigned)(offset - 4), length,
                     (uint32_t)value);
}

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned length)
{
    struct pci_bus *bus = opaque;
    if (length == 8)
        return ecam_read(opaque, offset, 4) | ecam_read(opaque, offset + 4, 4) << 32;
    if (offset >> 20)
        return UINT64_MAX;
    return config_read(bus, offset >> 12 & 0xff, offset & 0xfff, length);
}

static void ecam_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct pci_bus *bus = opaque;
    if (length == 8) {
        ecam_write(opaque, offset, 4, value & UINT32_MAX);
        ecam_write(opaque, offset + 4, 4, value >> 32);
    } else if (!(offset >> 20)) {
        config_write(bus, offset >> 12 & 0xff, offset & 0xfff, length, (uint32_t)value);
    }
}

static const struct io_ops ports_ops = { ports_read, ports_write };
static const struct io_ops ecam_ops = { ecam_read, ecam_write };

/* ---- the bus ---- */

int pci_bus_init(struct machine *machine, struct error **errp)
{
    struct pci_bus *bus = machine->pci = xcalloc(1, sizeof(*bus));
    bus->machine = machine;
    pthread_mutex_init(&bus->pins_lock, NULL);
    bus->ports = (struct io_region){ .name = "pci-config", .base = 0xcf8, .size = 8, .ops = &ports_ops, .opaque = bus };
    int err = address_space_add(&machine->ports, &bus->ports);
    return err ? error_set_errno(errp, err, "cannot place the PCI configuration ports") : 0;
}

void pci_bus_free(struct machine *machine)
{
    if (!machine->pci)
        return;
    pthread_mutex_destroy(&machine->pci->pins_lock);
    free(machine->pci);
    machine->pci = NULL;
}

void pci_set_ecam(struct machine *machine, uint64_t base)
{
    struct pci_bus *bus = machine->pci;
    if (bus->ecam.size && bus->ecam.base == base)
        return;
    if (bus->ecam.size)
        address_space_remove(&machine->mmio, &bus->ecam);
    bus->ecam = (struct io_region){
        .name = "ecam", .base = base, .size = base ? 256u << 20 : 0, .ops = &ecam_ops, .opaque = bus
    };
    if (base && address_space_add(&machine->mmio, &bus->ecam) < 0)
        bus->ecam.size = 0;
}

void pci_set_reset_control(struct machine *machine, const struct io_ops *ops, void *opaque)
{
    machine->pci->reset_ops = ops;
    machine->pci->reset_opaque = opaque;
}

/* ---- devices ---- */

void pci_init_device(struct pci_device *device, struct machine *machine, const struct pci_device_ops *ops,
                     uint16_t vendor, uint16_t id, uint32_t class_code, uint8_t revision)
{
    *device = (struct pci_device){ .machine = machine, .ops = ops, .next_free = 0x40 };
    store_le16(device->config + PCI_VENDOR_ID, vendor);
    store_le16(device->config + PCI_DEVICE_ID, id);
    device->config[PCI_REVISION_ID] = revision;
    device->config[PCI_CLASS_PROG] = (uint8_t)class_code;
    store_le16(device->config + PCI_CLASS_DEVICE, (uint16_t)(class_code >> 8));
    store_le16(device->writable + PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
                                                   PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
    device->writable[PCI_CACHE_LINE_SIZE] = 0xff;
    device->writable[PCI_INTERRUPT_LINE] = 0xff;
}

uint8_t pci_add_capability(struct pci_device *device, uint8_t id, uint8_t length)
{
    uint8_t at = device->next_free;
    device->next_free = (uint8_t)(at + align_up(length, 4));
    device->config[at] = id;
    if (device->last_capability)
        device->config[device->last_capability + PCI_CAP_LIST_NEXT] = at;
    else
        device->config[PCI_CAPABILITY_LIST] = at;
    device->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
    device->last_capability = at;
    return at;
}

static int find_slot(struct pci_bus *bus, const char *name, const char *address, unsigned *devfn, struct error **errp)
{
    if (!address) {
        for (*devfn = 1 << 3; *devfn < DEVFN_COUNT; *devfn += 8)
            if (!bus->devices[*devfn])
                return 0;
        return error_set(errp, -EBUSY, "PCI: no slot/function available, all in use or reserved");
    }
    char *end;
    unsigned long slot = strtoul(address, &end, 16), function = 0;
    if (*end == '.' && end[1])
        function = strtoul(end + 1, &end, 16);
    if (end == address || *end || slot > 31 || function > 7)
        return error_set(errp, -EINVAL, "Property '%s.addr' doesn't take value '%s'", name, address);
    *devfn = (unsigned)(slot << 3 | function);
    if (bus->devices[*devfn])
        return error_set(errp, -EBUSY, "PCI: slot %lu function %lu not available for %s, in use by %s,id=(null)", slot,
                         function, name, bus->devices[*devfn]->name);
    return 0;
}

int pci_add(struct pci_device *device, const char *address, struct error **errp)
{
    struct pci_bus *bus = device->machine->pci;
    int err = find_slot(bus, device->name, address, &device->devfn, errp);
    if (err)
        return err;
    bus->devices[device->devfn] = device;
    memcpy(device->initial, device->config, sizeof(device->config));
    if (device->devfn & 7 && bus->devices[device->devfn & ~7u])
        bus->devices[device->devfn & ~7u]->config[PCI_HEADER_TYPE] |= 0x80;
    return 0;
}

void pci_remove(struct pci_device *device)
{
    for (unsigned bar = 0; bar < ARRAY_SIZE(device->bars); bar++)
        unmap_bar(device, bar);
    pci_set_pin(device, false);
    device->machine->pci->devices[device->devfn] = NULL;
}

void pci_reset(struct pci_device *device)
{
    uint8_t header_type = device->config[PCI_HEADER_TYPE];
    memcpy(device->config, device->initial, sizeof(device->config));
    device->config[PCI_HEADER_TYPE] = header_type;
    if (device->msix)
        msix_reset(device);
    pci_set_pin(device, false);
    update_pin_disabled(device);
    update_bars(device);
}
