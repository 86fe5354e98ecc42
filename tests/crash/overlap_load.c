/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The load (overlap_load.h). */
#include "overlap_load.h"
#include "crash_model.h"
#include "random.h"

#include <base/checked.h>
#include <base/compiler.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Aligned as any node may want it: which node answers may change while a request runs. */
#define ALIGNMENT 4096u

struct worker {
    struct overlap_load *load;
    uint64_t random;
    unsigned number;
};

static uint64_t below(struct worker *w, uint64_t bound) { return random_below(&w->random, bound); }

static uint8_t *buffer_for(const struct overlap_request *r)
{
    uint8_t *buffer = aligned_alloc(ALIGNMENT, align_up(r->count * 512, ALIGNMENT));

    if (!buffer)
        die("no memory");
    return buffer;
}

static coroutine_fn int co_read_range(struct overlap_load *load, const struct overlap_request *r, const char *when)
{
    uint8_t *buffer = buffer_for(r);
    int ret = blk_front_co_read(load->front, r->first * 512, buffer, r->count * 512);
    uint64_t bad;

    if (ret == 0 && !overlap_end_read(&load->model, r, buffer, &bad)) {
        overlap_explain(&load->model, bad, buffer + (bad - r->first) * 512, stderr);
        die("%s: the read of sectors %" PRIu64 "+%" PRIu64 " at clock %" PRIu64 " found what it must not", when,
            r->first, r->count, r->start);
    }
    free(buffer);
    return ret;
}

static coroutine_fn int co_write_range(struct overlap_load *load, const struct overlap_request *r, unsigned flags)
{
    uint8_t *buffer = buffer_for(r);

    for (uint64_t i = 0; i < r->count; i++)
        crash_stamp(buffer + i * 512, r->value, r->first + i);
    int ret = blk_front_co_write(load->front, r->first * 512, buffer, r->count * 512, flags);
    free(buffer);
    return ret;
}

/* Anywhere, near the beginning, or within the first clusters, where the workers meet. */
static void choose_range(struct worker *w, struct overlap_request *r, bool aligned)
{
    uint64_t unit = w->load->cluster / 512, sectors = w->load->sectors;

    r->first = below(w, below(w, 2) ? sectors : below(w, 2) ? sectors / 16 : 4 * unit);
    r->count = 1 + below(w, below(w, 8) ? 16 : 4 * unit);
    if (aligned) {
        r->first -= r->first % unit;
        r->count = align_up(r->count, unit);
    }
    r->count = MIN(r->count, sectors - r->first);
}

static coroutine_fn int co_operation(struct worker *w)
{
    struct overlap_load *load = w->load;
    uint64_t what = below(w, 100);
    bool discard = what < 12, zero = what < 24, read = !zero && what < 60;
    struct overlap_request r = { .worker = w->number, .change = !read };
    int ret;

    if (what >= 98)
        return blk_front_co_flush(load->front);
    choose_range(w, &r, discard || below(w, 4) == 0);
    if (!overlap_begin(&load->model, &r, zero))
        return 0;
    if (read)
        return co_read_range(load, &r, "while running");
    if (discard)
        ret = blk_front_co_discard(load->front, r.first * 512, r.count * 512);
    else if (zero)
        ret = blk_front_co_write_zeroes(load->front, r.first * 512, r.count * 512, below(w, 2) ? BLK_REQ_MAY_UNMAP : 0);
    else
        ret = co_write_range(load, &r, below(w, 50) ? 0 : BLK_REQ_FUA);
    overlap_end_change(&load->model, &r);
    return ret;
}

static coroutine_fn void co_worker(void *arg)
{
    struct worker *w = arg;
    struct overlap_load *load = w->load;

    while (!atomic_load(&load->stop)) {
        int ret = co_operation(w);
        if (ret < 0)
            die("worker %u: %s", w->number, strerror(-ret));
        atomic_fetch_add(&load->operations, 1);
        if (below(w, 16) == 0)
            co_relax();
    }
    free(w);
    atomic_fetch_sub(&load->running, 1);
}

void overlap_load_start(struct overlap_load *load)
{
    struct error *error = NULL;

    overlap_init(&load->model, load->sectors);
    for (unsigned i = 0; i < load->loop_count; i++) {
        load->loops[i] = loop_thread_start("stress", &error);
        if (!load->loops[i])
            die("%s", error_text(error));
    }
    for (unsigned i = 0; i < load->loop_count * load->workers_a_loop; i++) {
        struct worker *w = xcalloc(1, sizeof(*w));
        *w = (struct worker){ .load = load, .random = load->seed * 1000 + i, .number = i };
        atomic_fetch_add(&load->running, 1);
        co_start_on(load->loops[i % load->loop_count], co_worker, w);
    }
}

coroutine_fn void co_overlap_load_stop(struct overlap_load *load)
{
    atomic_store(&load->stop, true);
    while (atomic_load(&load->running) > 0)
        co_sleep_ns(1000000);
    for (unsigned i = 0; i < load->loop_count; i++)
        loop_thread_stop(load->loops[i]);
}

coroutine_fn void co_overlap_load_read_all(struct overlap_load *load)
{
    struct overlap_request all = { .count = load->sectors };

    if (!overlap_begin(&load->model, &all, false))
        die("a change is still under way");
    int ret = co_read_range(load, &all, "at the end");
    if (ret < 0)
        die("cannot be read again: %s", strerror(-ret));
}

void overlap_load_finish(struct overlap_load *load) { overlap_finish(&load->model); }
