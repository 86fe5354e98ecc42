/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * virtio over PCI, modern interface (virtio 1.2, 4.1). One BAR holds the common configuration, interrupt status, device
 * configuration and doorbells; MSI-X is in another. A doorbell is an ioeventfd, an interrupt the eventfd of an MSI-X
 * vector; only without MSI-X does an interrupt go through the status byte and the pin.
 * Invariant: registers are read and written under the device lock; vectors are atomics, read by the queues' loops.
 */
#include "virtio_pci.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <linux/virtio_pci.h>
#include <stddef.h>
#include <unistd.h>

#define MSIX_BAR 1u
#define REGISTERS_BAR 4u
#define AREA_SIZE 0x1000u
#define COMMON_AREA 0x0000u
#define ISR_AREA 0x1000u
#define DEVICE_AREA 0x2000u
#define NOTIFY_AREA 0x3000u
#define REGISTERS_SIZE 0x4000u
#define NOTIFY_STEP 4u /* notify_off_multiplier */
#define ISR_QUEUE 1u
#define ISR_CONFIG 2u
#define MAX_VECTORS 128u

/* ---- interrupts; any thread ---- */

static void raise_isr(struct virtio_pci *proxy, uint8_t bit)
{
    pthread_mutex_lock(&proxy->isr_lock);
    proxy->isr |= bit;
    pci_set_pin(&proxy->pci, true);
    pthread_mutex_unlock(&proxy->isr_lock);
}

static int queue_irq_fd(struct virtio_device *vdev, const struct virtio_queue *queue)
{
    struct virtio_pci *proxy = vdev->transport_state;
    return msix_fd(&proxy->pci, atomic_load_explicit(&queue->vector, memory_order_relaxed));
}

static void raise_queue(struct virtio_device *vdev)
{
    struct virtio_pci *proxy = vdev->transport_state;
    if (!msix_enabled(&proxy->pci))
        raise_isr(proxy, ISR_QUEUE);
}

static void raise_config(struct virtio_device *vdev)
{
    struct virtio_pci *proxy = vdev->transport_state;
    uint64_t one = 1;
    int fd = msix_fd(&proxy->pci, atomic_load(&proxy->config_vector));
    if (!msix_enabled(&proxy->pci))
        raise_isr(proxy, ISR_CONFIG);
    else if (fd >= 0 && write(fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: an interrupt is pending anyway */
}

static const struct virtio_transport_ops transport_ops = { queue_irq_fd, raise_queue, raise_config };

/* ---- common configuration (4.1.4.3) ---- */

static struct virtio_queue *selected(struct virtio_pci *proxy)
{
    return proxy->queue_select < proxy->vdev->queue_count ? &proxy->vdev->queues[proxy->queue_select] : NULL;
}

static uint32_t read_queue_register(struct virtio_pci *proxy, uint64_t offset)
{
    const struct virtio_queue *queue = selected(proxy);
    if (!queue)
        return 0; /* size 0: there is no such queue */
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE: return queue->size;
    case VIRTIO_PCI_COMMON_Q_MSIX: return atomic_load(&queue->vector);
    case VIRTIO_PCI_COMMON_Q_ENABLE: return queue->enabled;
    case VIRTIO_PCI_COMMON_Q_NOFF: return queue->index;
    case VIRTIO_PCI_COMMON_Q_DESCLO: return (uint32_t)queue->desc;
    case VIRTIO_PCI_COMMON_Q_DESCHI: return (uint32_t)(queue->desc >> 32);
    case VIRTIO_PCI_COMMON_Q_AVAILLO: return (uint32_t)queue->avail;
    case VIRTIO_PCI_COMMON_Q_AVAILHI: return (uint32_t)(queue->avail >> 32);
    case VIRTIO_PCI_COMMON_Q_USEDLO: return (uint32_t)queue->used;
    case VIRTIO_PCI_COMMON_Q_USEDHI: return (uint32_t)(queue->used >> 32);
    default: return 0;
    }
}

static uint32_t half(uint64_t value, uint32_t select)
{
    return select == 0 ? (uint32_t)value : select == 1 ? (uint32_t)(value >> 32) : 0;
}

static uint32_t read_common(struct virtio_pci *proxy, uint64_t offset)
{
    struct virtio_device *vdev = proxy->vdev;
    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT: return proxy->device_feature_select;
    case VIRTIO_PCI_COMMON_DF: return half(vdev->host_features, proxy->device_feature_select);
    case VIRTIO_PCI_COMMON_GFSELECT: return proxy->driver_feature_select;
    case VIRTIO_PCI_COMMON_GF: return half(vdev->features, proxy->driver_feature_select);
    case VIRTIO_PCI_COMMON_MSIX: return atomic_load(&proxy->config_vector);
    case VIRTIO_PCI_COMMON_NUMQ: return vdev->queue_count;
    case VIRTIO_PCI_COMMON_STATUS: return atomic_load(&vdev->status);
    case VIRTIO_PCI_COMMON_CFGGENERATION: return 0;
    case VIRTIO_PCI_COMMON_Q_SELECT: return proxy->queue_select;
    default: return read_queue_register(proxy, offset);
    }
}

