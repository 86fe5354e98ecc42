/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A loop's epoch record (base/epoch.h); the proof that it is right stands in epoch.c. */
#pragma once

#include <base/list.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define EPOCH_QUIESCENT UINT64_MAX

struct epoch_loop {
    bool pinned;                          /* is `oldest` something else than EPOCH_QUIESCENT? */
    unsigned present;                     /* index of the counter that new requests go to */
    unsigned count[2];                    /* requests in flight */
    uint64_t epoch[2];                    /* that they count as having entered in */
    struct list link;                     /* the records of all loops, under epoch.c's lock */
    _Alignas(64) _Atomic uint64_t oldest; /* published: no request in flight entered before this epoch */
};

void epoch_loop_init(struct epoch_loop *record);
void epoch_loop_finish(struct epoch_loop *record);
void epoch_publish_pinned(struct epoch_loop *record);

/* Between callbacks, before the loop sleeps and before it returns to its caller. */
static inline void epoch_publish(struct epoch_loop *record)
{
    if (record->pinned)
        epoch_publish_pinned(record);
}
