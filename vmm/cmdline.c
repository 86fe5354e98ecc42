/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Command-line parser: one table row an option, in QEMU's syntax ("-option" or "--option", then its argument). What a
 * row's function cannot know yet (does the drive exist, is the file there) is left to those who build the machine.
 */
#include "cmdline.h"

#include "cmdline_table.h"
#include "cmdline_values.h"

#include <base/compiler.h>
#include <objects/object.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int no_op(struct config *config, const char *argument, struct error **errp) { return 0; }

static int set_kernel(struct config *config, const char *argument, struct error **errp)
{
    config->kernel = argument;
    return 0;
}

static int set_initrd(struct config *config, const char *argument, struct error **errp)
{
    config->initrd = argument;
    return 0;
}

static int set_append(struct config *config, const char *argument, struct error **errp)
{
    config->append = argument;
    return 0;
}

static int set_pidfile(struct config *config, const char *argument, struct error **errp)
{
    config->pidfile = argument;
    return 0;
}

static int set_close_timeout(struct config *config, const char *argument, struct error **errp)
{
    char *end;
    unsigned long seconds = strtoul(argument, &end, 10);

    if (!isdigit((unsigned char)*argument) || *end || seconds > 86400)
        return error_set(errp, -EINVAL, "-close-timeout %s: a number of seconds from 0 to 86400 is expected", argument);
    config->close_timeout = (unsigned)seconds;
    return 0;
}

static int set_paused(struct config *config, const char *argument, struct error **errp)
{
    config->start_paused = true;
    return 0;
}

static int set_no_reboot(struct config *config, const char *argument, struct error **errp)
{
    config->no_reboot = true;
    return 0;
}

static int set_nographic(struct config *config, const char *argument, struct error **errp)
{
    config->nographic = true;
    return 0;
}

static int set_no_defaults(struct config *config, const char *argument, struct error **errp)
{
    config->no_defaults = true;
    return 0;
}

static int set_display(struct config *config, const char *argument, struct error **errp)
{
    if (strcmp(argument, "none") != 0)
        return error_set(errp, -EINVAL, "-display %s: vmm has no display; only 'none' is accepted", argument);
    config->no_display = true;
    return 0;
}

static int add_serial(struct config *config, const char *argument, struct error **errp)
{
    if (config->serial_count == CONFIG_MAX_SERIALS)
        return error_set(errp, -EINVAL, "-serial %s: too many serial ports: there are %d", argument,
                         CONFIG_MAX_SERIALS);
    config->serials[config->serial_count++] = argument;
    return 0;
}

static void append_item(struct config_items *items, const char *option, const char *argument, struct opts *opts)
{
    items->items = xrealloc(items->items, (items->count + 1) * sizeof(items->items[0]));
    items->items[items->count++] = (struct config_item){ option, argument, opts };
}

static int add_item(struct config_items *items, const char *option, const char *argument, const char *implied,
                    struct error **errp)
{
    struct opts *opts = opts_new();
    bool json = *argument == '{';
    int err = json ? opts_parse_json(opts, argument, errp) : opts_parse(opts, argument, implied, 0, errp);
    if (err) {
        error_prepend(errp, "%s %s: ", option, argument);
        opts_free(opts);
        return err;
    }
    append_item(items, option, argument, opts);
    return 0;
}

static int add_drive(struct config *config, const char *argument, struct error **errp)
{
    return add_item(&config->drives, "-drive", argument, NULL, errp);
}

static int add_blockdev(struct config *config, const char *argument, struct error **errp)
{
    return add_item(&config->blockdevs, "-blockdev", argument, "driver", errp);
}

static int add_device(struct config *config, const char *argument, struct error **errp)
{
    const char *help = strstr(argument, ",help");
    if (strcmp(argument, "help") == 0 || strcmp(argument, "?") == 0) {
        cmdline_print_device_help(NULL);
        exit(0);
    }
    if (help && !help[5]) {
        char *name = xstrdup(argument);
        name[help - argument] = 0;
        cmdline_print_device_help(name);
        exit(0);
    }
    return add_item(&config->devices, "-device", argument, "driver", errp);
}

/* The argument is argv's: secrets in it are overwritten there, and so are not in our messages either. */
static int add_object(struct config *config, const char *argument, struct error **errp)
{
    if (object_help(argument))
        exit(0);
    struct opts *opts = object_parse((char *)argument, errp);
    if (!opts) {
        error_prepend(errp, "-object %s: ", argument);
        return -EINVAL;
    }
    append_item(&config->objects, "-object", argument, opts);
    return 0;
}

