/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which format is an image in? Every format that a common tool would recognise has a probe: those with a driver here in
 * the driver's table, the others in a table of foreign formats. One question, blk_probe_format(), asks them all;
 * opening without a format asks it, and a guessed raw disk asks it before it lets its guest change what the probes look
 * at.
 */
#pragma once

#include <base/compiler.h>
#include <stddef.h>
#include <stdint.h>

/* How much of a file's beginning and end a probe may look at. */
#define BLK_PROBE_HEAD 2048u
#define BLK_PROBE_TAIL 512u

struct blk_probe {
    const uint8_t *head; /* the first bytes of the file: BLK_PROBE_HEAD, or all of a shorter one */
    size_t head_length;
    const uint8_t *tail; /* the last sector, filled up with zeroes; NULL if it is not known, or the file is empty */
};

/* How sure a probe is, from 0 (it is something else) to 100. */
enum { BLK_PROBE_TAIL_FITS = 50, BLK_PROBE_HEAD_FITS = 100 };

/* A format that is recognised, whether or not there is a driver of that name. */
struct blk_foreign_format {
    const char *name;
    int (*probe)(const struct blk_probe *probe);
};

/* Adds a table to those that blk_probe_format() asks. Before main: one line at the end of the table's file. */
void blk_foreign_register(const struct blk_foreign_format *formats, size_t count);
#define BLK_FOREIGN_FORMATS(table) \
    __attribute__((constructor)) static void register_##table(void) { blk_foreign_register(table, ARRAY_SIZE(table)); }

/* The name of the format that fits best; NULL if none does. From memory, any thread. */
const char *blk_probe_format(const struct blk_probe *probe);
