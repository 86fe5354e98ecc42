/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * -drive and -blockdev. A drive is an open node and, once a device is attached, a front end on it. At the end they are
 * closed side by side, so that one that hangs delays no other; a node that others refer to by name closes with the last
 * of them.
 * Invariant: every node and front end that was opened here is closed here, with its data flushed, however the start
 * failed.
 */
#include "drive.h"

#include "cmdline.h"

#include <base/compiler.h>
#include <block/front.h>
#include <block/image.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct drive {
    char *id;   /* of -drive; NULL for -blockdev */
    char *text; /* the option, for messages; a copy, for an option's value goes with the option */
    struct blk_node *node;
    struct blk_front *front;
    bool write_cache, virtio;
    bool temporary; /* snapshot=on */
    bool copy_on_read;
    char *serial, *werror, *rerror;
    bool lent;     /* a device uses it */
    bool given_up; /* it hung when all was to end */
    enum { OPEN, FLUSHED, CLOSING } stage;
    struct list link;
};

static struct list drives = { &drives, &drives }; /* changed by the main loop, under the lock */
static pthread_mutex_t drives_lock = PTHREAD_MUTEX_INITIALIZER;
static int end_error;

static const char *const interfaces[] = { "none", "virtio", NULL };
static const char *const media[] = { "disk", "cdrom", NULL };
static const char *const aio_words[] = { "io_uring", "native", "threads", NULL };

static const struct opt_desc drive_options[] = {
    { .name = "file", .type = OPT_STRING, .help = "image" },
    { .name = "if",
      .type = OPT_ENUM,
      .values = interfaces,
      .def = "virtio",
      .help = "none: for -device; virtio: makes a virtio-blk-pci" },
    { .name = "id", .type = OPT_STRING, .help = "name, for -device drive=" },
    { .name = "format", .type = OPT_STRING, .help = "format of the image" },
    { .name = "cache",
      .type = OPT_STRING,
      .def = "writeback",
      .help = "none, writeback, writethrough, directsync, unsafe" },
    { .name = "cache.writeback", .type = OPT_BOOL, .help = "the device shows a write cache" },
    { .name = "aio", .type = OPT_ENUM, .values = aio_words, .def = "io_uring", .help = "how the host does I/O" },
    { .name = "media", .type = OPT_ENUM, .values = media, .def = "disk", .help = "disk" },
    { .name = "index", .type = OPT_NUMBER, .help = "accepted; drives are numbered in their order" },
    { .name = "readonly", .type = OPT_BOOL, .help = "as read-only" },
    { .name = "snapshot", .type = OPT_BOOL, .def = "off", .help = "writes go to a file that is gone at the end" },
    { .name = "copy-on-read",
      .type = OPT_BOOL,
      .def = "off",
      .help = "copies what is read of backing files into the image" },
    { .name = "serial", .type = OPT_STRING, .help = "serial number" },
    { .name = "werror", .type = OPT_STRING, .help = "on a write error: report, ignore, stop, enospc" },
    { .name = "rerror", .type = OPT_STRING, .help = "on a read error: report, ignore, stop" },
    { 0 },
};

static struct drive *find_drive(const char *id)
{
    struct drive *drive;
    list_for_each(drive, &drives, link)
        if (drive->id && strcmp(drive->id, id) == 0)
            return drive;
    return NULL;
}

static struct drive *new_drive(const char *text)
{
    struct drive *drive = xcalloc(1, sizeof(*drive));
    drive->text = xstrdup(text);
    drive->write_cache = true;
    pthread_mutex_lock(&drives_lock);
    list_append(&drives, &drive->link);
    pthread_mutex_unlock(&drives_lock);
    return drive;
}

/* ---- -drive ---- */

static int parse_on_error(const char *word, bool is_read, enum blk_on_error *out, struct error **errp)
{
    static const char *const words[] = { "report", "ignore", "stop", "enospc" };
    static const enum blk_on_error values[] = { BLK_ON_ERROR_REPORT, BLK_ON_ERROR_IGNORE, BLK_ON_ERROR_STOP,
                                                BLK_ON_ERROR_ENOSPC };
    for (unsigned i = 0; word && i < (is_read ? 3u : 4u); i++) {
        if (strcmp(word, words[i]) == 0) {
            *out = values[i];
            return 0;
        }
    }
    return word ? error_set(errp, -EINVAL, "'%s' invalid %s error action", word, is_read ? "read" : "write") : 0;
}

