/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A module for tests (tests/unit/module.c): the driver TOY_NAME, a disk of zeroes. */
#include <block/module.h>
#include <string.h>

#ifdef TOY_WRONG_ABI
const struct blk_module_abi blk_module_abi = { BLK_MODULE_ABI + 1, (uint32_t)sizeof(struct blk_driver),
                                               (uint32_t)sizeof(struct blk_node) };
#else
BLK_MODULE();
#endif

static coroutine_fn int toy_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    opts_del(opts, "filename");
    atomic_store(&node->size, 1 << 20);
    return 0;
}

static void toy_submit(struct blk_node *node, struct blk_io *io)
{
    for (int i = 0; io->op == BLK_OP_READ && i < io->iov_count; i++)
        memset(io->iov[i].iov_base, 0, io->iov[i].iov_len);
    blk_io_complete(io, 0);
}

static const char *const toy_prefixes[] = { TOY_NAME, NULL };

static const struct blk_driver toy_driver = {
    .name = TOY_NAME,
    .flags = BLK_DRIVER_PROTOCOL,
    .protocol_prefixes = toy_prefixes,
    .co_open = toy_co_open,
    .submit = toy_submit,
};
BLK_DRIVER(toy_driver)
