/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Changes of the machine's state, and the signals that ask for one. Main thread. */
#pragma once

#include "machine.h"

void lifecycle_init(struct machine *machine);
void lifecycle_finish(struct machine *machine);

/* Blocks SIGTERM, SIGINT and SIGHUP; call before other threads exist. */
int signals_block(struct error **errp);
/* From then on each of them shuts the machine down. */
void signals_watch(struct machine *machine);
/* The main loop looks no more; whoever polls signals_fd() calls signals_take(). */
void signals_unwatch(void);
int signals_fd(void);
/* Any thread, one at a time: takes a signal and reports it; false: there is none. *again: it is SIGTERM or SIGINT, and
 * not the first of them. */
bool signals_take(bool *again);
void signals_finish(void);
