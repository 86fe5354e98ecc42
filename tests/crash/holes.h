/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fills an open image of any kind with data, compressed clusters, zeroes and, perhaps, a snapshot, in an order that
 * leaves holes between them: what compact is for.
 */
#pragma once

#include <base/compiler.h>
#include <block/node.h>
#include <stdbool.h>
#include <stdint.h>

#define HOLES_SECTORS 600u
#define HOLES_BYTES (HOLES_SECTORS * 512u)

struct holes {
    uint64_t random; /* the seed */
    bool snapshot;   /* there shall be one, "kept"; filled: there is */
    char options[200];
    uint8_t content[HOLES_BYTES], kept[HOLES_BYTES]; /* what the disk, and the snapshot, show */
};

/* Chooses h->snapshot and h->options, for creating the image, of HOLES_BYTES. */
void holes_choose(struct holes *h);
/* 0 or -errno. */
coroutine_fn int holes_co_fill(struct holes *h, struct blk_node *node);
