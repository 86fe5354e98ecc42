/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* `-p`: how far a long operation is. Main loop only. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* Starts at 0. `step`: print again after this many percent. Where not `enabled`, SIGUSR1 prints the state once. */
void progress_start(bool enabled, double step);
void progress_update(uint64_t done, uint64_t total);
/* Ends the line, if one was begun. */
void progress_end(void);
