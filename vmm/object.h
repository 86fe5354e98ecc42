/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* -object: iothreads. Main thread. */
#pragma once

#include "cmdline.h"

struct loop;

int objects_create(const struct config *config, struct error **errp);
/* All that used them are gone. */
void objects_finish(void);
/* The loop of `-object iothread,id=ID`, or NULL. */
struct loop *object_iothread(const char *id);
