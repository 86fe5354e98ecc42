/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The virtio driver of the tiny guests: modern PCI transport, split rings, polling unless a test wants interrupts. */
#include "virtio.h"

static uint8_t ring_memory[2][MAX_QUEUES][16384] __attribute__((aligned(4096)));
static struct request_header headers[MAX_QUEUES][QUEUE_MAX];
static volatile uint8_t statuses[MAX_QUEUES][QUEUE_MAX];
static unsigned memory_set; /* which device opened last uses which rings */

static void find_areas(struct device *device)
{
    for (unsigned at = 0; (at = pci_capability(device->devfn, 9, at));) {
        uint8_t type = (uint8_t)pci_read(device->devfn, at + 3, 1);
        uint64_t address = pci_bar(device->devfn, pci_read(device->devfn, at + 4, 1)) +
                           pci_read(device->devfn, at + 8, 4);
        if (type == 1)
            device->common = address;
        else if (type == 2)
            device->notify = address, device->notify_multiplier = pci_read(device->devfn, at + 16, 4);
        else if (type == 3)
            device->isr = address;
        else if (type == 4)
            device->config = address;
    }
    CHECK(device->common && device->notify && device->isr && device->config);
}

void device_open(struct device *device, unsigned n)
{
    memset(device, 0, sizeof(*device));
    int devfn = pci_find(0x1af4, 0x1042, n);
    CHECK(devfn >= 0);
    device->devfn = (unsigned)devfn;
    pci_write(device->devfn, 4, 2, 6); /* memory, bus master */
    memory_set = n & 1;
    find_areas(device);
    device_reset(device);
}

uint8_t device_status(struct device *device) { return read8(device->common + COMMON_STATUS); }

