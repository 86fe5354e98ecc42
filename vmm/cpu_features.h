/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names of CPU features, as the -cpu option has them, and where CPUID shows them. */
#pragma once

#include <stdint.h>

enum cpu_register { CPU_EAX, CPU_EBX, CPU_ECX, CPU_EDX };

struct cpu_feature {
    const char *name;
    uint32_t leaf, subleaf;
    enum cpu_register reg;
    uint8_t bit;
};

/* NULL if there is none. A name may be written with '_' for '-'. */
const struct cpu_feature *cpu_feature_find(const char *name);
