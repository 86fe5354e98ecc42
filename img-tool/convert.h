/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* convert: what its parts share. convert.c reads the command line and opens the images; convert_copy.c copies. */
#pragma once

#include "claims.h"
#include "image.h"
#include "progress.h"
#include "rate.h"

#include <base/coroutine.h>
#include <pthread.h>

enum { CONVERT_MAX_WORKERS = 16 };

struct convert_source {
    struct blk_front *front;
    const char *filename;
    uint64_t start; /* where its content begins in the target */
    uint64_t size;
};

struct convert {
    /* what to copy, and how; set by convert.c */
    struct convert_source *sources;
    size_t source_count;
    struct blk_front *target;
    uint64_t total;        /* bytes */
    struct blk_node *base; /* what this node of the source's chain has, the target's backing image has; NULL: nothing */
    uint64_t base_size;    /* of the target's backing image: beyond it nothing shows through */
    bool has_backing;      /* of the target */
    bool target_zero;      /* what is not written reads as zeroes in the target */
    uint64_t sparse;       /* zero runs of at least this many bytes are not written; 0: everything is */
    bool out_of_order, salvage;
    enum progress_mode progress;
    uint64_t compress; /* into compressed clusters of so many bytes; 0: as they are */
    unsigned workers;
    struct rate rate;

    /* convert_copy.c's */
    struct claims claims;
    pthread_mutex_t lock; /* the fields below; held for a few instructions */
    uint64_t written;     /* all before is in the target (in-order writing) */
    uint64_t done, to_do; /* for progress */
    struct convert_worker *first_worker;
    atomic_int ret; /* the first error; read without the lock too */
};

/* Copies everything; 0 or a negative errno after reporting. */
coroutine_fn int convert_co_copy(struct convert *convert);
/* convert_bitmaps.c. Has the source what --bitmaps asks for? Before anything is made; -1 after reporting. */
int convert_check_bitmaps(const struct convert *convert, bool skip_broken);
/* Can the target keep any? -1 after reporting. */
int convert_check_target_bitmaps(const struct convert *convert);
/* Copies them, but for those that say nothing. -1 after reporting. */
coroutine_fn int convert_co_bitmaps(const struct convert *convert);
