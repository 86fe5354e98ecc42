/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The driver's callbacks (block/node.h says what they are asked), and its options. */
#pragma once

#include "state.h"

extern const struct opt_desc qcow2_options[], qcow2_create_options[], qcow2_amend_options[];

coroutine_fn int qcow2_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp);
coroutine_fn int qcow2_co_close(struct blk_node *node);
int qcow2_create_check(const struct blk_create *create, struct error **errp);
coroutine_fn int qcow2_co_create(struct blk_create *create, struct error **errp);
coroutine_fn int qcow2_co_measure(const struct opts *options, uint64_t size, struct blk_node *source,
                                  struct blk_measure *measure, struct error **errp);
void qcow2_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
               struct blk_extent *extent);
coroutine_fn int qcow2_co_load(struct blk_node *node, enum blk_op op, uint64_t offset, uint64_t length);
coroutine_fn int qcow2_co_extent(struct blk_node *node, uint64_t offset, uint64_t length, struct blk_extent *extent);
coroutine_fn int qcow2_co_read(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                               int iov_count);
coroutine_fn int qcow2_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                int iov_count, unsigned flags);
coroutine_fn int qcow2_co_write_compressed(struct blk_node *node, uint64_t offset, uint64_t length,
                                           const struct iovec *iov, int iov_count, unsigned flags);
coroutine_fn int qcow2_co_write_zeroes(struct blk_node *node, uint64_t offset, uint64_t length, unsigned flags);
coroutine_fn int qcow2_co_discard(struct blk_node *node, uint64_t offset, uint64_t length);
coroutine_fn int qcow2_co_flush(struct blk_node *node);
coroutine_fn int qcow2_co_truncate(struct blk_node *node, uint64_t size, bool exact, const char *prealloc,
                                   struct error **errp);
coroutine_fn int qcow2_co_amend(struct blk_node *node, struct opts *opts, struct error **errp);
coroutine_fn int qcow2_co_make_empty(struct blk_node *node, struct error **errp);
coroutine_fn int qcow2_co_change_backing(struct blk_node *node, const char *name, const char *format,
                                         struct error **errp);
coroutine_fn int qcow2_co_snapshot_create(struct blk_node *node, const struct blk_snapshot *what, struct error **errp);
coroutine_fn int qcow2_co_snapshot_apply(struct blk_node *node, const char *id_or_name, struct error **errp);
coroutine_fn int qcow2_co_snapshot_delete(struct blk_node *node, const char *name, struct error **errp);
coroutine_fn int qcow2_co_snapshot_show(struct blk_node *node, const char *id, const char *name, struct error **errp);
int qcow2_bitmap_check(const struct blk_node *node, const char *name, struct error **errp);
void qcow2_bitmap_removed(struct blk_node *node, const struct blk_bitmap *bitmap);
coroutine_fn int qcow2_co_bitmaps_load(struct blk_node *node, struct error **errp);
coroutine_fn int qcow2_co_vm_state_read(struct blk_node *node, uint64_t offset, uint64_t length,
                                        const struct iovec *iov, int iov_count);
coroutine_fn int qcow2_co_vm_state_write(struct blk_node *node, uint64_t offset, uint64_t length,
                                         const struct iovec *iov, int iov_count, struct error **errp);
void qcow2_child_changed(struct blk_node *node);
coroutine_fn int qcow2_co_reopen_prepare(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp);
void qcow2_reopen_switch(struct blk_node *node);
coroutine_fn int qcow2_co_reopen_begin(struct blk_node *node, unsigned old_flags, struct error **errp);
coroutine_fn void qcow2_co_reopen_clean(struct blk_node *node);
coroutine_fn int qcow2_co_info(struct blk_node *node, struct blk_info *info, struct error **errp);
coroutine_fn int qcow2_co_check(struct blk_node *node, struct blk_check *check, unsigned fix, struct error **errp);
coroutine_fn int qcow2_co_compact(struct blk_node *node, struct blk_compact *compact, struct error **errp);
