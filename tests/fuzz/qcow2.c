/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fuzz target: open, use, repair and close a qcow2 image made of any bytes. The input is the image file, but for its
 * last 64 bytes: those are eight operations of eight bytes (what, length in sectors, offset in sectors). The file lies
 * in memory and may not grow past 8 MiB, so that a wild offset is a write error and not a wish for memory.
 */
#include "memory_node.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/endian.h>
#include <block/image.h>
#include <stdlib.h>

#define FILE_MAX "8M"
#define INPUT_MAX (4u << 20)
#define OPERATIONS 8u
#define OPERATION_BYTES 8u

static struct loop *loop;
static struct blk_node *file; /* lives as long as the process */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static coroutine_fn void co_open_file(void)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "memory");
    opts_set(opts, "node-name", "file");
    opts_set(opts, "size", "0");
    opts_set(opts, "max-size", FILE_MAX);
    file = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, NULL);
    opts_free(opts);
    if (!file)
        abort();
}

/* ---- what is done to it ---- */

static coroutine_fn struct blk_node *co_open_image(unsigned flags)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;

    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "file", "file");
    opts_set(opts, "l2-cache-size", "4096");
    struct blk_node *node = blk_co_open(NULL, opts, flags | BLK_O_NO_BACKING, &error);
    if (!node && !error)
        abort(); /* a refusal says why */
    error_free(error);
    opts_free(opts);
    return node;
}

static coroutine_fn void co_resize(struct blk_node *node, uint64_t size)
{
    struct error *error = NULL;

    if (blk_co_truncate(node, size, true, "off", &error) < 0 && !error)
        abort();
    error_free(error);
}

static coroutine_fn void co_operate(struct blk_node *node, const uint8_t *op)
{
    static uint8_t buffer[256 * 512];
    uint64_t size = blk_node_size(node), length = (1 + (uint64_t)op[1]) * 512,
             offset = (uint64_t)load_be32(op + 4) * 512;
    struct blk_extent extent;

    if (op[0] % 10 != 7 && (size == 0 || offset >= size))
        offset = size > 0 ? offset % size : 0;
    if (op[0] % 10 != 7)
        length = length < size - offset ? length : size - offset;
    if (length == 0)
        return;
    switch (op[0] % 10) {
    case 0:
    case 1: blk_co_read(node, offset, buffer, length); return;
    case 2:
    case 3: blk_co_write(node, offset, buffer, length, op[0] & 64 ? BLK_REQ_FUA : 0); return;
    case 4: blk_co_write_zeroes(node, offset, length, op[0] & 64 ? BLK_REQ_MAY_UNMAP : 0); return;
    case 5: blk_co_discard(node, offset, length); return;
    case 6: blk_co_flush(node); return;
    case 7: co_resize(node, offset); return;
    default: blk_co_map(node, offset, length, &extent); return;
    }
}

static coroutine_fn void co_check(unsigned fix)
{
    struct blk_node *node = co_open_image(fix ? BLK_O_RDWR | BLK_O_CHECK : BLK_O_CHECK);
    struct blk_check check = { 0 };
    struct error *error = NULL;

    if (!node)
        return;
    blk_co_check(node, &check, fix, &error);
    error_free(error);
    blk_co_node_unref(node);
}

struct input {
    const uint8_t *data;
    size_t size;
};

static coroutine_fn int co_input(void *arg)
{
    const struct input *input = arg;
    size_t image_size = input->size - OPERATIONS * OPERATION_BYTES;
    uint8_t how = input->data[input->size - 1];
    struct blk_info info;
    struct error *error = NULL;

    if (!file)
        co_open_file();
    memory_node_fill(file, input->data, image_size);
    if (how & 1)
        co_check(how & 2 ? BLK_FIX_LEAKS | BLK_FIX_ERRORS : how & 4 ? BLK_FIX_LEAKS : 0);
    struct blk_node *node = co_open_image(how & 8 ? 0 : BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
    if (!node)
        return 0;
    if (blk_co_info(node, &info, &error) == 0)
        blk_info_finish(&info);
    error_free(error);
    for (unsigned i = 0; i < OPERATIONS; i++) {
        const uint8_t *op = input->data + image_size + i * OPERATION_BYTES;
        if (!(how & 8) || op[0] % 10 < 2 || op[0] % 10 > 7)
            co_operate(node, op);
    }
    blk_co_node_unref(node);
    if (how & 16)
        co_check(BLK_FIX_LEAKS | BLK_FIX_ERRORS);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = { data, size };

    /* A large L1 table is allowed and only slow. */
    if (size > 40 && load_be32(data + 36) > 0x4000)
        return 0;
    if (size < OPERATIONS * OPERATION_BYTES + 4 || size > INPUT_MAX)
        return 0;
    if (!loop)
        loop = loop_new(NULL);
    co_run(loop, co_input, &input);
    return 0;
}
