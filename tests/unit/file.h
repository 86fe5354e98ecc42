/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For unit tests of the file driver: a new file with its node, for one test; a request from a front end, waited for. */
#pragma once

#include "image.h"

/* How a format has its file grown ahead. */
static const struct blk_ahead ahead_hole = { .allocate = false };

struct test_file {
    char *path;
    struct blk_node *node;
};

/* By the driver alone, not probed. aio may be NULL. */
static inline coroutine_fn struct blk_node *co_open_file(const char *path, const char *aio, unsigned flags,
                                                         struct error **errp)
{
    struct opts *opts = opts_new();

    opts_set(opts, "driver", "file");
    opts_set(opts, "filename", path);
    if (aio)
        opts_set(opts, "aio", aio);
    struct blk_node *node = blk_co_open(NULL, opts, flags, errp);
    opts_free(opts);
    return node;
}

/* A file of `size` bytes, open for writing. */
static inline coroutine_fn void co_test_file_begin(struct test_file *file, const char *folder, uint64_t size,
                                                   const char *aio, unsigned flags)
{
    file->path = path_in(folder, "image");
    make_file(file->path, size);
    file->node = co_open_file(file->path, aio, flags | BLK_O_RDWR, NULL);
    assert_non_null(file->node);
}

/* Closes and removes it. */
static inline coroutine_fn void co_test_file_end(struct test_file *file)
{
    assert_int_equal(blk_co_node_unref(file->node), 0);
    unlink(file->path);
    free(file->path);
}

struct test_request {
    struct blk_request request;
    struct co *co;
    int result;
};

static inline void test_request_done(struct blk_request *request, int result)
{
    struct test_request *r = container_of(request, struct test_request, request);

    r->result = result;
    co_wake(r->co);
}

/* blk_submit() itself, and its result. */
static inline coroutine_fn int co_test_submit(struct blk_front *front, const struct blk_request *request)
{
    struct test_request r = { .request = *request, .co = co_self() };

    r.request.done = test_request_done;
    blk_submit(front, &r.request);
    co_yield();
    return r.result;
}
