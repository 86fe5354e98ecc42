/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The snapshot table. Its bytes are not trusted: lengths are bounded before they are used, an L1 table that cannot be
 * one is kept as it is for check to name and counts as empty elsewhere. An entry is kept as it lies on disk too, so
 * that a table that is written anew has what we do not know of others' entries.
 */
#include "snapshot.h"

#include <string.h>

#define ENTRY_BYTES 40u
#define MAX_EXTRA_BYTES 1024u
/* Of the entries that we make: size of the VM state, of the disk, and the instruction count. */
#define EXTRA_BYTES 24u

bool qcow2_snapshot_l1_valid(const struct qcow2 *s, const struct qcow2_snapshot *snapshot)
{
    uint64_t bytes = (uint64_t)snapshot->l1_size * 8;

    return bytes <= QCOW2_MAX_L1_BYTES && qcow2_in_cluster(s, snapshot->l1_offset) == 0 &&
           snapshot->l1_offset <= INT64_MAX - bytes;
}

static void parse_fixed(const uint8_t *data, struct qcow2_snapshot *sn)
{
    sn->l1_offset = load_be64(data);
    sn->l1_size = load_be32(data + 8);
    sn->id_length = load_be16(data + 12);
    sn->name_length = load_be16(data + 14);
    sn->date_sec = load_be32(data + 16);
    sn->date_nsec = load_be32(data + 20);
    sn->vm_clock_nsec = load_be64(data + 24);
    sn->vm_state_size = load_be32(data + 32);
    sn->extra_length = load_be32(data + 36);
}

static size_t entry_bytes(const struct qcow2_snapshot *sn)
{
    return ENTRY_BYTES + sn->extra_length + sn->id_length + sn->name_length;
}

/* Extra data (what is known of it), id and name follow the fixed part. sn->raw is there. */
static int parse_rest(struct qcow2_snapshot *sn)
{
    const uint8_t *data = sn->raw + ENTRY_BYTES;

    if (sn->extra_length >= 8)
        sn->vm_state_size = load_be64(data);
    sn->disk_size = sn->extra_length >= 16 ? load_be64(data + 8) : 0;
    sn->icount = sn->extra_length >= 24 ? load_be64(data + 16) : UINT64_MAX;
    sn->id = strndup((const char *)data + sn->extra_length, sn->id_length);
    sn->name = strndup((const char *)data + sn->extra_length + sn->id_length, sn->name_length);
    return sn->id && sn->name ? 0 : -ENOMEM;
}

static coroutine_fn int co_read_one(struct qcow2 *s, uint64_t *at, struct qcow2_snapshot *sn, struct error **errp)
{
    uint8_t fixed[ENTRY_BYTES];
    int ret = blk_co_read(s->node->file, *at, fixed, sizeof(fixed));

    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read snapshots");
    parse_fixed(fixed, sn);
    if (sn->extra_length > MAX_EXTRA_BYTES)
        return error_set(errp, -EFBIG, "Could not read snapshots: Too much extra metadata in snapshot table entry %zu",
                         (size_t)(sn - s->snapshots));
    size_t rest = entry_bytes(sn) - ENTRY_BYTES;
    sn->raw = calloc(1, align_up(entry_bytes(sn), 8) + 1); /* and a NUL: id and name are text */
    if (!sn->raw)
        return -ENOMEM;
    memcpy(sn->raw, fixed, ENTRY_BYTES);
    ret = rest ? blk_co_read(s->node->file, *at + ENTRY_BYTES, sn->raw + ENTRY_BYTES, rest) : 0;
    if (ret == 0)
        ret = parse_rest(sn);
    if (ret < 0)
        return error_set_errno(errp, ret, "Could not read snapshots");
    *at += align_up(entry_bytes(sn), 8);
    if (*at - s->header.snapshots_offset > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
        return error_set(errp, -EFBIG, "Could not read snapshots: The snapshot table is too big");
    return 0;
}

coroutine_fn int qcow2_co_snapshots_read(struct qcow2 *s, struct error **errp)
{
    uint64_t at = s->header.snapshots_offset;
    int ret = 0;

    if (s->header.snapshot_count == 0)
        return 0;
    s->snapshots = calloc(s->header.snapshot_count, sizeof(*s->snapshots));
    if (!s->snapshots)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->header.snapshot_count && ret == 0; i++)
        ret = co_read_one(s, &at, &s->snapshots[i], errp);
    s->snapshots_length = at - s->header.snapshots_offset;
    return ret;
}

