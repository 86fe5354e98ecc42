/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel's KVM interface for one virtual machine: its file descriptors, memory slots, doorbells (ioeventfd),
 * interrupts (irqfd, MSI routes, lines of the in-kernel PIC and I/O APIC). Errors are negative errno.
 */
#pragma once

#include <base/error.h>
#include <pthread.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVM_FIRST_MSI_GSI 24u /* below: the pins of the I/O APIC */

struct memory_block;

struct kvm {
    int fd, vm_fd;
    size_t run_size; /* of a vCPU's shared page(s) */
    unsigned max_cpus;
    bool any_length_doorbell;    /* ioeventfd that looks at the address only */
    pthread_mutex_t routes_lock; /* protects the three below */
    struct kvm_irq_routing *routes;
    unsigned routes_room;
    uint8_t gsi_used[4096 / 8];
};

/* Opens /dev/kvm and makes the virtual machine with interrupt controllers and timer. */
int kvm_open(struct kvm *kvm, struct error **errp);
void kvm_close(struct kvm *kvm);

int kvm_set_memory(struct kvm *kvm, unsigned slot, const struct memory_block *block, struct error **errp);

/* Writes of the guest to this address signal `fd` and do not leave the kernel. Any thread. */
int kvm_doorbell(struct kvm *kvm, uint64_t gpa, unsigned length, int fd, bool add);

/* A signal of `fd` raises the interrupt `gsi`, by way of the present route. Any thread. */
int kvm_irqfd(struct kvm *kvm, unsigned gsi, int fd, bool add);
int kvm_irq_line(struct kvm *kvm, unsigned gsi, bool level);

/* A GSI for a message-signalled interrupt; negative errno if none is left. Any thread. */
int kvm_msi_new(struct kvm *kvm);
int kvm_msi_set(struct kvm *kvm, unsigned gsi, uint64_t address, uint32_t data);
void kvm_msi_free(struct kvm *kvm, unsigned gsi);

/* State of the interrupt controllers and the timer as they were made, to reset the machine to. */
struct kvm_chips {
    struct kvm_irqchip chips[3];
    struct kvm_pit_state2 pit;
};
int kvm_chips_save(struct kvm *kvm, struct kvm_chips *chips);
int kvm_chips_restore(struct kvm *kvm, const struct kvm_chips *chips);
