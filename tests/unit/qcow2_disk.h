/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For unit tests of qcow2 on a file in memory (memory_node.h), whose node is named `mem`. */
#pragma once

#include "image.h"
#include "memory_node.h"

/* A disk of `size` bytes; `cluster_size` in bytes, as an option. */
static inline coroutine_fn void co_create_qcow2(struct blk_node *file, uint64_t size, const char *cluster_size)
{
    struct opts *opts = opts_new();
    struct blk_create create = { .options = opts, .size = size, .file = file };

    opts_set(opts, "cluster_size", cluster_size);
    assert_int_equal(blk_driver_find("qcow2")->co_create(&create, NULL), 0);
    opts_free(opts);
}

/* The image in `mem`, which nobody has open, has no error and no leak. */
static inline coroutine_fn void co_assert_clean(void)
{
    struct blk_node *node = co_open_words("driver=qcow2,file=mem", 0);
    struct blk_check check = { 0 };

    assert_int_equal(blk_co_check(node, &check, 0, NULL), 0);
    assert_int_equal(check.corruptions + check.check_errors + check.leaks, 0);
    assert_int_equal(blk_co_node_unref(node), 0);
}