void qcow2_snapshot_finish(struct qcow2_snapshot *snapshot)
{
    free(snapshot->raw);
    free(snapshot->id);
    free(snapshot->name);
    *snapshot = (struct qcow2_snapshot){ 0 };
}

void qcow2_snapshots_free(struct qcow2 *s)
{
    for (uint32_t i = 0; s->snapshots && i < s->header.snapshot_count; i++)
        qcow2_snapshot_finish(&s->snapshots[i]);
    free(s->snapshots);
    s->snapshots = NULL;
}

/* ---- making entries ---- */

int qcow2_snapshot_make(struct qcow2_snapshot *sn, const struct blk_snapshot *what, const char *id, uint64_t disk_size,
                        uint64_t l1_offset, uint32_t l1_size)
{
    sn->id_length = (uint16_t)strlen(id);
    sn->name_length = (uint16_t)strlen(what->name);
    sn->extra_length = EXTRA_BYTES;
    sn->raw = calloc(1, align_up(entry_bytes(sn), 8) + 1); /* and a NUL: id and name are text */
    if (!sn->raw)
        return -ENOMEM;
    uint8_t *data = sn->raw;
    store_be64(data, l1_offset);
    store_be32(data + 8, l1_size);
    store_be16(data + 12, sn->id_length);
    store_be16(data + 14, sn->name_length);
    store_be32(data + 16, what->date_sec);
    store_be32(data + 20, what->date_nsec);
    store_be64(data + 24, what->vm_clock_nsec);
    store_be32(data + 32, what->vm_state_size > UINT32_MAX ? 0 : (uint32_t)what->vm_state_size);
    store_be32(data + 36, sn->extra_length);
    store_be64(data + 40, what->vm_state_size);
    store_be64(data + 48, disk_size);
    store_be64(data + 56, what->icount);
    memcpy(data + ENTRY_BYTES + EXTRA_BYTES, id, sn->id_length);
    memcpy(data + ENTRY_BYTES + EXTRA_BYTES + sn->id_length, what->name, sn->name_length);
    parse_fixed(data, sn);
    return parse_rest(sn);
}

void qcow2_snapshot_move(struct qcow2_snapshot *sn, uint64_t l1_offset)
{
    sn->l1_offset = l1_offset;
    store_be64(sn->raw, l1_offset);
}

uint64_t qcow2_snapshots_bytes(const struct qcow2_snapshot *list, uint32_t count)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < count; i++)
        bytes += align_up(entry_bytes(&list[i]), 8);
    return bytes;
}

void qcow2_snapshots_store(const struct qcow2_snapshot *list, uint32_t count, uint8_t *out)
{
    for (uint32_t i = 0; i < count; i++) {
        size_t bytes = align_up(entry_bytes(&list[i]), 8);
        memcpy(out, list[i].raw, bytes);
        out += bytes;
    }
}

json_t *qcow2_snapshots_json(const struct qcow2 *s)
{
    json_t *list = s->header.snapshot_count ? json_array() : NULL;

    for (uint32_t i = 0; list && i < s->header.snapshot_count; i++) {
        const struct qcow2_snapshot *sn = &s->snapshots[i];
        json_t *one = json_object();
        if (sn->icount != UINT64_MAX)
            json_object_set_new(one, "icount", json_integer((json_int_t)sn->icount));
        json_object_set_new(one, "vm-clock-nsec", json_integer((json_int_t)(sn->vm_clock_nsec % 1000000000)));
        json_object_set_new(one, "name", json_string_nocheck(sn->name));
        json_object_set_new(one, "date-sec", json_integer(sn->date_sec));
        json_object_set_new(one, "date-nsec", json_integer(sn->date_nsec));
        json_object_set_new(one, "vm-clock-sec", json_integer((json_int_t)(sn->vm_clock_nsec / 1000000000)));
        json_object_set_new(one, "id", json_string_nocheck(sn->id));
        json_object_set_new(one, "vm-state-size", json_integer((json_int_t)sn->vm_state_size));
        json_array_append_new(list, one);
    }
    return list;
}
