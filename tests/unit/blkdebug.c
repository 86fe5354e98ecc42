/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blkdebug: which I/O fails, with what, when; limits; states; and that an idle node passes the mapped path through. */
#include "image.h"

#include <block/blkdebug.h>

static char *path;

static coroutine_fn struct blk_node *co_debug(const char *rules)
{
    char *line = xasprintf("driver=blkdebug,image.driver=file,image.filename=%s%s", path, rules);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR | BLK_O_UNMAP, NULL);

    assert_non_null(node);
    free(line);
    return node;
}

static int run_with_file(void **state, int (*fn)(void *arg))
{
    path = path_in(disk_folder, "debugged");
    make_file(path, MIB);
    run_co(state, fn, NULL);
    unlink(path);
    free(path);
    return 0;
}

static coroutine_fn int co_do(struct blk_node *node, const char *what, uint64_t offset, uint64_t length)
{
    static uint8_t buffer[64 * 1024];

    if (strcmp(what, "read") == 0)
        return blk_co_read(node, offset, buffer, length);
    if (strcmp(what, "write") == 0)
        return blk_co_write(node, offset, buffer, length, 0);
    if (strcmp(what, "write-zeroes") == 0)
        return blk_co_write_zeroes(node, offset, length, 0);
    if (strcmp(what, "discard") == 0)
        return blk_co_discard(node, offset, length);
    if (strcmp(what, "flush") == 0)
        return blk_co_flush(node);
    struct blk_status status;
    return blk_co_status(node, NULL, offset, length, &status);
}

static const char *const kinds[] = { "read", "write", "write-zeroes", "discard", "flush", "block-status" };

/* Each type of I/O fails where it is named and nowhere else. */
static int co_types_test(void *arg)
{
    for (size_t fail = 0; fail < ARRAY_SIZE(kinds); fail++) {
        char *rules = xasprintf(",inject-error.0.event=none,inject-error.0.iotype=%s,inject-error.0.errno=28",
                                kinds[fail]);
        struct blk_node *node = co_debug(rules);
        for (size_t kind = 0; kind < ARRAY_SIZE(kinds); kind++)
            assert_int_equal(co_do(node, kinds[kind], 4096, 4096), kind == fail ? -ENOSPC : 0);
        blk_co_node_unref(node);
        free(rules);
    }
    struct blk_node *node = co_debug(",inject-error.0.event=none");
    for (size_t kind = 0; kind < ARRAY_SIZE(kinds); kind++)
        assert_int_equal(co_do(node, kinds[kind], 4096, 4096), strcmp(kinds[kind], "block-status") == 0 ? 0 : -EIO);
    blk_co_node_unref(node);
    return 0;
}

static void types_of_io(void **state) { run_with_file(state, co_types_test); }

static int co_rules_test(void *arg)
{
    struct blk_node *node = co_debug(
        ",inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.sector=1,inject-error.0.once=on");
    struct error *error = NULL;

    assert_int_equal(co_do(node, "read", 0, 512), 0);
    assert_int_equal(co_do(node, "write", 512, 512), 0);
    assert_int_equal(co_do(node, "read", 0, 4096), -EIO);
    assert_int_equal(co_do(node, "read", 512, 512), 0);

    /* The third write from now, and all that follow. */
    assert_int_equal(blkdebug_inject(node, "iotype=write,after=3,errno=5", &error), 0);
    uint64_t before = blkdebug_requests(node);
    for (int i = 1; i <= 4; i++)
        assert_int_equal(co_do(node, "write", 0, 512), i >= 3 ? -EIO : 0);
    assert_int_equal(blkdebug_requests(node), before + 4);
    blkdebug_clear(node);
    assert_int_equal(co_do(node, "write", 0, 512), 0);

    assert_int_equal(blkdebug_inject(node, "iotype=flush,errno=0,delay-ns=30000000,once=on", &error), 0);
    uint64_t start = loop_now_ns();
    assert_int_equal(co_do(node, "flush", 0, 0), 0);
    assert_true(loop_now_ns() - start >= 30000000);

    uint8_t buffer[2048], back[2048];
    memset(buffer, 0x41, sizeof(buffer));
    assert_int_equal(blkdebug_inject(node, "iotype=write,short=on,once=on", &error), 0);
    assert_int_equal(blk_co_write(node, 8192, buffer, 2048, 0), -EIO);
    assert_int_equal(blk_co_read(node, 8192, back, 2048), 0);
    assert_true(back[0] == 0x41 && back[1023] == 0x41 && back[1024] == 0 && back[2047] == 0);

    assert_int_equal(blkdebug_inject(node, "iotype=bogus", &error), -EINVAL);
    error_free(error);
    error = NULL;
    assert_int_equal(blkdebug_inject(node, "colour=red", &error), -EINVAL);
    assert_error(&error, "Invalid parameter 'colour'");
    blk_co_node_unref(node);
    return 0;
}

