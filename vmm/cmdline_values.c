/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Command-line options whose arguments have parts. Each has a table of them; what the table lacks is refused by name.
 * The words of errors are QEMU's if it has some.
 */
#include "cmdline_values.h"

#include "vcpu.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/size.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CPUS 288u

/* Strings that outlive the options that they were read from. */
static const char *keep(const char *text) { return xstrdup(text); }

static int parse(const char *option, const char *argument, const char *implied, const struct opt_desc *table,
                 struct opts **opts, struct error **errp)
{
    *opts = opts_new();
    int err = opts_parse(*opts, argument, implied, 0, errp);
    if (!err)
        err = opts_validate(*opts, table, errp);
    if (err) {
        error_prepend(errp, "%s %s: ", option, argument);
        opts_free(*opts);
    }
    return err;
}

static int check_accel(const char *name, struct error **errp)
{
    if (strcmp(name, "kvm") == 0)
        return 0;
    error_set(errp, -EINVAL, "invalid accelerator %s", name);
    error_hint(errp, "vmm runs guests by KVM only");
    return -EINVAL;
}

static int check_machine(struct opts *opts, const struct opt_desc *table, struct error **errp)
{
    const char *type = NULL, *accel = NULL, *irqchip = NULL;
    int err = opts_string(opts, table, "type", &type, errp);
    if (err >= 0)
        err = opts_string(opts, table, "accel", &accel, errp);
    if (err >= 0)
        err = opts_string(opts, table, "kernel-irqchip", &irqchip, errp);
    if (err < 0)
        return err;
    if (type && strcmp(type, "q35") != 0 && strncmp(type, "pc-q35-", 7) != 0) {
        error_set(errp, -EINVAL, "unsupported machine type");
        error_hint(errp, "vmm has one machine: q35");
        return -EINVAL;
    }
    if (irqchip && strcmp(irqchip, "on") != 0)
        return error_set(errp, -EINVAL, "kernel-irqchip=%s is not supported: interrupt controllers are KVM's", irqchip);
    return accel ? check_accel(accel, errp) : 0;
}

int cmdline_machine(struct config *config, const char *argument, struct error **errp)
{
    static const struct opt_desc table[] = {
        { "type", OPT_STRING, NULL, "q35" },
        { "accel", OPT_STRING, "kvm", "kvm" },
        { "kernel-irqchip", OPT_STRING, "on", "on" },
        { 0 },
    };
    struct opts *opts = opts_new();
    if (strcmp(argument, "help") == 0) {
        printf("Supported machines are:\nq35                  Standard PC (Q35 + ICH9) (default)\n");
        exit(0);
    }
    int err = opts_parse(opts, argument, "type", 0, errp);
    if (!err)
        err = check_machine(opts, table, errp);
    if (err >= 0 && opts_unused(opts))
        err = error_set(errp, -EINVAL, "Property 'q35-machine.%s' not found", opts_unused(opts));
    opts_free(opts);
    return err < 0 ? err : 0;
}

int cmdline_accel(struct config *config, const char *argument, struct error **errp)
{
    static const struct opt_desc table[] = { { "accel", OPT_STRING, NULL, "kvm" }, { 0 } };
    const char *accel = "";
    struct opts *opts;
    if (strcmp(argument, "help") == 0) {
        printf("Accelerators supported in vmm:\nkvm\n");
        exit(0);
    }
    int err = parse("-accel", argument, "accel", table, &opts, errp);
    if (err)
        return err;
    err = opts_string(opts, table, "accel", &accel, errp);
    if (err >= 0)
        err = check_accel(accel, errp);
    if (err < 0)
        error_prepend(errp, "-accel %s: ", argument);
    opts_free(opts);
    return err < 0 ? err : 0;
}

int cmdline_cpu(struct config *config, const char *argument, struct error **errp)
{
    if (strcmp(argument, "help") == 0) {
        printf("Available CPUs:\n"
               "x86 host                  the host's CPU as KVM shows it\n"
               "x86 max                   the same\n");
        exit(0);
    }
    config->cpu_model = argument;
    return cpuid_check_model(argument, errp);
}

/* ---- -smp ---- */

struct topology {
    uint64_t cpus, maxcpus, sockets, dies, cores, threads;
};

