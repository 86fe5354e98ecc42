/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* -l SNAPSHOT of convert and measure: the source shows what an internal snapshot kept. */
#pragma once

#include <block/front.h>

/* All NULL: none was given. */
struct snapshot_arg {
    char *any; /* an id, or else a name */
    char *id, *name;
};

/* Reads a name or an id; or, if it begins "snapshot.", options that say which of the two. false after reporting. */
bool snapshot_arg_parse(struct snapshot_arg *arg, const char *text);
bool snapshot_arg_given(const struct snapshot_arg *arg);
/* Does nothing if none was given. 0, or -1 after reporting. */
coroutine_fn int snapshot_arg_co_show(const struct snapshot_arg *arg, struct blk_front *source);
void snapshot_arg_finish(struct snapshot_arg *arg);
