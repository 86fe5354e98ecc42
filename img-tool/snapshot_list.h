/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* snapshot_list.c: the table of internal snapshots, as `info` and `snapshot -l` print it. */
#pragma once

#include <jansson.h>

/* An array of blk_info's form; nothing if it is NULL or empty. */
void snapshot_list_print(const json_t *snapshots);
