/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The monitor for people, on the console (Ctrl-A C). Main loop, device_lock held. */
#pragma once

struct chardev;
struct machine;

void hmp_command(struct machine *machine, struct chardev *out, const char *line);
