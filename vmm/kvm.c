/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The KVM interface for one virtual machine. The in-kernel PIC, I/O APIC and PIT are used. GSIs 0-15 go to PIC and I/O
 * APIC (0 to I/O APIC pin 2, as the MADT says), 16-23 to the I/O APIC (PCI), from 24 on each is one message.
 * Invariant: the routing table that the kernel has is the one in kvm->routes, changed and handed over under
 * routes_lock.
 */
#include "kvm.h"

#include "memory.h"

#include <base/compiler.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Three pages that KVM on Intel hosts wants for real mode; below the firmware, outside any memory. */
#define TSS_ADDRESS 0xfffbd000u
#define IDENTITY_MAP_ADDRESS 0xfffbc000ull

static int vm_ioctl(const struct kvm *kvm, unsigned long request, const void *argument)
{
    int result;
    do
        result = ioctl(kvm->vm_fd, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

static int vm_capability(const struct kvm *kvm, unsigned long capability)
{
    return ioctl(kvm->vm_fd, KVM_CHECK_EXTENSION, capability);
}

static int hand_over_routes(struct kvm *kvm) { return vm_ioctl(kvm, KVM_SET_GSI_ROUTING, kvm->routes); }

static struct kvm_irq_routing_entry *add_route(struct kvm *kvm, unsigned gsi, unsigned type)
{
    if (kvm->routes->nr == kvm->routes_room) {
        kvm->routes_room = kvm->routes_room * 2;
        kvm->routes = xrealloc(kvm->routes, sizeof(*kvm->routes) + kvm->routes_room * sizeof(kvm->routes->entries[0]));
    }
    struct kvm_irq_routing_entry *entry = &kvm->routes->entries[kvm->routes->nr++];
    *entry = (struct kvm_irq_routing_entry){ .gsi = gsi, .type = type };
    return entry;
}

static void add_pin(struct kvm *kvm, unsigned gsi, unsigned chip, unsigned pin)
{
    struct kvm_irq_routing_entry *entry = add_route(kvm, gsi, KVM_IRQ_ROUTING_IRQCHIP);
    entry->u.irqchip.irqchip = chip;
    entry->u.irqchip.pin = pin;
}

static int init_routes(struct kvm *kvm)
{
    kvm->routes_room = 64;
    kvm->routes = xcalloc(1, sizeof(*kvm->routes) + kvm->routes_room * sizeof(kvm->routes->entries[0]));
    for (unsigned gsi = 0; gsi < KVM_FIRST_MSI_GSI; gsi++) {
        if (gsi < 16 && gsi != 2)
            add_pin(kvm, gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8);
        if (gsi != 2)
            add_pin(kvm, gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi);
    }
    return hand_over_routes(kvm);
}

static int create_vm(struct kvm *kvm, struct error **errp)
{
    do
        kvm->vm_fd = ioctl(kvm->fd, KVM_CREATE_VM, 0);
    while (kvm->vm_fd < 0 && errno == EINTR);
    if (kvm->vm_fd < 0)
        return error_set_errno(errp, -errno, "KVM_CREATE_VM failed");
    static const struct {
        int capability;
        const char *name;
    } needed[] = {
        { KVM_CAP_IRQCHIP, "an in-kernel irqchip" },
        { KVM_CAP_IRQFD, "irqfd" },
        { KVM_CAP_IOEVENTFD, "ioeventfd" },
        { KVM_CAP_IRQ_ROUTING, "interrupt routing" },
        { KVM_CAP_PIT2, "PIT2" },
        { KVM_CAP_IMMEDIATE_EXIT, "immediate_exit" },
        { KVM_CAP_USER_MEMORY, "user memory" },
        { KVM_CAP_EXT_CPUID, "CPUID" },
    };
    for (unsigned i = 0; i < ARRAY_SIZE(needed); i++)
        if (vm_capability(kvm, needed[i].capability) <= 0)
            return error_set(errp, -ENOTSUP, "the host's KVM has no %s", needed[i].name);
    kvm->any_length_doorbell = vm_capability(kvm, KVM_CAP_IOEVENTFD_ANY_LENGTH) > 0;
    int cpus = vm_capability(kvm, KVM_CAP_MAX_VCPUS);
    kvm->max_cpus = cpus > 0 ? (unsigned)cpus : 4;
    uint64_t identity = IDENTITY_MAP_ADDRESS;
    int err = vm_ioctl(kvm, KVM_SET_IDENTITY_MAP_ADDR, &identity);
    if (!err)
        err = ioctl(kvm->vm_fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_ADDRESS) < 0 ? -errno : 0;
    if (!err)
        err = vm_ioctl(kvm, KVM_CREATE_IRQCHIP, NULL);
    /* The speaker port 0x61 belongs to the in-kernel PIT as well. */
    struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
    if (!err)
        err = vm_ioctl(kvm, KVM_CREATE_PIT2, &pit);
    if (!err)
        err = init_routes(kvm);
    return err ? error_set_errno(errp, err, "Create kernel irqchip failed") : 0;
}

int kvm_open(struct kvm *kvm, struct error **errp)
{
    *kvm = (struct kvm){ .vm_fd = -1 };
    pthread_mutex_init(&kvm->routes_lock, NULL);
    kvm->fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm->fd < 0) {
        int err = error_set_errno(errp, -errno, "Could not access KVM kernel module");
        error_hint(errp, "vmm needs /dev/kvm: load kvm_intel or kvm_amd, and join the group that owns it");
        return err;
    }
    int version = ioctl(kvm->fd, KVM_GET_API_VERSION, 0);
    int size = ioctl(kvm->fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    int err = 0;
    if (version != KVM_API_VERSION || size < (int)sizeof(struct kvm_run))
        err = error_set(errp, -EINVAL, "kvm version not supported");
    else
        kvm->run_size = (size_t)size;
    if (!err)
        err = create_vm(kvm, errp);
    if (err)
        kvm_close(kvm);
    return err;
}

void kvm_close(struct kvm *kvm)
{
    if (kvm->vm_fd >= 0)
        close(kvm->vm_fd);
    if (kvm->fd >= 0)
        close(kvm->fd);
    kvm->fd = kvm->vm_fd = -1;
    free(kvm->routes);
    kvm->routes = NULL;
    pthread_mutex_destroy(&kvm->routes_lock);
}

int kvm_set_memory(struct kvm *kvm, unsigned slot, const struct memory_block *block, struct error **errp)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot,
        .guest_phys_addr = block->gpa,
        .memory_size = block->size,
        .userspace_addr = (uintptr_t)block->host,
    };
    int err = vm_ioctl(kvm, KVM_SET_USER_MEMORY_REGION, &region);
    return err ? error_set_errno(errp, err, "kvm: cannot give the guest its memory") : 0;
}

