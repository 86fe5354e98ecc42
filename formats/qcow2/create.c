/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Creating an image: layout and first metadata.
 *
 * The layout is header, refcount table, refcount blocks, L1 table, one after the other, and each of them counted. What
 * the file held before is made unreadable first, durably, and the header's first sector comes last: a create that was
 * cut off leaves a file that is no qcow2 image, or the old one untouched, never a mixture. With preallocation the
 * finished image is opened and its clusters are allocated like any others.
 */
#include "create_options.h"
#include "driver.h"
#include "header.h"
#include "refcount.h"
#include "truncate.h"

#include <string.h>

/* ---- layout ---- */

static int lay_out(struct qcow2_plan *p, uint64_t size, struct error **errp)
{
    struct qcow2_header *h = &p->header;
    uint64_t l1_entries;

    if (!qcow2_l1_entries(size, h->cluster_bits, p->extended_l2, &l1_entries))
        return error_set(errp, -EFBIG,
                         "The image size is too large for file format 'qcow2' (try using a larger cluster size)");
    h->size = align_up(size, BLK_SECTOR_SIZE);
    h->l1_size = (uint32_t)l1_entries;
    p->l1_clusters = div_round_up((uint64_t)h->l1_size * 8, p->cluster_size);
    qcow2_refcounts_for(h->cluster_bits, h->refcount_order, 1 + p->l1_clusters, &p->refblocks, &p->reftable_clusters);
    h->reftable_offset = p->cluster_size;
    h->reftable_clusters = (uint32_t)p->reftable_clusters;
    h->l1_offset = (1 + p->reftable_clusters + p->refblocks) * p->cluster_size;
    return 0;
}

/* Table, blocks and L1 table: everything but the header. */
static coroutine_fn int co_write_tables(struct blk_node *file, const struct qcow2_plan *p)
{
    uint64_t total = 1 + p->reftable_clusters + p->refblocks + p->l1_clusters;
    uint64_t per_block = (p->cluster_size * 8) >> p->header.refcount_order;
    uint64_t length = (p->reftable_clusters + p->refblocks) * p->cluster_size;
    uint8_t *buffer = blk_buffer_alloc(file, length);
    int ret;

    if (!buffer)
        return -ENOMEM;
    memset(buffer, 0, length);
    for (uint64_t i = 0; i < p->refblocks; i++)
        store_be64(buffer + i * 8, (1 + p->reftable_clusters + i) * p->cluster_size);
    for (uint64_t i = 0; i < total; i++) {
        uint64_t block = p->reftable_clusters + i / per_block;
        qcow2_refcount_set(buffer + block * p->cluster_size, p->header.refcount_order, i % per_block, 1);
    }
    ret = blk_co_write(file, p->cluster_size, buffer, length, 0);
    free(buffer);
    /* The L1 table is all zeroes; its end is also the end of the file. */
    if (ret == 0 && p->header.l1_size)
        ret = blk_co_write_zeroes(file, p->header.l1_offset, (uint64_t)p->header.l1_size * 8, 0);
    return ret;
}

/* No old header may survive next to new tables. */
static coroutine_fn int co_forget_old(struct blk_node *file)
{
    static const uint8_t zeroes[BLK_SECTOR_SIZE];

    if (blk_node_size(file) == 0)
        return 0;
    int ret = blk_co_write(file, 0, zeroes, sizeof(zeroes), 0);
    return ret < 0 ? ret : blk_co_flush(file);
}

/* The magic number is in the first sector: without it nobody looks at the others. */
static coroutine_fn int co_write_header(struct blk_node *file, const uint8_t *head)
{
    int ret = blk_co_write(file, 0, head, BLK_SECTOR_SIZE, 0);

    return ret < 0 ? ret : blk_co_flush(file);
}

static coroutine_fn int co_write_image(struct blk_node *file, struct qcow2_plan *p, struct error **errp)
{
    AUTO_FREE uint8_t *head = calloc(1, p->cluster_size);

    if (!head)
        return -ENOMEM;
    struct qcow2_names names = { p->backing_name, p->backing_format, p->data_file };
    int ret = qcow2_header_build(&p->header, &names, head, p->cluster_size, errp);
    if (ret < 0)
        return ret;
    ret = co_forget_old(file);
    if (ret == 0)
        ret = co_write_tables(file, p);
    if (ret == 0 && p->cluster_size > BLK_SECTOR_SIZE)
        ret = blk_co_write(file, BLK_SECTOR_SIZE, head + BLK_SECTOR_SIZE, p->cluster_size - BLK_SECTOR_SIZE, 0);
    if (ret == 0)
        ret = blk_co_flush(file);
    if (ret == 0)
        ret = co_write_header(file, head);
    return ret < 0 ? error_set_errno(errp, ret, "Could not write qcow2 metadata") : 0;
}

/* Opens the finished image over the same file node and allocates everything. */
static coroutine_fn int co_preallocate(struct blk_node *file, const struct qcow2_plan *p, struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "qcow2");
    opts_set(opts, "file", file->name);
    struct blk_node *node = blk_co_open(NULL, opts, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_NO_BACKING, errp);
    opts_free(opts);
    if (!node)
        return -EIO;
    int ret = qcow2_co_preallocate(node->state, 0, p->header.size, p->prealloc, errp);
    int close_ret = blk_co_node_unref(node);
    if (ret == 0 && close_ret < 0)
        ret = error_set_errno(errp, close_ret, "Could not write qcow2 metadata");
    return ret;
}

/* As large as the disk, and nothing else is in it. */
static coroutine_fn int co_create_data_file(const struct qcow2_plan *p, struct error **errp)
{
    if (!p->data_file)
        return 0;
    struct opts *opts = opts_new();
    if (strcmp(p->prealloc, "metadata") != 0)
        opts_set(opts, "preallocation", p->prealloc);
    AUTO_FREE char *path = blk_path_as_file(p->data_file); /* as it will be opened */
    int ret = blk_co_create("raw", path, opts, p->header.size, errp);
    opts_free(opts);
    return ret;
}

/* All but the writing. The plan's texts are those of *opts, the caller's to free. */
static int make_plan(const struct blk_create *create, struct opts **opts, struct qcow2_plan *p, struct error **errp)
{
    *opts = create->options ? opts_clone(create->options) : opts_new();
    int ret = qcow2_plan_read(p, *opts, errp);

    if (ret == 0)
        ret = qcow2_plan_check(p, *opts, errp);
    return ret < 0 ? ret : lay_out(p, create->size, errp);
}

int qcow2_create_check(const struct blk_create *create, struct error **errp)
{
    struct opts *opts;
    struct qcow2_plan p;
    int ret = make_plan(create, &opts, &p, errp);

    opts_free(opts);
    return ret;
}

coroutine_fn int qcow2_co_create(struct blk_create *create, struct error **errp)
{
    struct opts *opts;
    struct qcow2_plan p;
    int ret = make_plan(create, &opts, &p, errp);

    if (ret == 0)
        ret = co_create_data_file(&p, errp);
    if (ret == 0)
        ret = co_write_image(create->file, &p, errp);
    if (ret == 0 && strcmp(p.prealloc, "off") != 0)
        ret = co_preallocate(create->file, &p, errp);
    opts_free(opts);
    return ret;
}
