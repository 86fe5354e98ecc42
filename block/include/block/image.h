/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Images by name: open, create, probe, describe, check. On the main loop. */
#pragma once

#include <block/node.h>

/*
 * Opens a node. `filename` may be a plain path, `prefix:…` of a protocol, `json:{…}`, or NULL where opts say it all.
 * opts (may be NULL; stays the caller's, is not changed) are flat: driver, node-name, file.…, backing.…, cache.direct,
 * cache.no-flush, read-only, auto-read-only, discard, detect-zeroes, force-share, and the driver's own. Without
 * `driver` the format is probed. Returns a node with one reference, or NULL.
 */
coroutine_fn struct blk_node *blk_co_open(const char *filename, const struct opts *opts, unsigned flags,
                                          struct error **errp);
/* As blk_co_open() with these flags, but the image is only read. Unless the flags or the options (which are changed)
 * say read-only, a new one of `format` lies on top, in a file of $TMPDIR or /var/tmp without a name: what is written is
 * gone with the node. */
coroutine_fn struct blk_node *blk_co_open_temporary(const char *filename, struct opts *opts, unsigned flags,
                                                    const char *format, struct error **errp);
/* The node, whose reference it takes over, with a filter on top that copies what is read of its backing images into it;
 * NULL and *errp if it cannot be written. */
coroutine_fn struct blk_node *blk_co_copy_on_read(struct blk_node *node, struct error **errp);
/* An open node by its node-name, or NULL; adds no reference. */
struct blk_node *blk_node_find(const char *name);
struct blk_node *blk_node_ref(struct blk_node *node);
/* Drops a reference; the last one drains, closes (children too) and frees. Returns the first error of closing (a
 * write-back that failed), 0 otherwise. Takes NULL. */
coroutine_fn int blk_co_node_unref(struct blk_node *node);
/* Every request in flight on a server below ends soon, with -ECANCELED, whoever sent it; `for_good`: those to come too,
 * so that the node can be closed though a server hangs, at the price of what had to be written back. Main loop. */
void blk_node_cancel(struct blk_node *node, bool for_good);

/* "none", "off", "writeback", "writethrough", "directsync", "unsafe" → BLK_O_* bits and whether the device shows a
 * write cache; -EINVAL for other words. */
int blk_cache_mode_parse(const char *mode, unsigned *flags, bool *write_cache);
/* The words that it knows, from index 0 on; NULL after the last. */
const char *blk_cache_mode_name(size_t index);

/* Keys common to all nodes, for --help and the manual. */
extern const struct opt_desc blk_node_options[];

/* ---- create ---- */

struct blk_create {
    const char *filename;
    const struct opts *options; /* all of -o, plus size, backing_file, backing_fmt */
    uint64_t size;
    /* For formats: blk_co_create() has made and opened the protocol file; write to it. NULL in a protocol's
     * co_create. */
    struct blk_node *file;
};
/* off, metadata, falloc or full: what an image's option `preallocation` may say. Not every driver has every one. */
bool blk_is_preallocation(const char *word);
/* Creates `filename` in a format: the file through its protocol, then the layout. Checks every option against the
 * driver's table and the protocol's. On failure no half-made file is left where there was none. */
coroutine_fn int blk_co_create(const char *format, const char *filename, const struct opts *options, uint64_t size,
                               struct error **errp);

struct blk_measure {
    uint64_t required, fully_allocated; /* bytes of the file: with the source's data, with all of the disk written */
    bool has_bitmaps;
    uint64_t bitmaps; /* and so much more with the source's persistent bitmaps */
};
/* How large a new image of this format would be, created with these options (NULL: none): for a disk of `size` bytes,
 * or for the content of `source`, which may be NULL. */
coroutine_fn int blk_co_measure(const struct blk_driver *driver, const struct opts *options, uint64_t size,
                                struct blk_node *source, struct blk_measure *measure, struct error **errp);

/* ---- names ---- */

/* Full name of `name` as seen from the image `base` (a relative path is relative to the folder of base). Caller
 * frees. */
char *blk_path_combine(const char *base, const char *name);
bool blk_path_has_protocol(const char *name);
/* The path as a name that is not taken for one with a protocol: "./vm:1" for the file "vm:1". Caller frees. */
char *blk_path_as_file(const char *path);
/* The protocol driver for a plain path or `prefix:…`; NULL and *errp where there is none. Any thread. */
const struct blk_driver *blk_protocol_for(const char *filename, struct error **errp);
/* Finds the driver whose format fits the content; "raw" if none does. -ENOTSUP for a format that has no driver. */
coroutine_fn int blk_co_probe(struct blk_node *file, const struct blk_driver **out, struct error **errp);

/* ---- describe and check ---- */

struct blk_info {
    uint64_t virtual_size;
    int64_t allocated_size; /* -1 unknown */
    uint64_t cluster_size;  /* 0: none */
    bool encrypted, dirty, corrupt;
    bool dirty_known; /* not of null devices, which hold nothing */
    uint64_t vm_state_offset;
    char *backing_file; /* as written in the image, NULL: none */
    char *backing_format;
    char *full_backing_file;
    json_t *format_specific; /* {"type": …, "data": {…}}, keys in QEMU's order, or NULL */
    json_t *snapshots;       /* array, or NULL */
};
coroutine_fn int blk_co_info(struct blk_node *node, struct blk_info *info, struct error **errp);
void blk_info_finish(struct blk_info *info);

enum blk_fix { BLK_FIX_LEAKS = 1, BLK_FIX_ERRORS = 2 };
struct blk_check {
    uint64_t corruptions, leaks, check_errors;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t image_end_offset;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
    /* A line of text for the person ("Leaked cluster 5 refcount=1 reference=0"), or NULL. */
    void (*report)(struct blk_check *check, bool error, const char *line);
};
coroutine_fn int blk_co_check(struct blk_node *node, struct blk_check *check, unsigned fix,
                              struct error **errp); /* -ENOTSUP: the format cannot */
