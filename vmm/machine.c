/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Puts the machine together and takes it apart: KVM, memory, chipset, then (by others) devices, then vCPUs. Order of
 * the end: vCPU threads, devices from the last to the first, chipset, memory, KVM.
 */
#include "machine.h"

#include "boot.h"
#include "cmdline.h"
#include "lifecycle.h"
#include "pci.h"
#include "q35.h"
#include "vcpu.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>

void machine_add_device(struct machine *machine, struct device *device, const struct device_ops *ops)
{
    device->machine = machine;
    device->ops = ops;
    list_append(&machine->devices, &device->link);
}

static int init_kvm_and_memory(struct machine *machine, struct error **errp)
{
    const struct config *config = machine->config;
    int err = kvm_open(&machine->kvm, errp);
    if (err)
        return err;
    if (config->cpus > machine->kvm.max_cpus)
        return error_set(errp, -EINVAL,
                         "Number of SMP cpus requested (%u) exceeds the maximum cpus supported by KVM (%u)",
                         config->cpus, machine->kvm.max_cpus);
    err = memory_init(&machine->memory, config->memory, errp);
    for (unsigned i = 0; !err && i < machine->memory.block_count; i++)
        err = kvm_set_memory(&machine->kvm, i, &machine->memory.blocks[i], errp);
    return err;
}

int machine_init(struct machine *machine, const struct config *config, struct error **errp)
{
    *machine = (struct machine){ .config = config, .loop = loop_current(), .kvm = { .fd = -1, .vm_fd = -1 } };
    pthread_mutex_init(&machine->device_lock, NULL);
    pthread_mutex_init(&machine->cpus_lock, NULL);
    pthread_cond_init(&machine->cpus_changed, NULL);
    list_init(&machine->devices);
    lifecycle_init(machine);
    int err = init_kvm_and_memory(machine, errp);
    if (!err)
        err = vcpus_create(machine, errp);
    if (!err)
        err = pci_bus_init(machine, errp);
    if (!err)
        err = acpi_pm_init(machine, errp);
    if (!err)
        err = q35_init(machine, errp);
    if (!err)
        err = rtc_init(machine, errp);
    if (!err)
        err = i8042_init(machine, errp);
    if (!err)
        err = serial_init_all(machine, errp);
    if (!err && kvm_chips_save(&machine->kvm, &machine->chips) < 0)
        err = error_set(errp, -EIO, "kvm: cannot read the state of the interrupt controllers");
    return err;
}

void machine_finish(struct machine *machine)
{
    vcpus_finish(machine);
    while (!list_empty(&machine->devices)) {
        struct device *device = list_last(&machine->devices, struct device, link);
        const char *id = device->id;
        list_remove(&device->link);
        device->ops->free(device);
        free((char *)id);
    }
    pci_bus_free(machine);
    address_space_finish(&machine->ports);
    address_space_finish(&machine->mmio);
    memory_finish(&machine->memory);
    boot_linux_finish(machine);
    kvm_close(&machine->kvm);
    lifecycle_finish(machine);
    pthread_cond_destroy(&machine->cpus_changed);
    pthread_mutex_destroy(&machine->cpus_lock);
    pthread_mutex_destroy(&machine->device_lock);
}
