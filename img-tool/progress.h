/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* `-p`: how far a long operation is. Main loop only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* The row of a command's table of options. */
/* clang-format off */
#define PROGRESS_OPTION { 'p', "progress", NULL, "show how far it is" }
/* clang-format on */

/* Once, from main: from now on SIGUSR1 ends nothing, in any command. */
void progress_catch_signal(void);
/* Starts at 0. `step`: print again after this many percent. If not `enabled`, SIGUSR1 has the next update printed. */
void progress_start(bool enabled, double step);
void progress_update(uint64_t done, uint64_t total);
/* Ends the line, if one was begun. */
void progress_end(void);
