/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Objects that -object makes. There is one kind: iothread, a loop on a thread of its own, found by its id. */
#include "object.h"

#include <base/compiler.h>
#include <base/loop.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct iothread {
    char *id;
    struct loop *loop;
    struct iothread *next;
};

static struct iothread *iothreads;

static const struct opt_desc iothread_options[] = {
    { "qom-type", OPT_STRING, NULL, "iothread" },
    { "id", OPT_STRING, NULL, "name" },
    { "poll-max-ns", OPT_NUMBER, "0", "longest busy polling before the thread sleeps" },
    { 0 },
};

struct loop *object_iothread(const char *id)
{
    for (struct iothread *it = iothreads; it; it = it->next)
        if (strcmp(it->id, id) == 0)
            return it->loop;
    return NULL;
}

static int create(struct opts *opts, struct error **errp)
{
    const char *type = NULL, *id = NULL;
    uint64_t poll_ns = 0;
    opts_string(opts, iothread_options, "qom-type", &type, NULL);
    if (!type)
        return error_set(errp, -EINVAL, "Parameter 'qom-type' is missing");
    if (strcmp(type, "iothread") != 0)
        return error_set(errp, -EINVAL, "Parameter 'qom-type' does not accept value '%s'", type);
    if (opts_string(opts, iothread_options, "id", &id, errp) <= 0)
        return error_set(errp, -EINVAL, "Parameter 'id' is missing");
    if (opts_number(opts, iothread_options, "poll-max-ns", &poll_ns, errp) < 0)
        return -EINVAL;
    if (opts_unused(opts))
        return error_set(errp, -EINVAL, "Invalid parameter '%s'", opts_unused(opts));
    if (object_iothread(id))
        return error_set(errp, -EEXIST, "Duplicate ID '%s' for object", id);
    struct loop *loop = loop_thread_start(id, errp);
    if (!loop)
        return -EIO;
    loop_set_poll_us(loop, (unsigned)MIN(poll_ns / 1000, 1000000u));
    struct iothread *iothread = xcalloc(1, sizeof(*iothread));
    *iothread = (struct iothread){ xstrdup(id), loop, iothreads };
    iothreads = iothread;
    return 0;
}

int objects_create(const struct config *config, struct error **errp)
{
    for (unsigned i = 0; i < config->objects.count; i++) {
        int err = create(config->objects.items[i].opts, errp);
        if (err) {
            error_prepend(errp, "-object %s: ", config->objects.items[i].text);
            return err;
        }
    }
    return 0;
}

void objects_finish(void)
{
    while (iothreads) {
        struct iothread *iothread = iothreads;
        iothreads = iothread->next;
        loop_thread_stop(iothread->loop);
        free(iothread->id);
        free(iothread);
    }
}