int kvm_doorbell(struct kvm *kvm, uint64_t gpa, unsigned length, int fd, bool add)
{
    struct kvm_ioeventfd doorbell = {
        .addr = gpa,
        .len = kvm->any_length_doorbell ? 0 : length,
        .fd = fd,
        .flags = add ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN,
    };
    return vm_ioctl(kvm, KVM_IOEVENTFD, &doorbell);
}

int kvm_irqfd(struct kvm *kvm, unsigned gsi, int fd, bool add)
{
    struct kvm_irqfd irqfd = { .fd = (uint32_t)fd, .gsi = gsi, .flags = add ? 0 : KVM_IRQFD_FLAG_DEASSIGN };
    return vm_ioctl(kvm, KVM_IRQFD, &irqfd);
}

int kvm_irq_line(struct kvm *kvm, unsigned gsi, bool level)
{
    struct kvm_irq_level line = { .irq = gsi, .level = level };
    return vm_ioctl(kvm, KVM_IRQ_LINE, &line);
}

int kvm_msi_new(struct kvm *kvm)
{
    int gsi = -ENOSPC;
    pthread_mutex_lock(&kvm->routes_lock);
    for (unsigned i = KVM_FIRST_MSI_GSI; i < sizeof(kvm->gsi_used) * 8; i++) {
        if (kvm->gsi_used[i / 8] & 1u << i % 8)
            continue;
        kvm->gsi_used[i / 8] |= (uint8_t)(1u << i % 8);
        gsi = (int)i;
        break;
    }
    pthread_mutex_unlock(&kvm->routes_lock);
    return gsi;
}

static struct kvm_irq_routing_entry *find_msi(struct kvm *kvm, unsigned gsi)
{
    for (unsigned i = 0; i < kvm->routes->nr; i++)
        if (kvm->routes->entries[i].gsi == gsi)
            return &kvm->routes->entries[i];
    return NULL;
}

int kvm_msi_set(struct kvm *kvm, unsigned gsi, uint64_t address, uint32_t data)
{
    pthread_mutex_lock(&kvm->routes_lock);
    struct kvm_irq_routing_entry *entry = find_msi(kvm, gsi);
    int err = 0;
    if (!entry || entry->u.msi.address_lo != (uint32_t)address ||
        entry->u.msi.address_hi != (uint32_t)(address >> 32) || entry->u.msi.data != data) {
        if (!entry)
            entry = add_route(kvm, gsi, KVM_IRQ_ROUTING_MSI);
        entry->u.msi.address_lo = (uint32_t)address;
        entry->u.msi.address_hi = (uint32_t)(address >> 32);
        entry->u.msi.data = data;
        err = hand_over_routes(kvm);
    }
    pthread_mutex_unlock(&kvm->routes_lock);
    return err;
}

void kvm_msi_free(struct kvm *kvm, unsigned gsi)
{
    pthread_mutex_lock(&kvm->routes_lock);
    struct kvm_irq_routing_entry *entry = find_msi(kvm, gsi);
    if (entry) {
        *entry = kvm->routes->entries[--kvm->routes->nr];
        hand_over_routes(kvm);
    }
    kvm->gsi_used[gsi / 8] &= (uint8_t) ~(1u << gsi % 8);
    pthread_mutex_unlock(&kvm->routes_lock);
}

int kvm_chips_save(struct kvm *kvm, struct kvm_chips *chips)
{
    int err = 0;
    for (unsigned i = 0; !err && i < ARRAY_SIZE(chips->chips); i++) {
        chips->chips[i].chip_id = i;
        err = vm_ioctl(kvm, KVM_GET_IRQCHIP, &chips->chips[i]);
    }
    return err ? err : vm_ioctl(kvm, KVM_GET_PIT2, &chips->pit);
}

int kvm_chips_restore(struct kvm *kvm, const struct kvm_chips *chips)
{
    int err = 0;
    for (unsigned i = 0; !err && i < ARRAY_SIZE(chips->chips); i++)
        err = vm_ioctl(kvm, KVM_SET_IRQCHIP, &chips->chips[i]);
    return err ? err : vm_ioctl(kvm, KVM_SET_PIT2, &chips->pit);
}
