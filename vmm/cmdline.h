/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line, in QEMU's syntax, as data. */
#pragma once

#include <base/error.h>
#include <base/opts.h>
#include <stdbool.h>
#include <stdint.h>

/* One -drive, -blockdev, -device or -object, in the order given. */
struct config_item {
    const char *option; /* "-drive" */
    const char *text;   /* as given; for messages */
    struct opts *opts;  /* owned */
};

struct config_items {
    struct config_item *items;
    unsigned count;
};

#define CONFIG_MAX_SERIALS 4

struct config {
    uint64_t memory; /* bytes */
    unsigned cpus, sockets, cores, threads;
    const char *cpu_model, *kernel, *initrd, *append;
    const char *name, *pidfile;
    unsigned close_timeout; /* seconds; 0: none */
    const char *serials[CONFIG_MAX_SERIALS];
    unsigned serial_count;
    bool start_paused, no_reboot, nographic, no_display, no_defaults;
    struct config_items drives, blockdevs, devices, objects;
};

/* Returns 0, or -EINVAL with the sentence; exits the process itself for --help, --version and lists (`-device help`).
 * Strings in *config point into argv or are kept for the life of the process. */
int cmdline_parse(struct config *config, int argc, char **argv, struct error **errp);
void config_finish(struct config *config);

/* cmdline_help.c */
void cmdline_print_version(void);
void cmdline_print_device_help(const char *name); /* NULL: the list */
