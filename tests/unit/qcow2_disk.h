/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For unit tests of qcow2 on a file in memory (memory_node.h), whose node is named `mem`. */
#pragma once

#include "image.h"
#include "memory_node.h"

/* A disk of `size` bytes, with options as for `img-tool create -o`. */
static inline coroutine_fn void co_create_qcow2_with(struct blk_node *file, uint64_t size, const char *options)
{
    struct opts *opts = opts_new();
    struct blk_create create = { .options = opts, .size = size, .file = file };

    assert_int_equal(opts_parse(opts, options, NULL, 0, NULL), 0);
    assert_int_equal(blk_driver_find("qcow2")->co_create(&create, NULL), 0);
    opts_free(opts);
}

static inline coroutine_fn void co_create_qcow2(struct blk_node *file, uint64_t size, const char *cluster_size)
{
    AUTO_FREE char *options = xasprintf("cluster_size=%s", cluster_size);

    co_create_qcow2_with(file, size, options);
}

/* Bytes of one value. */
static inline coroutine_fn int co_put_bytes(struct blk_front *front, uint64_t offset, uint8_t value, uint64_t length)
{
    uint8_t *data = xmalloc(length);

    memset(data, value, length);
    int ret = blk_front_co_write(front, offset, data, length, 0);
    free(data);
    return ret;
}

static inline coroutine_fn void co_expect_bytes(struct blk_front *front, uint64_t offset, uint8_t value,
                                                uint64_t length)
{
    uint8_t *data = xmalloc(length);

    assert_int_equal(blk_front_co_read(front, offset, data, length), 0);
    for (uint64_t i = 0; i < length; i++)
        assert_int_equal(data[i], value);
    free(data);
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
