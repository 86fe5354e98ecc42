/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which format is it? Asks every format driver, and every foreign format, about a file's beginning and end; the surest
 * answer wins. A format that is recognised but has no driver is refused by its name: it is never taken for a raw disk.
 */
#include <base/compiler.h>
#include <block/image.h>
#include <block/probe.h>
#include <errno.h>
#include <stdlib.h>

#define MAX_TABLES 4

static struct {
    const struct blk_foreign_format *formats;
    size_t count;
} tables[MAX_TABLES];
static size_t table_count;

void blk_foreign_register(const struct blk_foreign_format *formats, size_t count)
{
    if (table_count == MAX_TABLES)
        abort();
    tables[table_count].formats = formats;
    tables[table_count++].count = count;
}

/* ---- from memory ---- */

struct candidate {
    const struct blk_probe *probe;
    const char *name;
    int score;
};

static void consider(struct candidate *best, const char *name, int score)
{
    if (score > best->score) {
        best->score = score;
        best->name = name;
    }
}

static void try_driver(const struct blk_driver *driver, void *arg)
{
    struct candidate *best = arg;

    if (driver->probe)
        consider(best, driver->name, driver->probe(best->probe));
}

const char *blk_probe_format(const struct blk_probe *probe)
{
    struct candidate best = { .probe = probe };

    blk_driver_each(try_driver, &best);
    for (size_t i = 0; i < table_count; i++) {
        for (size_t j = 0; j < tables[i].count; j++) {
            const struct blk_foreign_format *format = &tables[i].formats[j];
            consider(&best, format->name, format->probe(probe));
        }
    }
    return best.name;
}

/* ---- of a file ---- */

coroutine_fn int blk_co_probe(struct blk_node *file, const struct blk_driver **out, struct error **errp)
{
    AUTO_FREE uint8_t *data = xcalloc(1, BLK_PROBE_HEAD + BLK_PROBE_TAIL);
    uint8_t *tail = data + BLK_PROBE_HEAD;
    uint64_t size = blk_node_size(file);
    struct blk_probe probe = { .head = data, .head_length = (size_t)MIN(size, (uint64_t)BLK_PROBE_HEAD) };
    int ret = probe.head_length ? blk_co_read(file, 0, data, probe.head_length) : 0;

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read image for determining its format");
    /* A disk whose last sector cannot be read is still to be read, so that is no error. */
    if (size >= BLK_PROBE_TAIL && blk_co_read(file, size - BLK_PROBE_TAIL, tail, BLK_PROBE_TAIL) == 0)
        probe.tail = tail;
    const char *format = blk_probe_format(&probe);
    if (!format)
        return error_set(errp, -ENOENT, "Could not determine image format: No compatible driver found");
    *out = blk_driver_find(format);
    if (*out)
        return 0;
    ret = error_set(errp, -ENOTSUP, "The image is in the format '%s', which is not supported", format);
    error_hint(errp, "to use the bytes of the file as they are, as a raw disk, add -f raw (format=raw, driver=raw)");
    return ret;
}
