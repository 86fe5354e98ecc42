/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rules of a blkdebug node: which I/O fails, with what, when (blkdebug_rules.c). */
#pragma once

#include <block/event.h>
#include <block/node.h>

/* Also the bit numbers of a rule's types. */
enum blkdebug_type {
    BLKDEBUG_READ,
    BLKDEBUG_WRITE,
    BLKDEBUG_WRITE_ZEROES,
    BLKDEBUG_DISCARD,
    BLKDEBUG_FLUSH,
    BLKDEBUG_BLOCK_STATUS
};

struct blkdebug_rules {
    atomic_bool any;      /* there is, or was, a rule */
    pthread_mutex_t lock; /* protects all below */
    struct list rules, transitions;
    uint64_t state;
};

struct blkdebug_verdict {
    int error; /* positive, or 0 */
    uint64_t delay_ns;
    bool cut; /* write the first half before failing */
};

void blkdebug_rules_init(struct blkdebug_rules *rules);
void blkdebug_rules_finish(struct blkdebug_rules *rules);
/* Takes inject-error.N.… and set-state.N.… out of opts. */
int blkdebug_rules_read(struct blkdebug_rules *rules, struct opts *opts, struct error **errp);
/* One rule by its own keys. */
int blkdebug_rules_add(struct blkdebug_rules *rules, struct opts *opts, struct error **errp);
void blkdebug_rules_clear(struct blkdebug_rules *rules);
/* A step, told from above or seen by the node itself. Any thread. */
void blkdebug_rules_event(struct blkdebug_rules *rules, enum blk_event event);
/* Once for each I/O, before it and after its events. Any thread. */
struct blkdebug_verdict blkdebug_rules_judge(struct blkdebug_rules *rules, enum blkdebug_type type, uint64_t offset,
                                             uint64_t length);
/* blkdebug_config.c: the rules of a file, as options. */
int blkdebug_config_read(const char *path, struct opts *opts, struct error **errp);
