/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A few coroutines that share out a row of tasks, on one loop (so plain fields will do) or on one a processor. */
#include <base/checked.h>
#include <base/coroutine.h>
#include <base/crew.h>
#include <base/loop.h>
#include <base/pool.h>
#include <base/sync.h>
#include <sched.h>

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

/* ---- on several loops ---- */

#define MAX_LOOPS 16u

struct spread {
    size_t count;
    coroutine_fn int (*co_one)(void *arg, size_t index);
    void *arg;
    struct co_mutex lock; /* all below */
    struct co_cond ended;
    size_t next;
    unsigned working;
    int result;
};

/* How many members of such crews this thread's loop has. */
static _Thread_local unsigned members_here;

/* The next task's index; false: there is none. */
static coroutine_fn bool co_take_task(struct spread *s, size_t *index)
{
    co_mutex_lock(&s->lock);
    bool any = s->next < s->count && s->result == 0;
    *index = any ? s->next++ : 0;
    co_mutex_unlock(&s->lock);
    return any;
}

static coroutine_fn void co_work_spread(void *arg)
{
    struct spread *s = arg;
    size_t index;

    members_here++;
    while (co_take_task(s, &index)) {
        int ret = s->co_one(s->arg, index);
        co_mutex_lock(&s->lock);
        if (ret < 0 && s->result == 0)
            s->result = ret;
        co_mutex_unlock(&s->lock);
    }
    members_here--;
    co_mutex_lock(&s->lock);
    if (--s->working == 0)
        co_cond_broadcast(&s->ended);
    co_mutex_unlock(&s->lock);
}

coroutine_fn int co_crew_do(int (*fn)(void *arg), void *arg)
{
    return members_here > 0 ? fn(arg) : pool_co_run(fn, arg);
}

/* Those that this process may run on. */
static unsigned processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

coroutine_fn int co_crew_spread(size_t count, unsigned workers, coroutine_fn int (*co_one)(void *arg, size_t index),
                                void *arg)
{
    unsigned members = (unsigned)MIN((size_t)workers, count), wanted = MIN(members, processors());
    struct loop *loops[MAX_LOOPS] = { loop_current() };
    unsigned loop_count = 1;

    while (loop_count < MIN(wanted, MAX_LOOPS)) {
        loops[loop_count] = loop_thread_start("crew", NULL);
        if (!loops[loop_count]) /* with fewer, then */
            break;
        loop_count++;
    }
    if (loop_count == 1)
        return co_crew(count, workers, co_one, arg);
    struct spread s = { .count = count, .co_one = co_one, .arg = arg, .working = members };
    co_mutex_init(&s.lock);
    co_cond_init(&s.ended);
    for (unsigned i = 0; i < members; i++)
        co_start_on(loops[i % loop_count], co_work_spread, &s);
    co_mutex_lock(&s.lock);
    while (s.working > 0)
        co_cond_wait(&s.ended, &s.lock);
    co_mutex_unlock(&s.lock);
    for (unsigned i = 1; i < loop_count; i++)
        loop_thread_stop(loops[i]); /* they have let go of s then, too */
    co_cond_finish(&s.ended);
    co_mutex_finish(&s.lock);
    return s.result;
}
