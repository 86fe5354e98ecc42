/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * virtio-blk (virtio 1.2, 5.2) as a PCI device: options, features, configuration space, write cache. Requests are in
 * virtio_blk_request.c. A change of the write cache by the driver blocks its vCPU until what was cached before is
 * flushed.
 */
#include "virtio_blk.h"

#include "drive.h"
#include "object.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <errno.h>
#include <linux/virtio_ids.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u

static const struct opt_desc options[] = {
    { "drive", OPT_STRING, NULL, "node-name or id of the drive" },
    { "id", OPT_STRING, NULL, "name of the device" },
    { "addr", OPT_STRING, NULL, "slot and function, as in 06.0" },
    { "serial", OPT_STRING, NULL, "serial number, 20 characters" },
    { "num-queues", OPT_STRING, "auto", "number of queues; auto: one a vCPU" },
    { "queue-size", OPT_NUMBER, "256", "descriptors a queue, a power of two" },
    { "iothread", OPT_STRING, NULL, "iothread that serves the queues" },
    { "iothread-vq-mapping", OPT_STRING, NULL, "list of {iothread, vqs}, in JSON: which iothread serves which queues" },
    { "logical_block_size", OPT_SIZE, "512", "the guest's sector size" },
    { "physical_block_size", OPT_SIZE, NULL, "what the guest should align to (default: the host's)" },
    { "min_io_size", OPT_SIZE, "0", "smallest good request" },
    { "opt_io_size", OPT_SIZE, "0", "best size of requests" },
    { "discard_granularity", OPT_SIZE, NULL, "alignment of discards" },
    { "write-cache", OPT_STRING, "auto", "on, off, or auto: as the cache mode says" },
    { "config-wce", OPT_BOOL, "on", "the guest may turn the write cache on and off" },
    { "discard", OPT_BOOL, "on", "offer discard" },
    { "write-zeroes", OPT_BOOL, "on", "offer write zeroes" },
    { "max-discard-sectors", OPT_NUMBER, "4194303", "longest discard" },
    { "max-write-zeroes-sectors", OPT_NUMBER, "4194303", "longest write zeroes" },
    { "event_idx", OPT_BOOL, "on", "offer the event index" },
    { "indirect_desc", OPT_BOOL, "on", "offer indirect descriptors" },
    { "werror", OPT_STRING, NULL, "on a write error: report, ignore, stop, enospc" },
    { "rerror", OPT_STRING, NULL, "on a read error: report, ignore, stop" },
    { "share-rw", OPT_BOOL, "off", "others may write to the image meanwhile" },
    { "bootindex", OPT_NUMBER, NULL, "accepted; nothing boots from disks yet" },
    { "disable-legacy", OPT_STRING, "on", "accepted; there is no legacy interface" },
    { "disable-modern", OPT_BOOL, "off", "accepted as off" },
    { 0 },
};

/* ---- configuration space (5.2.4) ---- */

static void config_read(struct virtio_device *vdev, uint64_t offset, unsigned length, void *data)
{
    const struct virtio_blk *blk = container_of(vdev, struct virtio_blk, vdev);
    struct virtio_blk_config config = {
        .capacity = htole64(blk_front_size(blk->front) / SECTOR),
        .seg_max = htole32(vdev->queues[0].size_max - 2u),
        .blk_size = htole32(blk->logical_block),
        .physical_block_exp = (uint8_t)log2_floor(blk->physical_block / blk->logical_block),
        .min_io_size = htole16((uint16_t)(blk->min_io / blk->logical_block)),
        .opt_io_size = htole32(blk->opt_io / blk->logical_block),
        .wce = blk->wce,
        .num_queues = htole16((uint16_t)vdev->queue_count),
        .max_discard_sectors = htole32(blk->max_discard_sectors),
        .max_discard_seg = htole32(VIRTIO_BLK_MAX_SEGMENTS),
        .discard_sector_alignment = htole32(blk->discard_granularity / SECTOR),
        .max_write_zeroes_sectors = htole32(blk->max_zeroes_sectors),
        .max_write_zeroes_seg = htole32(VIRTIO_BLK_MAX_SEGMENTS),
        .write_zeroes_may_unmap = 1,
    };
    memcpy(data, (const uint8_t *)&config + offset, length);
}

/* ---- write cache ---- */

struct flush_wait {
    struct virtio_blk *blk;
    bool done;
};

