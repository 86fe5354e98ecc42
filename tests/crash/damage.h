/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Damages a sound qcow2 image in memory as bad programs and bad luck do, in ways that `check -r` can mend with no loss:
 * refcounts, flags and what leads to them, never what leads to data. Written from the specification, with nothing of
 * formats/qcow2.
 */
#pragma once

#include <stdint.h>

enum damage_kind {
    DAMAGE_LEAK = 1u << 0,    /* refcounts too high, of clusters in use and of new ones */
    DAMAGE_LOW = 1u << 1,     /* refcounts too low */
    DAMAGE_COPIED = 1u << 2,  /* COPIED flags that say the opposite */
    DAMAGE_MISSING = 1u << 3, /* a refcount block that the table does not name */
    DAMAGE_WILD = 1u << 4,    /* one that it names at a place outside the file */
    DAMAGE_DIRTY = 1u << 5,   /* the dirty bit. Version 3 */
    DAMAGE_CORRUPT = 1u << 6, /* the corrupt bit. Version 3 */
};

struct damage {
    uint8_t *image; /* at least a megabyte longer than `length` */
    uint64_t length;
    uint64_t random; /* the seed */
};

void damage_image(struct damage *d, unsigned kinds); /* DAMAGE_* */
/* Lets the header show the disk of the only snapshot as the active one. Whole clusters: `size` is that of the disk. */
void damage_show_snapshot(uint8_t *image);
