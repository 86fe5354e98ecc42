/* SPDX-License-Identifier: LGPL-2.1-or-later */
#pragma once

#include <base/error.h>

/* Writes our process ID into the file, locks it for the life of the process, and removes it at exit. NULL: nothing. */
int pidfile_write(const char *path, struct error **errp);
/* For an end without exit(). Any thread. */
void pidfile_remove(void);
