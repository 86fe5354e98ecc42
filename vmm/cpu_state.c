/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Registers of a vCPU. What KVM gives a new vCPU is the state after INIT; it is kept, all model-specific registers
 * included, and put back at reset (kvmclock's and others' addresses with it, so that nothing writes into the memory of
 * the next boot). The entry to a kernel follows Documentation/arch/x86/boot.rst, "32-bit boot protocol" and "64-bit
 * boot protocol".
 */
#include "cpu_state.h"

#include "boot.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define MSR_IA32_TSC 0x10u
#define MSR_MTRR_DEF_TYPE 0x2ffu
#define MTRR_ENABLED_WRITE_BACK (1u << 11 | 6u)

#define CR0_PE 1u
#define CR0_ET (1u << 4)
#define CR0_PG (1u << 31)
#define CR4_PAE (1u << 5)
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)

static int cpu_ioctl(const struct vcpu *cpu, unsigned long request, const void *argument)
{
    int result = ioctl(cpu->fd, request, argument);
    return result < 0 ? -errno : result;
}

/* Reads every register that this KVM lists; those that it then refuses to give are left out. */
static int save_msrs(struct vcpu *cpu)
{
    struct kvm_msr_list count = { 0 };
    ioctl(cpu->machine->kvm.fd, KVM_GET_MSR_INDEX_LIST, &count);
    AUTO_FREE struct kvm_msr_list *list = xcalloc(1, sizeof(*list) + count.nmsrs * sizeof(list->indices[0]));
    list->nmsrs = count.nmsrs;
    if (ioctl(cpu->machine->kvm.fd, KVM_GET_MSR_INDEX_LIST, list) < 0)
        return -errno;
    cpu->msrs = xcalloc(1, sizeof(*cpu->msrs) + list->nmsrs * sizeof(cpu->msrs->entries[0]));
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } one = { .head.nmsrs = 1 };
    for (uint32_t i = 0; i < list->nmsrs; i++) {
        one.entry = (struct kvm_msr_entry){ .index = list->indices[i] };
        if (list->indices[i] != MSR_IA32_TSC && ioctl(cpu->fd, KVM_GET_MSRS, &one) == 1)
            cpu->msrs->entries[cpu->msrs->nmsrs++] = one.entry;
    }
    return 0;
}

int cpu_state_save(struct vcpu *cpu)
{
    int err = cpu_ioctl(cpu, KVM_GET_REGS, &cpu->regs);
    if (!err)
        err = cpu_ioctl(cpu, KVM_GET_SREGS, &cpu->sregs);
    if (!err)
        err = cpu_ioctl(cpu, KVM_GET_FPU, &cpu->fpu);
    if (!err)
        err = cpu_ioctl(cpu, KVM_GET_LAPIC, &cpu->lapic);
    if (!err)
        err = cpu_ioctl(cpu, KVM_GET_VCPU_EVENTS, &cpu->events);
    if (!err)
        err = cpu_ioctl(cpu, KVM_GET_DEBUGREGS, &cpu->debugregs);
    if (!err)
        err = save_msrs(cpu);
    cpu->xcrs_valid = cpu_ioctl(cpu, KVM_GET_XCRS, &cpu->xcrs) == 0;
    return err;
}

void cpu_state_free(struct vcpu *cpu)
{
    free(cpu->msrs);
    cpu->msrs = NULL;
}

static void restore_msrs(struct vcpu *cpu)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry;
    } one = { .head.nmsrs = 1 };
    for (uint32_t i = 0; i < cpu->msrs->nmsrs; i++) {
        one.entry = cpu->msrs->entries[i];
        ioctl(cpu->fd, KVM_SET_MSRS, &one); /* some can be read only: then the guest could not change them either */
    }
    /* What firmware would have done: all memory is cacheable. */
    one.entry = (struct kvm_msr_entry){ .index = MSR_MTRR_DEF_TYPE, .data = MTRR_ENABLED_WRITE_BACK };
    ioctl(cpu->fd, KVM_SET_MSRS, &one);
}

int cpu_state_reset(struct vcpu *cpu)
{
    struct kvm_mp_state state = { .mp_state = cpu->index == 0 ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED };
    int err = cpu_ioctl(cpu, KVM_SET_SREGS, &cpu->sregs);
    if (!err)
        err = cpu_ioctl(cpu, KVM_SET_REGS, &cpu->regs);
    if (!err)
        err = cpu_ioctl(cpu, KVM_SET_FPU, &cpu->fpu);
    if (!err && cpu->xcrs_valid)
        err = cpu_ioctl(cpu, KVM_SET_XCRS, &cpu->xcrs);
    restore_msrs(cpu);
    if (!err)
        err = cpu_ioctl(cpu, KVM_SET_LAPIC, &cpu->lapic);
    if (!err)
        err = cpu_ioctl(cpu, KVM_SET_VCPU_EVENTS, &cpu->events);
    if (!err)
        err = cpu_ioctl(cpu, KVM_SET_DEBUGREGS, &cpu->debugregs);
    if (!err)
        err = cpu_ioctl(cpu, KVM_SET_MP_STATE, &state);
    return err;
}

static struct kvm_segment flat_segment(uint16_t selector, bool code, bool long_mode)
{
    return (struct kvm_segment){
        .base = 0,
        .limit = 0xffffffff,
        .selector = selector,
        .type = code ? 11 : 3, /* execute/read or read/write, accessed */
        .present = 1,
        .s = 1,
        .g = 1,
        .l = code && long_mode,
        .db = !(code && long_mode),
    };
}

int cpu_state_boot(struct vcpu *cpu)
{
    const struct machine *machine = cpu->machine;
    bool long_mode = !machine->entry_32bit;
    struct kvm_sregs sregs = cpu->sregs;
    sregs.cs = flat_segment(BOOT_CODE_SELECTOR, true, long_mode);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat_segment(BOOT_DATA_SELECTOR, false, long_mode);
    sregs.gdt = (struct kvm_dtable){ .base = BOOT_GDT, .limit = BOOT_GDT_ENTRIES * 8 - 1 };
    sregs.cr0 = CR0_PE | CR0_ET;
    if (long_mode) {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = BOOT_PAGE_TABLES;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    struct kvm_regs regs = { .rip = machine->entry, .rsi = machine->boot_params, .rsp = BOOT_STACK, .rflags = 2 };
    int err = cpu_ioctl(cpu, KVM_SET_SREGS, &sregs);
    return err ? err : cpu_ioctl(cpu, KVM_SET_REGS, &regs);
}
