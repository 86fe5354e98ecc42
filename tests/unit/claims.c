/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A range that threads share out: each byte is one thread's, and no thread waits for another. */
#include "unit.h"

#include "claims.h"
#include "random.h"

#include <base/compiler.h>
#include <pthread.h>

#define UNITS 20000u
#define STEP (CLAIM_UNIT / 4) /* claims are made longer and shorter by steps of this */
#define STEPS (4 * UNITS + 3)
#define THREADS 4u

struct shared {
    struct claims claims;
    atomic_uchar owners[STEPS];
};

struct worker {
    struct shared *shared;
    uint64_t seed;
};

static void *claim_and_fit(void *arg)
{
    struct worker *w = arg;
    struct shared *s = w->shared;
    struct claim claim;

    while (claims_take(&s->claims, &claim)) {
        uint64_t left = (s->claims.end - claim.offset) / STEP, steps = 1 + random_below(&w->seed, 40);
        if (random_below(&w->seed, 2))
            claims_fit(&s->claims, &claim, claim.offset + MIN(steps, left) * STEP);
        for (uint64_t at = claim.offset; at < claim.end; at += STEP)
            atomic_fetch_add(&s->owners[at / STEP], 1);
    }
    return NULL;
}

static void each_byte_is_one_threads(void **state)
{
    static struct shared s;
    pthread_t threads[THREADS];
    struct worker workers[THREADS];

    (void)state;
    claims_init(&s.claims, 0, (uint64_t)STEPS * STEP);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){ &s, i };
        assert_int_equal(pthread_create(&threads[i], NULL, claim_and_fit, &workers[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < STEPS; i++)
        assert_int_equal(atomic_load(&s.owners[i]), 1);
}

static void claims_follow_each_other(void **state)
{
    struct claims claims;
    struct claim one, two;

    (void)state;
    claims_init(&claims, 100, 100 + 3 * (uint64_t)CLAIM_UNIT + 5);
    assert_true(claims_take(&claims, &one));
    assert_int_equal(one.offset, 100);
    assert_int_equal(one.end, 100 + CLAIM_UNIT);
    claims_fit(&claims, &one, 200); /* given back */
    assert_int_equal(one.end, 200);
    assert_true(claims_take(&claims, &two));
    assert_int_equal(two.offset, 200);
    claims_fit(&claims, &one, 300); /* the other has it */
    assert_int_equal(one.end, 200);
    claims_fit(&claims, &two, claims.end);
    assert_int_equal(two.end, claims.end);
    assert_false(claims_take(&claims, &one));
    claims_init(&claims, 0, 10);
    assert_true(claims_take(&claims, &one));
    assert_int_equal(one.end, 10);
    claims_init(&claims, 0, CLAIM_UNIT * 2);
    claims_stop(&claims);
    assert_false(claims_take(&claims, &one));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(claims_follow_each_other),
        cmocka_unit_test(each_byte_is_one_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
