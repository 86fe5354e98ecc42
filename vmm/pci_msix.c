/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * MSI-X (PCI Local Bus 3.0, 6.8.2). Each vector has an eventfd that devices signal from any thread. While the vector
 * is unmasked KVM turns the signal into the interrupt (irqfd), without leaving the kernel. While it is masked nobody
 * reads the eventfd: its counter is the pending bit, and connecting it again delivers what came meanwhile.
 * Invariant: a vector is connected exactly if MSI-X is on, neither function nor vector is masked, and there is a route.
 */
#include "pci.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ENTRY_SIZE 16u
#define ENTRY_MASKED 1u

struct msix_vector {
    uint8_t entry[ENTRY_SIZE]; /* address low, high, data, control */
    int fd;                    /* eventfd, non-blocking */
    int gsi;                   /* -1 until first needed */
    bool connected;
};

struct msix {
    unsigned count;
    bool enabled; /* as in the control word; atomic */
    uint64_t pending_offset;
    struct msix_vector vectors[];
};

static bool is_pending(const struct msix_vector *vector)
{
    struct pollfd pfd = { .fd = vector->fd, .events = POLLIN };
    return !vector->connected && poll(&pfd, 1, 0) == 1;
}

static void disconnect(struct pci_device *device, struct msix_vector *vector)
{
    if (vector->connected)
        kvm_irqfd(&device->machine->kvm, (unsigned)vector->gsi, vector->fd, false);
    vector->connected = false;
}

static void connect_vector(struct pci_device *device, struct msix_vector *vector)
{
    struct kvm *kvm = &device->machine->kvm;
    uint64_t count = 0;
    if (vector->gsi < 0)
        vector->gsi = kvm_msi_new(kvm);
    if (vector->gsi < 0 ||
        kvm_msi_set(kvm, (unsigned)vector->gsi, load_le64(vector->entry), load_le32(vector->entry + 8)) < 0)
        return;
    if (vector->connected)
        return;
    /* What came while masked goes through the connected eventfd once more. */
    bool pending = read(vector->fd, &count, sizeof(count)) == sizeof(count);
    if (kvm_irqfd(kvm, (unsigned)vector->gsi, vector->fd, true) < 0)
        return;
    vector->connected = true;
    count = 1;
    if (pending && write(vector->fd, &count, sizeof(count)) < 0)
        return;
}

static void update_vector(struct pci_device *device, struct msix_vector *vector)
{
    uint16_t control = load_le16(device->config + device->msix_capability + PCI_MSIX_FLAGS);
    bool masked = !(control & PCI_MSIX_FLAGS_ENABLE) || control & PCI_MSIX_FLAGS_MASKALL ||
                  load_le32(vector->entry + PCI_MSIX_ENTRY_VECTOR_CTRL) & ENTRY_MASKED;
    if (masked)
        disconnect(device, vector);
    else
        connect_vector(device, vector);
}

void msix_config_written(struct pci_device *device)
{
    struct msix *msix = device->msix;
    bool enabled = load_le16(device->config + device->msix_capability + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_ENABLE;
    __atomic_store_n(&msix->enabled, enabled, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < msix->count; i++)
        update_vector(device, &msix->vectors[i]);
}

/* ---- table and pending bits ---- */

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned length)
{
    struct pci_device *device = opaque;
    const struct msix *msix = device->msix;
    uint64_t value = 0;
    if (!is_aligned(offset, length) || length < 4)
        return 0;
    if (offset < msix->count * ENTRY_SIZE) {
        const uint8_t *at = msix->vectors[offset / ENTRY_SIZE].entry + offset % ENTRY_SIZE;
        return length == 8 ? load_le64(at) : load_le32(at);
    }
    if (offset < msix->pending_offset)
        return 0;
    uint64_t first = (offset - msix->pending_offset) * 8;
    for (unsigned i = 0; i < length * 8; i++)
        if (first + i < msix->count && is_pending(&msix->vectors[first + i]))
            value |= 1ull << i;
    return value;
}

