/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sub-commands of img-tool: one file each, registered by one line at its end. Adding one touches its own file and one
 * line of meson.build; main.c finds it by name, and `--help` lists it.
 */
#pragma once

#include <base/compiler.h>
#include <getopt.h>

struct img_command {
    const char *name;
    const char *usage; /* options and operands */
    const char *help;  /* a few lines about what it does, for `img-tool NAME --help` */
    /* Runs in a coroutine on the main loop; argv[0] is the command's name. Returns the exit status. Has reported its
     * errors. */
    coroutine_fn int (*co_run)(int argc, char **argv);
    const struct img_command *next; /* main.c's */
};

void img_command_register(struct img_command *command);
#define IMG_COMMAND(command) \
    __attribute__((constructor)) static void register_##command(void) { img_command_register(&command); }

/*
 * getopt_long() with QEMU's words. Returns the option, -1 at the end of the options, or IMG_OPT_BAD after it has
 * reported a bad one: return 1 then. IMG_OPT_HELP: print help and return 0 (img_command_help()). short_options begins
 * with ":".
 */
enum { IMG_OPT_BAD = 0x1000, IMG_OPT_HELP };
int img_getopt(int argc, char **argv, const char *short_options, const struct option *long_options);

/* "NAME: text\nTry 'NAME --help' for more information"; returns 1. */
int img_usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int img_command_help(const char *name); /* returns 0 */
