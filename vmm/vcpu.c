/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * vCPU threads. A thread runs KVM until an exit needs a device, then dispatches with the device lock held. It leaves
 * the guest when kicked: a signal sets run->immediate_exit, so that a kick between the check of cpus_pause and KVM_RUN
 * is not lost. Invariant: a vCPU that has reported itself paused has no half-finished instruction (KVM was entered once
 * more with immediate_exit to complete it) and holds no lock.
 */
#include "vcpu.h"

#include "cmdline.h"
#include "cpu_state.h"

#include <base/compiler.h>
#include <base/log.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define KICK_SIGNAL SIGUSR1

LOG_CATEGORY(machine);

static __thread struct kvm_run *current_run;

static void on_kick(int signal)
{
    if (current_run)
        __atomic_store_n(&current_run->immediate_exit, 1, __ATOMIC_RELAXED);
}

uint32_t vcpu_apic_id(const struct config *config, unsigned index)
{
    unsigned thread = index % config->threads;
    unsigned core = index / config->threads % config->cores;
    unsigned socket = index / config->threads / config->cores;
    unsigned thread_bits = bits_for(config->threads), core_bits = bits_for(config->cores);
    return socket << (thread_bits + core_bits) | core << thread_bits | thread;
}

static int create_one(struct machine *machine, struct vcpu *cpu, struct error **errp)
{
    cpu->fd = ioctl(machine->kvm.vm_fd, KVM_CREATE_VCPU, (unsigned long)cpu->apic_id);
    if (cpu->fd < 0)
        return error_set_errno(errp, -errno, "kvm_init_vcpu: kvm_get_vcpu failed (%u)", cpu->index);
    cpu->run = mmap(NULL, machine->kvm.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
    if (cpu->run == MAP_FAILED) {
        cpu->run = NULL;
        return error_set_errno(errp, -errno, "kvm_init_vcpu: mmap'ing vcpu state failed (%u)", cpu->index);
    }
    AUTO_FREE struct kvm_cpuid2 *cpuid = cpuid_make(machine, cpu->apic_id, errp);
    if (!cpuid)
        return -EINVAL;
    if (ioctl(cpu->fd, KVM_SET_CPUID2, cpuid) < 0)
        return error_set_errno(errp, -errno, "kvm: cannot set CPUID of vCPU %u", cpu->index);
    int err = cpu_state_save(cpu);
    return err ? error_set_errno(errp, err, "kvm: cannot read the state of vCPU %u", cpu->index) : 0;
}

int vcpus_create(struct machine *machine, struct error **errp)
{
    machine->cpu_count = machine->config->cpus;
    machine->cpus = xcalloc(machine->cpu_count, sizeof(struct vcpu));
    for (unsigned i = 0; i < machine->cpu_count; i++)
        machine->cpus[i] = (struct vcpu){
            .machine = machine, .index = i, .fd = -1, .apic_id = vcpu_apic_id(machine->config, i)
        };
    for (unsigned i = 0; i < machine->cpu_count; i++) {
        int err = create_one(machine, &machine->cpus[i], errp);
        if (err)
            return err;
    }
    return 0;
}

int vcpus_reset(struct machine *machine, struct error **errp)
{
    for (unsigned i = 0; i < machine->cpu_count; i++) {
        struct vcpu *cpu = &machine->cpus[i];
        int err = cpu_state_reset(cpu);
        if (!err && i == 0)
            err = cpu_state_boot(cpu);
        if (err)
            return error_set_errno(errp, err, "kvm: cannot set the state of vCPU %u", i);
    }
    return 0;
}

/* ---- exits ---- */

static void handle_ports(struct vcpu *cpu)
{
    struct kvm_run *run = cpu->run;
    unsigned size = run->io.size;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    device_lock(cpu->machine);
    for (uint32_t i = 0; i < run->io.count; i++, data += size) {
        uint64_t value = 0;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            memcpy(&value, data, size);
            address_space_write(&cpu->machine->ports, run->io.port, size, value);
        } else {
            value = address_space_read(&cpu->machine->ports, run->io.port, size);
            memcpy(data, &value, size);
        }
    }
    device_unlock(cpu->machine);
}

