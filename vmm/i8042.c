/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Keyboard controller, as much as a machine without a keyboard has: self-test, command byte, output port, and the pulse
 * of its reset line, which is one of the ways in which an operating system resets a PC. Nothing is ever attached to its
 * two ports.
 */
#include "q35.h"

#include <base/compiler.h>
#include <stdlib.h>

#define STATUS_OUTPUT_FULL 1u
#define STATUS_SYSTEM 4u
#define STATUS_COMMAND 8u
#define STATUS_UNLOCKED 0x10u

enum {
    COMMAND_READ_BYTE = 0x20,
    COMMAND_WRITE_BYTE = 0x60,
    COMMAND_DISABLE_SECOND = 0xa7,
    COMMAND_ENABLE_SECOND = 0xa8,
    COMMAND_TEST_SECOND = 0xa9,
    COMMAND_SELF_TEST = 0xaa,
    COMMAND_TEST_FIRST = 0xab,
    COMMAND_DISABLE_FIRST = 0xad,
    COMMAND_ENABLE_FIRST = 0xae,
    COMMAND_READ_OUTPUT_PORT = 0xd0,
    COMMAND_WRITE_OUTPUT_PORT = 0xd1,
    COMMAND_PULSE = 0xf0,
    PULSE_RESET_NOT = 1, /* the reset line is pulsed if this bit is clear */
};

struct i8042 {
    struct device device;
    struct io_region data, command;
    uint8_t status, output, command_byte, pending_command;
};

static void answer(struct i8042 *i8042, uint8_t byte)
{
    i8042->output = byte;
    i8042->status |= STATUS_OUTPUT_FULL;
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned length)
{
    struct i8042 *i8042 = opaque;
    i8042->status &= (uint8_t)~STATUS_OUTPUT_FULL;
    return i8042->output;
}

static void data_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct i8042 *i8042 = opaque;
    if (i8042->pending_command == COMMAND_WRITE_BYTE)
        i8042->command_byte = (uint8_t)value;
    else if (i8042->pending_command == COMMAND_WRITE_OUTPUT_PORT && !(value & 1))
        machine_event(i8042->device.machine, MACHINE_RESET, 0);
    i8042->pending_command = 0;
    i8042->status &= (uint8_t)~STATUS_COMMAND;
}

static uint64_t command_read(void *opaque, uint64_t offset, unsigned length)
{
    struct i8042 *i8042 = opaque;
    return i8042->status;
}

static void command_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct i8042 *i8042 = opaque;
    i8042->status |= STATUS_COMMAND;
    i8042->pending_command = 0;
    switch (value) {
    case COMMAND_READ_BYTE: answer(i8042, i8042->command_byte); break;
    case COMMAND_WRITE_BYTE:
    case COMMAND_WRITE_OUTPUT_PORT: i8042->pending_command = (uint8_t)value; break;
    case COMMAND_DISABLE_SECOND: i8042->command_byte |= 0x20; break;
    case COMMAND_ENABLE_SECOND: i8042->command_byte &= (uint8_t)~0x20; break;
    case COMMAND_DISABLE_FIRST: i8042->command_byte |= 0x10; break;
    case COMMAND_ENABLE_FIRST: i8042->command_byte &= (uint8_t)~0x10; break;
    case COMMAND_TEST_FIRST:
    case COMMAND_TEST_SECOND: answer(i8042, 0); break;
    case COMMAND_SELF_TEST:
        i8042->status |= STATUS_SYSTEM;
        answer(i8042, 0x55);
        break;
    case COMMAND_READ_OUTPUT_PORT:
        answer(i8042, 3); /* A20 on, reset line high */
        break;
    default:
        if (value >= COMMAND_PULSE && !(value & PULSE_RESET_NOT))
            machine_event(i8042->device.machine, MACHINE_RESET, 0);
    }
}

static const struct io_ops data_ops = { data_read, data_write };
static const struct io_ops command_ops = { command_read, command_write };

static void i8042_reset(struct device *device)
{
    struct i8042 *i8042 = container_of(device, struct i8042, device);
    i8042->status = STATUS_COMMAND | STATUS_UNLOCKED;
    i8042->command_byte = 0x70;
    i8042->output = i8042->pending_command = 0;
}

static void i8042_free(struct device *device)
{
    struct i8042 *i8042 = container_of(device, struct i8042, device);
    address_space_remove(&device->machine->ports, &i8042->data);
    address_space_remove(&device->machine->ports, &i8042->command);
    free(i8042);
}

static const struct device_ops device_ops = { .reset = i8042_reset, .free = i8042_free };

int i8042_init(struct machine *machine, struct error **errp)
{
    struct i8042 *i8042 = xcalloc(1, sizeof(*i8042));
    i8042->data = (struct io_region){
        .name = "i8042-data", .base = 0x60, .size = 1, .ops = &data_ops, .opaque = i8042
    };
    i8042->command = (struct io_region){
        .name = "i8042-command", .base = 0x64, .size = 1, .ops = &command_ops, .opaque = i8042
    };
    machine_add_device(machine, &i8042->device, &device_ops);
    i8042_reset(&i8042->device);
    int err = address_space_add(&machine->ports, &i8042->data);
    if (!err)
        err = address_space_add(&machine->ports, &i8042->command);
    return err ? error_set_errno(errp, err, "cannot place the keyboard controller") : 0;
}
