/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * -cpu and CPUID: names and places of features, and what is made of what KVM offers. KVM is a fake in this file, which
 * offers everything, or nothing; the places are compared with the compiler's own <cpuid.h>.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm/cmdline.h"
#include "../../vmm/cpu_features.h"
#include "../../vmm/cpu_state.h"
#include "../../vmm/machine.h"
#include "../../vmm/vcpu.h"

#include <base/compiler.h>
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* ---- KVM ---- */

static const uint32_t leaves[][2] = { { 0, 0 },          { 1, 0 },         { 6, 0 },          { 7, 0 },
                                      { 7, 1 },          { 0xd, 1 },       { 0x80000001, 0 }, { 0x80000007, 0 },
                                      { 0x80000008, 0 }, { 0x40000001, 0 } };
static uint32_t offered; /* in every register */

/* In place of the C library's: only cpuid.c calls it here. */
int ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    va_start(args, request);
    struct kvm_cpuid2 *cpuid = va_arg(args, struct kvm_cpuid2 *);
    va_end(args);
    if (request == KVM_CHECK_EXTENSION)
        return offered != 0;
    assert_true(request == KVM_GET_SUPPORTED_CPUID && cpuid->nent >= ARRAY_SIZE(leaves));
    cpuid->nent = ARRAY_SIZE(leaves);
    for (unsigned i = 0; i < ARRAY_SIZE(leaves); i++)
        cpuid->entries[i] = (struct kvm_cpuid_entry2){ .function = leaves[i][0],
                                                       .index = leaves[i][1],
                                                       .eax = leaves[i][0] ? offered : 0xb,
                                                       .ebx = offered,
                                                       .ecx = offered,
                                                       .edx = offered };
    return 0;
}

static struct kvm_cpuid2 *make(const char *model, struct error **errp)
{
    struct config config = { .cpus = 1, .sockets = 1, .cores = 1, .threads = 1, .cpu_model = model };
    struct machine machine = { .config = &config };
    return cpuid_make(&machine, 0, errp);
}

static uint32_t *at(struct kvm_cpuid2 *cpuid, const struct cpu_feature *feature)
{
    for (uint32_t i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        if (entry->function == feature->leaf && entry->index == feature->subleaf)
            return feature->reg == CPU_EAX   ? &entry->eax
                   : feature->reg == CPU_EBX ? &entry->ebx
                   : feature->reg == CPU_ECX ? &entry->ecx
                                             : &entry->edx;
    }
    return NULL;
}

/* ---- places ---- */

