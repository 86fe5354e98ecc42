/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A few coroutines that share out a row of tasks. All run on one loop, so plain fields will do. */
#include <base/checked.h>
#include <base/coroutine.h>
#include <base/crew.h>

struct crew {
    size_t count, next;
    coroutine_fn int (*co_one)(void *arg, size_t index);
    void *arg;
    unsigned working;
    struct co *waiter;
    int result;
};

static coroutine_fn void co_work(void *arg)
{
    struct crew *crew = arg;

    while (crew->next < crew->count && crew->result == 0) {
        int ret = crew->co_one(crew->arg, crew->next++);
        if (ret < 0 && crew->result == 0)
            crew->result = ret;
    }
    if (--crew->working == 0 && crew->waiter)
        co_wake(crew->waiter);
}

coroutine_fn int co_crew(size_t count, unsigned workers, coroutine_fn int (*co_one)(void *arg, size_t index), void *arg)
{
    struct crew crew = { .count = count, .co_one = co_one, .arg = arg };

    if (count == 0)
        return 0;
    if (count == 1)
        return co_one(arg, 0);
    unsigned members = (unsigned)MIN((size_t)workers, count);
    crew.working = members;
    for (unsigned i = 0; i < members; i++)
        co_start(co_work, &crew);
    if (crew.working > 0) {
        crew.waiter = co_self();
        co_yield();
    }
    return crew.result;
}
