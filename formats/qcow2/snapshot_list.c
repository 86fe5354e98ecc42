/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Another list of snapshots in place of the image's: it is written where nothing is, and the header's first sector
 * names it last.
 */
#include "snapshot_list.h"

#include "alloc.h"
#include "header.h"
#include "overlap.h"
#include "snapshot.h"

#include <string.h>

coroutine_fn int qcow2_co_snapshot_list_place(struct qcow2 *s, struct qcow2_snapshot_list *next)
{
    next->bytes = qcow2_snapshots_bytes(next->list, next->count);
    return next->bytes > QCOW2_MAX_SNAPSHOT_TABLE_BYTES ? -EFBIG : qcow2_co_bytes_alloc(s, next->bytes, &next->offset);
}

coroutine_fn int qcow2_co_snapshot_list_write(struct qcow2 *s, const struct qcow2_snapshot_list *next)
{
    uint64_t length = align_up(next->bytes, s->cluster_size);
    uint8_t *buffer = next->bytes ? blk_buffer_alloc(s->node->file, length) : NULL;
    int ret = 0;

    if (next->bytes && !buffer)
        return -ENOMEM;
    if (buffer) {
        memset(buffer, 0, length);
        qcow2_snapshots_store(next->list, next->count, buffer);
        ret = blk_co_write(s->node->file, next->offset, buffer, length, 0);
    }
    free(buffer);
    return ret;
}

static void set_header(struct qcow2 *s, uint32_t count, uint64_t offset)
{
    qcow2_header_set32(s, QCOW2_AT_SNAPSHOT_COUNT, count);
    qcow2_header_set64(s, QCOW2_AT_SNAPSHOTS_OFFSET, offset);
}

coroutine_fn int qcow2_co_snapshot_list_name(struct qcow2 *s, struct qcow2_snapshot_list *next)
{
    uint64_t old_offset = s->header.snapshots_offset, old_bytes = s->snapshots_length;

    co_mutex_lock(&s->lock);
    set_header(s, next->count, next->offset);
    int ret = qcow2_co_header_write(s);
    if (ret < 0) {
        set_header(s, s->header.snapshot_count, old_offset);
        co_mutex_unlock(&s->lock);
        return ret;
    }
    free(s->snapshots);
    s->snapshots = next->list;
    s->snapshots_length = next->bytes;
    s->header.snapshot_count = next->count;
    s->header.snapshots_offset = next->offset;
    *next = (struct qcow2_snapshot_list){ 0 };
    co_mutex_unlock(&s->lock);
    qcow2_co_bytes_free(s, old_offset, old_bytes);
    qcow2_co_overlap_read(s, NULL); /* one more protection, which may do without */
    return 0;
}

coroutine_fn void qcow2_co_snapshot_list_drop(struct qcow2 *s, struct qcow2_snapshot_list *next)
{
    qcow2_co_bytes_free(s, next->offset, next->bytes);
    free(next->list);
    *next = (struct qcow2_snapshot_list){ 0 };
}
