/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * PCI: one root bus, its configuration space by ECAM and by ports 0xcf8/0xcfc, base address registers, capabilities,
 * interrupt pins and MSI-X. All under the device lock, except what says "any thread".
 */
#pragma once

#include "machine.h"

#include <linux/pci_regs.h>

#define PCI_WINDOW_START 0xc0000000u /* where BARs may lie */
#define PCI_WINDOW_END 0xfec00000u
#define PCI_CONFIG_SIZE 256u

struct msix;
struct pci_device;

struct pci_device_ops {
    /* A guest wrote configuration space; the bytes have changed already. NULL: nothing to do. */
    void (*config_written)(struct pci_device *device, unsigned offset, unsigned length);
    /* Before a guest's read, for registers whose content is elsewhere. NULL: nothing to do. */
    void (*config_read)(struct pci_device *device, unsigned offset, unsigned length);
    /* A BAR appeared at region->base (`mapped`), or is about to go. NULL: nothing to do. */
    void (*bar_moved)(struct pci_device *device, unsigned bar, bool mapped);
};

struct pci_bar {
    struct io_region region; /* base and size: as mapped */
    struct address_space *space;
    bool wide; /* 64 bits: the next BAR is its upper half */
    bool mapped;
};

struct pci_device {
    struct machine *machine;
    const struct pci_device_ops *ops;
    const char *name;
    unsigned devfn;
    uint8_t config[PCI_CONFIG_SIZE];
    uint8_t initial[PCI_CONFIG_SIZE];  /* at power-on; pci_add() copies config */
    uint8_t writable[PCI_CONFIG_SIZE]; /* bits that a guest may change */
    struct pci_bar bars[6];
    struct msix *msix;
    uint8_t msix_capability; /* its offset in configuration space */
    uint8_t last_capability;
    uint8_t next_free; /* where the next capability goes */
    /* bus->pins_lock: */
    bool pin_raised;
    bool pin_disabled; /* as the command register says, which other threads may not look at */
    bool pin_visible;  /* raised and not disabled: what the line counts */
};

/* Chipset: the bus and its registers in both spaces. */
int pci_bus_init(struct machine *machine, struct error **errp);
void pci_bus_free(struct machine *machine);
/* Moves the ECAM window; 0 closes it. */
void pci_set_ecam(struct machine *machine, uint64_t base);
/* Gives every BAR a place and switches decoding on, as firmware does. */
void pci_assign(struct machine *machine);
/* Reset control register at port 0xcf9, which lies in the middle of the configuration address. */
void pci_set_reset_control(struct machine *machine, const struct io_ops *ops, void *opaque);

/* Fills in IDs and class; ready for BARs and capabilities. class_code: 24 bits. */
void pci_init_device(struct pci_device *device, struct machine *machine, const struct pci_device_ops *ops,
                     uint16_t vendor, uint16_t id, uint32_t class_code, uint8_t revision);
/* Memory BAR of a power-of-two size from 16 bytes. */
void pci_init_bar(struct pci_device *device, unsigned bar, uint64_t size, bool wide, bool prefetchable,
                  const struct io_ops *ops, void *opaque, const char *name);
/* Adds a capability of `length` bytes and returns its offset. */
uint8_t pci_add_capability(struct pci_device *device, uint8_t id, uint8_t length);
/* Puts the device on the bus. `address`: "SLOT" or "SLOT.FUNCTION" in hexadecimal as in addr=, or NULL for the next
 * free slot. */
int pci_add(struct pci_device *device, const char *address, struct error **errp);
void pci_remove(struct pci_device *device);
/* Power-on state of configuration space; BARs go. */
void pci_reset(struct pci_device *device);

/* Interrupt pin INTA. Any thread. */
void pci_set_pin(struct pci_device *device, bool raised);

/* ---- MSI-X (pci_msix.c) ---- */

/* `count` vectors, table and pending bits in BAR `bar` of its own. */
int msix_init(struct pci_device *device, unsigned count, unsigned bar, struct error **errp);
void msix_free(struct pci_device *device);
void msix_reset(struct pci_device *device);
void msix_config_written(struct pci_device *device); /* the message control word may have changed */
/* Any thread: the eventfd whose signal is this vector's interrupt (kept pending while masked); -1 if there is no
 * such vector or MSI-X is off. */
int msix_fd(const struct pci_device *device, unsigned vector);
bool msix_enabled(const struct pci_device *device); /* any thread */
