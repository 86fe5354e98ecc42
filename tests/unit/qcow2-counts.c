/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qcow2: counts by cluster in little memory are those of a plain table, whatever the order in which they come. */
#include "unit.h"

#include "counts.h"
#include "random.h"

#include <base/compiler.h>
#include <string.h>

#define CHUNK (1u << QCOW2_COUNTS_CHUNK_BITS)
#define CLUSTERS (5 * CHUNK + 77)

static void assert_same(const struct qcow2_counts *counts, const uint32_t *model, uint64_t first, uint64_t end)
{
    uint64_t used = end, behind = first;

    for (uint64_t i = first; i < end; i++) {
        if (qcow2_counts_get(counts, i) != model[i])
            fail_msg("cluster %lu counts %lu, not %u", (unsigned long)i, (unsigned long)qcow2_counts_get(counts, i),
                     model[i]);
        if (!model[i])
            continue;
        used = MIN(used, i);
        behind = i + 1;
    }
    assert_int_equal(qcow2_counts_first(counts, first, end), used);
    assert_int_equal(qcow2_counts_end(counts, first, end), behind);
}

static void runs_are_counted(void **state)
{
    uint64_t seed = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : 1;
    uint32_t *model = xcalloc(CLUSTERS, sizeof(*model));
    struct qcow2_counts counts;

    (void)state;
    assert_int_equal(qcow2_counts_init(&counts, CLUSTERS), 0);
    for (unsigned turn = 0; turn < 1500; turn++) {
        uint64_t first = random_below(&seed, CLUSTERS), length = random_below(&seed, turn % 4 ? 200 : 2 * CHUNK);
        length = MIN(length, CLUSTERS - first);
        qcow2_counts_add(&counts, first, length);
        for (uint64_t i = first; i < first + length; i++)
            model[i]++;
        if (turn % 300 == 0)
            assert_same(&counts, model, 0, CLUSTERS);
    }
    assert_same(&counts, model, 0, CLUSTERS);
    assert_false(counts.failed);
    qcow2_counts_finish(&counts);
    free(model);
}

static void a_count_finds_room_and_stops_at_its_most(void **state)
{
    static const uint64_t values[] = { 1, 3, 4, 15, 16, 255, 256, 65535, 65536, QCOW2_COUNTS_MAX - 1 };
    struct qcow2_counts counts;

    (void)state;
    assert_int_equal(qcow2_counts_init(&counts, CLUSTERS), 0);
    for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        qcow2_counts_set(&counts, CHUNK + 7, values[i]);
        assert_int_equal(qcow2_counts_get(&counts, CHUNK + 7), values[i]);
        qcow2_counts_add(&counts, CHUNK + 6, 3);
        assert_int_equal(qcow2_counts_get(&counts, CHUNK + 6), i + 1);
        assert_int_equal(qcow2_counts_get(&counts, CHUNK + 7), values[i] + 1);
        assert_int_equal(qcow2_counts_get(&counts, CHUNK + 8), i + 1);
    }
    qcow2_counts_add(&counts, CHUNK + 7, 1);
    assert_int_equal(qcow2_counts_get(&counts, CHUNK + 7), QCOW2_COUNTS_MAX);
    qcow2_counts_set(&counts, CHUNK + 7, UINT64_MAX);
    assert_int_equal(qcow2_counts_get(&counts, CHUNK + 7), QCOW2_COUNTS_MAX);
    qcow2_counts_set(&counts, CHUNK + 7, 0);
    assert_int_equal(qcow2_counts_get(&counts, CHUNK + 7), 0);
    assert_int_equal(qcow2_counts_first(&counts, 0, CLUSTERS), CHUNK + 6);
    assert_int_equal(qcow2_counts_end(&counts, 0, CLUSTERS), CHUNK + 9);
    assert_false(counts.failed);
    qcow2_counts_finish(&counts);
}

static void what_counts_nothing_takes_no_memory(void **state)
{
    struct qcow2_counts counts;

    (void)state;
    assert_int_equal(qcow2_counts_init(&counts, UINT64_C(1) << 34), 0);
    qcow2_counts_set(&counts, 5, 0);
    assert_null(counts.chunks[0].words);
    qcow2_counts_add(&counts, UINT64_C(1) << 33, 1);
    for (uint64_t i = 0; i < counts.chunk_count; i++)
        assert_int_equal(counts.chunks[i].words != NULL, i == (UINT64_C(1) << 33) / CHUNK);
    assert_int_equal(qcow2_counts_first(&counts, 0, UINT64_C(1) << 34), UINT64_C(1) << 33);
    assert_int_equal(qcow2_counts_end(&counts, 0, UINT64_C(1) << 34), (UINT64_C(1) << 33) + 1);
    qcow2_counts_finish(&counts);
}

static void a_chunk_that_grows_stays_doubted(void **state)
{
    struct qcow2_counts counts;

    (void)state;
    assert_int_equal(qcow2_counts_init(&counts, CLUSTERS), 0);
    qcow2_counts_doubt(&counts, CHUNK);
    qcow2_counts_set(&counts, CHUNK + 1, 70000);
    assert_true(qcow2_counts_doubted(&counts, CHUNK + 2));
    assert_false(qcow2_counts_doubted(&counts, CHUNK - 1));
    qcow2_counts_finish(&counts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_are_counted),
        cmocka_unit_test(a_count_finds_room_and_stops_at_its_most),
        cmocka_unit_test(what_counts_nothing_takes_no_memory),
        cmocka_unit_test(a_chunk_that_grows_stays_doubted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
