/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* L2 entries: what takes more than a line to say. */
#include "entry.h"

#include <block/types.h>

void qcow2_entry_compressed_place(struct qcow2_entry entry, unsigned cluster_bits, uint64_t *offset, uint64_t *length)
{
    unsigned x = 62 - (cluster_bits - 8);
    uint64_t more_sectors = (entry.word >> x) & ((UINT64_C(1) << (cluster_bits - 8)) - 1);

    *offset = entry.word & ((UINT64_C(1) << x) - 1);
    *length = (more_sectors + 1) * BLK_SECTOR_SIZE - (*offset & (BLK_SECTOR_SIZE - 1));
}

struct qcow2_entry qcow2_entry_compressed(uint64_t offset, uint64_t length, unsigned cluster_bits)
{
    unsigned x = 62 - (cluster_bits - 8);
    uint64_t more_sectors = (offset + length - 1) / BLK_SECTOR_SIZE - offset / BLK_SECTOR_SIZE;

    return (struct qcow2_entry){ QCOW2_COMPRESSED | more_sectors << x | offset, 0 };
}