static int read_interface(struct opts *opts, int *interface, struct error **errp)
{
    AUTO_FREE char *word = opts_take(opts, "if");
    *interface = 1; /* if it is not said: virtio */
    if (!word)
        return 0;
    for (int i = 0; interfaces[i]; i++) {
        if (strcmp(word, interfaces[i]) == 0) {
            *interface = i;
            return 0;
        }
    }
    return error_set(errp, -EINVAL, "unsupported bus type '%s'", word);
}

/* What QEMU's -drive knows and this one does not yet is refused for what it asks for: the node that is opened then
 * would say that the image's format does not support it. */
static int refuse_missing(const struct opts *opts, struct error **errp)
{
    static const char throttling[] = "I/O throttling", statistics[] = "choosing what is counted";
    static const struct {
        const char *key; /* or the beginning of keys, up to a dot */
        const char *feature;
    } missing[] = {
        { "bps", throttling },
        { "bps_rd", throttling },
        { "bps_wr", throttling },
        { "bps_max", throttling },
        { "bps_rd_max", throttling },
        { "bps_wr_max", throttling },
        { "iops", throttling },
        { "iops_rd", throttling },
        { "iops_wr", throttling },
        { "iops_max", throttling },
        { "iops_rd_max", throttling },
        { "iops_wr_max", throttling },
        { "iops_size", throttling },
        { "group", throttling },
        { "throttling.", throttling },
        { "stats-account-invalid", statistics },
        { "stats-account-failed", statistics },
        { "stats-intervals.", statistics },
        { "bus", "choosing a disk's bus" },
        { "unit", "choosing a disk's place on a bus" },
    };
    const char *key;
    for (size_t at = 0; (key = opts_key(opts, at)); at++) {
        for (size_t i = 0; i < ARRAY_SIZE(missing); i++) {
            size_t length = strlen(missing[i].key);
            bool beginning = missing[i].key[length - 1] == '.';
            if (strncmp(key, missing[i].key, length) == 0 && (beginning || !key[length]))
                return error_set(errp, -ENOTSUP, "%s= is not supported yet: %s", key, missing[i].feature);
        }
    }
    return 0;
}

/* What -drive says in its own words: taken out of opts, the rest is the node's. */
static int take_words(struct drive *drive, struct opts *opts, unsigned *flags, struct error **errp)
{
    int interface = 0, medium = 0, aio = 0;
    bool snapshot, copy_on_read;
    uint64_t index;
    const char *cache = NULL;
    int given = refuse_missing(opts, errp);
    if (given == 0)
        given = read_interface(opts, &interface, errp);
    if (given < 0)
        return given;
    if (opts_enum(opts, drive_options, "media", &medium, errp) < 0 ||
        opts_enum(opts, drive_options, "aio", &aio, errp) < 0 ||
        opts_bool(opts, drive_options, "snapshot", &snapshot, errp) < 0 ||
        opts_bool(opts, drive_options, "copy-on-read", &copy_on_read, errp) < 0 ||
        opts_number(opts, drive_options, "index", &index, errp) < 0 ||
        opts_string(opts, drive_options, "cache", &cache, errp) < 0)
        return -EINVAL;
    if (medium != 0)
        return error_set(errp, -ENOTSUP, "media=cdrom is not supported yet");
    drive->temporary = snapshot;
    drive->copy_on_read = copy_on_read;
    if (blk_cache_mode_parse(cache, flags, &drive->write_cache) < 0)
        return error_set(errp, -EINVAL, "invalid cache option");
    given = opts_bool(opts, drive_options, "cache.writeback", &drive->write_cache, errp);
    if (given < 0)
        return given;
    *flags |= aio == 2 ? BLK_O_AIO_THREADS : 0;
    drive->virtio = interface == 1;
    return 0;
}

/* Renames and removes, so that what is left are options of a node. */
static void leave_node_options(struct opts *opts)
{
    static const char *const own[] = { "if",    "id",       "media",           "aio",    "snapshot", "copy-on-read",
                                       "index", "cache",    "cache.writeback", "serial", "werror",   "rerror",
                                       "file",  "readonly", "format" };
    char *format = opts_take(opts, "format");
    char *read_only = opts_take(opts, "readonly");
    if (format)
        opts_set(opts, "driver", format);
    if (read_only)
        opts_set(opts, "read-only", read_only);
    for (size_t i = 0; i < ARRAY_SIZE(own); i++)
        opts_del(opts, own[i]);
    free(format);
    free(read_only);
}

static char *make_id(void)
{
    for (unsigned i = 0;; i++) {
        char *id = xasprintf("virtio%u", i);
        if (!find_drive(id))
            return id;
        free(id);
    }
}