static void handle_mmio(struct vcpu *cpu)
{
    struct kvm_run *run = cpu->run;
    uint64_t value = 0;
    unsigned length = MIN(run->mmio.len, 8u);
    device_lock(cpu->machine);
    if (run->mmio.is_write) {
        memcpy(&value, run->mmio.data, length);
        address_space_write(&cpu->machine->mmio, run->mmio.phys_addr, length, value);
    } else {
        value = address_space_read(&cpu->machine->mmio, run->mmio.phys_addr, length);
        memcpy(run->mmio.data, &value, sizeof(value));
    }
    device_unlock(cpu->machine);
}

/* KVM cannot go on with this vCPU: say why, with what a developer needs, and end the machine in order. */
static void broken(struct vcpu *cpu, const char *what, uint64_t code)
{
    struct kvm_regs regs = { 0 };
    ioctl(cpu->fd, KVM_GET_REGS, &regs);
    error_report("%s 0x%" PRIx64 " on vCPU %u: rip=0x%llx rsp=0x%llx rflags=0x%llx rax=0x%llx rcx=0x%llx rdx=0x%llx",
                 what, code, cpu->index, regs.rip, regs.rsp, regs.rflags, regs.rax, regs.rcx, regs.rdx);
    machine_event(cpu->machine, MACHINE_SHUTDOWN, 1);
}

/* As a real one, the machine resets. A guest that dies so says nothing, so the log does. */
static void triple_fault(struct vcpu *cpu)
{
    struct kvm_regs regs = { 0 };
    ioctl(cpu->fd, KVM_GET_REGS, &regs);
    log_debug("vCPU %u: triple fault: rip=0x%llx rsp=0x%llx rflags=0x%llx", cpu->index, regs.rip, regs.rsp,
              regs.rflags);
    machine_event(cpu->machine, MACHINE_RESET, 0);
}

static void handle_exit(struct vcpu *cpu)
{
    struct kvm_run *run = cpu->run;
    switch (run->exit_reason) {
    case KVM_EXIT_IO: handle_ports(cpu); break;
    case KVM_EXIT_MMIO: handle_mmio(cpu); break;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
    case KVM_EXIT_HLT: break;
    case KVM_EXIT_SHUTDOWN: triple_fault(cpu); break;
    case KVM_EXIT_SYSTEM_EVENT:
        machine_event(cpu->machine, run->system_event.type == KVM_SYSTEM_EVENT_RESET ? MACHINE_RESET : MACHINE_SHUTDOWN,
                      0);
        break;
    case KVM_EXIT_INTERNAL_ERROR: broken(cpu, "KVM internal error. Suberror:", run->internal.suberror); break;
    case KVM_EXIT_FAIL_ENTRY:
        broken(cpu, "KVM: entry failed, hardware error", run->fail_entry.hardware_entry_failure_reason);
        break;
    default: broken(cpu, "KVM: unknown exit, hardware reason", run->exit_reason);
    }
}

/* ---- the thread ---- */

/* Completes the instruction that the last exit left half done. What it does next with a device (the write of a
 * read-modify-write, the next piece of a string) is an exit again: only -EINTR says that it has come to its end. */
static void complete_instruction(struct vcpu *cpu)
{
    for (;;) {
        __atomic_store_n(&cpu->run->immediate_exit, 1, __ATOMIC_RELAXED);
        if (ioctl(cpu->fd, KVM_RUN, 0) != 0)
            return;
        handle_exit(cpu);
    }
}

/* The last that stops wakes who waits for that. Lock held. */
static void add_running(struct machine *machine, int change)
{
    machine->cpus_running += (unsigned)change;
    if (machine->cpus_running == 0 && machine->cpus_waiter) {
        co_wake(machine->cpus_waiter);
        machine->cpus_waiter = NULL;
    }
}

static void count_running(struct machine *machine, int change)
{
    pthread_mutex_lock(&machine->cpus_lock);
    add_running(machine, change);
    pthread_mutex_unlock(&machine->cpus_lock);
}

