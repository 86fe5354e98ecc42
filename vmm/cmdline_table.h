/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The table of command-line options, shared by the parser and --help. */
#pragma once

#include "cmdline.h"

struct cmdline_option {
    const char *name;     /* without '-' */
    const char *alias;    /* NULL: none */
    const char *argument; /* how help calls it; NULL: the option takes none */
    const char *help;
    int (*apply)(struct config *config, const char *argument, struct error **errp);
};

/* The last has no name. */
extern const struct cmdline_option cmdline_options[];
