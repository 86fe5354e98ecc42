/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Dirty bitmaps: which parts of a node were changed since when. A bitmap belongs to one node, and to its image, which
 * keeps it when it is closed.
 *
 * Bits are set when a change is mapped, before it is carried out. So who takes bits away to do something with these
 * parts waits for the requests in flight then (blk_co_epoch_wait()) before it looks at their content.
 *
 * Bitmaps come and go on the main loop, in drained sections; the functions that wait see to that themselves.
 */
#pragma once

#include <block/node.h>

#define BLK_BITMAP_NAME_MAX 1023u
#define BLK_BITMAP_MIN_GRANULARITY_BITS 9u
#define BLK_BITMAP_MAX_GRANULARITY_BITS 31u

struct blk_bitmap {
    struct list link; /* node->bitmaps, the oldest first */
    struct blk_node *node;
    char *name;
    uint64_t size;             /* bytes that it covers: those of the node */
    unsigned granularity_bits; /* log2: bytes a bit */
    bool enabled;              /* changes are recorded */
    /* Who had the image open last did not close it: the bits say nothing, and it can only be removed. */
    bool inconsistent;
    atomic_bool changed;     /* since it was read from the image, or kept there */
    _Atomic uint64_t *words; /* bit 0 first; NULL: still in the image (blk_co_bitmaps_load()) */
    void *stored;            /* the driver's: how it lies in the image; one allocation; NULL: not at all */
};

/* ---- coming and going ---- */

/* A new one on the image at or below this node, enabled, without bits. granularity: bytes, 0 for the image's usual.
 * NULL and *errp: it cannot be kept there, or there is one of this name. */
coroutine_fn struct blk_bitmap *blk_co_bitmap_add(struct blk_node *node, const char *name, uint64_t granularity,
                                                  struct error **errp);
coroutine_fn void blk_co_bitmap_remove(struct blk_bitmap *bitmap);
/* By name, on the image at or below this node; NULL and *errp: there is none. */
struct blk_bitmap *blk_bitmap_find(struct blk_node *node, const char *name, struct error **errp);
/* Can the image at or below this node keep any? */
bool blk_bitmaps_supported(struct blk_node *node);
/* Reads the bits of all that can be used. Who opened the image for writing has them in memory already. */
coroutine_fn int blk_co_bitmaps_load(struct blk_node *node, struct error **errp);

/* ---- what they say ---- */

/* Refuses one that says nothing: -EINVAL. */
int blk_bitmap_check_usable(const struct blk_bitmap *bitmap, struct error **errp);
/* None of the node's may be one: before the disk gets another size. */
int blk_bitmaps_check_usable(const struct blk_node *node, struct error **errp);
/* Usable ones, in memory. */
void blk_bitmap_clear(struct blk_bitmap *bitmap);
void blk_bitmap_enable(struct blk_bitmap *bitmap, bool enable);
/* What is dirty in `from` is dirty in `into` too; -EINVAL: they are of different sizes. */
int blk_bitmap_merge(struct blk_bitmap *into, const struct blk_bitmap *from, struct error **errp);

/* ---- for drivers and the core ---- */

/* As the image has it; an empty one of `node` at the end of its list, without bits in memory. */
struct blk_bitmap *blk_bitmap_attach(struct blk_node *node, const char *name, size_t name_length,
                                     unsigned granularity_bits);
void blk_bitmap_free(struct blk_bitmap *bitmap);
/* Memory for its bits, all clear. -ENOMEM, -EFBIG. */
int blk_bitmap_make_words(struct blk_bitmap *bitmap);
/* How many bits, and 64-bit words, it has. */
uint64_t blk_bitmap_bits(const struct blk_bitmap *bitmap);
uint64_t blk_bitmap_words(const struct blk_bitmap *bitmap);
/* After anything that may have made one record changes, or ended that. */
void blk_bitmaps_recount(struct blk_node *node);
/* The disk has another size: new parts are clean. -ENOMEM: nothing has changed. */
int blk_bitmaps_resize(struct blk_node *node, uint64_t size);
void blk_bitmaps_free(struct blk_node *node);
/* How many nodes of the process have one that records: what each change looks at first. */
extern atomic_uint blk_recording_nodes;
/* node->recording is not 0: a change of this range is on its way. Any thread, inside an epoch. */
void blk_bitmaps_record(struct blk_node *node, uint64_t offset, uint64_t length);
