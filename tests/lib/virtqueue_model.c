/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The reference that the virtqueue fuzzer compares with (virtqueue_model.h). */
#include "virtqueue_model.h"

#include <errno.h>
#include <string.h>

enum { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };
enum { OK, IOERR, UNSUPP };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

/* ---- memory, little endian ---- */

static uint64_t load(const struct model *model, uint32_t at, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)model->memory[at + i] << 8 * i;
    return value;
}

static void store(struct model *model, uint32_t at, unsigned bytes, uint64_t value)
{
    for (unsigned i = 0; i < bytes; i++)
        model->memory[at + i] = (uint8_t)(value >> 8 * i);
}

static bool in_memory(uint64_t address, uint64_t length)
{
    return address <= MODEL_MEMORY && length <= MODEL_MEMORY - address;
}

/* ---- giving back ---- */

static void complete(struct model *model, uint16_t head, unsigned status)
{
    struct model_request *request = &model->requests[head];
    uint32_t element = model->used + 4 + model->next_used % model->size * 8;
    store(model, request->status, 1, status);
    store(model, element, 4, head);
    store(model, element + 4, 4, request->filled || request->in_length == 1 ? request->in_length : 0);
    model->next_used++;
    model->unpublished = true;
    request->busy = false;
}

void model_publish(struct model *model)
{
    if (model->unpublished)
        store(model, model->used + 2, 2, model->next_used);
    model->unpublished = false;
}

/* ---- chains ---- */

struct chain {
    struct model_range out[MODEL_RING], in[MODEL_RING];
    unsigned out_count, in_count, descriptors;
    uint64_t out_length, in_length;
};

/* Follows one table; *indirect is the address of an indirect descriptor that ends it. False: malformed. */
static bool follow(const struct model *model, struct chain *chain, uint32_t table, uint32_t count, uint32_t index,
                   uint32_t *indirect)
{
    for (;;) {
        if (index >= count || chain->descriptors == model->size)
            return false;
        uint32_t at = table + index * 16;
        uint64_t address = load(model, at, 8);
        uint32_t length = (uint32_t)load(model, at + 8, 4);
        unsigned flags = (unsigned)load(model, at + 12, 2);
        if (flags & INDIRECT) {
            if (!indirect || !model->indirect || flags & NEXT)
                return false;
            *indirect = at;
            return true;
        }
        chain->descriptors++;
        if (!length || !in_memory(address, length) || (chain->in_count && !(flags & WRITE)))
            return false;
        struct model_range range = { (uint32_t)address, length };
        if (flags & WRITE) {
            chain->in[chain->in_count++] = range;
            chain->in_length += length;
        } else {
            chain->out[chain->out_count++] = range;
            chain->out_length += length;
        }
        if (!(flags & NEXT))
            return true;
        index = (uint32_t)load(model, at + 14, 2);
    }
}

static bool read_chain(const struct model *model, uint16_t head, struct chain *chain)
{
    uint32_t indirect = UINT32_MAX;
    memset(chain, 0, sizeof(*chain));
    if (!follow(model, chain, model->desc, model->size, head, &indirect))
        return false;
    if (indirect != UINT32_MAX) {
        uint64_t table = load(model, indirect, 8);
        uint32_t length = (uint32_t)load(model, indirect + 8, 4);
        if (!length || length % 16 || !in_memory(table, length) ||
            !follow(model, chain, (uint32_t)table, length / 16, 0, NULL))
            return false;
    }
    return chain->out_length >= 16 && chain->in_length >= 1;
}

/* `length` bytes of the ranges from `skip` on, as ranges of their own. */
static unsigned cut(const struct model_range *from, unsigned count, uint64_t skip, uint64_t length,
                    struct model_range *to)
{
    unsigned made = 0;
    for (unsigned i = 0; i < count && length; i++) {
        if (skip >= from[i].length) {
            skip -= from[i].length;
            continue;
        }
        uint32_t part = from[i].length - (uint32_t)skip;
        part = part < length ? part : (uint32_t)length;
        to[made++] = (struct model_range){ from[i].address + (uint32_t)skip, part };
        length -= part;
        skip = 0;
    }
    return made;
}

