/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Fuzz target: open, use, repair and close a qcow2 image made of any bytes. The input is the image file, but for its
 * last 64 bytes: those are eight operations of eight bytes (what, length in sectors, offset in sectors). The file lies
 * in memory and may not grow past 8 MiB, so that a wild offset is a write error and not a wish for memory.
 *
 * An image that a check finds nothing wrong with, and that can be read, has to behave: what is written through it reads
 * back (oracle.h), snapshots keep what they were made of, also after it was closed and opened again, nothing but a lack
 * of space fails, and a check still finds nothing wrong.
 */
#include "memory_node.h"
#include "oracle.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/endian.h>
#include <block/change.h>
#include <block/image.h>
#include <block/snapshot.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX "8M"
#define INPUT_MAX (4u << 20)
#define OPERATIONS 8u
#define OPERATION_BYTES 8u

static struct loop *loop;
static struct blk_node *file, *data_file; /* live as long as the process */
static bool external; /* the image wants a data file: it gets one in memory, and never one of the host */
static struct oracle oracle;
static bool subclusters; /* of the table that is looked at */
static bool shared;      /* a part of the file is named twice: flags cannot all stay right */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static coroutine_fn struct blk_node *co_open_file(const char *name)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "memory");
    opts_set(opts, "node-name", name);
    opts_set(opts, "size", "0");
    opts_set(opts, "max-size", FILE_MAX);
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP, NULL);
    opts_free(opts);
    if (!node)
        abort();
    return node;
}

static bool wants_data_file(const uint8_t *image, size_t size)
{
    return size >= 80 && load_be32(image + 4) >= 3 && (image[79] & 4);
}

/* ---- what is done to it ---- */

static coroutine_fn struct blk_node *co_open_image(unsigned flags)
{
    struct opts *opts = opts_new();
    struct error *error = NULL;

    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "file", "file");
    if (external)
        opts_set(opts, "data-file", "data");
    opts_set(opts, "l2-cache-size", "4096");
    struct blk_node *node = blk_co_open(NULL, opts, flags | BLK_O_NO_BACKING, &error);
    if (!node && !error)
        abort(); /* a refusal says why */
    error_free(error);
    opts_free(opts);
    return node;
}

static coroutine_fn int co_resize(struct blk_node *node, uint64_t size)
{
    struct error *error = NULL;
    int ret = blk_co_truncate(node, size, true, "off", &error);

    if (ret < 0 && !error)
        abort();
    error_free(error);
    return ret;
}

/* Snapshots of ours, and what was known of the disk then. */
static struct {
    bool there;
    struct oracle oracle;
} kept[4];

static coroutine_fn void co_snapshot(struct blk_node *node, const uint8_t *op)
{
    unsigned which = op[2] % ARRAY_SIZE(kept);
    char name[] = { 'f', 'u', 'z', 'z', (char)('0' + which), 0 };
    struct blk_snapshot what = { .name = name };
    int ret;

    if (external)
        return; /* it has none */
    if (!kept[which].there) {
        ret = blk_co_snapshot_create(node, &what, NULL);
        if (ret == -EINVAL)
            return; /* refcounts of too few bits */
        kept[which].there = ret == 0;
        kept[which].oracle = oracle;
    } else if (op[1] % 2) {
        ret = blk_co_snapshot_apply(node, name, NULL);
        if (ret == -EBUSY)
            return; /* there are bitmaps */
        if (ret == 0 && oracle.active)
            oracle = kept[which].oracle;
    } else {
        ret = blk_co_snapshot_delete(node, name, NULL);
        kept[which].there = false;
    }
    oracle_result(&oracle, ret);
}

static coroutine_fn void co_compact(struct blk_node *node, const uint8_t *op)
{
    struct blk_compact compact = { .find_zeroes = op[3] & 2 };

    if (blk_node_writable(node))
        oracle_result(&oracle, blk_co_compact(node, &compact, NULL));
}

