/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Modules: loaded when a driver of theirs is first named, by its name or by a prefix, and not before; not used if they
 * were built for another version, or are not there. The modules are tests/lib/toy_module.c, in the folder that is the
 * first argument.
 */
#include "image.h"

#include <block/module.h>
#include <dlfcn.h>

static const char *const good[] = { "toy", NULL }, *const other[] = { "toy-two", NULL },
                         *const old[] = { "toy-old", NULL }, *const gone[] = { "toy-gone", NULL };
static const struct blk_module modules[] = {
    { .file = "libtoy.so", .package = "toy", .drivers = good, .prefixes = good },
    { .file = "libtoy-two.so", .package = "toy-two", .drivers = other, .prefixes = other },
    { .file = "libtoy-old.so", .package = "toy-old", .drivers = old, .prefixes = old },
    { .file = "libtoy-gone.so", .package = "libtoy1", .drivers = gone, .prefixes = gone },
};
static const char *folder;

static bool is_loaded(const char *file)
{
    AUTO_FREE char *path = xasprintf("%s/%s", folder, file);
    void *handle = dlopen(path, RTLD_NOW | RTLD_NOLOAD);

    if (handle)
        dlclose(handle);
    return handle;
}

static void count_name(const char *name, void *arg) { *(unsigned *)arg += strncmp(name, "toy", 3) == 0; }

static int by_driver(void *arg)
{
    uint8_t data[512] = { 1 }, zeroes[512] = { 0 };
    unsigned names = 0;

    blk_module_each_driver(count_name, &names);
    assert_int_equal(names, ARRAY_SIZE(modules));
    assert_false(is_loaded("libtoy.so") || is_loaded("libtoy-two.so"));
    assert_null(blk_driver_find("toy"));
    struct blk_node *node = co_open_line("driver=toy", 0, NULL);
    assert_non_null(node);
    assert_true(is_loaded("libtoy.so"));
    assert_false(is_loaded("libtoy-two.so"));
    assert_int_equal(blk_co_read(node, 0, data, sizeof(data)), 0);
    assert_memory_equal(data, zeroes, sizeof(data));
    struct blk_node *second = co_open_line("driver=raw,file.driver=toy", 0, NULL); /* it is there by now */
    assert_non_null(second);
    blk_co_node_unref(second);
    blk_co_node_unref(node);
    return 0;
}

static void test_loaded_when_its_driver_is_named(void **state) { run_co(state, by_driver, NULL); }

static int by_prefix(void *arg)
{
    struct blk_node *node = blk_co_open("toy-two:whatever", NULL, 0, NULL);

    assert_non_null(node);
    assert_true(is_loaded("libtoy-two.so"));
    blk_co_node_unref(node);
    return 0;
}

static void test_loaded_when_its_prefix_is_named(void **state) { run_co(state, by_prefix, NULL); }

static int unusable(void *arg)
{
    struct error *error = NULL;

    co_assert_refused("driver=toy-old", 0, "Module 'libtoy-old.so' was built for another version of this program");
    assert_null(blk_driver_find("toy-old"));
    assert_false(is_loaded("libtoy-old.so"));
    assert_null(co_open_line("driver=toy-gone", 0, &error));
    assert_string_equal(error_text(error), "Driver 'toy-gone' is in a module that cannot be loaded: libtoy-gone.so");
    assert_string_equal(error_hint_text(error), "install the package 'libtoy1'");
    error_free(error);
    co_assert_refused("driver=toy-none", 0, "Unknown driver 'toy-none'");
    return 0;
}

static void test_what_cannot_be_used_is_named(void **state) { run_co(state, unusable, NULL); }

int main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(test_loaded_when_its_driver_is_named),
        LOOP_TEST(test_loaded_when_its_prefix_is_named),
        LOOP_TEST(test_what_cannot_be_used_is_named),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    folder = argc > 1 ? argv[1] : ".";
    setenv("VMM_MODULE_DIR", folder, 1);
    for (size_t i = 0; i < ARRAY_SIZE(modules); i++)
        blk_module_register(&modules[i]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