void device_reset(struct device *device)
{
    write8(device->common + COMMON_STATUS, 0);
    WAIT_FOR(device_status(device) == 0);
    write8(device->common + COMMON_STATUS, STATUS_ACKNOWLEDGE);
    write8(device->common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
}

uint64_t device_features(struct device *device)
{
    write32(device->common + COMMON_DEVICE_FEATURE_SELECT, 0);
    uint64_t features = read32(device->common + COMMON_DEVICE_FEATURE);
    write32(device->common + COMMON_DEVICE_FEATURE_SELECT, 1);
    return features | (uint64_t)read32(device->common + COMMON_DEVICE_FEATURE) << 32;
}

bool device_negotiate(struct device *device, uint64_t features)
{
    for (unsigned i = 0; i < 2; i++) {
        write32(device->common + COMMON_DRIVER_FEATURE_SELECT, i);
        write32(device->common + COMMON_DRIVER_FEATURE, (uint32_t)(features >> 32 * i));
    }
    write8(device->common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    device->features = features;
    return device_status(device) & STATUS_FEATURES_OK;
}

static void write_address(uint64_t at, const volatile void *address)
{
    write32(at, (uint32_t)(uint64_t)address);
    write32(at + 4, (uint32_t)((uint64_t)address >> 32));
}

void queue_place(struct device *device, unsigned index, uint16_t size, uint16_t vector)
{
    struct queue *queue = &device->queues[index];
    uint8_t *memory = ring_memory[memory_set][index];
    memset(memory, 0, sizeof(ring_memory[0][0]));
    write16(device->common + COMMON_QUEUE_SELECT, (uint16_t)index);
    uint16_t most = read16(device->common + COMMON_QUEUE_SIZE);
    CHECK(most >= size && size <= QUEUE_MAX);
    *queue = (struct queue){
        .index = index,
        .size = size,
        .doorbell = device->notify + read16(device->common + COMMON_QUEUE_NOTIFY_OFF) * device->notify_multiplier,
        .desc = (struct desc *)memory,
        .avail = (uint16_t *)(memory + 8192),
        .used = (uint16_t *)(memory + 12288),
    };
    write16(device->common + COMMON_QUEUE_SIZE, size);
    write16(device->common + COMMON_QUEUE_VECTOR, vector);
    write_address(device->common + COMMON_QUEUE_DESC, queue->desc);
    write_address(device->common + COMMON_QUEUE_AVAIL, queue->avail);
    write_address(device->common + COMMON_QUEUE_USED, queue->used);
}

void queue_setup(struct device *device, unsigned index, uint16_t size, uint16_t vector)
{
    queue_place(device, index, size, vector);
    write16(device->common + COMMON_QUEUE_ENABLE, 1);
}

void device_start(struct device *device, uint64_t wanted, unsigned queues, uint16_t size)
{
    CHECK(device_negotiate(device, wanted | FEATURE(F_VERSION_1)));
    for (unsigned i = 0; i < queues; i++)
        queue_setup(device, i, size, 0xffff);
    write8(device->common + COMMON_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
    CHECK_EQUAL(STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK, device_status(device));
}

/* ---- rings ---- */

void describe(struct queue *queue, uint16_t index, const void *address, uint32_t length, uint16_t flags, uint16_t next)
{
    queue->desc[index] = (struct desc){ (uint64_t)address, length, flags, next };
}

void queue_offer(struct queue *queue, uint16_t head)
{
    queue->avail[2 + queue->avail_index % queue->size] = head;
    barrier();
    queue->avail[1] = ++queue->avail_index;
    barrier();
}

void queue_ring(struct queue *queue) { write16(queue->doorbell, (uint16_t)queue->index); }

bool queue_has_used(struct queue *queue) { return queue->used[1] != queue->used_index; }

uint16_t queue_take(struct queue *queue, uint32_t *length)
{
    WAIT_FOR(queue_has_used(queue));
    const volatile uint32_t *element = (const volatile uint32_t *)(queue->used + 2) +
                                       queue->used_index % queue->size * 2;
    queue->used_index++;
    if (length)
        *length = element[1];
    return (uint16_t)element[0];
}

uint8_t blk_request(struct queue *queue, uint16_t head, uint32_t type, uint64_t sector, void *data, uint32_t length)
{
    struct request_header *header = &headers[queue->index][head];
    volatile uint8_t *status = &statuses[queue->index][head];
    bool writes = type == BLK_IN || type == BLK_GET_ID;
    *header = (struct request_header){ type, 0, sector };
    *status = 0xff;
    uint16_t last = (uint16_t)(length ? head + 2 : head + 1);
    describe(queue, head, header, sizeof(*header), DESC_NEXT, (uint16_t)(head + 1));
    if (length)
        describe(queue, (uint16_t)(head + 1), data, length, (uint16_t)(DESC_NEXT | (writes ? DESC_WRITE : 0)), last);
    describe(queue, last, (const void *)status, 1, DESC_WRITE, 0);
    queue_offer(queue, head);
    queue_ring(queue);
    CHECK_EQUAL(head, queue_take(queue, NULL));
    return *status;
}

uint64_t blk_capacity(struct device *device)
{
    return read32(device->config) | (uint64_t)read32(device->config + 4) << 32;
}

void fill_pattern(void *data, size_t length, uint32_t seed)
{
    uint32_t *words = data;
    for (size_t i = 0; i < length / 4; i++)
        words[i] = (uint32_t)i * 2654435761u ^ seed * 40503u;
}

bool is_pattern(const void *data, size_t length, uint32_t seed)
{
    const uint32_t *words = data;
    for (size_t i = 0; i < length / 4; i++)
        if (words[i] != ((uint32_t)i * 2654435761u ^ seed * 40503u))
            return false;
    return true;
}

/* ---- MSI-X ---- */

static uint64_t table(struct device *device, unsigned entry)
{
    unsigned at = pci_capability(device->devfn, 0x11, 0);
    CHECK(at);
    uint32_t where = pci_read(device->devfn, at + 4, 4);
    return pci_bar(device->devfn, where & 7) + (where & ~7u) + entry * 16;
}

void msix_set(struct device *device, unsigned entry, uint8_t vector)
{
    uint64_t at = table(device, entry);
    write32(at, 0xfee00000u | lapic_id() << 12);
    write32(at + 4, 0);
    write32(at + 8, vector);
    write32(at + 12, 0);
}

volatile uint32_t *msix_data(struct device *device, unsigned entry)
{
    return (volatile uint32_t *)(table(device, entry) + 8);
}

void msix_mask(struct device *device, unsigned entry, bool masked) { write32(table(device, entry) + 12, masked); }

bool msix_pending(struct device *device, unsigned entry)
{
    unsigned at = pci_capability(device->devfn, 0x11, 0);
    uint32_t where = pci_read(device->devfn, at + 8, 4);
    return read32(pci_bar(device->devfn, where & 7) + (where & ~7u) + entry / 32 * 4) >> entry % 32 & 1;
}

void msix_enable(struct device *device, bool on)
{
    unsigned at = pci_capability(device->devfn, 0x11, 0);
    CHECK(at);
    pci_write(device->devfn, at + 2, 2, on ? 0x8000 : 0);
}
