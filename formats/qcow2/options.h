/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* options.c: from an image's options to its state. */
#pragma once

#include "state.h"

/* The header is parsed. Sizes of slices and caches, and what else can be chosen. */
int qcow2_options_take(struct qcow2 *s, struct opts *opts, unsigned flags, struct error **errp);