/* Returns false if the thread is to end. */
static bool wait_while_paused(struct vcpu *cpu)
{
    struct machine *machine = cpu->machine;
    pthread_mutex_lock(&machine->cpus_lock);
    add_running(machine, -1);
    while (atomic_load(&machine->cpus_pause) && !machine->cpus_quit)
        pthread_cond_wait(&machine->cpus_changed, &machine->cpus_lock);
    add_running(machine, 1);
    bool go_on = !machine->cpus_quit;
    pthread_mutex_unlock(&machine->cpus_lock);
    return go_on;
}

static void *vcpu_main(void *argument)
{
    struct vcpu *cpu = argument;
    char name[16];
    snprintf(name, sizeof(name), "CPU %u/KVM", cpu->index);
    pthread_setname_np(pthread_self(), name);
    current_run = cpu->run;
    /* The first pause is the one that every machine starts with: nothing is half done. */
    bool entered = false;
    for (;;) {
        if (atomic_load(&cpu->machine->cpus_pause)) {
            if (entered)
                complete_instruction(cpu);
            entered = false;
            if (!wait_while_paused(cpu))
                return NULL;
            __atomic_store_n(&cpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
            continue;
        }
        entered = true;
        if (ioctl(cpu->fd, KVM_RUN, 0) == 0) {
            handle_exit(cpu);
        } else if (errno == EINTR || errno == EAGAIN) {
            __atomic_store_n(&cpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
        } else {
            broken(cpu, "KVM_RUN failed, error", (uint64_t)errno);
            while (!atomic_load(&cpu->machine->cpus_pause))
                usleep(1000);
        }
    }
}

int vcpus_start(struct machine *machine, struct error **errp)
{
    struct sigaction action = { .sa_handler = on_kick };
    sigaction(KICK_SIGNAL, &action, NULL);
    atomic_store(&machine->cpus_pause, true);
    for (unsigned i = 0; i < machine->cpu_count; i++) {
        struct vcpu *cpu = &machine->cpus[i];
        count_running(machine, 1);
        int err = -pthread_create(&cpu->thread, NULL, vcpu_main, cpu);
        if (err) {
            count_running(machine, -1); /* nobody waits for one that is not there */
            return error_set_errno(errp, err, "cannot start a thread for vCPU %u", i);
        }
        cpu->thread_started = true;
    }
    return 0;
}

void vcpus_kick(struct machine *machine)
{
    for (unsigned i = 0; i < machine->cpu_count; i++)
        if (machine->cpus[i].thread_started && !pthread_equal(machine->cpus[i].thread, pthread_self()))
            pthread_kill(machine->cpus[i].thread, KICK_SIGNAL);
}

coroutine_fn void vcpus_co_pause(struct machine *machine)
{
    atomic_store(&machine->cpus_pause, true);
    vcpus_kick(machine);
    pthread_mutex_lock(&machine->cpus_lock);
    bool wait = machine->cpus_running;
    if (wait)
        machine->cpus_waiter = co_self();
    pthread_mutex_unlock(&machine->cpus_lock);
    if (wait)
        co_yield();
}

void vcpus_resume(struct machine *machine)
{
    pthread_mutex_lock(&machine->cpus_lock);
    atomic_store(&machine->cpus_pause, false);
    pthread_cond_broadcast(&machine->cpus_changed);
    pthread_mutex_unlock(&machine->cpus_lock);
}

void vcpus_finish(struct machine *machine)
{
    pthread_mutex_lock(&machine->cpus_lock);
    machine->cpus_quit = true;
    atomic_store(&machine->cpus_pause, true);
    pthread_cond_broadcast(&machine->cpus_changed);
    pthread_mutex_unlock(&machine->cpus_lock);
    for (unsigned i = 0; i < machine->cpu_count; i++) {
        struct vcpu *cpu = &machine->cpus[i];
        if (cpu->thread_started)
            pthread_join(cpu->thread, NULL);
        if (cpu->run)
            munmap(cpu->run, machine->kvm.run_size);
        if (cpu->fd >= 0)
            close(cpu->fd);
        cpu_state_free(cpu);
    }
    free(machine->cpus);
    machine->cpus = NULL;
    machine->cpu_count = 0;
}
