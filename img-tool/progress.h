/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* `-p`: how far a long operation is. Main loop only, but for progress_update(): by one thread at a time. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* clang-format off */
/* The row of a command's table of options. */
#define PROGRESS_OPTION { 'p', "progress", "[=text|json]", "show how far it is; json: a line of JSON each time" }
/* clang-format on */

enum progress_mode { PROGRESS_OFF, PROGRESS_TEXT, PROGRESS_JSON };
/* What -p or --progress=TEXT asks for; NULL: nothing was said. false after reporting. */
bool progress_arg(const char *text, enum progress_mode *mode);

/* Once, from main: from now on SIGUSR1 ends nothing, in any command. */
void progress_catch_signal(void);
/* Starts at 0. `step`: print again after this many percent. If it is off, SIGUSR1 has the next update printed. */
void progress_start(enum progress_mode mode, double step);
/* What took time until now (opening, allocating) says nothing about the rate. */
void progress_work_begins(void);
/* In bytes. */
void progress_update(uint64_t done, uint64_t total);
/* Nothing new, but if a signal has asked it is answered. */
void progress_poll(void);
/* All is done, whatever the last update said. */
void progress_complete(void);
/* Ends the line, if one was begun. */
void progress_end(void);
