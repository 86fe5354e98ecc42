/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Command-line options whose arguments have parts: -machine, -accel, -cpu, -smp, -m, -name. */
#pragma once

#include "cmdline.h"

int cmdline_machine(struct config *config, const char *argument, struct error **errp);
int cmdline_accel(struct config *config, const char *argument, struct error **errp);
int cmdline_cpu(struct config *config, const char *argument, struct error **errp);
int cmdline_smp(struct config *config, const char *argument, struct error **errp);
int cmdline_memory(struct config *config, const char *argument, struct error **errp);
int cmdline_name(struct config *config, const char *argument, struct error **errp);
