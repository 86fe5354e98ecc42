/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The kind of object that only the machine has: iothread, a loop on a thread of its own, found by its id. */
#include "object.h"

#include <base/compiler.h>
#include <base/loop.h>
#include <errno.h>
#include <objects/object.h>

static const struct opt_desc options[] = {
    { "poll-max-ns", OPT_NUMBER, "0", "longest busy polling before the thread sleeps" },
    { 0 },
};

static int iothread_create(const char *id, struct opts *opts, void **state, struct error **errp)
{
    uint64_t poll_ns = 0;
    if (opts_number(opts, options, "poll-max-ns", &poll_ns, errp) < 0)
        return -EINVAL;
    struct loop *loop = loop_thread_start(id, errp);
    if (!loop)
        return -EIO;
    loop_set_poll_us(loop, (unsigned)MIN(poll_ns / 1000, 1000000u));
    *state = loop;
    return 0;
}

static void iothread_free(void *state) { loop_thread_stop(state); }

static struct object_kind iothread = {
    .name = "iothread",
    .options = options,
    .create = iothread_create,
    .free = iothread_free,
};
OBJECT_KIND(iothread)

struct loop *object_iothread(const char *id) { return object_find(&iothread, id); }

int objects_create(const struct config *config, struct error **errp)
{
    for (unsigned i = 0; i < config->objects.count; i++) {
        int err = object_create(config->objects.items[i].opts, OBJECT_WORDS_VMM, errp);
        if (err) {
            error_prepend(errp, "-object %s: ", config->objects.items[i].text);
            return err;
        }
    }
    return 0;
}
