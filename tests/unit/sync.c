/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Mutex, condition and rwlock: exclusion and progress with four loops of many coroutines each (run it under
 * ThreadSanitizer: the protected data is plain memory), and fairness on one loop.
 */
#include "unit.h"

#include <base/compiler.h>
#include <base/coroutine.h>
#include <base/sync.h>
#include <pthread.h>
#include <string.h>

enum { LOOPS = 4, COROUTINES = 50, ROUNDS = 60 };

/* Starts `fn` COROUTINES times on each of LOOPS threads and waits for all to end. */
static void run_everywhere(void (*fn)(void *arg), void *arg)
{
    struct loop *loops[LOOPS];
    for (int i = 0; i < LOOPS; i++) {
        loops[i] = loop_thread_start("sync", NULL);
        assert_non_null(loops[i]);
    }
    for (int n = 0; n < COROUTINES; n++) {
        for (int i = 0; i < LOOPS; i++)
            co_start_on(loops[i], fn, arg);
    }
    for (int i = 0; i < LOOPS; i++)
        loop_thread_stop(loops[i]); /* waits for its coroutines */
}

static void sometimes_relax(unsigned *seed)
{
    *seed = *seed * 1103515245 + 12345;
    if ((*seed >> 16) % 4 == 0)
        co_relax();
}

/* ---- mutex ---- */

struct counted {
    struct co_mutex mutex;
    unsigned long count;
    bool inside;
};

static void count_under_lock(void *arg)
{
    struct counted *c = arg;
    unsigned seed = (unsigned)(uintptr_t)co_self();
    for (int i = 0; i < ROUNDS; i++) {
        if (i % 8 || !co_mutex_try_lock(&c->mutex))
            co_mutex_lock(&c->mutex);
        assert_false(c->inside);
        c->inside = true;
        unsigned long count = c->count;
        sometimes_relax(&seed);
        c->count = count + 1;
        c->inside = false;
        co_mutex_unlock(&c->mutex);
        sometimes_relax(&seed);
    }
}

static void test_mutex_excludes(void **state)
{
    struct counted c = { 0 };
    co_mutex_init(&c.mutex);
    run_everywhere(count_under_lock, &c);
    assert_int_equal(c.count, LOOPS * COROUTINES * ROUNDS);
    co_mutex_finish(&c.mutex);
}

struct queue_test {
    struct co_mutex mutex;
    struct co_rwlock rwlock;
    char order[16];
    const char *kinds; /* 'r', 'w' for each comer */
    unsigned next, inside, peak;
};

static void lock_in_turn(void *arg)
{
    struct queue_test *q = arg;
    char name = (char)('0' + q->next++);
    co_mutex_lock(&q->mutex);
    strncat(q->order, &name, 1);
    co_relax();
    co_mutex_unlock(&q->mutex);
}

/* `first`, if it is not NULL, and then so many that lock in turn, all at once. */
static void check_order(void **state, coroutine_fn void (*first)(void *arg), unsigned count, const char *expected)
{
    struct queue_test q = { 0 };
    uint64_t alive = co_count_alive();
    co_mutex_init(&q.mutex);
    if (first)
        co_start(first, &q);
    for (unsigned i = 0; i < count; i++)
        co_start(lock_in_turn, &q);
    while (co_count_alive() != alive)
        loop_step(test_loop(state), true);
    assert_string_equal(q.order, expected);
    co_mutex_finish(&q.mutex);
}

static void test_mutex_is_fair(void **state) { check_order(state, NULL, 8, "01234567"); }

/* Unlocks and locks at once, again and again, while the other waits. */
static void lock_greedily(void *arg)
{
    struct queue_test *q = arg;
    for (int i = 0; i < 4; i++) {
        co_mutex_lock(&q->mutex);
        q->order[strlen(q->order)] = 'g';
        co_relax();
        co_mutex_unlock(&q->mutex);
    }
}

static void test_mutex_is_overtaken_once(void **state) { check_order(state, lock_greedily, 2, "gg01gg"); }

/* ---- condition ---- */

struct pipe_test {
    struct co_mutex mutex;
    struct co_cond not_empty, not_full;
    pthread_mutex_t pmutex;
    bool use_pthread;
    unsigned filled, produced, consumed, roles;
};

static void pipe_lock(struct pipe_test *p)
{
    if (p->use_pthread)
        pthread_mutex_lock(&p->pmutex);
    else
        co_mutex_lock(&p->mutex);
}

static void pipe_unlock(struct pipe_test *p)
{
    if (p->use_pthread)
        pthread_mutex_unlock(&p->pmutex);
    else
        co_mutex_unlock(&p->mutex);
}

static void pipe_wait(struct pipe_test *p, struct co_cond *cond)
{
    if (p->use_pthread)
        co_cond_wait_pthread(cond, &p->pmutex);
    else
        co_cond_wait(cond, &p->mutex);
}

static void produce_or_consume(void *arg)
{
    struct pipe_test *p = arg;
    bool producer = __atomic_fetch_add(&p->roles, 1, __ATOMIC_RELAXED) % 2 == 0;
    for (int i = 0; i < ROUNDS; i++) {
        pipe_lock(p);
        while (p->filled == (producer ? 3 : 0))
            pipe_wait(p, producer ? &p->not_full : &p->not_empty);
        p->filled = producer ? p->filled + 1 : p->filled - 1;
        if (producer)
            p->produced++;
        else
            p->consumed++;
        pipe_unlock(p);
        co_cond_signal(producer ? &p->not_empty : &p->not_full);
    }
}