/* Refused if it is not a whole cluster (-EINVAL), or has data (-EIO): of several clusters some may be written then. */
static coroutine_fn void co_write_compressed(struct blk_node *node, const uint8_t *op, uint64_t offset, uint8_t *buffer)
{
    uint64_t cluster = UINT64_C(512) << (op[3] / 2 % 9);

    offset -= offset % cluster;
    uint64_t length = MIN(cluster, blk_node_size(node) - offset);
    memset(buffer, op[2], length);
    int ret = blk_co_write(node, offset, buffer, length, BLK_REQ_COMPRESSED);
    if (ret == -ENOTSUP && external)
        return;
    if (ret == -EIO)
        oracle_set(&oracle, offset, length, ORACLE_UNKNOWN);
    else if (ret != -EINVAL)
        oracle_written(&oracle, offset, length, buffer, ret);
}

static coroutine_fn void co_operate(struct blk_node *node, const uint8_t *op)
{
    static uint8_t buffer[256 * 512];
    uint64_t size = blk_node_size(node), length = (1 + (uint64_t)op[1]) * 512,
             offset = (uint64_t)load_be32(op + 4) * 512;
    struct blk_extent extent;

    if (op[0] % 10 == 9 && blk_node_writable(node)) {
        co_snapshot(node, op);
        return;
    }
    if (op[0] % 10 != 7 && (size == 0 || offset >= size))
        offset = size > 0 ? offset % size : 0;
    if (op[0] % 10 != 7)
        length = length < size - offset ? length : size - offset;
    if (length == 0)
        return;
    if (op[0] % 10 == 6 && op[3] & 1) {
        co_compact(node, op);
        return;
    }
    if (op[0] % 10 == 2 && op[3] & 1) {
        co_write_compressed(node, op, offset, buffer);
        return;
    }
    switch (op[0] % 10) {
    case 0:
    case 1: oracle_read(&oracle, offset, length, buffer, blk_co_read(node, offset, buffer, length)); return;
    case 2:
    case 3:
        memset(buffer, op[2] ? op[2] : op[0], length);
        oracle_written(&oracle, offset, length, buffer,
                       blk_co_write(node, offset, buffer, length, op[0] & 64 ? BLK_REQ_FUA : 0));
        return;
    case 4:
        oracle_written(&oracle, offset, length, NULL,
                       blk_co_write_zeroes(node, offset, length, op[0] & 64 ? BLK_REQ_MAY_UNMAP : 0));
        return;
    case 5: oracle_discarded(&oracle, offset, length, blk_co_discard(node, offset, length)); return;
    case 6: oracle_result(&oracle, blk_co_flush(node)); return;
    case 7: oracle_resized(&oracle, blk_node_size(node), co_resize(node, offset), blk_node_size(node)); return;
    default: blk_co_map(node, offset, length, &extent); return;
    }
}

/* All that the model knows. */
static coroutine_fn void co_compare(struct blk_node *node)
{
    static uint8_t content[ORACLE_BYTES];
    uint64_t length = MIN(blk_node_size(node), (uint64_t)ORACLE_BYTES);

    if (length > 0)
        oracle_read(&oracle, 0, length, content, blk_co_read(node, 0, content, length));
}

/* Is a part of the file named twice, by entries of the active mapping or as metadata? A check finds nothing wrong with
 * that as long as the refcount says so, but once one name is gone, an entry that remains lacks its COPIED flag, and the
 * check complains: with QEMU as well. Compressed clusters and snapshots may share; what cannot be said counts as
 * shared. */
static uint8_t named[(8u << 20) / 512];

/* Returns whether a part was named before, or lies outside. */
static bool name_part(uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length;

    if (end > sizeof(named) * 512)
        return true;
    for (uint64_t at = offset / 512; at < (end + 511) / 512; at++) {
        if (named[at]++)
            return true;
    }
    return false;
}

/* A table of `count` entries: its place, and what they name; `depth` tables deep, of which the last names data. Entries
 * of data may be twice as long, with subclusters. */
static bool name_table(const uint8_t *data, uint64_t offset, uint64_t count, uint64_t cluster_size, unsigned depth)
{
    uint64_t entry_size = depth == 1 && subclusters ? 16 : 8;
    uint64_t length = (count * entry_size + cluster_size - 1) & ~(cluster_size - 1);

    if (length == 0)
        return false;
    if (name_part(offset, length))
        return true;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t entry = load_be64(data + offset + i * entry_size), cluster = entry & UINT64_C(0x00fffffffffffe00);
        if (depth == 1 && (entry & UINT64_C(1) << 62))
            return true; /* compressed */
        if (depth == 1 && external)
            continue;
        if (cluster && (depth > 1 ? name_table(data, cluster, cluster_size / (depth == 2 && subclusters ? 16 : 8),
                                               cluster_size, depth - 1)
                                  : name_part(cluster, cluster_size)))
            return true;
    }
    return false;
}

