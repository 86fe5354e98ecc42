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
void signals_finish(void);