static coroutine_fn void co_flush(void *argument)
{
    struct flush_wait *wait = argument;
    struct virtio_blk *blk = wait->blk;
    blk_front_co_flush(blk->front); /* a failure is seen again by the next flush that the guest waits for */
    device_lock(blk->vdev.machine);
    wait->done = true;
    pthread_cond_broadcast(&blk->vdev.changed);
    device_unlock(blk->vdev.machine);
}

static void set_write_cache(struct virtio_blk *blk, bool on)
{
    bool was_on = blk->wce;
    blk->wce = on;
    blk_front_set_write_cache(blk->front, on);
    if (!was_on || on || blk->read_only)
        return;
    struct flush_wait wait = { .blk = blk };
    co_start_on(blk->vdev.machine->loop, co_flush, &wait);
    while (!wait.done)
        pthread_cond_wait(&blk->vdev.changed, &blk->vdev.machine->device_lock);
}

static void config_write(struct virtio_device *vdev, uint64_t offset, unsigned length, const void *data)
{
    struct virtio_blk *blk = container_of(vdev, struct virtio_blk, vdev);
    const uint8_t *bytes = data;
    uint64_t wce = offsetof(struct virtio_blk_config, wce);
    if (vdev->features >> VIRTIO_BLK_F_CONFIG_WCE & 1 && offset <= wce && wce < offset + length && !vdev->resetting)
        set_write_cache(blk, bytes[wce - offset] & 1);
}

/* A driver that cannot flush gets a disk that needs none (5.2.5). */
static void features_set(struct virtio_device *vdev, uint64_t features)
{
    struct virtio_blk *blk = container_of(vdev, struct virtio_blk, vdev);
    if (!(features >> VIRTIO_BLK_F_FLUSH & 1))
        set_write_cache(blk, false);
}

static void reset_device(struct virtio_device *vdev)
{
    struct virtio_blk *blk = container_of(vdev, struct virtio_blk, vdev);
    blk->wce = blk->write_cache;
    blk_front_set_write_cache(blk->front, blk->write_cache);
}

static const struct virtio_device_ops vdev_ops = {
    .config_read = config_read,
    .config_write = config_write,
    .features_set = features_set,
    .queue_prepare = virtio_blk_queue_prepare,
    .queue_release = virtio_blk_queue_release,
    .queue_process = virtio_blk_queue_process,
    .queue_stopping = virtio_blk_queue_stopping,
    .reset = reset_device,
};

/* ---- the machine's view ---- */

static void blk_reset(struct device *device)
{
    struct virtio_blk *blk = container_of(device, struct virtio_blk, device);
    virtio_power_on(&blk->vdev);
    virtio_pci_reset(&blk->proxy);
    pci_reset(&blk->proxy.pci);
}

static void blk_quiesce(struct device *device, struct quiesce *quiesce)
{
    virtio_quiesce(&container_of(device, struct virtio_blk, device)->vdev, quiesce);
}

static void blk_detach(struct device *device)
{
    struct virtio_blk *blk = container_of(device, struct virtio_blk, device);
    drive_detach(blk->front);
    blk->front = NULL;
}

static void blk_resume(struct device *device) { virtio_blk_retry(container_of(device, struct virtio_blk, device)); }

static void blk_free(struct device *device)
{
    struct virtio_blk *blk = container_of(device, struct virtio_blk, device);
    virtio_pci_remove(&blk->proxy);
    virtio_finish(&blk->vdev);
    free(blk->blk_queues);
    free(blk->serial);
    free(blk);
}

static const struct device_ops device_ops = {
    .reset = blk_reset, .quiesce = blk_quiesce, .detach = blk_detach, .resume = blk_resume, .free = blk_free
};

/* ---- options ---- */

static int read_block_size(struct opts *opts, const char *name, uint64_t low, uint32_t *out, struct error **errp)
{
    uint64_t value = *out;
    int given = opts_size(opts, options, name, &value, errp);
    if (given < 0)
        return given;
    if (low && (value < low || value > 2u << 20))
        return error_set(errp, -EINVAL, "Property .%s doesn't take value %llu (minimum: %llu, maximum: 2097152)", name,
                         (unsigned long long)value, (unsigned long long)low);
    if (low && !is_power_of_two(value))
        return error_set(errp, -EINVAL, "Property .%s doesn't take value '%llu', it's not a power of 2", name,
                         (unsigned long long)value);
    if (value > UINT32_MAX)
        return error_set(errp, -EINVAL, "Property .%s doesn't take value %llu", name, (unsigned long long)value);
    *out = (uint32_t)value;
    return 0;
}

