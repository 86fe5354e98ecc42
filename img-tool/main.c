/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * img-tool: the image tool. Finds the sub-command by name and runs it in a coroutine on the main loop.
 *
 * The name that the program was called by decides what it is: `qemu-io` is the sub-command io, anything else (img-tool,
 * qemu-img) takes a sub-command. Through a link named qemu-… it is a drop-in: same words, no hints.
 */
#include "command.h"
#include "progress.h"

#include <base/coroutine.h>
#include <base/error.h>
#include <base/loop.h>
#include <base/streams.h>
#include <block/node.h>
#include <objects/object.h>

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct img_command *commands; /* by name */

void img_command_register(struct img_command *command)
{
    const struct img_command **at = &commands;
    while (*at && strcmp((*at)->name, command->name) < 0)
        at = (const struct img_command **)&(*at)->next;
    command->next = *at;
    *at = command;
}

const struct img_command *img_commands(void) { return commands; }

static const struct img_command *find_command(const char *name)
{
    for (const struct img_command *command = commands; command; command = command->next) {
        if (!strcmp(command->name, name))
            return command;
    }
    return NULL;
}

/* ---- words that all commands share ---- */

static int usage_hint(void)
{
    fprintf(stderr, "Try '%s --help' for more information\n", error_program());
    return 1;
}

int img_usage_error(const char *fmt, ...)
{
    va_list args;
    char *text = NULL;
    va_start(args, fmt);
    int length = vasprintf(&text, fmt, args);
    va_end(args);
    error_report("%s", length < 0 ? "out of memory" : text);
    if (length >= 0)
        free(text);
    return usage_hint();
}

/* ---- help ---- */

static void print_version(void) { printf("%s version " VMM_VERSION " (vmm)\n", error_program()); }

static void print_driver(const struct blk_driver *driver, void *arg) { printf(" %s", driver->name); }

static void print_help(void)
{
    print_version();
    printf("usage: %s [-h | --help] [-V | --version] COMMAND [OPTION]... [OPERAND]...\n"
           "Makes, describes, converts and checks disk images.\n\nCommands:\n",
           error_program());
    for (const struct img_command *command = commands; command; command = command->next)
        printf("  %s %s\n", command->name, command->usage);
    printf(
        "\n'%s COMMAND --help' tells more about one. What options mean everywhere:\n"
        "  -f FMT, -O FMT   format of the input, of the output; probed (input) or raw (output) if not given\n"
        "  -t CACHE         cache mode: writeback, none, writethrough, directsync, unsafe; -T for what is only read\n"
        "  -U               read although another program has the image open for writing\n"
        "  --image-opts     operands are key=value,... options of a block node instead of file names\n"
        "  -o OPTIONS       options of the new image, key=value,...; '-o help' lists them\n"
        "  -p, -q           show progress; print nothing but errors\n"
        "Sizes are bytes, or have a suffix k, M, G, T, P or E (powers of 1024).\n\nSupported formats:",
        error_program());
    blk_driver_each(print_driver, NULL);
    printf("\n");
}

int img_command_help(const char *name)
{
    const struct img_command *command = find_command(name);
    if (!command) {
        print_help();
        return 0;
    }
    bool io = !strcmp(error_program(), "qemu-io");
    printf("usage: %s%s%s %s\n", error_program(), io ? "" : " ", io ? "" : name, command->usage);
    if (command->help)
        printf("%s\n", command->help);
    printf("\nOptions:\n");
    img_options_print(command->options);
    return 0;
}

/* ---- running ---- */

struct run {
    const struct img_command *command;
    int argc;
    char **argv;
};

static coroutine_fn int co_run_command(void *arg)
{
    struct run *run = arg;
    return run->command->co_run(run->argc, run->argv);
}

static int run_command(const struct img_command *command, int argc, char **argv)
{
    struct error *error = NULL;
    struct loop *loop = loop_new(&error);
    if (!loop) {
        error_report_free(error);
        return 1;
    }
    struct run run = { .command = command, .argc = argc, .argv = argv };
    optind = 0; /* have getopt start afresh, for the sub-command's own argv */
    int status = co_run(loop, co_run_command, &run);
    loop_free(loop);
    objects_free();
    if (fflush(stdout) != 0 && errno != EPIPE) { /* who stops reading has read enough */
        error_report("Could not write standard output: %m");
        return status ? status : 1;
    }
    return status;
}

const struct img_option img_global_options[] = {
    IMG_HELP_OPTION,
    { 'V', "version", NULL, "print the version and exit" },
    { 'T', "trace", "PATTERN", "accepted: trace points are USDT probes, always there" },
    { 0 },
};

/* Options before the command. Returns the command's index in argv, or 0 with *status set. */
static int parse_global(int argc, char **argv, int *status)
{
    *status = 0;
    for (;;) {
        switch (img_getopt_first(argc, argv, img_global_options)) {
        case -1: return optind;
        case IMG_OPT_HELP: print_help(); return 0;
        case 'V': print_version(); return 0;
        case 'T': /* trace points are USDT probes here: nothing to switch on */ break;
        default: *status = 1; return 0;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 1)
        return 1;
    error_set_program(argv[0]);
    streams_fill();
    signal(SIGPIPE, SIG_IGN); /* a reader that is gone ends no copy */
    progress_catch_signal();
    if (!strcmp(error_program(), "qemu-io"))
        return run_command(find_command("io"), argc, argv);
    int status;
    int at = parse_global(argc, argv, &status);
    if (!at)
        return status;
    if (at >= argc)
        return img_usage_error("Not enough arguments");
    const struct img_command *command = find_command(argv[at]);
    if (!command)
        return img_usage_error("Command not found: %s", argv[at]);
    return run_command(command, argc - at, argv + at);
}