static void bar_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct pci_device *device = opaque;
    struct msix *msix = device->msix;
    if (!is_aligned(offset, length) || length < 4 || offset >= msix->count * ENTRY_SIZE)
        return;
    struct msix_vector *vector = &msix->vectors[offset / ENTRY_SIZE];
    if (length == 8)
        store_le64(vector->entry + offset % ENTRY_SIZE, value);
    else
        store_le32(vector->entry + offset % ENTRY_SIZE, (uint32_t)value);
    update_vector(device, vector);
}

static const struct io_ops bar_ops = { bar_read, bar_write };

/* ---- life ---- */

static void reset_vectors(struct pci_device *device)
{
    struct msix *msix = device->msix;
    for (unsigned i = 0; i < msix->count; i++) {
        struct msix_vector *vector = &msix->vectors[i];
        uint64_t count;
        disconnect(device, vector);
        while (read(vector->fd, &count, sizeof(count)) > 0)
            ;
        store_le64(vector->entry, 0);
        store_le32(vector->entry + 8, 0);
        store_le32(vector->entry + PCI_MSIX_ENTRY_VECTOR_CTRL, ENTRY_MASKED);
    }
}

int msix_init(struct pci_device *device, unsigned count, unsigned bar, struct error **errp)
{
    struct msix *msix = device->msix = xcalloc(1, sizeof(*msix) + count * sizeof(msix->vectors[0]));
    msix->count = count;
    for (unsigned i = 0; i < count; i++)
        msix->vectors[i] = (struct msix_vector){ .fd = -1, .gsi = -1 };
    for (unsigned i = 0; i < count; i++) {
        msix->vectors[i].fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (msix->vectors[i].fd < 0) {
            int err = error_set_errno(errp, -errno, "cannot make an eventfd for an interrupt");
            msix_free(device);
            return err;
        }
    }
    msix->pending_offset = align_up(count * ENTRY_SIZE, 2048);
    uint64_t size = 4096;
    while (size < msix->pending_offset + div_round_up(count, 64) * 8)
        size *= 2;
    pci_init_bar(device, bar, size, false, false, &bar_ops, device, "msix");
    device->msix_capability = pci_add_capability(device, PCI_CAP_ID_MSIX, 12);
    uint8_t *capability = device->config + device->msix_capability;
    store_le16(capability + PCI_MSIX_FLAGS, (uint16_t)(count - 1));
    store_le16(device->writable + device->msix_capability + PCI_MSIX_FLAGS,
               PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    store_le32(capability + PCI_MSIX_TABLE, bar);
    store_le32(capability + PCI_MSIX_PBA, (uint32_t)msix->pending_offset | bar);
    reset_vectors(device);
    return 0;
}

void msix_reset(struct pci_device *device)
{
    __atomic_store_n(&device->msix->enabled, false, __ATOMIC_SEQ_CST);
    reset_vectors(device);
}

void msix_free(struct pci_device *device)
{
    struct msix *msix = device->msix;
    for (unsigned i = 0; msix && i < msix->count; i++) {
        disconnect(device, &msix->vectors[i]);
        if (msix->vectors[i].gsi >= 0)
            kvm_msi_free(&device->machine->kvm, (unsigned)msix->vectors[i].gsi);
        if (msix->vectors[i].fd >= 0)
            close(msix->vectors[i].fd);
    }
    free(msix);
    device->msix = NULL;
}

bool msix_enabled(const struct pci_device *device) { return __atomic_load_n(&device->msix->enabled, __ATOMIC_SEQ_CST); }

int msix_fd(const struct pci_device *device, unsigned vector)
{
    const struct msix *msix = device->msix;
    return msix_enabled(device) && vector < msix->count ? msix->vectors[vector].fd : -1;
}
