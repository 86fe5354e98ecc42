/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * VM state lies past the end of the disk, from the first L1 entry on that maps none of it, and is stored as the disk's
 * content is (the format's specification, "Snapshots"). A read finds zeroes where nothing is: there is no backing image
 * for it.
 */
#include "driver.h"
#include "truncate.h"

/* Where in the image's address space; false: that far no table reaches. */
static bool place(const struct qcow2 *s, uint64_t offset, uint64_t length, uint64_t *at)
{
    uint64_t end;

    return checked_add(qcow2_vm_state_start(s), offset, at) && checked_add(*at, length, &end) &&
           div_round_up(end, UINT64_C(1) << s->l1_shift) <= QCOW2_MAX_L1_BYTES / 8;
}

coroutine_fn int qcow2_co_vm_state_read(struct blk_node *node, uint64_t offset, uint64_t length,
                                        const struct iovec *iov, int iov_count)
{
    const struct qcow2 *s = node->state;
    uint64_t at;

    blk_co_event(node->file, BLK_EVENT_VMSTATE_LOAD);
    return place(s, offset, length, &at) ? qcow2_co_read(node, at, length, iov, iov_count) : -EFBIG;
}

coroutine_fn int qcow2_co_vm_state_write(struct blk_node *node, uint64_t offset, uint64_t length,
                                         const struct iovec *iov, int iov_count, struct error **errp)
{
    struct qcow2 *s = node->state;
    uint64_t at;
    int ret = s->external ? -ENOTSUP : place(s, offset, length, &at) ? 0 : -EFBIG;

    blk_co_event(node->file, BLK_EVENT_VMSTATE_SAVE);
    if (ret == 0 && div_round_up(at + length, UINT64_C(1) << s->l1_shift) > s->l1_size)
        ret = qcow2_co_grow_l1(s, div_round_up(at + length, UINT64_C(1) << s->l1_shift));
    if (ret == 0)
        ret = qcow2_co_write(node, at, length, iov, iov_count, 0);
    return ret < 0 ? error_set_errno(errp, ret, "Could not write VM state") : 0;
}
