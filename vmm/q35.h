/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The board: where its fixed parts are, and the functions that its parts call each other by. */
#pragma once

#include "machine.h"

#define Q35_ECAM_BASE MEMORY_HOLE_START
#define Q35_PM_BASE 0x600u
#define Q35_PM1_STATUS 0u
#define Q35_PM1_ENABLE 2u
#define Q35_PM1_CONTROL 4u
#define Q35_PM_TIMER 8u
#define Q35_GPE0 0x20u
#define Q35_GPE0_LENGTH 16u
#define Q35_SCI_IRQ 9u
#define Q35_SMI_PORT 0xb2u
#define Q35_ACPI_ENABLE 2u
#define Q35_ACPI_DISABLE 3u
#define Q35_SLEEP_TYPE_S5 0u
#define Q35_RESET_PORT 0xcf9u
#define Q35_LPC_SLOT 31u
#define Q35_PIRQ_GSI 16u /* PIRQ A is the I/O APIC's pin 16 */

/* Which of the eight PIRQ lines (0: A) a slot's pin (0: INTA) is wired to: E to H in turn, A to D for the chipset's
 * own slots. */
static inline unsigned q35_pirq(unsigned slot, unsigned pin) { return (slot < 25 ? 4u : 0u) + ((slot + pin) & 3u); }
/* The 8259 input that a PIRQ line has after pci_assign(). */
#define Q35_PIRQ_ISA_IRQ(pirq) ((uint8_t)((pirq)&1 ? 11 : 10))

int q35_init(struct machine *machine, struct error **errp);
/* What firmware would have set up before it starts a kernel. */
void q35_setup_for_direct_boot(struct machine *machine);
/* Level of a PIRQ line. Any thread. */
void q35_set_pirq(struct machine *machine, unsigned pirq, bool level);

/* ---- parts of the board; each under the device lock ---- */

int acpi_pm_init(struct machine *machine, struct error **errp);
void acpi_pm_set_base(struct machine *machine, uint16_t base); /* 0: not decoded */
void acpi_pm_enable(struct machine *machine);                  /* ACPI mode: events raise the SCI */
void acpi_pm_power_button(struct machine *machine);
int rtc_init(struct machine *machine, struct error **errp);
int i8042_init(struct machine *machine, struct error **errp);
int serial_init_all(struct machine *machine, struct error **errp);