static int read_sectors(struct opts *opts, const char *name, uint32_t *out, struct error **errp)
{
    uint64_t value;
    int given = opts_number(opts, options, name, &value, errp);
    if (given < 0)
        return given;
    if (value < 1 || value > UINT32_MAX / SECTOR)
        return error_set(errp, -EINVAL, "invalid %s value %llu, must be between 1 and %u", name,
                         (unsigned long long)value, UINT32_MAX / SECTOR);
    *out = (uint32_t)value;
    return 0;
}

static int read_topology(struct virtio_blk *blk, struct opts *opts, struct error **errp)
{
    const struct blk_limits *limits = blk_front_limits(blk->front);
    int err = read_block_size(opts, "logical_block_size", 512, &blk->logical_block, errp);
    if (err)
        return err;
    /* As QEMU shows files; but a host that takes only larger blocks (O_DIRECT on a 4 KiB disk) has the guest know. */
    blk->physical_block = MAX(limits->request_alignment, blk->logical_block);
    uint64_t granularity = MIN(limits->discard_alignment, 1u << 30);
    blk->discard_granularity = MAX((uint32_t)granularity, blk->logical_block);
    err = read_block_size(opts, "physical_block_size", 512, &blk->physical_block, errp);
    if (!err)
        err = read_block_size(opts, "min_io_size", 0, &blk->min_io, errp);
    if (!err)
        err = read_block_size(opts, "opt_io_size", 0, &blk->opt_io, errp);
    if (!err)
        err = read_block_size(opts, "discard_granularity", 0, &blk->discard_granularity, errp);
    if (!err)
        err = read_sectors(opts, "max-discard-sectors", &blk->max_discard_sectors, errp);
    if (!err)
        err = read_sectors(opts, "max-write-zeroes-sectors", &blk->max_zeroes_sectors, errp);
    if (!err && blk->logical_block > blk->physical_block)
        err = error_set(errp, -EINVAL, "logical_block_size > physical_block_size not supported");
    if (!err && blk->min_io % blk->logical_block)
        err = error_set(errp, -EINVAL, "min_io_size must be a multiple of logical_block_size");
    if (!err && blk->min_io / blk->logical_block > UINT16_MAX) /* the field that the guest reads */
        err = error_set(errp, -EINVAL, "min_io_size must not exceed %d logical blocks", UINT16_MAX);
    if (!err && blk->opt_io % blk->logical_block)
        err = error_set(errp, -EINVAL, "opt_io_size must be a multiple of logical_block_size");
    if (!err && blk->discard_granularity % blk->logical_block)
        err = error_set(errp, -EINVAL, "discard_granularity must be a multiple of logical_block_size");
    if (!err && blk_front_size(blk->front) % blk->logical_block)
        err = error_set(errp, -EINVAL, "the disk's size is not a multiple of its logical_block_size");
    return err;
}

static int offer(struct virtio_blk *blk, struct opts *opts, const char *option, unsigned feature, struct error **errp)
{
    bool on = true;
    if (option && opts_bool(opts, options, option, &on, errp) < 0)
        return -EINVAL;
    if (on)
        blk->vdev.host_features |= 1ull << feature;
    else
        blk->vdev.host_features &= ~(1ull << feature);
    return 0;
}

static int read_features(struct virtio_blk *blk, struct opts *opts, struct error **errp)
{
    static const struct {
        const char *option;
        unsigned feature;
    } features[] = {
        { NULL, VIRTIO_BLK_F_SEG_MAX },
        { NULL, VIRTIO_BLK_F_BLK_SIZE },
        { NULL, VIRTIO_BLK_F_TOPOLOGY },
        { NULL, VIRTIO_BLK_F_FLUSH },
        { "config-wce", VIRTIO_BLK_F_CONFIG_WCE },
        { "event_idx", VIRTIO_RING_F_EVENT_IDX },
        { "indirect_desc", VIRTIO_RING_F_INDIRECT_DESC },
        { "discard", VIRTIO_BLK_F_DISCARD },
        { "write-zeroes", VIRTIO_BLK_F_WRITE_ZEROES },
    };
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        int err = offer(blk, opts, features[i].option, features[i].feature, errp);
        if (err)
            return err;
    }
    if (blk->read_only) {
        blk->vdev.host_features |= 1ull << VIRTIO_BLK_F_RO;
        blk->vdev.host_features &= ~(1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES);
    }
    if (blk->vdev.queue_count > 1)
        blk->vdev.host_features |= 1ull << VIRTIO_BLK_F_MQ;
    return 0;
}