/* A vector that does not exist reads back as none (4.1.5.1.2.1). */
static uint16_t checked_vector(const struct virtio_pci *proxy, uint32_t value)
{
    unsigned count = (load_le16(proxy->pci.config + proxy->pci.msix_capability + PCI_MSIX_FLAGS) &
                      PCI_MSIX_FLAGS_QSIZE) +
                     1u;
    return value < count ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

static void set_low(uint64_t *address, uint32_t value) { *address = (*address & ~(uint64_t)UINT32_MAX) | value; }

static void set_high(uint64_t *address, uint32_t value) { *address = (*address & UINT32_MAX) | (uint64_t)value << 32; }

static void write_queue_register(struct virtio_pci *proxy, uint64_t offset, uint32_t value)
{
    struct virtio_queue *queue = selected(proxy);
    if (!queue)
        return;
    if (offset == VIRTIO_PCI_COMMON_Q_MSIX) {
        atomic_store(&queue->vector, checked_vector(proxy, value));
        return;
    }
    if (queue->enabled || queue->running)
        return;
    switch (offset) {
    case VIRTIO_PCI_COMMON_Q_SIZE:
        queue->size = value <= queue->size_max ? (uint16_t)value : 0; /* 0 is refused when the queue starts */
        break;
    case VIRTIO_PCI_COMMON_Q_ENABLE:
        if (value == 1)
            virtio_enable_queue(queue);
        break;
    case VIRTIO_PCI_COMMON_Q_DESCLO: set_low(&queue->desc, value); break;
    case VIRTIO_PCI_COMMON_Q_DESCHI: set_high(&queue->desc, value); break;
    case VIRTIO_PCI_COMMON_Q_AVAILLO: set_low(&queue->avail, value); break;
    case VIRTIO_PCI_COMMON_Q_AVAILHI: set_high(&queue->avail, value); break;
    case VIRTIO_PCI_COMMON_Q_USEDLO: set_low(&queue->used, value); break;
    case VIRTIO_PCI_COMMON_Q_USEDHI: set_high(&queue->used, value); break;
    default: break;
    }
}

/* The driver chooses features until it has said that they are OK. */
static void write_features(struct virtio_pci *proxy, uint32_t value)
{
    struct virtio_device *vdev = proxy->vdev;
    if (atomic_load(&vdev->status) & VIRTIO_CONFIG_S_FEATURES_OK)
        return;
    if (proxy->driver_feature_select == 0)
        set_low(&vdev->features, value);
    else if (proxy->driver_feature_select == 1)
        set_high(&vdev->features, value);
}

/* While a vCPU waits for a reset to end, what others write is not heard: it counts as having come before the reset, and
 * a queue that was started now would outlive it. */
static void write_common(struct virtio_pci *proxy, uint64_t offset, uint32_t value)
{
    if (proxy->vdev->resetting)
        return;
    switch (offset) {
    case VIRTIO_PCI_COMMON_DFSELECT: proxy->device_feature_select = value; break;
    case VIRTIO_PCI_COMMON_GFSELECT: proxy->driver_feature_select = value; break;
    case VIRTIO_PCI_COMMON_GF: write_features(proxy, value); break;
    case VIRTIO_PCI_COMMON_MSIX: atomic_store(&proxy->config_vector, checked_vector(proxy, value)); break;
    case VIRTIO_PCI_COMMON_STATUS:
        virtio_set_status(proxy->vdev, (uint8_t)value);
        if ((uint8_t)value == 0)
            virtio_pci_reset(proxy);
        break;
    case VIRTIO_PCI_COMMON_Q_SELECT: proxy->queue_select = (uint16_t)value; break;
    default: write_queue_register(proxy, offset, value);
    }
}

/* ---- the BAR ---- */

static uint8_t read_isr(struct virtio_pci *proxy)
{
    pthread_mutex_lock(&proxy->isr_lock);
    uint8_t value = proxy->isr;
    proxy->isr = 0;
    pci_set_pin(&proxy->pci, false);
    pthread_mutex_unlock(&proxy->isr_lock);
    return value;
}

static uint64_t registers_read(void *opaque, uint64_t offset, unsigned length)
{
    struct virtio_pci *proxy = opaque;
    struct virtio_device *vdev = proxy->vdev;
    uint8_t bytes[8] = { 0 };
    if (offset < COMMON_AREA + AREA_SIZE)
        return length == 8 ? read_common(proxy, offset) | (uint64_t)read_common(proxy, offset + 4) << 32
                           : read_common(proxy, offset);
    if (offset == ISR_AREA)
        return read_isr(proxy);
    if (offset >= DEVICE_AREA && range_inside(offset - DEVICE_AREA, length, vdev->config_size))
        vdev->ops->config_read(vdev, offset - DEVICE_AREA, length, bytes);
    return load_le64(bytes);
}

static void registers_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct virtio_pci *proxy = opaque;
    struct virtio_device *vdev = proxy->vdev;
    uint8_t bytes[8];
    if (offset < COMMON_AREA + AREA_SIZE) {
        write_common(proxy, offset, (uint32_t)value);
        if (length == 8)
            write_common(proxy, offset + 4, (uint32_t)(value >> 32));
    } else if (offset >= NOTIFY_AREA) {
        uint64_t queue = (offset - NOTIFY_AREA) / NOTIFY_STEP;
        if (queue < vdev->queue_count)
            virtio_queue_ring(&vdev->queues[queue]);
    } else if (offset >= DEVICE_AREA && range_inside(offset - DEVICE_AREA, length, vdev->config_size)) {
        store_le64(bytes, value);
        vdev->ops->config_write(vdev, offset - DEVICE_AREA, length, bytes);
    }
}

