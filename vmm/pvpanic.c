/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * -device pvpanic: a guest's kernel reports that it panics through port 0x505, and the machine ends at once, disks
 * flushed, instead of hanging. ACPI describes the port (QEMU0001), so Linux' pvpanic driver finds it.
 */
#include "aml.h"
#include "machine.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>

#define PVPANIC_PANICKED 1u
#define PVPANIC_CRASH_LOADED 2u

struct pvpanic {
    struct device device;
    struct io_region ports;
    uint64_t port;
};

static const struct opt_desc options[] = {
    { "ioport", OPT_NUMBER, "1285", "port" }, /* 0x505 */
    { 0 },
};

static uint64_t ports_read(void *opaque, uint64_t offset, unsigned length)
{
    return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED; /* the events that we understand */
}

static void ports_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct pvpanic *pvpanic = opaque;
    if (value & PVPANIC_PANICKED) {
        warn_report("the guest's kernel panicked");
        machine_event(pvpanic->device.machine, MACHINE_SHUTDOWN, 0);
    }
}

static const struct io_ops ports_ops = { ports_read, ports_write };

static void pvpanic_reset(struct device *device) {}

static void pvpanic_describe(struct device *device, struct aml *aml)
{
    struct pvpanic *pvpanic = container_of(device, struct pvpanic, device);
    aml_begin_device(aml, "PEVT");
    aml_name(aml, "_HID");
    aml_string(aml, "QEMU0001");
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_resource_io(aml, (uint16_t)pvpanic->port, 1);
    aml_end(aml);
    aml_name(aml, "_STA");
    aml_integer(aml, 0xb); /* there, on, hidden from users */
    aml_end(aml);
}

static void pvpanic_free(struct device *device)
{
    struct pvpanic *pvpanic = container_of(device, struct pvpanic, device);
    address_space_remove(&device->machine->ports, &pvpanic->ports);
    free(pvpanic);
}

static const struct device_ops device_ops = { .reset = pvpanic_reset,
                                              .describe = pvpanic_describe,
                                              .free = pvpanic_free };

static coroutine_fn int co_create(struct machine *machine, struct opts *opts, struct error **errp)
{
    uint64_t port;
    if (opts_number(opts, options, "ioport", &port, errp) < 0)
        return -EINVAL;
    if (port > 0xffff)
        return error_set(errp, -EINVAL, "ioport=0x%llx is no port", (unsigned long long)port);
    struct pvpanic *pvpanic = xcalloc(1, sizeof(*pvpanic));
    pvpanic->port = port;
    pvpanic->ports = (struct io_region){
        .name = "pvpanic", .base = port, .size = 1, .ops = &ports_ops, .opaque = pvpanic
    };
    machine_add_device(machine, &pvpanic->device, &device_ops);
    int err = address_space_add(&machine->ports, &pvpanic->ports);
    return err ? error_set_errno(errp, err, "cannot place port 0x%llx", (unsigned long long)port) : 0;
}

static struct device_model pvpanic = {
    .name = "pvpanic",
    .description = "reports a panic of the guest's kernel",
    .options = options,
    .co_create = co_create,
};
DEVICE_MODEL(pvpanic)