static int read_topology(struct opts *opts, struct topology *t, struct error **errp)
{
    static const struct opt_desc table[] = {
        { "cpus", OPT_NUMBER, NULL, "CPUs that run" },
        { "maxcpus", OPT_NUMBER, NULL, "the same: CPUs cannot be added later" },
        { "sockets", OPT_NUMBER, NULL, "sockets" },
        { "dies", OPT_NUMBER, NULL, "1" },
        { "cores", OPT_NUMBER, NULL, "cores a socket" },
        { "threads", OPT_NUMBER, NULL, "threads a core" },
        { 0 },
    };
    uint64_t *const values[] = { &t->cpus, &t->maxcpus, &t->sockets, &t->dies, &t->cores, &t->threads };
    for (unsigned i = 0; table[i].name; i++) {
        int given = opts_number(opts, table, table[i].name, values[i], errp);
        if (given < 0)
            return given;
        if (given && *values[i] == 0)
            return error_set(errp, -EINVAL, "Invalid CPU topology: CPU topology parameters must be greater than zero");
        if (*values[i] > MAX_CPUS)
            return error_set(errp, -EINVAL, "Invalid SMP CPUs %llu. The max CPUs supported by machine 'q35' is %u",
                             (unsigned long long)*values[i], MAX_CPUS);
    }
    const char *unknown = opts_unused(opts);
    return unknown ? error_set(errp, -EINVAL, "Parameter 'smp.%s' is unexpected", unknown) : 0;
}

/* Fills in what was not given: cores before sockets, as QEMU since 6.2. */
static int complete_topology(struct topology *t, struct error **errp)
{
    uint64_t max = t->maxcpus ? t->maxcpus : t->cpus;
    t->threads = t->threads ? t->threads : 1;
    if (max && !t->cores)
        t->cores = MAX(max / ((t->sockets ? t->sockets : 1) * t->threads), 1u);
    t->cores = t->cores ? t->cores : 1;
    if (max && !t->sockets)
        t->sockets = MAX(max / (t->cores * t->threads), 1u);
    t->sockets = t->sockets ? t->sockets : 1;
    uint64_t product = t->sockets * t->cores * t->threads;
    if (!max)
        max = product;
    t->cpus = t->cpus ? t->cpus : max;
    if (t->dies > 1)
        return error_set(errp, -EINVAL, "dies not supported by this machine's CPU topology");
    if (product != max)
        return error_set(errp, -EINVAL,
                         "Invalid CPU topology: product of the hierarchy must match maxcpus: "
                         "sockets (%u) * dies (1) * cores (%u) * threads (%u) != maxcpus (%u)",
                         (unsigned)t->sockets, (unsigned)t->cores, (unsigned)t->threads, (unsigned)max);
    if (max != t->cpus)
        return error_set(errp, -EINVAL, "maxcpus must be equal to smp cpus: vmm does not add CPUs while it runs");
    if (t->cpus > MAX_CPUS)
        return error_set(errp, -EINVAL, "Invalid SMP CPUs %u. The max CPUs supported by machine 'q35' is %u",
                         (unsigned)t->cpus, MAX_CPUS);
    return 0;
}

int cmdline_smp(struct config *config, const char *argument, struct error **errp)
{
    struct topology topology = { 0 };
    struct opts *opts = opts_new();
    int err = opts_parse(opts, argument, "cpus", 0, errp);
    if (!err)
        err = read_topology(opts, &topology, errp);
    if (!err)
        err = complete_topology(&topology, errp);
    opts_free(opts);
    config->cpus = (unsigned)topology.cpus;
    config->sockets = (unsigned)topology.sockets;
    config->cores = (unsigned)topology.cores;
    config->threads = (unsigned)topology.threads;
    return err;
}

/* ---- the rest ---- */

int cmdline_memory(struct config *config, const char *argument, struct error **errp)
{
    static const struct opt_desc table[] = {
        { .name = "size", .type = OPT_SIZE, .help = "size of guest memory", .default_suffix = 'M' },
        { 0 },
    };
    struct opts *opts;
    int err = parse("-m", argument, "size", table, &opts, errp);
    if (err)
        return err;
    err = opts_size(opts, table, "size", &config->memory, errp);
    opts_free(opts);
    if (err < 0) {
        error_prepend(errp, "-m %s: ", argument);
        return err;
    }
    config->memory = align_up(config->memory, 8192);
    if (config->memory < 2u << 20)
        return error_set(errp, -EINVAL, "-m %s: at least 2M are needed", argument);
    if (config->memory > 1ull << 40)
        return error_set(errp, -EINVAL, "-m %s: at most 1T can be given", argument);
    return 0;
}

int cmdline_name(struct config *config, const char *argument, struct error **errp)
{
    static const struct opt_desc table[] = {
        { "guest", OPT_STRING, NULL, "name of the guest" },
        { "process", OPT_STRING, NULL, "accepted; the process is named by its guest" },
        { "debug-threads", OPT_BOOL, "off", "accepted; threads always have names" },
        { 0 },
    };
    const char *name = NULL;
    struct opts *opts;
    int err = parse("-name", argument, "guest", table, &opts, errp);
    if (err)
        return err;
    err = opts_string(opts, table, "guest", &name, errp);
    if (err > 0)
        config->name = keep(name);
    opts_free(opts);
    return err < 0 ? err : 0;
}