static const struct place {
    const char *name;
    uint32_t leaf, subleaf;
    enum cpu_register reg;
    uint32_t mask;
} places[] = {
    { "pni", 1, 0, CPU_ECX, bit_SSE3 },
    { "sse3", 1, 0, CPU_ECX, bit_SSE3 },
    { "pclmulqdq", 1, 0, CPU_ECX, bit_PCLMUL },
    { "ssse3", 1, 0, CPU_ECX, bit_SSSE3 },
    { "fma", 1, 0, CPU_ECX, bit_FMA },
    { "cx16", 1, 0, CPU_ECX, bit_CMPXCHG16B },
    { "sse4.1", 1, 0, CPU_ECX, bit_SSE4_1 },
    { "sse4-2", 1, 0, CPU_ECX, bit_SSE4_2 },
    { "movbe", 1, 0, CPU_ECX, bit_MOVBE },
    { "popcnt", 1, 0, CPU_ECX, bit_POPCNT },
    { "aes", 1, 0, CPU_ECX, bit_AES },
    { "xsave", 1, 0, CPU_ECX, bit_XSAVE },
    { "avx", 1, 0, CPU_ECX, bit_AVX },
    { "f16c", 1, 0, CPU_ECX, bit_F16C },
    { "rdrand", 1, 0, CPU_ECX, bit_RDRND },
    { "cx8", 1, 0, CPU_EDX, bit_CMPXCHG8B },
    { "cmov", 1, 0, CPU_EDX, bit_CMOV },
    { "mmx", 1, 0, CPU_EDX, bit_MMX },
    { "fxsr", 1, 0, CPU_EDX, bit_FXSAVE },
    { "sse", 1, 0, CPU_EDX, bit_SSE },
    { "sse2", 1, 0, CPU_EDX, bit_SSE2 },
    { "fsgsbase", 7, 0, CPU_EBX, bit_FSGSBASE },
    { "bmi1", 7, 0, CPU_EBX, bit_BMI },
    { "hle", 7, 0, CPU_EBX, bit_HLE },
    { "avx2", 7, 0, CPU_EBX, bit_AVX2 },
    { "bmi2", 7, 0, CPU_EBX, bit_BMI2 },
    { "rtm", 7, 0, CPU_EBX, bit_RTM },
    { "avx512f", 7, 0, CPU_EBX, bit_AVX512F },
    { "avx512dq", 7, 0, CPU_EBX, bit_AVX512DQ },
    { "rdseed", 7, 0, CPU_EBX, bit_RDSEED },
    { "adx", 7, 0, CPU_EBX, bit_ADX },
    { "avx512ifma", 7, 0, CPU_EBX, bit_AVX512IFMA },
    { "clflushopt", 7, 0, CPU_EBX, bit_CLFLUSHOPT },
    { "clwb", 7, 0, CPU_EBX, bit_CLWB },
    { "avx512cd", 7, 0, CPU_EBX, bit_AVX512CD },
    { "sha_ni", 7, 0, CPU_EBX, bit_SHA },
    { "avx512bw", 7, 0, CPU_EBX, bit_AVX512BW },
    { "avx512vl", 7, 0, CPU_EBX, bit_AVX512VL },
    { "avx512vbmi", 7, 0, CPU_ECX, bit_AVX512VBMI },
    { "pku", 7, 0, CPU_ECX, bit_PKU },
    { "ospke", 7, 0, CPU_ECX, bit_OSPKE },
    { "avx512vbmi2", 7, 0, CPU_ECX, bit_AVX512VBMI2 },
    { "gfni", 7, 0, CPU_ECX, bit_GFNI },
    { "vaes", 7, 0, CPU_ECX, bit_VAES },
    { "vpclmulqdq", 7, 0, CPU_ECX, bit_VPCLMULQDQ },
    { "avx512vnni", 7, 0, CPU_ECX, bit_AVX512VNNI },
    { "avx512bitalg", 7, 0, CPU_ECX, bit_AVX512BITALG },
    { "avx512-vpopcntdq", 7, 0, CPU_ECX, bit_AVX512VPOPCNTDQ },
    { "rdpid", 7, 0, CPU_ECX, bit_RDPID },
    { "cldemote", 7, 0, CPU_ECX, bit_CLDEMOTE },
    { "movdiri", 7, 0, CPU_ECX, bit_MOVDIRI },
    { "movdir64b", 7, 0, CPU_ECX, bit_MOVDIR64B },
    { "avx512-vp2intersect", 7, 0, CPU_EDX, bit_AVX512VP2INTERSECT },
    { "serialize", 7, 0, CPU_EDX, bit_SERIALIZE },
    { "tsx-ldtrk", 7, 0, CPU_EDX, bit_TSXLDTRK },
    { "amx-bf16", 7, 0, CPU_EDX, bit_AMX_BF16 },
    { "avx512-fp16", 7, 0, CPU_EDX, bit_AVX512FP16 },
    { "amx-tile", 7, 0, CPU_EDX, bit_AMX_TILE },
    { "amx-int8", 7, 0, CPU_EDX, bit_AMX_INT8 },
    { "avx-vnni", 7, 1, CPU_EAX, bit_AVXVNNI },
    { "avx512-bf16", 7, 1, CPU_EAX, bit_AVX512BF16 },
    { "xsaveopt", 0xd, 1, CPU_EAX, bit_XSAVEOPT },
    { "xsavec", 0xd, 1, CPU_EAX, bit_XSAVEC },
    { "xsaves", 0xd, 1, CPU_EAX, bit_XSAVES },
    { "lahf-lm", 0x80000001, 0, CPU_ECX, bit_LAHF_LM },
    { "abm", 0x80000001, 0, CPU_ECX, bit_ABM },
    { "sse4a", 0x80000001, 0, CPU_ECX, bit_SSE4a },
    { "3dnowprefetch", 0x80000001, 0, CPU_ECX, bit_PRFCHW },
    { "xop", 0x80000001, 0, CPU_ECX, bit_XOP },
    { "fma4", 0x80000001, 0, CPU_ECX, bit_FMA4 },
    { "tbm", 0x80000001, 0, CPU_ECX, bit_TBM },
    { "mmxext", 0x80000001, 0, CPU_EDX, bit_MMXEXT },
    { "lm", 0x80000001, 0, CPU_EDX, bit_LM },
    { "3dnowext", 0x80000001, 0, CPU_EDX, bit_3DNOWP },
    { "3dnow", 0x80000001, 0, CPU_EDX, bit_3DNOW },
    { "clzero", 0x80000008, 0, CPU_EBX, bit_CLZERO },
    { "wbnoinvd", 0x80000008, 0, CPU_EBX, bit_WBNOINVD },
};

static void features_are_where_the_manuals_say(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        const struct cpu_feature *feature = cpu_feature_find(places[i].name);
        if (!feature)
            fail_msg("%s is not known", places[i].name);
        if (feature->leaf != places[i].leaf || feature->subleaf != places[i].subleaf || feature->reg != places[i].reg ||
            1u << feature->bit != places[i].mask)
            fail_msg("%s is at %x.%u register %d bit %u", feature->name, feature->leaf, feature->subleaf, feature->reg,
                     feature->bit);
    }
}

static void names_are_whole_words(void **state)
{
    assert_non_null(cpu_feature_find("avx512_vpopcntdq"));
    assert_ptr_equal(cpu_feature_find("sha-ni"), cpu_feature_find("sha_ni"));
    /* '-' in the table may be '_' on the command line; nothing else is the same. */
    static const char *const wrong[] = { "", "av", "avx3", "avx2 ", "AVX2", "sse4_1_", "sse4,1", "-avx2", "f" };
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        assert_null(cpu_feature_find(wrong[i]));
}

