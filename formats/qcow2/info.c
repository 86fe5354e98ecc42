/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What `img-tool info` and query-block say of a qcow2 image: QEMU's keys in QEMU's order. */
#include "bitmaps.h"
#include "driver.h"
#include "snapshot.h"

static json_t *specific(const struct qcow2 *s)
{
    bool v3 = s->header.version >= 3;
    json_t *data = json_object();

    json_object_set_new(data, "compat", json_string(v3 ? "1.1" : "0.10"));
    json_object_set_new(data, "compression-type", json_string(s->header.compression == QCOW2_ZSTD ? "zstd" : "zlib"));
    if (v3)
        json_object_set_new(data, "lazy-refcounts",
                            json_boolean((s->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS) != 0));
    json_t *bitmaps = qcow2_bitmaps_json(s);
    if (bitmaps)
        json_object_set_new(data, "bitmaps", bitmaps);
    json_object_set_new(data, "refcount-bits", json_integer(1 << s->header.refcount_order));
    if (s->data_name)
        json_object_set_new(data, "data-file", json_string_nocheck(s->data_name));
    if (s->external)
        json_object_set_new(data, "data-file-raw", json_boolean(qcow2_data_is_raw(s)));
    if (v3) {
        json_object_set_new(data, "corrupt", json_boolean((s->header.incompatible & QCOW2_INCOMPAT_CORRUPT) != 0));
        json_object_set_new(data, "extended-l2",
                            json_boolean((s->header.incompatible & QCOW2_INCOMPAT_EXTENDED_L2) != 0));
    }
    return json_pack("{s:s, s:o}", "type", "qcow2", "data", data);
}

coroutine_fn int qcow2_co_info(struct blk_node *node, struct blk_info *info, struct error **errp)
{
    struct qcow2 *s = node->state;

    info->cluster_size = s->cluster_size;
    info->dirty = s->header.incompatible & QCOW2_INCOMPAT_DIRTY;
    info->corrupt = s->header.incompatible & QCOW2_INCOMPAT_CORRUPT;
    info->vm_state_offset = qcow2_vm_state_start(s);
    if (s->backing_name) {
        info->backing_file = xstrdup(s->backing_name);
        info->backing_format = s->backing_format[0] ? xstrdup(s->backing_format) : NULL;
        info->full_backing_file = blk_path_combine(blk_node_protocol(node)->filename, s->backing_name);
    }
    info->snapshots = qcow2_snapshots_json(s);
    info->format_specific = specific(s);
    return info->format_specific ? 0 : error_set(errp, -ENOMEM, "Out of memory");
}
