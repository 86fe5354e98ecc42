/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Commands of the console's monitor, named as QEMU's: a table, one line each. */
#include "hmp.h"

#include "chardev.h"
#include "q35.h"

#include <base/compiler.h>
#include <stdio.h>
#include <string.h>

struct hmp {
    const char *name, *help;
    void (*run)(struct machine *machine, struct chardev *out);
};

static void run_continue(struct machine *machine, struct chardev *out) { machine_continue(machine); }

static void run_stop(struct machine *machine, struct chardev *out) { machine_pause(machine); }

static void run_quit(struct machine *machine, struct chardev *out) { machine_event(machine, MACHINE_SHUTDOWN, 0); }

static void run_reset(struct machine *machine, struct chardev *out) { machine_event(machine, MACHINE_RESET, 0); }

static void run_powerdown(struct machine *machine, struct chardev *out) { acpi_pm_power_button(machine); }

static void run_status(struct machine *machine, struct chardev *out)
{
    char text[64];
    snprintf(text, sizeof(text), "VM status: %s\r\n", machine_status(machine));
    chardev_print(out, text);
}

static void run_help(struct machine *machine, struct chardev *out);

static const struct hmp commands[] = {
    { "c", "resume emulation", run_continue },
    { "cont", "resume emulation", run_continue },
    { "help", "show the help", run_help },
    { "info status", "show whether the VM runs", run_status },
    { "q", "quit", run_quit },
    { "quit", "quit", run_quit },
    { "s", "stop emulation", run_stop },
    { "stop", "stop emulation", run_stop },
    { "system_powerdown", "send system power down event", run_powerdown },
    { "system_reset", "reset the system", run_reset },
};

static void run_help(struct machine *machine, struct chardev *out)
{
    char text[128];
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        snprintf(text, sizeof(text), "%s -- %s\r\n", commands[i].name, commands[i].help);
        chardev_print(out, text);
    }
}

void hmp_command(struct machine *machine, struct chardev *out, const char *line)
{
    char text[192];
    while (*line == ' ')
        line++;
    if (!*line)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        if (strcmp(commands[i].name, line) == 0) {
            commands[i].run(machine, out);
            return;
        }
    }
    snprintf(text, sizeof(text), "unknown command: '%s'\r\n", line);
    chardev_print(out, text);
}
