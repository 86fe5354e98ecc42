/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* -drive and -blockdev: from options to open nodes and front ends, and from devices' drive= to those. Main loop. */
#pragma once

#include "machine.h"

struct blk_front;

/* What a device takes over from a drive when it attaches to it. */
struct drive_attachment {
    struct blk_front *front; /* the drive's; given back by drive_detach() */
    bool write_cache;        /* as the cache mode says */
    const char *serial;      /* NULL: none given */
    bool read_only;
};

/* Opens all of -blockdev and -drive. */
coroutine_fn int drives_co_open(struct machine *machine, struct error **errp);
/* The devices of drives that have if=virtio. */
coroutine_fn int drives_co_create_devices(struct machine *machine, struct error **errp);
/* `name`: a drive's id or a node-name. Each can be attached once. */
coroutine_fn int drive_co_attach(const char *name, bool share_rw, struct drive_attachment *attachment,
                                 struct error **errp);
/* werror= and rerror= of the device, or of the drive that the front end belongs to. */
int drive_set_on_error(struct blk_front *front, struct opts *opts, const struct opt_desc *table, struct error **errp);

/* ---- the end, for ending.c ---- */

/* Flushes all, side by side, and closes each as soon as no device uses it. */
void drives_begin_end(void);
/* The device has nothing in flight, and does not use the front end any more. */
void drive_detach(struct blk_front *front);
/* After drives_begin_end(), when no device uses any: waits until all are closed. Returns the first error that means
 * loss (reported already). */
coroutine_fn int drives_co_end(void);
/* Drives that hang (a flush, a close, a request of their device does not end) are cancelled for good, with a
 * warning. */
void drives_give_up(void);
/* Any thread: an error message for each that is still open. */
void drives_report_open(void);
