/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * -device isa-debug-exit: a port by which a test guest ends the machine with an exit status, (value << 1) | 1, as
 * QEMU's device of this name does.
 */
#include "machine.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>

struct debug_exit {
    struct device device;
    struct io_region ports;
};

static const struct opt_desc options[] = {
    { "iobase", OPT_NUMBER, "1281", "first port" }, /* 0x501 */
    { "iosize", OPT_NUMBER, "2", "number of ports" },
    { 0 },
};

static uint64_t ports_read(void *opaque, uint64_t offset, unsigned length) { return 0; }

static void ports_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct debug_exit *debug_exit = opaque;
    machine_event(debug_exit->device.machine, MACHINE_SHUTDOWN, (int)(value << 1 & 0xff) | 1);
}

static const struct io_ops ports_ops = { ports_read, ports_write };

static void debug_exit_reset(struct device *device) {}

static void debug_exit_free(struct device *device)
{
    struct debug_exit *debug_exit = container_of(device, struct debug_exit, device);
    address_space_remove(&device->machine->ports, &debug_exit->ports);
    free(debug_exit);
}

static const struct device_ops device_ops = { .reset = debug_exit_reset, .free = debug_exit_free };

static coroutine_fn int co_create(struct machine *machine, struct opts *opts, struct error **errp)
{
    uint64_t base, size;
    if (opts_number(opts, options, "iobase", &base, errp) < 0 || opts_number(opts, options, "iosize", &size, errp) < 0)
        return -EINVAL;
    if (base > 0xffff || size < 1 || size > 8)
        return error_set(errp, -EINVAL, "iobase=0x%llx,iosize=%llu is no range of ports", (unsigned long long)base,
                         (unsigned long long)size);
    struct debug_exit *debug_exit = xcalloc(1, sizeof(*debug_exit));
    debug_exit->ports = (struct io_region){
        .name = "isa-debug-exit", .base = base, .size = size, .ops = &ports_ops, .opaque = debug_exit
    };
    machine_add_device(machine, &debug_exit->device, &device_ops);
    int err = address_space_add(&machine->ports, &debug_exit->ports);
    return err ? error_set_errno(errp, err, "cannot place ports at 0x%llx", (unsigned long long)base) : 0;
}

static struct device_model isa_debug_exit = {
    .name = "isa-debug-exit",
    .description = "ends the machine with a status (for tests)",
    .options = options,
    .co_create = co_create,
};
DEVICE_MODEL(isa_debug_exit)
