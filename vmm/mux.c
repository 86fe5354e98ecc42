/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A console that shares its terminal with a monitor: Ctrl-A is the escape, as on QEMU's -nographic. The monitor here
 * knows the few commands that a person at a console needs (hmp.c).
 */
#include "chardev.h"
#include "hmp.h"

#include <base/compiler.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define ESCAPE 1 /* Ctrl-A */

static const char help[] = "\r\n"
                           "C-a h    print this help\r\n"
                           "C-a x    exit emulator\r\n"
                           "C-a s    save disk data back to file (if -snapshot)\r\n"
                           "C-a t    toggle console timestamps\r\n"
                           "C-a b    send break (magic sysrq)\r\n"
                           "C-a c    switch between console and monitor\r\n"
                           "C-a C-a  sends C-a\r\n";

static void enter_monitor(struct mux *mux)
{
    mux->in_monitor = !mux->in_monitor;
    mux->line_length = 0;
    if (!mux->in_monitor)
        return;
    chardev_print(mux->chardev, "\r\nvmm " VMM_VERSION " monitor - type 'help' for more information\r\n(vmm) ");
}

static void monitor_byte(struct mux *mux, uint8_t byte)
{
    char text[2] = { (char)byte, 0 };
    if (byte == '\r' || byte == '\n') {
        chardev_print(mux->chardev, "\r\n");
        mux->line[mux->line_length] = 0;
        mux->line_length = 0;
        hmp_command(mux->machine, mux->chardev, mux->line);
        chardev_print(mux->chardev, "(vmm) ");
    } else if ((byte == 8 || byte == 127) && mux->line_length) {
        mux->line_length--;
        chardev_print(mux->chardev, "\b \b");
    } else if (isprint(byte) && mux->line_length < sizeof(mux->line) - 1) {
        mux->line[mux->line_length++] = (char)byte;
        chardev_print(mux->chardev, text);
    }
}

/* The byte after Ctrl-A. Returns whether it is for the guest. */
static bool escape_byte(struct mux *mux, uint8_t byte, bool *send_break)
{
    switch (byte) {
    case 'h':
    case '?': chardev_print(mux->chardev, help); return false;
    case 'x':
        chardev_print(mux->chardev, "\r\nvmm: Terminated\r\n");
        machine_event(mux->machine, MACHINE_SHUTDOWN, 0);
        return false;
    case 't':
        mux->timestamps = !mux->timestamps;
        mux->origin_ns = loop_now_ns();
        mux->line_start = false;
        return false;
    case 'b': *send_break = true; return false;
    case 'c': enter_monitor(mux); return false;
    case 's': return false; /* -snapshot is not there */
    default: return byte == ESCAPE;
    }
}

size_t mux_input(struct mux *mux, uint8_t *bytes, size_t count, bool *send_break)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        uint8_t byte = bytes[i];
        if (mux->escaped) {
            mux->escaped = false;
            if (!escape_byte(mux, byte, send_break))
                continue;
        } else if (byte == ESCAPE) {
            mux->escaped = true;
            continue;
        }
        if (mux->in_monitor)
            monitor_byte(mux, byte);
        else
            bytes[kept++] = byte;
    }
    return kept;
}
