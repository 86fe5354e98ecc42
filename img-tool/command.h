/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Sub-commands of img-tool: one file each, registered by one line at its end. Adding one touches its own file and one
 * line of meson.build; main.c finds it by name, and `--help` lists it.
 */
#pragma once

#include "options.h"

#include <base/compiler.h>

struct img_command {
    const char *name;
    const char *usage; /* options and operands */
    const char *help;  /* a few lines about what it does, for `img-tool NAME --help` */
    const struct img_option *options;
    /* Runs in a coroutine on the main loop; argv[0] is the command's name. Returns the exit status. Has reported its
     * errors. */
    coroutine_fn int (*co_run)(int argc, char **argv);
    const struct img_command *next; /* main.c's */
};

/* All of them, by name: the first; `next` leads on. */
const struct img_command *img_commands(void);
/* What may stand before a sub-command's name. */
extern const struct img_option img_global_options[];

void img_command_register(struct img_command *command);
#define IMG_COMMAND(command) \
    __attribute__((constructor)) static void register_##command(void) { img_command_register(&command); }

/* "NAME: text\nTry 'NAME --help' for more information"; returns 1. */
int img_usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int img_command_help(const char *name); /* returns 0 */
