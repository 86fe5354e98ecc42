/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Breakpoints. Each stops one request; of several of an event the oldest comes first. */
#include "blkdebug_break.h"

#include <base/coroutine.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct point {
    struct list link;
    enum blk_event event;
    char *tag;
};

/* A request that waits; on its stack. */
struct stopped {
    struct list link;
    struct co *co;
    char *tag;
};

void blkdebug_breaks_init(struct blkdebug_breaks *b)
{
    pthread_mutex_init(&b->lock, NULL);
    list_init(&b->points);
    list_init(&b->stopped);
}

static void free_point(struct point *point)
{
    list_remove(&point->link);
    free(point->tag);
    free(point);
}

void blkdebug_breaks_finish(struct blkdebug_breaks *b)
{
    while (!list_empty(&b->points))
        free_point(list_first(&b->points, struct point, link));
    pthread_mutex_destroy(&b->lock);
}

void blkdebug_breaks_set(struct blkdebug_breaks *b, enum blk_event event, const char *tag)
{
    struct point *point = xcalloc(1, sizeof(*point));

    point->event = event;
    point->tag = xstrdup(tag);
    pthread_mutex_lock(&b->lock);
    list_append(&b->points, &point->link);
    pthread_mutex_unlock(&b->lock);
}

/* As QEMU does, for scripts. */
static void say(const char *what, const char *tag)
{
    printf("blkdebug: %s request '%s'\n", what, tag);
    fflush(stdout);
}

coroutine_fn void blkdebug_breaks_co_reach(struct blkdebug_breaks *b, enum blk_event event)
{
    struct stopped stopped = { .co = co_self() };
    struct point *point;

    pthread_mutex_lock(&b->lock);
    list_for_each(point, &b->points, link) {
        if (point->event == event) {
            stopped.tag = xstrdup(point->tag);
            free_point(point);
            list_append(&b->stopped, &stopped.link);
            break;
        }
    }
    pthread_mutex_unlock(&b->lock);
    if (!stopped.tag)
        return;
    say("Suspended", stopped.tag);
    co_yield(); /* who resumes has taken us off the list */
    free(stopped.tag);
}

static bool is_tag(const char *tag, const char *wanted) { return !wanted || strcmp(tag, wanted) == 0; }

bool blkdebug_breaks_has_stopped(struct blkdebug_breaks *b, const char *tag)
{
    const struct stopped *stopped;
    bool found = false;

    pthread_mutex_lock(&b->lock);
    list_for_each(stopped, &b->stopped, link)
        found = found || is_tag(stopped->tag, tag);
    pthread_mutex_unlock(&b->lock);
    return found;
}

bool blkdebug_breaks_resume(struct blkdebug_breaks *b, const char *tag)
{
    struct stopped *stopped;
    struct co *co = NULL;

    pthread_mutex_lock(&b->lock);
    list_for_each(stopped, &b->stopped, link) {
        if (is_tag(stopped->tag, tag)) {
            co = stopped->co;
            say("Resuming", stopped->tag);
            list_remove(&stopped->link);
            break;
        }
    }
    pthread_mutex_unlock(&b->lock);
    if (co)
        co_wake(co);
    return co;
}

bool blkdebug_breaks_remove(struct blkdebug_breaks *b, const char *tag)
{
    struct point *point, *next;
    bool found = false;

    pthread_mutex_lock(&b->lock);
    list_for_each_safe(point, next, &b->points, link) {
        if (is_tag(point->tag, tag)) {
            free_point(point);
            found = true;
        }
    }
    pthread_mutex_unlock(&b->lock);
    while (blkdebug_breaks_resume(b, tag))
        ;
    return found;
}
