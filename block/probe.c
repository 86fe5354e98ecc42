/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which format is it? Asks every format driver about the first bytes of a file; the surest answer wins. */
#include <base/compiler.h>
#include <block/image.h>
#include <errno.h>
#include <stdlib.h>

#define PROBE_BYTES 2048

struct candidate {
    const uint8_t *data;
    size_t length;
    const struct blk_driver *driver;
    int score;
};

static void try_format(const struct blk_driver *driver, void *arg)
{
    struct candidate *c = arg;
    int score = driver->probe ? driver->probe(c->data, c->length) : 0;

    if (score > c->score) {
        c->score = score;
        c->driver = driver;
    }
}

coroutine_fn int blk_co_probe(struct blk_node *file, const struct blk_driver **out, struct error **errp)
{
    AUTO_FREE uint8_t *data = xcalloc(1, PROBE_BYTES);
    uint64_t size = blk_node_size(file);
    struct candidate c = { .data = data, .length = (size_t)MIN(size, (uint64_t)PROBE_BYTES) };
    int ret = c.length ? blk_co_read(file, 0, data, c.length) : 0;

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read image for determining its format");
    blk_driver_each(try_format, &c);
    if (!c.driver)
        return error_set(errp, -ENOENT, "Could not determine image format: No compatible driver found");
    *out = c.driver;
    return 0;
}
