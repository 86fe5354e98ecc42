/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* vCPUs: one thread each, which runs KVM and dispatches port and memory-mapped accesses to devices under the device
 * lock. */
#pragma once

#include "machine.h"

struct vcpu {
    struct machine *machine;
    unsigned index;
    uint32_t apic_id;
    int fd;
    struct kvm_run *run;
    pthread_t thread;
    bool thread_started;
    /* State as made, to reset to. */
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    struct kvm_fpu fpu;
    struct kvm_xcrs xcrs;
    bool xcrs_valid;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_debugregs debugregs;
    struct kvm_msrs *msrs;
};

/* Main thread. Makes all vCPUs of the configuration; their threads start paused. */
int vcpus_create(struct machine *machine, struct error **errp);
int vcpus_start(struct machine *machine, struct error **errp);
/* Main loop: asks all to pause and sleeps until they are out of the guest and out of every device. */
coroutine_fn void vcpus_co_pause(struct machine *machine);
void vcpus_resume(struct machine *machine);
/* Paused: back to power-on state, the boot processor at the machine's entry. */
int vcpus_reset(struct machine *machine, struct error **errp);
/* Paused (or never started): ends the threads and frees all. */
void vcpus_finish(struct machine *machine);
/* Any thread: those in the guest come out at once and look at cpus_pause. */
void vcpus_kick(struct machine *machine);

uint32_t vcpu_apic_id(const struct config *config, unsigned index);

/* cpuid.c: what this vCPU sees, from what the host's KVM supports, the -cpu option and the topology. Caller frees. */
struct kvm_cpuid2 *cpuid_make(struct machine *machine, uint32_t apic_id, struct error **errp);
/* Checks the -cpu option's words. */
int cpuid_check_model(const char *model, struct error **errp);