static coroutine_fn int co_open_drive(const struct config_item *item, struct error **errp)
{
    struct opts *opts = opts_clone(item->opts);
    struct drive *drive = new_drive(item->text);
    char *file = opts_take(opts, "file"), *id = opts_take(opts, "id");
    unsigned flags = BLK_O_RDWR;
    int err = take_words(drive, opts, &flags, errp);
    if (!err && id && (find_drive(id) || blk_node_find(id)))
        err = error_set(errp, -EEXIST, "Duplicate ID '%s' for drive", id);
    if (!err && !file && !opts_has_prefix(opts, "file") && !opts_has(opts, "driver"))
        err = error_set(errp, -EINVAL, "a drive without a medium is of no use here: file= is missing");
    if (!err) {
        drive->id = id ? xstrdup(id) : make_id();
        drive->serial = opts_take(opts, "serial");
        drive->werror = opts_take(opts, "werror");
        drive->rerror = opts_take(opts, "rerror");
        enum blk_on_error ignored;
        err = parse_on_error(drive->werror, false, &ignored, errp);
        if (!err)
            err = parse_on_error(drive->rerror, true, &ignored, errp);
    }
    if (!err) {
        leave_node_options(opts);
        drive->node = drive->temporary ? blk_co_open_temporary(file, opts, flags, "qcow2", errp)
                                       : blk_co_open(file, opts, flags, errp);
        err = drive->node ? 0 : -EIO;
    }
    if (!err && drive->copy_on_read) {
        drive->node = blk_co_copy_on_read(drive->node, errp);
        err = drive->node ? 0 : -EIO;
    }
    free(file);
    free(id);
    opts_free(opts);
    return err;
}

/* ---- -blockdev ---- */

static coroutine_fn int co_open_blockdev(const struct config_item *item, struct error **errp)
{
    if (!opts_has(item->opts, "driver"))
        return error_set(errp, -EINVAL, "Parameter 'driver' is missing");
    struct drive *drive = new_drive(item->text);
    drive->node = blk_co_open(NULL, item->opts, BLK_O_RDWR, errp);
    if (drive->node && !opts_has(item->opts, "node-name"))
        return error_set(errp, -EINVAL, "'node-name' must be specified for the root node");
    return drive->node ? 0 : -EIO;
}

coroutine_fn int drives_co_open(struct machine *machine, struct error **errp)
{
    const struct config *config = machine->config;
    for (unsigned i = 0; i < config->blockdevs.count + config->drives.count; i++) {
        bool blockdev = i < config->blockdevs.count;
        const struct config_item *item = blockdev ? &config->blockdevs.items[i]
                                                  : &config->drives.items[i - config->blockdevs.count];
        int err = blockdev ? co_open_blockdev(item, errp) : co_open_drive(item, errp);
        if (err) {
            error_prepend(errp, "%s %s: ", item->option, item->text);
            return err;
        }
    }
    return 0;
}

/* ---- devices ---- */

coroutine_fn int drives_co_create_devices(struct machine *machine, struct error **errp)
{
    struct drive *drive;
    list_for_each(drive, &drives, link) {
        if (!drive->virtio)
            continue;
        struct opts *opts = opts_new();
        opts_set(opts, "driver", "virtio-blk-pci");
        opts_set(opts, "drive", drive->id);
        int err = device_co_create(machine, opts, errp);
        opts_free(opts);
        if (err) {
            error_prepend(errp, "-drive %s: ", drive->text);
            return err;
        }
    }
    return 0;
}

static struct drive *find_by_node(const char *name)
{
    struct blk_node *node = blk_node_find(name);
    struct drive *drive;
    if (!node)
        return NULL;
    list_for_each(drive, &drives, link)
        if (drive->node == node)
            return drive;
    /* A child of one that was given by name: it gets an entry of its own. */
    drive = new_drive(name);
    drive->node = blk_node_ref(node);
    return drive;
}

coroutine_fn int drive_co_attach(const char *name, bool share_rw, struct drive_attachment *attachment,
                                 struct error **errp)
{
    struct drive *drive = find_drive(name);
    if (!drive)
        drive = find_by_node(name);
    if (!drive)
        return error_set(errp, -ENODEV, "Property 'virtio-blk-device.drive' can't find value '%s'", name);
    if (drive->front)
        return error_set(errp, -EBUSY, "Drive '%s' is already in use by another device", name);
    bool read_only = !blk_node_writable(drive->node);
    unsigned perm = BLK_PERM_CONSISTENT_READ | (read_only ? 0u : BLK_PERM_WRITE);
    unsigned shared = BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE_UNCHANGED | BLK_PERM_RESIZE |
                      (share_rw ? BLK_PERM_WRITE : 0u);
    drive->front = blk_front_new(name, drive->node, perm, shared, errp);
    if (!drive->front)
        return -EPERM;
    drive->lent = true;
    *attachment = (struct drive_attachment){ drive->front, drive->write_cache, drive->serial, read_only };
    return 0;
}

