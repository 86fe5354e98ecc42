/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blkdebug_break.c: requests that stop at an event until somebody lets them go on. */
#pragma once

#include <base/compiler.h>
#include <base/list.h>
#include <block/event.h>
#include <pthread.h>
#include <stdbool.h>

struct blkdebug_breaks {
    pthread_mutex_t lock; /* protects both */
    struct list points, stopped;
};

void blkdebug_breaks_init(struct blkdebug_breaks *b);
void blkdebug_breaks_finish(struct blkdebug_breaks *b);
/* The next request at this event stops, by the name `tag`. */
void blkdebug_breaks_set(struct blkdebug_breaks *b, enum blk_event event, const char *tag);
/* A request is at this event: stops it if it shall. */
coroutine_fn void blkdebug_breaks_co_reach(struct blkdebug_breaks *b, enum blk_event event);
bool blkdebug_breaks_has_stopped(struct blkdebug_breaks *b, const char *tag);
/* Lets the oldest request of this tag (NULL: of any) go on. false: none has stopped. */
bool blkdebug_breaks_resume(struct blkdebug_breaks *b, const char *tag);
/* Forgets the breakpoints of this tag (NULL: all), and lets all its requests go on. false: there were no breakpoints
 * where nothing has stopped yet. As in QEMU. */
bool blkdebug_breaks_remove(struct blkdebug_breaks *b, const char *tag);