static void pipe_test(bool use_pthread)
{
    struct pipe_test p = { .use_pthread = use_pthread };
    pthread_mutex_init(&p.pmutex, NULL);
    co_mutex_init(&p.mutex);
    co_cond_init(&p.not_empty);
    co_cond_init(&p.not_full);
    run_everywhere(produce_or_consume, &p);
    assert_int_equal(p.produced, LOOPS * COROUTINES / 2 * ROUNDS);
    assert_int_equal(p.consumed, p.produced);
    assert_int_equal(p.filled, 0);
    co_cond_finish(&p.not_empty);
    co_cond_finish(&p.not_full);
    co_mutex_finish(&p.mutex);
    pthread_mutex_destroy(&p.pmutex);
}

static void test_cond_with_mutex(void **state) { pipe_test(false); }

static void test_cond_with_pthread_mutex(void **state) { pipe_test(true); }

struct gate {
    struct co_cond cond;
    pthread_mutex_t mutex;
    bool open;
    unsigned waiting, passed;
};

static void wait_at_gate(void *arg)
{
    struct gate *gate = arg;
    pthread_mutex_lock(&gate->mutex);
    gate->waiting++;
    while (!gate->open)
        co_cond_wait_pthread(&gate->cond, &gate->mutex);
    gate->passed++;
    pthread_mutex_unlock(&gate->mutex);
}

static void *open_gate(void *arg)
{
    struct gate *gate = arg;
    for (bool done = false; !done;) {
        pthread_mutex_lock(&gate->mutex);
        done = gate->open = gate->waiting == LOOPS * COROUTINES;
        pthread_mutex_unlock(&gate->mutex);
        co_cond_broadcast(&gate->cond); /* outside a coroutine; also when it is not open yet */
    }
    return NULL;
}

static void test_broadcast_wakes_all(void **state)
{
    struct gate gate = { .mutex = PTHREAD_MUTEX_INITIALIZER };
    pthread_t thread;
    co_cond_init(&gate.cond);
    pthread_create(&thread, NULL, open_gate, &gate);
    run_everywhere(wait_at_gate, &gate);
    pthread_join(thread, NULL);
    assert_int_equal(gate.passed, LOOPS * COROUTINES);
    co_cond_finish(&gate.cond);
}

/* ---- rwlock ---- */

struct shared {
    struct co_rwlock lock;
    unsigned long a, b; /* equal for every reader */
    unsigned roles, most_readers, readers;
};

static void read_or_write(void *arg)
{
    struct shared *s = arg;
    unsigned seed = __atomic_fetch_add(&s->roles, 1, __ATOMIC_RELAXED);
    bool writer = seed % 5 == 0;
    for (int i = 0; i < ROUNDS; i++) {
        if (writer) {
            co_rwlock_write(&s->lock);
            s->a++;
            sometimes_relax(&seed);
            s->b++;
        } else {
            co_rwlock_read(&s->lock);
            unsigned now = __atomic_add_fetch(&s->readers, 1, __ATOMIC_RELAXED);
            if (now > __atomic_load_n(&s->most_readers, __ATOMIC_RELAXED))
                __atomic_store_n(&s->most_readers, now, __ATOMIC_RELAXED);
            unsigned long a = s->a;
            sometimes_relax(&seed);
            assert_int_equal(a, s->b);
            __atomic_sub_fetch(&s->readers, 1, __ATOMIC_RELAXED);
        }
        co_rwlock_unlock(&s->lock);
        sometimes_relax(&seed);
    }
}

static void test_rwlock_excludes(void **state)
{
    struct shared s = { 0 };
    co_rwlock_init(&s.lock);
    run_everywhere(read_or_write, &s);
    assert_int_equal(s.a, LOOPS * COROUTINES / 5 * ROUNDS);
    assert_int_equal(s.b, s.a);
    assert_true(s.most_readers > 1);
    co_rwlock_finish(&s.lock);
}

static void rwlock_in_turn(void *arg)
{
    struct queue_test *q = arg;
    unsigned number = q->next++;
    char name = (char)('0' + number);
    if (q->kinds[number] == 'w')
        co_rwlock_write(&q->rwlock);
    else
        co_rwlock_read(&q->rwlock);
    strncat(q->order, &name, 1);
    q->inside++;
    if (q->inside > q->peak)
        q->peak = q->inside;
    if (q->kinds[number] == 'w')
        assert_int_equal(q->inside, 1);
    co_relax();
    q->inside--;
    co_rwlock_unlock(&q->rwlock);
}

/* A reader that comes after a waiting writer waits; readers side by side go together. */
static void test_rwlock_is_fair(void **state)
{
    struct queue_test q = { .kinds = "rrwrrrww" };
    uint64_t alive = co_count_alive();
    co_rwlock_init(&q.rwlock);
    for (int i = 0; i < 8; i++)
        co_start(rwlock_in_turn, &q);
    while (co_count_alive() != alive)
        loop_step(test_loop(state), true);
    assert_string_equal(q.order, "01234567");
    assert_int_equal(q.peak, 3);
    co_rwlock_finish(&q.rwlock);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(test_mutex_excludes),          LOOP_TEST(test_mutex_is_fair),
        LOOP_TEST(test_mutex_is_overtaken_once), LOOP_TEST(test_cond_with_mutex),
        LOOP_TEST(test_cond_with_pthread_mutex), LOOP_TEST(test_broadcast_wakes_all),
        LOOP_TEST(test_rwlock_excludes),         LOOP_TEST(test_rwlock_is_fair),
    };
    return run_on_both_backends(tests);
}
