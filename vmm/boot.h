/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Direct boot of a Linux kernel, and where its tables lie in guest memory. */
#pragma once

#include "machine.h"

/* Guest physical addresses below 640 KiB; the kernel sees them as usable memory but for the ACPI tables. */
#define BOOT_GDT 0x500u
#define BOOT_GDT_ENTRIES 4u
#define BOOT_PARAMS 0x7000u
#define BOOT_STACK 0x8ff0u
#define BOOT_PAGE_TABLES 0x9000u /* PML4, PDPT, four page directories: 4 GiB mapped one to one */
#define BOOT_CMDLINE 0x20000u
#define BOOT_CMDLINE_ROOM 0x10000u
#define BOOT_LOW_END 0x9fc00u /* from here to 1 MiB is not memory for the kernel */
#define BOOT_ACPI 0xe0000u    /* tables, found by the RSDP at the start */
#define BOOT_ACPI_ROOM 0x20000u
#define BOOT_CODE_SELECTOR 0x10u
#define BOOT_DATA_SELECTOR 0x18u

/* Main thread, vCPUs paused, at the start and after each reset. Loads kernel, initrd and command line of the
 * configuration and sets machine->entry. The files stay open. */
int boot_linux_load(struct machine *machine, struct error **errp);
void boot_linux_finish(struct machine *machine); /* closes them */

/* acpi.c: writes the tables at BOOT_ACPI. */
int acpi_build(struct machine *machine, struct error **errp);