static void sectors_counts_delays_and_short_writes(void **state) { run_with_file(state, co_rules_test); }

static int co_states_test(void *arg)
{
    struct blk_node *node = co_debug(
        ",inject-error.0.iotype=write,inject-error.0.state=2,set-state.0.event=flush_to_disk,"
        "set-state.0.state=1,set-state.0.new_state=2,set-state.1.event=read_aio,set-state.1.state=2,"
        "set-state.1.new_state=3");

    assert_int_equal(co_do(node, "write", 0, 512), 0);
    assert_int_equal(co_do(node, "read", 0, 512), 0); /* not from state 1 */
    assert_int_equal(co_do(node, "flush", 0, 0), 0);
    assert_int_equal(co_do(node, "write", 0, 512), -EIO);
    assert_int_equal(co_do(node, "read", 0, 512), 0);
    assert_int_equal(co_do(node, "write", 0, 512), 0);
    assert_int_equal(co_do(node, "flush", 0, 0), 0); /* not from state 3 */
    assert_int_equal(co_do(node, "write", 0, 512), 0);
    blk_co_node_unref(node);
    return 0;
}

static void states_follow_events(void **state) { run_with_file(state, co_states_test); }

static int co_limits_test(void *arg)
{
    uint8_t buffer[64 * 1024], back[64 * 1024], model[64 * 1024] = { 0 };
    struct blk_node *node = co_debug(",align=4096,max-transfer=8192");
    unsigned seed = 7;

    assert_int_equal(node->limits.request_alignment, 4096);
    for (int i = 0; i < 200; i++) {
        uint64_t offset = (uint64_t)rand_r(&seed) % sizeof(model),
                 length = 1 + (uint64_t)rand_r(&seed) % (sizeof(model) - offset);
        memset(buffer, rand_r(&seed), length);
        memcpy(model + offset, buffer, length);
        assert_int_equal(blk_co_write(node, offset, buffer, length, 0), 0);
        assert_int_equal(blk_co_read(node, offset, back, length), 0);
        assert_memory_equal(back, model + offset, length);
    }
    assert_int_equal(blk_co_read(node, 0, back, sizeof(back)), 0);
    assert_memory_equal(back, model, sizeof(model));
    /* 64 KiB in pieces of 8. */
    uint64_t before = blkdebug_requests(node);
    assert_int_equal(blk_co_write(node, 0, buffer, sizeof(buffer), 0), 0);
    assert_int_equal(blkdebug_requests(node) - before, 8);
    before = blkdebug_requests(node);
    assert_int_equal(blk_co_write(node, 4000, buffer, 200, 0), 0); /* reads both blocks, writes both */
    assert_int_equal(blkdebug_requests(node) - before, 2);
    blk_co_node_unref(node);

    char *line = xasprintf("driver=blkdebug,image.driver=file,image.filename=%s,align=333", path);
    co_assert_refused(line, 0, "Cannot meet constraints with align 333");
    free(line);
    line = xasprintf("driver=blkdebug,image.driver=file,image.filename=%s,align=4096,max-transfer=1000", path);
    co_assert_refused(line, 0, "Cannot meet constraints with max-transfer 1000");
    free(line);
    co_assert_refused("driver=blkdebug", 0, "A block device must be specified for \"image\"");
    return 0;
}

static void limits_are_kept_and_bytes_survive(void **state) { run_with_file(state, co_limits_test); }

static int co_idle_test(void *arg)
{
    struct blk_node *node = co_debug("");
    struct blk_extent extent;
    uint8_t buffer[512] = { 1 };

    assert_int_equal(blk_co_map(node, 0, 4096, &extent), 0);
    assert_true(extent.kind == BLK_DATA && extent.child == node->file);
    assert_int_equal(blk_co_write(node, 2 * MIB, buffer, 512, 0), 0);
    assert_int_equal(blk_node_size(node), 2 * MIB + 512);
    assert_int_equal(blkdebug_requests(node), 1); /* only what grows comes by */
    blk_co_node_unref(node);

    char *name = xasprintf("blkdebug::%s", path);
    node = blk_co_open(name, NULL, 0, NULL);
    assert_non_null(node);
    assert_string_equal(node->driver->name, "raw");
    assert_string_equal(node->file->driver->name, "blkdebug");
    blk_co_node_unref(node);
    free(name);
    return 0;
}

static void idle_nodes_are_transparent(void **state) { run_with_file(state, co_idle_test); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(types_of_io),
        LOOP_TEST(sectors_counts_delays_and_short_writes),
        LOOP_TEST(states_follow_events),
        LOOP_TEST(limits_are_kept_and_bytes_survive),
        LOOP_TEST(idle_nodes_are_transparent),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