static const struct io_ops registers_ops = { registers_read, registers_write };

static void bar_moved(struct pci_device *pci, unsigned bar, bool mapped)
{
    struct virtio_pci *proxy = container_of(pci, struct virtio_pci, pci);
    uint64_t base = pci->bars[bar].region.base;
    for (unsigned i = 0; bar == REGISTERS_BAR && i < proxy->vdev->queue_count; i++)
        kvm_doorbell(&pci->machine->kvm, base + NOTIFY_AREA + i * NOTIFY_STEP, 2, proxy->vdev->queues[i].doorbell_fd,
                     mapped);
}

/* ---- access to the BAR through configuration space (4.1.4.9) ---- */

static bool access_window(const struct virtio_pci *proxy, uint64_t *offset, unsigned *length)
{
    const uint8_t *capability = proxy->pci.config + proxy->access_capability;
    *offset = load_le32(capability + offsetof(struct virtio_pci_cap, offset));
    *length = load_le32(capability + offsetof(struct virtio_pci_cap, length));
    return capability[offsetof(struct virtio_pci_cap, bar)] == REGISTERS_BAR &&
           (*length == 1 || *length == 2 || *length == 4) && is_aligned(*offset, *length) &&
           range_inside(*offset, *length, REGISTERS_SIZE);
}

static bool touches_access_data(const struct virtio_pci *proxy, unsigned offset, unsigned length)
{
    return ranges_overlap(offset, length, proxy->access_capability + sizeof(struct virtio_pci_cap), 4);
}

static void config_read(struct pci_device *pci, unsigned offset, unsigned length)
{
    struct virtio_pci *proxy = container_of(pci, struct virtio_pci, pci);
    uint64_t at;
    unsigned size;
    if (touches_access_data(proxy, offset, length) && access_window(proxy, &at, &size))
        store_le32(pci->config + proxy->access_capability + sizeof(struct virtio_pci_cap),
                   (uint32_t)registers_read(proxy, at, size));
}

static void config_written(struct pci_device *pci, unsigned offset, unsigned length)
{
    struct virtio_pci *proxy = container_of(pci, struct virtio_pci, pci);
    uint64_t at;
    unsigned size;
    if (touches_access_data(proxy, offset, length) && access_window(proxy, &at, &size))
        registers_write(proxy, at, size,
                        load_le32(pci->config + proxy->access_capability + sizeof(struct virtio_pci_cap)));
}

