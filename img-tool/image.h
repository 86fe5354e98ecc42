/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening and closing the images that a sub-command works on, errors reported in QEMU's words. */
#pragma once

#include <block/front.h>
#include <block/image.h>

struct image_source {
    const char *format;  /* -f; NULL: probe */
    bool image_opts;     /* --image-opts: names are options */
    bool force_share;    /* -U */
    bool no_share;       /* nobody may write meanwhile, whatever the format */
    bool no_write_cache; /* from the cache mode: writes are durable when done */
    unsigned flags;      /* BLK_O_* */
};

/* A cache mode's flags into *source. Returns false, silently, for words that are none. */
bool image_cache_mode(struct image_source *source, const char *mode);
/* Permission for what flags say (BLK_O_RDWR, BLK_O_RESIZE). NULL after reporting "Could not open 'NAME': …". */
coroutine_fn struct blk_front *image_co_open(const char *name, const struct image_source *source);
/* The same without the report. `options` (may be NULL) go on top of the source's. */
coroutine_fn struct blk_front *image_co_try_open(const char *name, const struct image_source *source,
                                                 const struct opts *options, struct error **errp);
/* Flushes and closes. Returns 0, or a negative errno after reporting. Takes NULL. */
coroutine_fn int image_co_close(struct blk_front *front);

/* "--image-opts and --format are mutually exclusive": reports and returns false. */
bool image_source_valid(const struct image_source *source);
/* --object: none exist yet. Reports and returns false. */
bool image_object_arg(const char *text);
/* --output: human or json. Reports and returns false. */
bool image_output_arg(const char *text, bool *json);
