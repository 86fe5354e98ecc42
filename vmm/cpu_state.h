/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Registers of a vCPU: as made, back to that at reset, and set up to enter a kernel. vCPU threads are paused. */
#pragma once

#include "vcpu.h"

int cpu_state_save(struct vcpu *cpu);
int cpu_state_reset(struct vcpu *cpu);
/* The boot processor at machine->entry, in 64-bit or 32-bit mode as the Linux boot protocol has them. Needs the tables
 * that boot_linux.c put into guest memory. */
int cpu_state_boot(struct vcpu *cpu);
void cpu_state_free(struct vcpu *cpu);

/* Number of bits that 0 … count - 1 need. */
static inline unsigned bits_for(unsigned count) { return count <= 1 ? 0 : 32u - (unsigned)__builtin_clz(count - 1); }
