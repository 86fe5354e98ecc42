/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Split virtqueue. The driver runs at the same time and may be hostile: a field is read once, by one load, into a local
 * variable that is then checked and used. Orders that matter: avail->idx is an acquire load before the entries that it
 * covers; used->idx is a release store after the entries; and between publishing and asking whether the other side
 * wants to be told, on both sides, there is a full barrier (2.7.13.3.1, 2.7.7.2).
 * Invariant: no chain has more than `size` descriptors, counted over direct and indirect ones, so every walk ends.
 */
#include "virtqueue.h"

#include "memory.h"

#include <base/checked.h>
#include <base/endian.h>
#include <errno.h>
#include <stddef.h>

/* Fields right behind the rings (2.7.7, 2.7.8). */
static uint16_t *used_event(const struct virtqueue *vq) { return &vq->avail->ring[vq->size]; }

static uint16_t *avail_event(const struct virtqueue *vq) { return (uint16_t *)&vq->used->ring[vq->size]; }

static uint16_t load16(const uint16_t *at) { return le16toh(__atomic_load_n(at, __ATOMIC_RELAXED)); }

static void store16(uint16_t *at, uint16_t value) { __atomic_store_n(at, htole16(value), __ATOMIC_RELAXED); }

static int fail(struct virtqueue *vq, const char *error)
{
    if (!vq->error)
        vq->error = error;
    return -EINVAL;
}

int virtqueue_init(struct virtqueue *vq, const struct guest_memory *memory, uint16_t size, uint64_t desc,
                   uint64_t avail, uint64_t used, bool event_idx, bool indirect)
{
    *vq = (struct virtqueue){ .memory = memory, .size = size, .event_idx = event_idx, .indirect = indirect };
    if (!is_power_of_two(size) || size > VIRTQUEUE_MAX_SIZE)
        return fail(vq, "the queue size is not a power of two up to 1024");
    if (!is_aligned(desc, 16) || !is_aligned(avail, 2) || !is_aligned(used, 4))
        return fail(vq, "a ring is not aligned");
    vq->desc = memory_at(memory, desc, size * sizeof(struct vring_desc));
    vq->avail = memory_at(memory, avail, 6u + 2u * size);
    vq->used = memory_at(memory, used, 6u + 8u * size);
    if (!vq->desc || !vq->avail || !vq->used)
        return fail(vq, "a ring is not in memory");
    return 0;
}

int virtqueue_next(struct virtqueue *vq, uint16_t *head)
{
    uint16_t index = le16toh(__atomic_load_n(&vq->avail->idx, __ATOMIC_ACQUIRE));
    uint16_t count = (uint16_t)(index - vq->next_avail);
    if (!count)
        return 0;
    if (count > vq->size)
        return fail(vq, "the available index jumped by more than the queue size");
    *head = load16(&vq->avail->ring[vq->next_avail & (vq->size - 1)]);
    if (*head >= vq->size)
        return fail(vq, "an available entry is beyond the descriptor table");
    vq->next_avail++;
    return 1;
}

struct walk {
    struct virtqueue *vq;
    struct virtq_chain *chain;
    unsigned count; /* descriptors seen */
    bool writing;   /* one that the device writes has been seen */
};

static struct vring_desc copy_descriptor(const struct vring_desc *at)
{
    struct vring_desc raw = *(const volatile struct vring_desc *)at;
    return (struct vring_desc){ le64toh(raw.addr), le32toh(raw.len), le16toh(raw.flags), le16toh(raw.next) };
}

static int add_buffer(struct walk *walk, const struct vring_desc *desc)
{
    struct virtq_chain *chain = walk->chain;
    bool writes = desc->flags & VRING_DESC_F_WRITE;
    if (!desc->len)
        return fail(walk->vq, "a descriptor is empty");
    if (walk->writing && !writes)
        return fail(walk->vq, "a readable descriptor follows a writable one");
    void *host = memory_at(walk->vq->memory, desc->addr, desc->len);
    if (!host)
        return fail(walk->vq, "a descriptor points outside memory");
    walk->writing = writes;
    chain->iov[chain->out_count + chain->in_count] = (struct iovec){ host, desc->len };
    if (writes) {
        chain->in_count++;
        chain->in_length += desc->len;
    } else {
        chain->out_count++;
        chain->out_length += desc->len;
    }
    if (chain->in_length + chain->out_length > UINT32_MAX)
        return fail(walk->vq, "a chain is longer than 4 GiB");
    return 0;
}

