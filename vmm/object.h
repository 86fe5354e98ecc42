/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* -object in the machine. Main thread; objects_free() (objects/object.h) ends them when all that used them are gone. */
#pragma once

#include "cmdline.h"

struct loop;

int objects_create(const struct config *config, struct error **errp);
/* The loop of `-object iothread,id=ID`, or NULL. */
struct loop *object_iothread(const char *id);