int drive_set_on_error(struct blk_front *front, struct opts *opts, const struct opt_desc *table, struct error **errp)
{
    enum blk_on_error on_read = BLK_ON_ERROR_REPORT, on_write = BLK_ON_ERROR_ENOSPC;
    const char *werror = NULL, *rerror = NULL;
    struct drive *drive;
    list_for_each(drive, &drives, link) {
        if (drive->front == front) {
            werror = drive->werror;
            rerror = drive->rerror;
        }
    }
    if (opts_string(opts, table, "werror", &werror, errp) < 0 || opts_string(opts, table, "rerror", &rerror, errp) < 0)
        return -EINVAL;
    int err = parse_on_error(werror, false, &on_write, errp);
    if (!err)
        err = parse_on_error(rerror, true, &on_read, errp);
    if (!err)
        blk_front_set_on_error(front, on_read, on_write);
    return err;
}

/* ---- the end ---- */

static struct co_cond changed; /* a drive was given back by its device, or is closed; main loop */

__attribute__((constructor)) static void end_init(void) { co_cond_init(&changed); }

static const char *name_of(const struct drive *drive) { return drive->id ? drive->id : drive->text; }

static void free_drive(struct drive *drive)
{
    pthread_mutex_lock(&drives_lock);
    list_remove(&drive->link);
    pthread_mutex_unlock(&drives_lock);
    free(drive->id);
    free(drive->text);
    free(drive->serial);
    free(drive->werror);
    free(drive->rerror);
    free(drive);
}

static coroutine_fn int co_close(struct drive *drive)
{
    drive->stage = CLOSING;
    int err = blk_co_front_free(drive->front);
    drive->front = NULL;
    int close_err = blk_co_node_unref(drive->node);
    drive->node = NULL;
    return err ? err : close_err;
}

/* What is acknowledged when the end begins is flushed at once: its device may take long to become quiet. */
static coroutine_fn void co_end_one(void *argument)
{
    struct drive *drive = argument;
    struct blk_front *front = drive->front;
    int err = front && blk_front_writable(front) ? blk_front_co_flush(front) : 0;

    drive->stage = FLUSHED;
    while (drive->lent)
        co_cond_wait(&changed, NULL);
    int close_err = co_close(drive);
    err = err ? err : close_err;
    if (err)
        error_report("data of the drive '%s' may be lost: %s", name_of(drive), strerror(-err));
    else if (drive->given_up)
        err = -ECANCELED;
    end_error = end_error ? end_error : err;
    free_drive(drive);
    co_cond_broadcast(&changed);
}

void drives_begin_end(void)
{
    struct drive *drive, *next;

    end_error = 0;
    list_for_each_safe(drive, next, &drives, link)
        co_start(co_end_one, drive);
}

void drive_detach(struct blk_front *front)
{
    struct drive *drive;

    list_for_each(drive, &drives, link)
        if (drive->front == front)
            drive->lent = false;
    co_cond_broadcast(&changed);
}

coroutine_fn int drives_co_end(void)
{
    struct drive *drive;

    /* Of devices that the start did not get to finish. */
    list_for_each(drive, &drives, link)
        drive->lent = false;
    co_cond_broadcast(&changed);
    while (!list_empty(&drives))
        co_cond_wait(&changed, NULL);
    return end_error;
}

void drives_give_up(void)
{
    struct drive *drive;

    list_for_each(drive, &drives, link) {
        /* One that is flushed and idle waits for the machine, which may wait for another disk. */
        if (!drive->node || (drive->stage == FLUSHED && !(drive->front && blk_front_busy(drive->front))))
            continue;
        warn_report("the drive '%s' hangs and is given up: what was not flushed to it may be lost", name_of(drive));
        drive->given_up = true;
        blk_node_cancel(drive->node, true);
    }
}

void drives_report_open(void)
{
    struct drive *drive;

    pthread_mutex_lock(&drives_lock);
    list_for_each(drive, &drives, link)
        error_report("the drive '%s' was not closed: what was not flushed to it may be lost", name_of(drive));
    pthread_mutex_unlock(&drives_lock);
}
