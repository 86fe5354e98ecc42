/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Compact: clusters whose data are nothing but zero bytes. Several of a table are read at a time. */
#include "compact.h"

#include <base/crew.h>
#include <string.h>

#define READERS 8u

struct search {
    struct qcow2 *s;
    const uint64_t *table;
    bool *zeroes;
};

/* Of an extended entry's cluster only what is allocated counts. */
static bool all_zero(const struct qcow2 *s, struct qcow2_entry entry, const uint8_t *data)
{
    uint64_t unit = qcow2_sub_size(s);

    if (!s->extended)
        return buffer_is_zero(data, s->cluster_size);
    for (unsigned i = 0; i < QCOW2_SUBCLUSTERS; i++) {
        if ((qcow2_entry_allocated(entry) >> i & 1) && !buffer_is_zero(data + i * unit, unit))
            return false;
    }
    return true;
}

static coroutine_fn int co_look(void *arg, size_t index)
{
    struct search *search = arg;
    struct qcow2 *s = search->s;
    struct qcow2_entry entry = qcow2_entry_load(search->table, index, qcow2_layout(s));
    uint64_t offset = qcow2_entry_host(entry), size = blk_node_size(s->node->file);

    if (qcow2_entry_kind(entry) != QCOW2_NORMAL)
        return 0;
    AUTO_FREE uint8_t *data = blk_buffer_alloc(s->node->file, s->cluster_size);
    if (!data)
        return -ENOMEM;
    /* The last cluster may be cut short by the file's end: there are zeroes. */
    uint64_t there = offset < size ? MIN(s->cluster_size, size - offset) : 0;
    memset(data + there, 0, s->cluster_size - there);
    int ret = there ? blk_co_read(s->node->file, offset, data, there) : 0;
    search->zeroes[index] = ret == 0 && all_zero(s, entry, data);
    return ret;
}

coroutine_fn int qcow2_co_find_zeroes(struct qcow2 *s, const uint64_t *table, bool **zeroes)
{
    size_t count = (size_t)1 << s->l2_bits;
    struct search search = { s, table, calloc(count, sizeof(bool)) };

    *zeroes = search.zeroes;
    return search.zeroes ? co_crew(count, READERS, co_look, &search) : -ENOMEM;
}
