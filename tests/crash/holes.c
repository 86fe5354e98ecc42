/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "holes.h"

#include "random.h"

#include <base/checked.h>
#include <block/image.h>
#include <block/snapshot.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

void holes_choose(struct holes *h)
{
    static const unsigned clusters[] = { 512, 512, 1024, 4096, 16384, 65536 }, bits[] = { 4, 8, 16, 16, 64 };
    unsigned cluster = clusters[random_below(&h->random, ARRAY_SIZE(clusters))];
    bool v2 = random_below(&h->random, 5) == 0;
    bool extended = !v2 && cluster >= 16384 && random_below(&h->random, 2);
    bool lazy = !v2 && random_below(&h->random, 6) == 0;

    h->snapshot = random_below(&h->random, 2);
    snprintf(h->options, sizeof(h->options), "cluster_size=%u,compat=%s,refcount_bits=%u%s%s", cluster,
             v2 ? "0.10" : "1.1", v2 ? 16 : bits[random_below(&h->random, ARRAY_SIZE(bits))],
             extended ? ",extended_l2=on" : "", lazy ? ",lazy_refcounts=on" : "");
}

/* A whole cluster, where there are no data; else nothing happens. */
static coroutine_fn int co_compress(struct holes *h, struct blk_node *node, uint64_t offset)
{
    static const uint64_t cluster_max = 65536;
    uint64_t size = 512;
    int ret = -EINVAL;

    /* The cluster's size: the first that is taken for a whole one. */
    for (; ret == -EINVAL && size <= cluster_max; size *= 2) {
        uint64_t start = align_down(offset, size), length = MIN(size, HOLES_BYTES - start);
        uint8_t before[65536];
        memcpy(before, h->content + start, length);
        memset(h->content + start, (int)random_below(&h->random, 255) + 1, length);
        ret = blk_co_write(node, start, h->content + start, length, BLK_REQ_COMPRESSED);
        if (ret < 0)
            memcpy(h->content + start, before, length);
    }
    return ret == -EIO || ret == -EINVAL ? 0 : ret;
}

static coroutine_fn int co_change(struct holes *h, struct blk_node *node)
{
    uint64_t first = random_below(&h->random, HOLES_SECTORS), kind = random_below(&h->random, 10);
    uint64_t count = MIN(1 + random_below(&h->random, 90), HOLES_SECTORS - first);
    uint8_t *content = h->content + first * 512;

    if (kind < 2)
        return co_compress(h, node, first * 512);
    /* Data that are all zero bytes too. */
    memset(content, kind < 6 ? (int)(first % 250 + 1) : 0, count * 512);
    if (kind >= 7) {
        unsigned flags = random_below(&h->random, 2) ? BLK_REQ_MAY_UNMAP : 0;
        int ret = blk_co_write_zeroes(node, first * 512, count * 512, flags);
        if (ret != -ENOTSUP) /* version 2 over a backing image */
            return ret;
    }
    return blk_co_write(node, first * 512, content, count * 512, 0);
}

/* *made is false if the image's refcounts have too few bits for it. */
static coroutine_fn int co_snapshot(struct blk_node *node, const char *name, bool *made)
{
    struct blk_snapshot what = { .name = name };
    int ret = blk_co_snapshot_create(node, &what, NULL);

    *made = ret == 0;
    return ret == -EINVAL ? 0 : ret;
}

coroutine_fn int holes_co_fill(struct holes *h, struct blk_node *node)
{
    bool gone = false;
    int ret = 0;

    memset(h->content, 0, sizeof(h->content));
    for (unsigned i = 0; i < 40 && ret == 0; i++) {
        if (i == 10 && h->snapshot)
            ret = co_snapshot(node, "gone", &gone);
        if (i == 20 && h->snapshot) {
            memcpy(h->kept, h->content, sizeof(h->kept));
            ret = co_snapshot(node, "kept", &h->snapshot);
        }
        if (i == 30 && gone)
            ret = blk_co_snapshot_delete(node, "gone", NULL);
        if (ret == 0)
            ret = co_change(h, node);
    }
    return ret;
}
