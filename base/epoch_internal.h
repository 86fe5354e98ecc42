/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a loop knows of epochs (base/epoch.h); the proof that it is right stands in epoch.c. */
#pragma once

#include <base/list.h>
#include <stdbool.h>

/* As many loops may live at once. */
#define EPOCH_LOOPS 256u

struct epoch_loop {
    unsigned slot;      /* this loop's record in each domain */
    struct list pinned; /* records with requests in flight, or that have not published that there are none */
};

/* False: too many loops. */
bool epoch_loop_init(struct epoch_loop *loop);
void epoch_loop_finish(struct epoch_loop *loop);
void epoch_publish_pinned(struct epoch_loop *loop);

/* Between callbacks, before the loop sleeps and before it returns to its caller. */
static inline void epoch_publish(struct epoch_loop *loop)
{
    if (!list_empty(&loop->pinned))
        epoch_publish_pinned(loop);
}