static void gather(const struct model *model, const struct chain *chain, uint64_t skip, uint8_t *to, uint64_t length)
{
    struct model_range ranges[MODEL_RING];
    unsigned count = cut(chain->out, chain->out_count, skip, length, ranges);
    for (unsigned i = 0; i < count; to += ranges[i++].length)
        memcpy(to, model->memory + ranges[i].address, ranges[i].length);
}

static uint64_t number(const uint8_t *bytes, unsigned count)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < count; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

/* ---- requests ---- */

static void submit(struct model *model, uint16_t head)
{
    model->submitted[model->submitted_count++] = model->requests[head].now;
}

static bool on_disk(uint64_t sector, uint64_t length)
{
    return sector <= MODEL_DISK / 512 && length <= MODEL_DISK - sector * 512;
}

static void start_data(struct model *model, uint16_t head, const struct chain *chain, uint64_t sector)
{
    struct model_request *request = &model->requests[head];
    bool reads = request->type == IN;
    uint64_t length = reads ? chain->in_length - 1 : chain->out_length - 16;
    if ((!reads && model->read_only) || length % 512 || !on_disk(sector, length)) {
        complete(model, head, IOERR);
        return;
    }
    if (!length) {
        complete(model, head, OK);
        return;
    }
    struct model_submission *now = &request->now;
    *now = (struct model_submission){
        .head = head, .op = reads ? MODEL_READ : MODEL_WRITE, .offset = sector * 512, .length = length
    };
    now->count = reads ? cut(chain->in, chain->in_count, 0, length, now->data)
                       : cut(chain->out, chain->out_count, 16, length, now->data);
    submit(model, head);
}

static void start_range(struct model *model, uint16_t head)
{
    struct model_request *request = &model->requests[head];
    bool zeroes = request->type == WRITE_ZEROES;
    request->now = (struct model_submission){ .head = head,
                                              .op = zeroes ? MODEL_ZEROES : MODEL_DISCARD,
                                              .unmap = zeroes && request->ranges[request->range].flags & 1,
                                              .offset = request->ranges[request->range].sector * 512,
                                              .length = (uint64_t)request->ranges[request->range].sectors * 512 };
    submit(model, head);
}

static void start_ranges(struct model *model, uint16_t head, const struct chain *chain)
{
    struct model_request *request = &model->requests[head];
    uint64_t length = chain->out_length - 16;
    if (!length || length % 16 || length > MODEL_MAX_RANGES * 16 || model->read_only) {
        complete(model, head, IOERR);
        return;
    }
    request->range_count = (unsigned)length / 16;
    for (unsigned i = 0; i < request->range_count; i++) {
        uint8_t bytes[16];
        gather(model, chain, 16 + i * 16, bytes, 16);
        request->ranges[i].sector = number(bytes, 8);
        request->ranges[i].sectors = (uint32_t)number(bytes + 8, 4);
        request->ranges[i].flags = (uint32_t)number(bytes + 12, 4);
    }
    for (unsigned i = 0; i < request->range_count; i++) {
        uint32_t sectors = request->ranges[i].sectors;
        uint32_t most = request->type == WRITE_ZEROES ? MODEL_MAX_ZEROES : MODEL_MAX_DISCARD;
        if (request->ranges[i].flags & ~(request->type == WRITE_ZEROES ? 1u : 0u)) {
            complete(model, head, UNSUPP);
            return;
        }
        if (!sectors || sectors > most || !on_disk(request->ranges[i].sector, sectors * 512ull)) {
            complete(model, head, IOERR);
            return;
        }
    }
    start_range(model, head);
}

static void give_id(struct model *model, uint16_t head, const struct chain *chain)
{
    struct model_range ranges[MODEL_RING];
    char id[20] = MODEL_SERIAL;
    uint64_t length = chain->in_length - 1 < sizeof(id) ? chain->in_length - 1 : sizeof(id);
    unsigned count = cut(chain->in, chain->in_count, 0, length, ranges);
    const char *from = id;
    for (unsigned i = 0; i < count; from += ranges[i++].length)
        memcpy(model->memory + ranges[i].address, from, ranges[i].length);
    model->requests[head].filled = length == chain->in_length - 1;
    complete(model, head, OK);
}