/* ---- queues and their loops ---- */

static int read_queue_numbers(struct opts *opts, const struct machine *machine, unsigned *count, uint16_t *size,
                              struct error **errp)
{
    const char *text = NULL;
    uint64_t number;
    if (opts_string(opts, options, "num-queues", &text, errp) < 0)
        return -EINVAL;
    char *end;
    unsigned long queues = strcmp(text, "auto") == 0 ? machine->cpu_count : strtoul(text, &end, 0);
    if (strcmp(text, "auto") != 0 && (*end || end == text || queues < 1 || queues > 127))
        return error_set(errp, -EINVAL, "num-queues property must be 'auto' or from 1 to 127, not '%s'", text);
    *count = (unsigned)MIN(queues, 127u);
    if (opts_number(opts, options, "queue-size", &number, errp) < 0)
        return -EINVAL;
    if (number <= 2 || number > VIRTQUEUE_MAX_SIZE || !is_power_of_two(number))
        return error_set(errp, -EINVAL, "invalid queue-size property (%llu), must be a power of 2 (max 1024)",
                         (unsigned long long)number);
    *size = (uint16_t)number;
    return 0;
}

static struct loop *find_iothread(const char *id, struct error **errp)
{
    struct loop *loop = object_iothread(id);
    if (!loop)
        error_set(errp, -ENODEV, "Device '%s' not found", id);
    return loop;
}

/* iothread-vq-mapping.I.iothread and .vqs.J. Where no entry has vqs, the queues go round the iothreads. */
static int map_queues(struct virtio_blk *blk, struct opts *mapping, struct loop **loops, struct error **errp)
{
    static const struct opt_desc entry_options[] = { { "iothread", OPT_STRING, NULL, "iothread" }, { 0 } };
    struct loop *round[64];
    unsigned count = 0, assigned = 0;
    int err = 0;
    for (; !err && count < ARRAY_SIZE(round); count++) {
        char key[32];
        snprintf(key, sizeof(key), "%u", count);
        if (!opts_has_prefix(mapping, key))
            break;
        struct opts *entry = opts_take_prefix(mapping, key);
        const char *id = "";
        if (opts_string(entry, entry_options, "iothread", &id, errp) <= 0 || !(round[count] = find_iothread(id, errp)))
            err = error_set(errp, -EINVAL, "iothread-vq-mapping: entry %u names no iothread", count);
        struct opts *vqs = opts_take_prefix(entry, "vqs");
        char *text;
        for (unsigned j = 0; !err && (snprintf(key, sizeof(key), "%u", j), text = opts_take(vqs, key)); j++) {
            unsigned long queue = strtoul(text, NULL, 10);
            free(text);
            if (queue >= blk->vdev.queue_count || loops[queue])
                err = error_set(errp, -EINVAL, "iothread-vq-mapping: queue %lu does not exist or is named twice",
                                queue);
            else
                loops[queue] = round[count];
            assigned++;
        }
        opts_free(vqs);
        opts_free(entry);
    }
    if (!err && assigned && assigned != blk->vdev.queue_count)
        err = error_set(errp, -EINVAL, "iothread-vq-mapping: %u of %u queues are named; name all or none", assigned,
                        blk->vdev.queue_count);
    for (unsigned i = 0; !err && count && !assigned && i < blk->vdev.queue_count; i++)
        loops[i] = round[i % count];
    return err;
}

