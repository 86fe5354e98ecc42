/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Changes that may make a filter's child, and so the filter, larger. */
#include "filter.h"

coroutine_fn int filter_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                 int iov_count, unsigned flags)
{
    int ret = blk_co_writev(node->file, offset, length, iov, iov_count, flags);

    filter_grow(node);
    return ret;
}

coroutine_fn int filter_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    int ret = blk_co_write_zeroes(node->file, offset, length, flags);

    filter_grow(node);
    return ret;
}
