/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * CPUID of a vCPU: all that the host's KVM supports (-cpu host, the default, and max), less or more what `-cpu
 * …,+feature, -feature,feature=off` says, with the leaves that tell of topology and APIC IDs rewritten for this machine
 * (Intel SDM 2A "CPUID", AMD APM 3 appendix E). Invariant: no feature is shown that KVM did not offer.
 */
#include "cmdline.h"
#include "cpu_features.h"
#include "cpu_state.h"
#include "vcpu.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define CPUID_ROOM 512u /* entries: all of the host's and those made here */

static struct kvm_cpuid_entry2 *find(struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index)
{
    for (uint32_t i = 0; i < cpuid->nent; i++)
        if (cpuid->entries[i].function == function && cpuid->entries[i].index == index)
            return &cpuid->entries[i];
    return NULL;
}

static struct kvm_cpuid_entry2 *find_or_add(struct kvm_cpuid2 *cpuid, uint32_t function, uint32_t index)
{
    struct kvm_cpuid_entry2 *entry = find(cpuid, function, index);
    if (!entry && cpuid->nent < CPUID_ROOM) {
        entry = &cpuid->entries[cpuid->nent++];
        *entry = (struct kvm_cpuid_entry2){ .function = function,
                                            .index = index,
                                            .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX };
    }
    return entry;
}

/* ---- the -cpu option ---- */

static uint32_t *register_of(struct kvm_cpuid_entry2 *entry, enum cpu_register reg)
{
    switch (reg) {
    case CPU_EAX: return &entry->eax;
    case CPU_EBX: return &entry->ebx;
    case CPU_ECX: return &entry->ecx;
    default: return &entry->edx;
    }
}

/* One part of `-cpu model,part,part`: +name, -name, name, name=on|off. Cuts it up; returns the name. */
static const char *parse_part(char *part, bool *on, struct error **errp)
{
    char *name = part, *value = strchr(part, '=');

    *on = true;
    if (*part == '+' || *part == '-') {
        *on = *part == '+';
        name++;
    } else if (value) {
        *value++ = 0;
        if (strcmp(value, "on") != 0 && strcmp(value, "off") != 0) {
            error_set(errp, -EINVAL, "Parameter '%s' expects 'on' or 'off'", name);
            return NULL;
        }
        *on = strcmp(value, "on") == 0;
    }
    return name;
}

/* As QEMU says it, once for all vCPUs. */
static void warn_missing(const struct cpu_feature *feature)
{
    static const char *const registers[] = { "EAX", "EBX", "ECX", "EDX" };

    warn_report("host doesn't support requested feature: CPUID.%02XH:%s.%s [bit %u]", (unsigned)feature->leaf,
                registers[feature->reg], feature->name, feature->bit);
}

/* What `-cpu model,…` asks for besides features. */
struct wishes {
    bool check;   /* tell what the host lacks */
    bool enforce; /* and do not start then */
};

static bool *wish_of(struct wishes *wishes, const char *name)
{
    return !strcmp(name, "check") ? &wishes->check : !strcmp(name, "enforce") ? &wishes->enforce : NULL;
}

/* Gives or takes one feature. false: the host lacks it. */
static bool apply_feature(struct kvm_cpuid2 *cpuid, const struct cpu_feature *feature, bool on)
{
    struct kvm_cpuid_entry2 *entry = find(cpuid, feature->leaf, feature->subleaf);
    uint32_t bit = 1u << feature->bit;

    if (on)
        return entry && *register_of(entry, feature->reg) & bit;
    if (entry)
        *register_of(entry, feature->reg) &= ~bit;
    return true;
}

/* cpuid may be NULL: only the words are checked. `first`: of the first vCPU, for which the user is told. */
static int apply_model(struct kvm_cpuid2 *cpuid, const char *model, bool first, struct error **errp)
{
    AUTO_FREE char *copy = xstrdup(model);
    char *save = NULL, *part = strtok_r(copy, ",", &save);
    struct wishes wishes = { .check = true };
    bool lacks = false;

    if (!part || (strcmp(part, "host") != 0 && strcmp(part, "max") != 0)) {
        error_set(errp, -EINVAL, "unable to find CPU model '%s'", part ? part : "");
        error_hint(errp, "vmm shows guests the host's CPU: -cpu host, with features taken away as in -cpu host,-avx2");
        return -EINVAL;
    }
    while ((part = strtok_r(NULL, ",", &save))) {
        bool on;
        const char *name = parse_part(part, &on, errp);
        if (!name)
            return -EINVAL;
        bool *wish = wish_of(&wishes, name);
        const struct cpu_feature *feature = wish ? NULL : cpu_feature_find(name);
        if (!wish && !feature)
            return error_set(errp, -EINVAL, "Property 'max-x86_64-cpu.%s' not found", name);
        if (wish)
            *wish = on;
        else if (cpuid && !apply_feature(cpuid, feature, on)) {
            lacks = true;
            if (first && (wishes.check || wishes.enforce))
                warn_missing(feature);
        }
    }
    return lacks && wishes.enforce ? error_set(errp, -ENOTSUP, "Host doesn't support requested features") : 0;
}

int cpuid_check_model(const char *model, struct error **errp) { return apply_model(NULL, model, false, errp); }

/* ---- topology ---- */

static void set_leaf_1(struct kvm_cpuid2 *cpuid, uint32_t apic_id, unsigned logical)
{
    struct kvm_cpuid_entry2 *entry = find(cpuid, 1, 0);
    if (!entry)
        return;
    unsigned rounded = 1u << bits_for(logical);
    entry->ebx = (entry->ebx & 0xffff) | (apic_id & 0xff) << 24 | MIN(rounded, 255u) << 16;
    entry->edx = (entry->edx & ~(1u << 28)) | (logical > 1 ? 1u << 28 : 0); /* HTT */
}

/* What KVM leaves to us: features that -cpu may take away like any other. */
static void complete_features(struct machine *machine, struct kvm_cpuid2 *cpuid)
{
    struct kvm_cpuid_entry2 *entry = find(cpuid, 1, 0);

    if (!entry)
        return;
    entry->ecx |= 1u << 31;    /* runs in a hypervisor */
    entry->ecx &= ~(1u << 27); /* OSXSAVE: the guest's CR4 decides */
    entry->ecx &= ~(1u << 24); /* TSC deadline timer */
    if (ioctl(machine->kvm.vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
        entry->ecx |= 1u << 24;
}

/* Leaves 0xb and 0x1f: threads, then cores, then nothing. */
static void set_extended_topology(struct kvm_cpuid2 *cpuid, uint32_t leaf, uint32_t apic_id,
                                  const struct config *config)
{
    unsigned thread_bits = bits_for(config->threads), core_bits = bits_for(config->cores);
    for (uint32_t level = 0; level < 3; level++) {
        struct kvm_cpuid_entry2 *entry = find_or_add(cpuid, leaf, level);
        if (!entry)
            return;
        entry->flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        entry->eax = level == 0 ? thread_bits : level == 1 ? thread_bits + core_bits : 0;
        entry->ebx = level == 0 ? config->threads : level == 1 ? config->threads * config->cores : 0;
        entry->ecx = level | (level == 0 ? 1u << 8 : level == 1 ? 2u << 8 : 0);
        entry->edx = apic_id;
    }
}

/* Leaf 4 (Intel) and 0x8000001d (AMD): who shares which cache. The last level is the socket's, the others a core's. */
static void set_caches(struct kvm_cpuid2 *cpuid, uint32_t leaf, const struct config *config)
{
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        if (entry->function != leaf || !(entry->eax & 31))
            continue;
        unsigned level = entry->eax >> 5 & 7;
        unsigned sharing = level >= 3 ? 1u << (bits_for(config->cores) + bits_for(config->threads))
                                      : 1u << bits_for(config->threads);
        entry->eax = (entry->eax & 0x3fff) | (sharing - 1) << 14;
        if (leaf == 4)
            entry->eax |= ((1u << bits_for(config->cores)) - 1) << 26;
    }
}

static void set_amd_topology(struct kvm_cpuid2 *cpuid, uint32_t apic_id, const struct config *config)
{
    unsigned logical = config->threads * config->cores;
    struct kvm_cpuid_entry2 *entry = find(cpuid, 0x80000001, 0);
    if (entry)
        entry->ecx = (entry->ecx & ~2u) | (logical > 1 ? 2u : 0); /* CmpLegacy */
    entry = find(cpuid, 0x80000008, 0);
    if (entry)
        entry->ecx = (entry->ecx & ~0xf0ffu) | (logical - 1) |
                     (bits_for(config->threads) + bits_for(config->cores)) << 12;
    entry = find(cpuid, 0x8000001e, 0);
    if (entry) {
        entry->eax = apic_id;
        entry->ebx = (apic_id >> bits_for(config->threads) & 0xff) | (config->threads - 1) << 8;
        entry->ecx = 0; /* one node */
    }
}

static void set_topology(const struct config *config, struct kvm_cpuid2 *cpuid, uint32_t apic_id)
{
    set_leaf_1(cpuid, apic_id, config->threads * config->cores);
    struct kvm_cpuid_entry2 *basic = find(cpuid, 0, 0);
    if (basic && basic->eax < 0xb)
        basic->eax = 0xb;
    set_extended_topology(cpuid, 0xb, apic_id, config);
    if (basic && basic->eax >= 0x1f)
        set_extended_topology(cpuid, 0x1f, apic_id, config);
    if (basic && basic->ebx == 0x756e6547) /* "Genu" */
        set_caches(cpuid, 4, config);
    else
        set_amd_topology(cpuid, apic_id, config);
    set_caches(cpuid, 0x8000001d, config);
}

struct kvm_cpuid2 *cpuid_make(struct machine *machine, uint32_t apic_id, struct error **errp)
{
    struct kvm_cpuid2 *cpuid = xcalloc(1, sizeof(*cpuid) + CPUID_ROOM * sizeof(cpuid->entries[0]));
    cpuid->nent = CPUID_ROOM;
    if (ioctl(machine->kvm.fd, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) {
        error_set_errno(errp, -errno, "kvm: cannot ask which CPU features are supported");
        goto fail;
    }
    complete_features(machine, cpuid);
    if (apply_model(cpuid, machine->config->cpu_model, apic_id == 0, errp) < 0)
        goto fail;
    set_topology(machine->config, cpuid, apic_id);
    return cpuid;
fail:
    free(cpuid);
    return NULL;
}
