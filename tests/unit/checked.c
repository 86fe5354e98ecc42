/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Checked arithmetic at the edges of 64 bits, and list.h, the other all-inline header. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <base/checked.h>
#include <base/list.h>

static void arithmetic_stops_at_the_edge(void **state)
{
    uint64_t out;
    assert_true(checked_add(UINT64_MAX - 1, 1, &out));
    assert_true(out == UINT64_MAX);
    assert_false(checked_add(UINT64_MAX, 1, &out));
    assert_true(checked_sub(5, 5, &out));
    assert_true(out == 0);
    assert_false(checked_sub(5, 6, &out));
    assert_true(checked_mul(UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, &out));
    assert_true(out == UINT64_MAX - ((UINT64_C(1) << 32) - 1));
    assert_false(checked_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &out));
    assert_true(checked_mul(UINT64_MAX, 0, &out));
    assert_true(out == 0);
}

static void ranges(void **state)
{
    assert_true(range_inside(0, 10, 10));
    assert_true(range_inside(10, 0, 10));
    assert_false(range_inside(10, 1, 10));
    assert_false(range_inside(11, 0, 10));
    assert_false(range_inside(1, UINT64_MAX, 10)); /* offset + length wraps */
    assert_false(range_inside(UINT64_MAX, UINT64_MAX, UINT64_MAX - 1));
    assert_true(ranges_overlap(0, 10, 9, 1));
    assert_false(ranges_overlap(0, 10, 10, 1));
    assert_false(ranges_overlap(10, 1, 0, 10));
    assert_true(ranges_overlap(5, 1, 0, 10));
    assert_false(ranges_overlap(5, 0, 0, 10));
    assert_false(ranges_overlap(0, 10, 5, 0));
}

static void alignment(void **state)
{
    assert_true(align_down(4097, 4096) == 4096);
    assert_true(align_down(4095, 4096) == 0);
    assert_true(align_up(4097, 4096) == 8192);
    assert_true(align_up(4096, 4096) == 4096);
    assert_true(align_up(0, 4096) == 0);
    assert_true(is_aligned(0, 512));
    assert_false(is_aligned(513, 512));
    assert_true(is_power_of_two(1));
    assert_true(is_power_of_two(UINT64_C(1) << 63));
    assert_false(is_power_of_two(0));
    assert_false(is_power_of_two(6));
    assert_true(div_round_up(0, 512) == 0);
    assert_true(div_round_up(513, 512) == 2);
    assert_true(div_round_up(UINT64_MAX, 2) == UINT64_C(1) << 63); /* no wrap inside */
    assert_int_equal(log2_floor(1), 0);
    assert_int_equal(log2_floor(65536), 16);
    assert_int_equal(log2_floor(65537), 16);
    assert_int_equal(log2_floor(UINT64_MAX), 63);
}

struct item {
    int number;
    struct list link;
};

/* The numbers on the list as a decimal number, first entry first; also checks the backward links. */
static int digits(struct list *head)
{
    int value = 0;
    struct item *item;
    list_for_each(item, head, link) {
        assert_ptr_equal(item->link.next->prev, &item->link);
        value = value * 10 + item->number;
    }
    return value;
}

static void lists(void **state)
{
    struct list a, b;
    struct item items[5];
    list_init(&a);
    list_init(&b);
    assert_true(list_empty(&a));
    for (int i = 0; i < 5; i++)
        items[i].number = i + 1;
    list_append(&a, &items[1].link);
    list_append(&a, &items[2].link);
    list_prepend(&a, &items[0].link);
    assert_int_equal(digits(&a), 123);
    list_append(&b, &items[3].link);
    list_insert_before(&items[4].link, &items[3].link);
    assert_int_equal(digits(&b), 54);
    list_splice(&a, &b);
    assert_int_equal(digits(&a), 12354);
    assert_true(list_empty(&b));
    list_splice(&a, &b);
    assert_int_equal(digits(&a), 12354);
    assert_int_equal(list_last(&a, struct item, link)->number, 4);
    list_remove(&items[2].link);
    list_remove(&items[2].link); /* harmless */
    assert_int_equal(digits(&a), 1254);
    struct item *item, *tmp;
    list_for_each_safe(item, tmp, &a, link) {
        list_remove(&item->link);
    }
    assert_true(list_empty(&a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arithmetic_stops_at_the_edge),
        cmocka_unit_test(ranges),
        cmocka_unit_test(alignment),
        cmocka_unit_test(lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
