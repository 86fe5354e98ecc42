/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* virtio over PCI (virtio 1.2, section 4.1): modern only. A device embeds a struct virtio_pci next to its
 * virtio_device. */
#pragma once

#include "pci.h"
#include "virtio.h"

struct virtio_pci {
    struct pci_device pci;
    struct virtio_device *vdev;
    uint8_t access_capability; /* offset of the capability through which firmware reaches the BARs */
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    _Atomic uint16_t config_vector;
    pthread_mutex_t isr_lock; /* the interrupt status and the pin that shows it */
    uint8_t isr;
};

/* Main loop. `address`: as in addr=, or NULL. The queues are initialised. */
int virtio_pci_add(struct virtio_pci *proxy, struct virtio_device *vdev, uint16_t device_type, uint32_t class_code,
                   const char *address, struct error **errp);
void virtio_pci_remove(struct virtio_pci *proxy);
void virtio_pci_reset(struct virtio_pci *proxy); /* power-on; the device is quiet */