/* Takes the chain of this head. False: malformed. */
static bool take(struct model *model, uint16_t head)
{
    struct model_request *request = &model->requests[head];
    struct chain chain;
    uint8_t header[16];
    if (request->busy || !read_chain(model, head, &chain))
        return false;
    gather(model, &chain, 0, header, sizeof(header));
    const struct model_range *last = &chain.in[chain.in_count - 1];
    *request = (struct model_request){ .busy = true,
                                       .type = (uint32_t)number(header, 4),
                                       .in_length = (uint32_t)chain.in_length,
                                       .status = last->address + last->length - 1 };
    switch (request->type) {
    case IN:
    case OUT: start_data(model, head, &chain, number(header + 8, 8)); break;
    case FLUSH:
        request->now = (struct model_submission){ .head = head, .op = MODEL_FLUSH };
        submit(model, head);
        break;
    case GET_ID: give_id(model, head, &chain); break;
    case DISCARD:
    case WRITE_ZEROES: start_ranges(model, head, &chain); break;
    default: complete(model, head, UNSUPP);
    }
    return true;
}

/* As many as the ring has at most. False: there may be more. */
static bool take_all(struct model *model)
{
    for (uint32_t i = 0; i < model->size; i++) {
        uint16_t count = (uint16_t)(load(model, model->avail + 2, 2) - model->next_avail);
        if (!count)
            return true;
        uint32_t entry = model->avail + 4 + model->next_avail % model->size * 2;
        uint16_t head = count <= model->size ? (uint16_t)load(model, entry, 2) : UINT16_MAX;
        if (head >= model->size) {
            model->broken = true;
            return true;
        }
        model->next_avail++;
        if (!take(model, head)) {
            model->broken = true;
            return true;
        }
    }
    return false;
}

void model_doorbell(struct model *model)
{
    if (!model->running || model->stopping)
        return;
    do {
        if (model->broken)
            return;
        if (!model->event_idx)
            store(model, model->used, 2, 1);
        if (!take_all(model) || model->broken)
            return;
        if (model->event_idx)
            store(model, model->used + 4 + model->size * 8, 2, model->next_avail);
        else
            store(model, model->used, 2, 0);
    } while (load(model, model->avail + 2, 2) != model->next_avail);
}

/* ---- the disk's answers ---- */

static void fill(struct model *model, const struct model_submission *now)
{
    uint64_t offset = now->offset;
    for (unsigned i = 0; i < now->count; offset += now->data[i++].length)
        memcpy(model->memory + now->data[i].address, model->disk + offset, now->data[i].length);
}

void model_complete(struct model *model, uint16_t head, int result)
{
    struct model_request *request = &model->requests[head];
    if (request->now.op == MODEL_READ && result == 0)
        fill(model, &request->now);
    if (result < 0 && model->policy == MODEL_STOP) {
        if (model->stopping)
            request->busy = false;
        else
            model->stalled[model->stalled_count++] = head;
        return;
    }
    if (result < 0 && model->policy == MODEL_REPORT) {
        complete(model, head, result == -ENOTSUP ? UNSUPP : IOERR);
        return;
    }
    request->filled = request->now.op == MODEL_READ && result == 0;
    if (++request->range < request->range_count)
        start_range(model, head);
    else
        complete(model, head, OK);
}

void model_retry(struct model *model)
{
    unsigned count = model->stalled_count;
    model->stalled_count = 0;
    for (unsigned i = 0; i < count; i++)
        submit(model, model->stalled[i]);
}

/* ---- start and stop ---- */

void model_stopping(struct model *model)
{
    model->stopping = true;
    for (unsigned i = 0; i < model->stalled_count; i++)
        model->requests[model->stalled[i]].busy = false;
    model->stalled_count = 0;
}

void model_start(struct model *model, uint32_t size, uint32_t desc, uint32_t avail, uint32_t used)
{
    model->size = size;
    model->desc = desc;
    model->avail = avail;
    model->used = used;
    model->next_avail = model->next_used = 0;
    model->stopping = model->broken = model->unpublished = false;
    model->stalled_count = 0;
    memset(model->requests, 0, sizeof(model->requests));
    model->running = in_memory(desc, size * 16) && in_memory(avail, 6 + size * 2) && in_memory(used, 6 + size * 8);
    model->broken = !model->running;
    model_doorbell(model); /* what is there already */
}