static int init_queues(struct virtio_blk *blk, struct opts *opts, struct error **errp)
{
    struct loop *loops[128] = { NULL };
    const char *id = NULL;
    struct opts *mapping = opts_take_prefix(opts, "iothread-vq-mapping");
    int err = 0;
    if (opts_string(opts, options, "iothread", &id, errp) < 0)
        err = -EINVAL;
    if (!err && id && opts_count(mapping))
        err = error_set(errp, -EINVAL, "iothread and iothread-vq-mapping properties cannot be set at the same time");
    if (!err)
        err = map_queues(blk, mapping, loops, errp);
    opts_free(mapping);
    struct loop *loop = blk->vdev.machine->loop;
    if (!err && id && !(loop = find_iothread(id, errp)))
        err = -ENODEV;
    for (unsigned i = 0; !err && i < blk->vdev.queue_count; i++)
        err = virtio_init_queue(&blk->vdev.queues[i], loops[i] ? loops[i] : loop, errp);
    return err;
}

/* ---- life ---- */

static coroutine_fn int co_attach(struct virtio_blk *blk, struct opts *opts, struct error **errp)
{
    const char *drive = NULL, *serial = NULL, *cache = NULL;
    struct drive_attachment attachment;
    if (opts_string(opts, options, "drive", &drive, errp) < 0 ||
        opts_string(opts, options, "serial", &serial, errp) < 0 ||
        opts_string(opts, options, "write-cache", &cache, errp) < 0)
        return -EINVAL;
    if (!drive)
        return error_set(errp, -EINVAL, "drive property not set");
    if (strcmp(cache, "auto") != 0 && strcmp(cache, "on") != 0 && strcmp(cache, "off") != 0)
        return error_set(errp, -EINVAL, "Property 'write-cache' doesn't take value '%s'", cache);
    bool share;
    if (opts_bool(opts, options, "share-rw", &share, errp) < 0)
        return -EINVAL;
    int err = drive_co_attach(drive, share, &attachment, errp);
    if (err)
        return err;
    if (!serial)
        serial = attachment.serial;
    blk->front = attachment.front;
    blk->read_only = attachment.read_only;
    blk->write_cache = strcmp(cache, "auto") == 0 ? attachment.write_cache : strcmp(cache, "on") == 0;
    blk->serial = serial ? xstrdup(serial) : NULL;
    return drive_set_on_error(blk->front, opts, options, errp);
}

static int init(struct virtio_blk *blk, struct opts *opts, struct error **errp)
{
    const char *address = NULL, *ignored = NULL;
    int err = read_topology(blk, opts, errp);
    if (!err)
        err = init_queues(blk, opts, errp);
    if (!err)
        err = read_features(blk, opts, errp);
    if (!err && opts_string(opts, options, "addr", &address, errp) < 0)
        err = -EINVAL;
    bool no_modern = false;
    uint64_t index;
    if (!err && (opts_string(opts, options, "disable-legacy", &ignored, errp) < 0 ||
                 opts_bool(opts, options, "disable-modern", &no_modern, errp) < 0 ||
                 opts_number(opts, options, "bootindex", &index, errp) < 0))
        err = -EINVAL;
    if (!err && no_modern)
        err = error_set(errp, -EINVAL, "disable-modern=on: there is only the modern interface");
    return err ? err : virtio_pci_add(&blk->proxy, &blk->vdev, VIRTIO_ID_BLOCK, 0x010000, address, errp);
}

static coroutine_fn int co_create(struct machine *machine, struct opts *opts, struct error **errp)
{
    unsigned queue_count = 1;
    uint16_t queue_size = 0;
    int err = read_queue_numbers(opts, machine, &queue_count, &queue_size, errp);
    if (err)
        return err;
    struct virtio_blk *blk = xcalloc(1, sizeof(*blk));
    virtio_init(&blk->vdev, machine, "virtio-blk-pci", &vdev_ops, queue_count, queue_size);
    blk->vdev.config_size = sizeof(struct virtio_blk_config);
    blk->blk_queues = xcalloc(queue_count, sizeof(blk->blk_queues[0]));
    for (unsigned i = 0; i < queue_count; i++)
        blk->blk_queues[i].queue = &blk->vdev.queues[i];
    err = co_attach(blk, opts, errp);
    if (!err)
        err = init(blk, opts, errp);
    if (err) {
        virtio_finish(&blk->vdev);
        free(blk->blk_queues);
        free(blk->serial);
        free(blk);
        return err;
    }
    machine_add_device(machine, &blk->device, &device_ops);
    return 0;
}

static struct device_model virtio_blk_pci = {
    .name = "virtio-blk-pci",
    .description = "virtio block device",
    .options = options,
    .co_create = co_create,
};
DEVICE_MODEL(virtio_blk_pci)
