/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* -drive and -blockdev: from options to open nodes and front ends, and from devices' drive= to those. Main loop. */
#pragma once

#include "machine.h"

struct blk_front;

/* What a device takes over from a drive when it attaches to it. */
struct drive_attachment {
    struct blk_front *front; /* the drive's; closed by drives_co_close() */
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
/* Flushes and closes all; returns the first error that means loss (reported already). */
coroutine_fn int drives_co_close(void);