/* ---- -cpu ---- */

static void host_is_what_kvm_offers(void **state)
{
    offered = UINT32_MAX;
    struct kvm_cpuid2 *cpuid = make("host", NULL);
    const struct cpu_feature *edx = cpu_feature_find("avx512-fp16"), *ecx = cpu_feature_find("avx512vbmi");
    assert_int_equal(UINT32_MAX, *at(cpuid, edx));
    assert_int_equal(UINT32_MAX, *at(cpuid, ecx));
    /* OSXSAVE is the guest's own doing. */
    assert_int_equal(UINT32_MAX & ~(1u << 27), *at(cpuid, cpu_feature_find("avx")));
    free(cpuid);
    /* What KVM does not offer is not made up, but for the bit that says that this is a virtual machine. */
    offered = 0;
    cpuid = make("max", NULL);
    assert_int_equal(0, *at(cpuid, edx));
    assert_int_equal(1u << 31, *at(cpuid, cpu_feature_find("avx")));
    free(cpuid);
}

/* What KVM leaves to the monitor to show is taken away like anything else. */
static void what_is_added_can_be_taken(void **state)
{
    static const char *const names[] = { "hypervisor", "tsc-deadline" };

    offered = UINT32_MAX;
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        AUTO_FREE char *model = xasprintf("host,-%s", names[i]);
        const struct cpu_feature *feature = cpu_feature_find(names[i]);
        struct kvm_cpuid2 *all = make("host", NULL), *less = make(model, NULL);
        assert_int_equal(1u << feature->bit, *at(all, feature) & ~*at(less, feature));
        free(all);
        free(less);
    }
    /* Of the host's manual: bit 3 is the second clock. */
    assert_int_equal(4, cpu_feature_find("kvm-asyncpf")->bit);
}

/* Each can be taken away, which changes its bit and no other; and cannot be given if it is not there. */
static void one_bit_is_taken(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        char text[64];
        const struct cpu_feature *feature = cpu_feature_find(places[i].name);
        offered = UINT32_MAX;
        struct kvm_cpuid2 *all = make("host", NULL);
        for (int way = 0; way < 2; way++) {
            snprintf(text, sizeof(text), way ? "host,%s=off" : "host,-%s", places[i].name);
            struct kvm_cpuid2 *less = make(text, NULL);
            assert_int_equal(all->nent, less->nent);
            assert_int_equal(places[i].mask, *at(all, feature) ^ *at(less, feature));
            *at(less, feature) |= places[i].mask;
            assert_memory_equal(all->entries, less->entries, all->nent * sizeof(all->entries[0]));
            free(less);
            snprintf(text, sizeof(text), way ? "host,%s=on" : "host,+%s", places[i].name);
            less = make(text, NULL);
            assert_memory_equal(all->entries, less->entries, all->nent * sizeof(all->entries[0]));
            free(less);
        }
        free(all);
        offered = 0;
        struct kvm_cpuid2 *none = make("host", NULL), *same = make(text, NULL); /* warns */
        assert_memory_equal(none->entries, same->entries, none->nent * sizeof(none->entries[0]));
        free(none);
        free(same);
        struct error *error = NULL;
        snprintf(text, sizeof(text), "host,enforce,+%s", places[i].name);
        assert_null(make(text, &error));
        assert_int_equal(-ENOTSUP, error_code(error));
        assert_string_equal(error_text(error), "Host doesn't support requested features");
        error_free(error);
        /* Taking what is not there is no error. */
        snprintf(text, sizeof(text), "host,-%s", places[i].name);
        free(make(text, NULL));
    }
}

static void words_are_checked(void **state)
{
    static const char *const wrong[][2] = {
        { "", "unable to find CPU model ''" },
        { "qemu64", "unable to find CPU model 'qemu64'" },
        { "hostess", "unable to find CPU model 'hostess'" },
        { "host,avx2=maybe", "Parameter 'avx2' expects 'on' or 'off'" },
        { "host,+nosuch", "Property 'max-x86_64-cpu.nosuch' not found" },
        { "host,-avx2,nosuch=on", "Property 'max-x86_64-cpu.nosuch' not found" },
    };
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        struct error *error = NULL;
        assert_true(cpuid_check_model(wrong[i][0], &error) < 0);
        assert_string_equal(wrong[i][1], error_text(error));
        error_free(error);
    }
    assert_int_equal(0, cpuid_check_model("host,-avx2,+sse4_1,aes=off,nx=on,check=off,enforce", NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(features_are_where_the_manuals_say),
        cmocka_unit_test(names_are_whole_words),
        cmocka_unit_test(host_is_what_kvm_offers),
        cmocka_unit_test(what_is_added_can_be_taken),
        cmocka_unit_test(one_bit_is_taken),
        cmocka_unit_test(words_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
