/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The process's end in bounded time, whatever disk hangs. Main loop. */
#pragma once

struct machine;

/* Somebody has asked for the end: the drives begin to close, and the time runs. Harmless if it has begun. */
void ending_begin(struct machine *machine);
/* All is closed: nobody watches the time any more. Harmless if nothing has begun. */
void ending_finish(void);