/* Follows `next` through a table of `table_size` descriptors. An indirect descriptor is left in *indirect for the
 * caller. */
static int walk_table(struct walk *walk, const struct vring_desc *table, unsigned table_size, unsigned index,
                      struct vring_desc *indirect)
{
    for (;;) {
        if (index >= table_size)
            return fail(walk->vq, "a descriptor's next is beyond its table");
        if (++walk->count > walk->vq->size)
            return fail(walk->vq, "a chain is longer than the queue, or loops");
        struct vring_desc desc = copy_descriptor(&table[index]);
        if (desc.flags & VRING_DESC_F_INDIRECT) {
            if (!indirect || !walk->vq->indirect)
                return fail(walk->vq, indirect ? "an indirect descriptor was not negotiated"
                                               : "an indirect descriptor is in an indirect table");
            if (desc.flags & VRING_DESC_F_NEXT)
                return fail(walk->vq, "an indirect descriptor has a next one");
            *indirect = desc;
            walk->count--; /* its table's descriptors count, not itself */
            return 1;
        }
        int err = add_buffer(walk, &desc);
        if (err || !(desc.flags & VRING_DESC_F_NEXT))
            return err;
        index = desc.next;
    }
}

int virtqueue_read_chain(struct virtqueue *vq, uint16_t head, struct virtq_chain *chain)
{
    struct walk walk = { .vq = vq, .chain = chain };
    struct vring_desc indirect;
    chain->out_count = chain->in_count = 0;
    chain->out_length = chain->in_length = 0;
    int result = walk_table(&walk, vq->desc, vq->size, head, &indirect);
    if (result != 1)
        return result;
    if (!indirect.len || indirect.len % sizeof(struct vring_desc))
        return fail(vq, "an indirect table's length is not a multiple of 16");
    const struct vring_desc *table = memory_at(vq->memory, indirect.addr, indirect.len);
    if (!table)
        return fail(vq, "an indirect table is not in memory");
    return walk_table(&walk, table, indirect.len / (unsigned)sizeof(struct vring_desc), 0, NULL);
}

void virtqueue_put(struct virtqueue *vq, uint16_t head, uint32_t written)
{
    struct vring_used_elem *elem = &vq->used->ring[vq->next_used & (vq->size - 1)];
    __atomic_store_n(&elem->id, htole32(head), __ATOMIC_RELAXED);
    __atomic_store_n(&elem->len, htole32(written), __ATOMIC_RELAXED);
    vq->next_used++;
}

bool virtqueue_publish(struct virtqueue *vq)
{
    uint16_t now = vq->next_used, before = vq->signalled;
    bool valid = vq->signalled_valid;
    __atomic_store_n(&vq->used->idx, htole16(now), __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!vq->event_idx)
        return !(load16(&vq->avail->flags) & VRING_AVAIL_F_NO_INTERRUPT);
    vq->signalled = now;
    vq->signalled_valid = true;
    return !valid || vring_need_event(load16(used_event(vq)), now, before);
}

void virtqueue_disable_doorbell(struct virtqueue *vq)
{
    /* With the event index, the last one that we set lies behind already. */
    if (!vq->event_idx)
        store16(&vq->used->flags, VRING_USED_F_NO_NOTIFY);
}

bool virtqueue_enable_doorbell(struct virtqueue *vq)
{
    if (vq->event_idx)
        store16(avail_event(vq), vq->next_avail);
    else
        store16(&vq->used->flags, 0);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return load16(&vq->avail->idx) != vq->next_avail;
}