const struct cmdline_option cmdline_options[] = {
    { "h", "help", NULL, "display this help and exit", NULL },
    { "version", NULL, NULL, "display version information and exit", NULL },
    { "machine", "M", "[type=]name[,prop[=value][,...]]", "select the machine (q35, the only one; accel=kvm)",
      cmdline_machine },
    { "accel", NULL, "[accel=]accelerator", "select the accelerator (kvm, the only one)", cmdline_accel },
    { "enable-kvm", NULL, NULL, "use KVM (always the case)", no_op },
    { "cpu", NULL, "cpu", "select CPU: host or max, with features as in host,-avx2", cmdline_cpu },
    { "smp", NULL, "[[cpus=]n][,maxcpus=n][,sockets=n][,cores=n][,threads=n]", "set the number of CPUs", cmdline_smp },
    { "m", NULL, "[size=]megs", "set the size of guest memory (default: 128M)", cmdline_memory },
    { "name", NULL, "string1[,process=string2][,debug-threads=on|off]", "set the name of the guest", cmdline_name },
    { "drive", NULL, "[file=file][,if=type][,id=name][,format=f][,cache=c][,option[=value][,...]]",
      "use 'file' as a drive image", add_drive },
    { "blockdev", NULL, "[driver=]driver[,node-name=N][,option[=value][,...]]", "configure a block node",
      add_blockdev },
    { "device", NULL, "driver[,prop[=value][,...]]", "add a device; '-device help' lists them", add_device },
    { "object", NULL, "TYPENAME[,PROP1=VALUE1,...]", "create an object: iothread, secret; '-object help' lists them",
      add_object },
    { "serial", NULL, "dev", "redirect the serial port to 'dev': stdio, mon:stdio, file:PATH, pty, null, none",
      add_serial },
    { "nographic", NULL, NULL, "serial port and monitor on this terminal (the default)", set_nographic },
    { "display", NULL, "none", "no console on this terminal but by -serial or -nographic", set_display },
    { "kernel", NULL, "bzImage", "use 'bzImage' as kernel image", set_kernel },
    { "initrd", NULL, "file", "use 'file' as initial ram disk", set_initrd },
    { "append", NULL, "cmdline", "use 'cmdline' as kernel command line", set_append },
    { "S", NULL, NULL, "freeze CPU at startup (use 'c' in the monitor to start execution)", set_paused },
    { "no-reboot", NULL, NULL, "exit instead of rebooting", set_no_reboot },
    { "pidfile", NULL, "file", "write PID to 'file'", set_pidfile },
    { "close-timeout", NULL, "seconds", "give up drives that do not close in time (default: 60; 0: never)",
      set_close_timeout },
    { "nodefaults", NULL, NULL, "don't create default devices (the serial port on this terminal)", set_no_defaults },
    { "no-user-config", NULL, NULL, "there are no user-provided configuration files", no_op },
    { 0 },
};

static void print_help(void)
{
    cmdline_print_version();
    printf("usage: %s [options]\n\nOptions:\n\n", error_program());
    for (const struct cmdline_option *option = cmdline_options; option->name; option++) {
        char left[128];
        snprintf(left, sizeof(left), "-%s%s%s%s%s", option->name, option->alias ? " or -" : "",
                 option->alias ? option->alias : "", option->argument ? " " : "",
                 option->argument ? option->argument : "");
        printf(strlen(left) < 15 ? "%-15s %s\n" : "%s\n                %s\n", left, option->help);
    }
    printf("\nDuring emulation, the following keys are useful:\nctrl-a h        print the keys of the console\n"
           "ctrl-a x        exit\n");
}

static const struct cmdline_option *find_option(const char *text)
{
    const char *name = text + 1 + (text[1] == '-');
    for (const struct cmdline_option *option = cmdline_options; option->name; option++)
        if (strcmp(option->name, name) == 0 || (option->alias && strcmp(option->alias, name) == 0))
            return option;
    return NULL;
}

static int check_config(struct config *config, struct error **errp)
{
    if (!config->kernel && config->append)
        return error_set(errp, -EINVAL, "-append only allowed with -kernel option");
    if (!config->kernel && config->initrd)
        return error_set(errp, -EINVAL, "-initrd only allowed with -kernel option");
    /* As QEMU: the console is on this terminal, unless there is to be no display or nothing that was not asked for. */
    if (!config->serial_count && !config->no_defaults && (config->nographic || !config->no_display))
        config->serials[config->serial_count++] = "mon:stdio";
    return 0;
}

int cmdline_parse(struct config *config, int argc, char **argv, struct error **errp)
{
    *config = (struct config){
        .memory = 128ull << 20,
        .cpus = 1,
        .sockets = 1,
        .cores = 1,
        .threads = 1,
        .cpu_model = "host",
        .close_timeout = 60,
    };
    for (int i = 1; i < argc; i++) {
        const char *text = argv[i];
        if (*text != '-') {
            error_set(errp, -EINVAL, "%s: a disk image is given by -drive file=%s", text, text);
            return -EINVAL;
        }
        const struct cmdline_option *option = find_option(text);
        if (!option)
            return error_set(errp, -EINVAL, "%s: invalid option", text);
        if (!option->apply) {
            option->name[0] == 'h' ? print_help() : cmdline_print_version();
            exit(0);
        }
        if (option->argument && ++i == argc)
            return error_set(errp, -EINVAL, "%s: requires an argument", text);
        int err = option->apply(config, option->argument ? argv[i] : NULL, errp);
        if (err)
            return err;
    }
    return check_config(config, errp);
}

static void finish_items(struct config_items *items)
{
    for (unsigned i = 0; i < items->count; i++)
        opts_free(items->items[i].opts);
    free(items->items);
}

void config_finish(struct config *config)
{
    finish_items(&config->drives);
    finish_items(&config->blockdevs);
    finish_items(&config->devices);
    finish_items(&config->objects);
}