/* The file's header is one. */
static bool names_twice(void)
{
    static uint8_t copy[sizeof(named) * 512];
    struct memory_node *m = memory_node(file);

    memset(copy, 0, sizeof(copy));
    memcpy(copy, m->data, MIN(m->capacity, (uint64_t)sizeof(copy)));
    memset(named, 0, sizeof(named));
    uint64_t cluster_size = UINT64_C(1) << load_be32(copy + 20);
    uint64_t table_entries = load_be32(copy + 56) * (cluster_size / 8);
    bool snapshots = load_be32(copy + 60) != 0, bitmaps = load_be32(copy + 4) >= 3 && (copy[95] & 1);

    subclusters = load_be32(copy + 4) >= 3 && (copy[79] & 16);
    if (snapshots || bitmaps || name_part(0, cluster_size) ||
        name_table(copy, load_be64(copy + 40), load_be32(copy + 36), cluster_size, 2))
        return true;
    subclusters = false;
    return name_table(copy, load_be64(copy + 48), table_entries, cluster_size, 1);
}

/* Is it one that has to behave? */
static coroutine_fn void co_start_oracle(void)
{
    static uint8_t content[ORACLE_BYTES];
    struct blk_node *node = co_open_image(0);
    struct blk_check check = { 0 };
    struct error *error = NULL;

    oracle.active = false;
    if (!node)
        return;
    uint64_t length = MIN(blk_node_size(node), (uint64_t)ORACLE_BYTES);
    if (blk_co_check(node, &check, 0, &error) == 0 && !check.corruptions && !check.check_errors && !check.leaks &&
        (length == 0 || blk_co_read(node, 0, content, length) == 0))
        oracle_start(&oracle, content, length);
    shared = oracle.active && names_twice();
    error_free(error);
    blk_co_node_unref(node);
}

static coroutine_fn void co_end_oracle(void)
{
    struct blk_node *node = oracle.active ? co_open_image(0) : NULL;
    struct blk_check check = { 0 };
    struct error *error = NULL;

    if (!oracle.active)
        return;
    if (!node || blk_co_check(node, &check, 0, &error) < 0 || (check.corruptions && !shared) || check.check_errors)
        oracle_fail("a sound image is not sound any more");
    co_compare(node);
    blk_co_node_unref(node);
}

/* A repair that says that nothing is left to repair has left nothing. */
static coroutine_fn void co_expect_sound(void)
{
    struct blk_node *node = co_open_image(BLK_O_CHECK);
    struct blk_check check = { 0 };
    struct error *error = NULL;

    if (!node || blk_co_check(node, &check, 0, &error) < 0 || check.corruptions || check.check_errors || check.leaks)
        oracle_fail("a repaired image is not sound");
    blk_co_node_unref(node);
}

static coroutine_fn void co_check(unsigned fix)
{
    struct blk_node *node = co_open_image(fix ? BLK_O_RDWR | BLK_O_CHECK : BLK_O_CHECK);
    struct blk_check check = { 0 };
    struct error *error = NULL;

    if (!node)
        return;
    int ret = blk_co_check(node, &check, fix, &error);
    error_free(error);
    blk_co_node_unref(node);
    if (ret == 0 && fix == (BLK_FIX_LEAKS | BLK_FIX_ERRORS) && !check.corruptions && !check.leaks &&
        !check.check_errors)
        co_expect_sound();
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

    if (!file) {
        file = co_open_file("file");
        data_file = co_open_file("data");
    }
    memory_node_fill(file, input->data, image_size);
    memory_node_fill(data_file, "", 0);
    external = wants_data_file(input->data, image_size);
    for (unsigned i = 0; i < ARRAY_SIZE(kept); i++)
        kept[i].there = false;
    if (how & 1)
        co_check(how & 2 ? BLK_FIX_LEAKS | BLK_FIX_ERRORS : how & 4 ? BLK_FIX_LEAKS : 0);
    co_start_oracle();
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
    co_compare(node);
    oracle_result(&oracle, blk_co_node_unref(node));
    co_end_oracle();
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
