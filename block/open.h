/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to block/: the parts of opening that creating and filters share. */
#pragma once

#include <block/node.h>

/* blk_co_open() with all its knobs: want_protocol opens `filename` by its protocol instead of probing a format;
 * opened_for is the parent, for finding loops. */
coroutine_fn struct blk_node *blk_co_open_node(const char *filename, const struct opts *given, unsigned flags,
                                               bool want_protocol, struct blk_node *opened_for, struct error **errp);
/* Fails: nobody has named the format of a backing image of a disk that is written. */
int blk_refuse_guess(const char *filename, struct error **errp);
/* The flags that a child in this role is opened with. */
unsigned blk_child_flags(const char *role, unsigned flags);
/* Common keys to BLK_O_ flags, which *flags has before where no key says otherwise; the keys count as consumed. */
int blk_take_flags(struct opts *opts, unsigned *flags, struct error **errp);
/* Names an opened node: node->filename becomes the plain name where that says all, else json:{…}. */
void blk_node_name_file(struct blk_node *node);
