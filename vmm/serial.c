/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Serial port: 16550A UART with its FIFOs (National Semiconductor PC16550D), at the four usual places. Sending takes no
 * time unless the back end is full; receiving is held back at the back end while the FIFO is full.
 * Invariant: the interrupt line follows update_interrupt() after every change of a register.
 */
#include "aml.h"
#include "chardev.h"
#include "cmdline.h"
#include "q35.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REG_DATA, REG_IER, REG_IIR_FCR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH };

#define IER_RECEIVE 1u
#define IER_SEND 2u
#define IER_LINE 4u
#define IER_MODEM 8u
#define IIR_NONE 1u
#define IIR_MODEM 0u
#define IIR_SEND 2u
#define IIR_RECEIVE 4u
#define IIR_LINE 6u
#define IIR_TIMEOUT 0xcu
#define IIR_FIFOS 0xc0u
#define FCR_ENABLE 1u
#define FCR_CLEAR_RECEIVE 2u
#define LCR_DIVISOR 0x80u
#define MCR_LOOP 0x10u
#define MCR_OUT2 8u
#define LSR_DATA 1u
#define LSR_OVERRUN 2u
#define LSR_BREAK 0x10u
#define LSR_ERRORS 0x1eu
#define LSR_SEND_EMPTY 0x60u
#define MSR_LINES 0xf0u
#define MSR_CONNECTED 0xb0u /* CTS, DSR, DCD */
#define FIFO_SIZE 16u

struct serial {
    struct device device;
    struct chardev_user user;
    struct chardev *chardev;
    struct io_region ports;
    unsigned index, irq;
    uint8_t ier, fcr, lcr, mcr, lsr, msr, scratch;
    uint8_t divisor[2];
    bool send_pending; /* the sender-empty interrupt has not been acknowledged */
    uint8_t fifo[FIFO_SIZE];
    unsigned fifo_head, fifo_count;
};

static unsigned fifo_room(const struct serial *serial)
{
    return (serial->fcr & FCR_ENABLE ? FIFO_SIZE : 1) -
           MIN(serial->fifo_count, serial->fcr & FCR_ENABLE ? FIFO_SIZE : 1);
}

static unsigned trigger_level(const struct serial *serial)
{
    static const uint8_t levels[] = { 1, 4, 8, 14 };
    return serial->fcr & FCR_ENABLE ? levels[serial->fcr >> 6] : 1;
}

static unsigned interrupt_id(const struct serial *serial)
{
    if (serial->ier & IER_LINE && serial->lsr & LSR_ERRORS)
        return IIR_LINE;
    if (serial->ier & IER_RECEIVE && serial->fifo_count >= trigger_level(serial))
        return IIR_RECEIVE;
    if (serial->ier & IER_RECEIVE && serial->fifo_count)
        return IIR_TIMEOUT;
    if (serial->ier & IER_SEND && serial->send_pending)
        return IIR_SEND;
    if (serial->ier & IER_MODEM && serial->msr & 0x0f)
        return IIR_MODEM;
    return IIR_NONE;
}

static void update_interrupt(struct serial *serial)
{
    kvm_irq_line(&serial->device.machine->kvm, serial->irq, interrupt_id(serial) != IIR_NONE);
}

static void push(struct serial *serial, uint8_t byte)
{
    if (!fifo_room(serial)) {
        serial->lsr |= LSR_OVERRUN;
        return;
    }
    serial->fifo[(serial->fifo_head + serial->fifo_count++) % FIFO_SIZE] = byte;
    serial->lsr |= LSR_DATA;
}

/* ---- the back end's side ---- */

static size_t user_room(struct chardev_user *user) { return fifo_room(container_of(user, struct serial, user)); }

static void user_receive(struct chardev_user *user, const uint8_t *bytes, size_t count)
{
    struct serial *serial = container_of(user, struct serial, user);
    for (size_t i = 0; i < count; i++)
        push(serial, bytes[i]);
    update_interrupt(serial);
}

static void user_sent(struct chardev_user *user)
{
    struct serial *serial = container_of(user, struct serial, user);
    serial->send_pending = true;
    update_interrupt(serial);
}

