/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sub-commands that qemu-img has and that are still to come: refused by name, never silently. */
#include "command.h"

#include <base/error.h>

static coroutine_fn int co_later(int argc, char **argv)
{
    error_report("'%s' is not supported yet", argv[0]);
    return 1;
}

#define LATER(command) \
    static struct img_command later_##command = { .name = #command, .co_run = co_later }; \
    IMG_COMMAND(later_##command)
LATER(bitmap)