static const struct pci_device_ops pci_ops = { config_written, config_read, bar_moved };

/* ---- life ---- */

static uint8_t add_capability(struct virtio_pci *proxy, uint8_t type, uint8_t length, uint32_t offset, uint32_t size)
{
    uint8_t at = pci_add_capability(&proxy->pci, PCI_CAP_ID_VNDR, length);
    uint8_t *capability = proxy->pci.config + at;
    capability[offsetof(struct virtio_pci_cap, cap_len)] = length;
    capability[offsetof(struct virtio_pci_cap, cfg_type)] = type;
    capability[offsetof(struct virtio_pci_cap, bar)] = type == VIRTIO_PCI_CAP_PCI_CFG ? 0 : REGISTERS_BAR;
    store_le32(capability + offsetof(struct virtio_pci_cap, offset), offset);
    store_le32(capability + offsetof(struct virtio_pci_cap, length), size);
    return at;
}

static void add_capabilities(struct virtio_pci *proxy)
{
    uint8_t length = sizeof(struct virtio_pci_cap);
    add_capability(proxy, VIRTIO_PCI_CAP_COMMON_CFG, length, COMMON_AREA, AREA_SIZE);
    add_capability(proxy, VIRTIO_PCI_CAP_ISR_CFG, length, ISR_AREA, AREA_SIZE);
    add_capability(proxy, VIRTIO_PCI_CAP_DEVICE_CFG, length, DEVICE_AREA, AREA_SIZE);
    uint8_t at = add_capability(proxy, VIRTIO_PCI_CAP_NOTIFY_CFG, sizeof(struct virtio_pci_notify_cap), NOTIFY_AREA,
                                AREA_SIZE);
    store_le32(proxy->pci.config + at + offsetof(struct virtio_pci_notify_cap, notify_off_multiplier), NOTIFY_STEP);
    at = add_capability(proxy, VIRTIO_PCI_CAP_PCI_CFG, sizeof(struct virtio_pci_cap) + 4, 0, 0);
    proxy->access_capability = at;
    uint8_t *writable = proxy->pci.writable + at;
    writable[offsetof(struct virtio_pci_cap, bar)] = 0xff;
    store_le32(writable + offsetof(struct virtio_pci_cap, offset), UINT32_MAX);
    store_le32(writable + offsetof(struct virtio_pci_cap, length), UINT32_MAX);
    store_le32(writable + sizeof(struct virtio_pci_cap), UINT32_MAX);
}

int virtio_pci_add(struct virtio_pci *proxy, struct virtio_device *vdev, uint16_t device_type, uint32_t class_code,
                   const char *address, struct error **errp)
{
    struct pci_device *pci = &proxy->pci;
    proxy->vdev = vdev;
    vdev->transport = &transport_ops;
    vdev->transport_state = proxy;
    pthread_mutex_init(&proxy->isr_lock, NULL);
    atomic_store(&proxy->config_vector, VIRTIO_NO_VECTOR);
    pci_init_device(pci, vdev->machine, &pci_ops, 0x1af4, (uint16_t)(0x1040 + device_type), class_code, 1);
    pci->name = vdev->name;
    store_le16(pci->config + PCI_SUBSYSTEM_VENDOR_ID, 0x1af4);
    store_le16(pci->config + PCI_SUBSYSTEM_ID, 0x1100);
    pci->config[PCI_INTERRUPT_PIN] = 1;
    pci_init_bar(pci, REGISTERS_BAR, REGISTERS_SIZE, true, true, &registers_ops, proxy, "virtio");
    int err = msix_init(pci, MIN(vdev->queue_count + 1u, MAX_VECTORS), MSIX_BAR, errp);
    if (err)
        return err;
    add_capabilities(proxy);
    err = pci_add(pci, address, errp);
    if (err)
        msix_free(pci);
    return err;
}

void virtio_pci_remove(struct virtio_pci *proxy)
{
    pci_remove(&proxy->pci);
    msix_free(&proxy->pci);
    pthread_mutex_destroy(&proxy->isr_lock);
}

void virtio_pci_reset(struct virtio_pci *proxy)
{
    proxy->device_feature_select = proxy->driver_feature_select = 0;
    proxy->queue_select = 0;
    atomic_store(&proxy->config_vector, VIRTIO_NO_VECTOR);
    read_isr(proxy);
}