static void user_break(struct chardev_user *user)
{
    struct serial *serial = container_of(user, struct serial, user);
    push(serial, 0);
    serial->lsr |= LSR_BREAK;
    update_interrupt(serial);
}

/* ---- the guest's side ---- */

static void set_msr(struct serial *serial, uint8_t lines)
{
    uint8_t changed = (serial->msr ^ lines) & MSR_LINES;
    uint8_t deltas = changed >> 4 & 0x0b;
    if (changed & 0x40 && !(lines & 0x40))
        deltas |= 4; /* trailing edge of the ring indicator */
    serial->msr = (uint8_t)((lines & MSR_LINES) | (serial->msr & 0x0f) | deltas);
}

static void update_msr(struct serial *serial)
{
    uint8_t mcr = serial->mcr, lines = MSR_CONNECTED;
    if (mcr & MCR_LOOP) /* RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD */
        lines = (uint8_t)((mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4);
    set_msr(serial, lines);
}

static void send(struct serial *serial, uint8_t byte)
{
    serial->send_pending = false;
    if (serial->mcr & MCR_LOOP)
        push(serial, byte);
    else if (serial->chardev)
        chardev_put(serial->chardev, byte);
    serial->send_pending = !serial->chardev || chardev_can_put(serial->chardev);
}

static void write_fcr(struct serial *serial, uint8_t value)
{
    if ((value ^ serial->fcr) & FCR_ENABLE || value & FCR_CLEAR_RECEIVE) {
        serial->fifo_count = 0;
        serial->lsr &= (uint8_t)~LSR_DATA;
    }
    serial->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
    if (serial->chardev)
        chardev_wants_input(serial->chardev);
}

static uint8_t read_data(struct serial *serial)
{
    if (!serial->fifo_count)
        return 0;
    uint8_t byte = serial->fifo[serial->fifo_head];
    serial->fifo_head = (serial->fifo_head + 1) % FIFO_SIZE;
    if (!--serial->fifo_count) {
        serial->lsr &= (uint8_t)~LSR_DATA;
        if (serial->chardev)
            chardev_wants_input(serial->chardev);
    }
    return byte;
}

static uint8_t read_register(struct serial *serial, unsigned reg)
{
    uint8_t value;
    switch (reg) {
    case REG_DATA: return serial->lcr & LCR_DIVISOR ? serial->divisor[0] : read_data(serial);
    case REG_IER: return serial->lcr & LCR_DIVISOR ? serial->divisor[1] : serial->ier;
    case REG_IIR_FCR:
        value = (uint8_t)interrupt_id(serial);
        if (value == IIR_SEND)
            serial->send_pending = false;
        return value | (serial->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
    case REG_LCR: return serial->lcr;
    case REG_MCR: return serial->mcr;
    case REG_LSR:
        value = serial->lsr;
        if (!serial->chardev || chardev_can_put(serial->chardev))
            value |= LSR_SEND_EMPTY;
        serial->lsr &= (uint8_t)~LSR_ERRORS;
        return value;
    case REG_MSR:
        value = serial->msr;
        serial->msr &= MSR_LINES;
        return value;
    default: return serial->scratch;
    }
}

static void write_register(struct serial *serial, unsigned reg, uint8_t value)
{
    switch (reg) {
    case REG_DATA:
        if (serial->lcr & LCR_DIVISOR)
            serial->divisor[0] = value;
        else
            send(serial, value);
        break;
    case REG_IER:
        if (serial->lcr & LCR_DIVISOR) {
            serial->divisor[1] = value;
            break;
        }
        if (value & IER_SEND & ~serial->ier && (!serial->chardev || chardev_can_put(serial->chardev)))
            serial->send_pending = true;
        serial->ier = value & 0x0f;
        break;
    case REG_IIR_FCR: write_fcr(serial, value); break;
    case REG_LCR: serial->lcr = value; break;
    case REG_MCR:
        serial->mcr = value & 0x1f;
        update_msr(serial);
        break;
    case REG_SCRATCH: serial->scratch = value; break;
    default: /* LSR and MSR cannot be written */ break;
    }
}

static uint64_t ports_read(void *opaque, uint64_t offset, unsigned length)
{
    struct serial *serial = opaque;
    uint64_t value = 0;
    for (unsigned i = 0; i < length; i++)
        value |= (uint64_t)read_register(serial, (unsigned)offset + i) << 8 * i;
    update_interrupt(serial);
    return value;
}

static void ports_write(void *opaque, uint64_t offset, unsigned length, uint64_t value)
{
    struct serial *serial = opaque;
    for (unsigned i = 0; i < length; i++)
        write_register(serial, (unsigned)offset + i, (uint8_t)(value >> 8 * i));
    update_interrupt(serial);
}

static const struct io_ops ports_ops = { ports_read, ports_write };

/* ---- life ---- */

static void serial_reset(struct device *device)
{
    struct serial *serial = container_of(device, struct serial, device);
    serial->ier = serial->fcr = serial->lcr = serial->scratch = 0;
    serial->mcr = MCR_OUT2;
    serial->lsr = 0;
    serial->divisor[0] = 12;
    serial->divisor[1] = 0;
    serial->fifo_count = 0;
    serial->send_pending = false;
    update_msr(serial);
    serial->msr &= MSR_LINES;
    update_interrupt(serial);
}

static void serial_describe(struct device *device, struct aml *aml)
{
    struct serial *serial = container_of(device, struct serial, device);
    char name[] = { 'C', 'O', 'M', (char)('1' + serial->index), 0 };
    aml_begin_device(aml, name);
    aml_name(aml, "_HID");
    aml_eisa_id(aml, "PNP0501");
    aml_name(aml, "_UID");
    aml_integer(aml, serial->index + 1u);
    aml_name(aml, "_CRS");
    aml_begin_resources(aml);
    aml_resource_io(aml, (uint16_t)serial->ports.base, 8);
    aml_resource_irq(aml, serial->irq);
    aml_end(aml);
    aml_end(aml);
}

static void serial_free(struct device *device)
{
    struct serial *serial = container_of(device, struct serial, device);
    address_space_remove(&device->machine->ports, &serial->ports);
    chardev_free(serial->chardev);
    free(serial);
}

static const struct device_ops device_ops = { .reset = serial_reset, .describe = serial_describe, .free = serial_free };

static int init_one(struct machine *machine, unsigned index, const char *backend, struct error **errp)
{
    static const uint16_t ports[] = { 0x3f8, 0x2f8, 0x3e8, 0x2e8 };
    static const uint8_t irqs[] = { 4, 3, 4, 3 };
    if (index >= ARRAY_SIZE(ports))
        return error_set(errp, -EINVAL, "too many serial ports: there are four");
    struct serial *serial = xcalloc(1, sizeof(*serial));
    serial->index = index;
    serial->irq = irqs[index];
    serial->user = (struct chardev_user){ user_room, user_receive, user_sent, user_break };
    serial->ports = (struct io_region){
        .name = "serial", .base = ports[index], .size = 8, .ops = &ports_ops, .opaque = serial
    };
    machine_add_device(machine, &serial->device, &device_ops);
    serial_reset(&serial->device);
    struct error *error = NULL;
    char label[16];
    snprintf(label, sizeof(label), "serial%u", index);
    serial->chardev = chardev_new(machine, backend, label, &error);
    if (!serial->chardev) {
        error_prepend(&error, "-serial %s: ", backend);
        error_report_free(error);
        return error_set(errp, -EINVAL, "could not connect serial device to character backend '%s'", backend);
    }
    chardev_connect(serial->chardev, &serial->user);
    int err = address_space_add(&machine->ports, &serial->ports);
    return err ? error_set_errno(errp, err, "cannot place serial port %u", index) : 0;
}

int serial_init_all(struct machine *machine, struct error **errp)
{
    const struct config *config = machine->config;
    int err = 0;
    for (unsigned i = 0; !err && i < config->serial_count; i++) {
        if (strcmp(config->serials[i], "none") == 0)
            continue;
        err = init_one(machine, i, config->serials[i], errp);
        if (err)
            error_prepend(errp, "-serial %s: ", config->serials[i]);
    }
    return err;
}
