/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A graph that changes while requests run: nodes replaced, filters inserted and removed, backing children added and
 * dropped, sets of nodes reopened, each under requests of two loops that know what they must read; and that a change
 * which fails leaves all as it was.
 */
#include "beside.h"
#include "qcow2_disk.h"

#include <base/testpoint.h>
#include <block/blkdebug.h>
#include <block/change.h>

#define PERM_RW (BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE)
#define MS UINT64_C(1000000)

/* ---- helpers ---- */

static coroutine_fn struct blk_node *co_node_as(const char *line, unsigned flags)
{
    struct error *error = NULL;
    struct blk_node *node = co_open_line(line, flags, &error);

    if (!node)
        fail_msg("%s", error_text(error));
    return node;
}

static coroutine_fn struct blk_node *co_node(const char *line) { return co_node_as(line, BLK_O_RDWR | BLK_O_UNMAP); }

static struct blk_front *front_on(struct blk_node *node, unsigned perm)
{
    struct error *error = NULL;
    struct blk_front *front = blk_front_new("test", node, perm, BLK_PERM_ALL, &error);

    if (!front)
        fail_msg("%s", error_text(error));
    return front;
}

static struct opts *options(const char *line)
{
    struct opts *opts = opts_new();

    assert_int_equal(opts_parse(opts, line, NULL, 0, NULL), 0);
    return opts;
}

/* ---- requests all the while: each has a sector of its own, writes it and reads it back ---- */

enum { LOOPS = 2, REQUESTS = 16 };

struct worker {
    struct flood *flood;
    struct blk_request request;
    struct loop_post post;
    struct iovec iov;
    unsigned index;
    uint8_t value, data[512];
    bool odd; /* half a sector: goes the slow way on nodes that want whole ones */
};

struct flood {
    struct blk_front *front;
    struct loop *loops[LOOPS];
    struct worker workers[REQUESTS];
    atomic_bool stop;
    _Atomic unsigned running;
    _Atomic uint64_t rounds;
};

static void next_step(struct worker *w)
{
    bool write = w->request.op != BLK_OP_WRITE;

    if (write) {
        w->value++;
        w->odd = w->value % 4 == 0;
        memset(w->data, w->value, sizeof(w->data));
    } else {
        memset(w->data, 0xee, sizeof(w->data));
    }
    w->request.op = write ? BLK_OP_WRITE : BLK_OP_READ;
    w->request.flags = 0;
    w->request.offset = w->index * 512u;
    w->request.length = w->iov.iov_len = w->odd ? 256 : 512;
    w->iov.iov_base = w->data;
    w->request.iov = &w->iov;
    w->request.iov_count = 1;
    blk_submit(w->flood->front, &w->request);
}

static void step_done(struct blk_request *request, int result)
{
    struct worker *w = container_of(request, struct worker, request);

    assert_int_equal(result, 0);
    if (request->op == BLK_OP_READ) {
        for (size_t i = 0; i < request->length; i++)
            assert_int_equal(w->data[i], w->value);
        w->flood->rounds++;
    }
    if (atomic_load(&w->flood->stop) && request->op == BLK_OP_READ)
        w->flood->running--;
    else
        next_step(w);
}

static void started(struct loop_post *post)
{
    struct worker *w = container_of(post, struct worker, post);

    w->request.op = BLK_OP_READ;
    next_step(w);
}

static void flood_begin(struct flood *flood, struct blk_front *front)
{
    memset(flood, 0, sizeof(*flood));
    flood->front = front;
    for (unsigned i = 0; i < LOOPS; i++)
        flood->loops[i] = loop_thread_start("flood", NULL);
    for (unsigned i = 0; i < REQUESTS; i++) {
        struct worker *w = &flood->workers[i];
        *w = (struct worker){ .flood = flood, .index = i, .post.fn = started, .request.done = step_done };
        flood->running++;
        loop_post(flood->loops[i % LOOPS], &w->post);
    }
}

/* Requests go on: some have been finished since the call. */
static coroutine_fn void co_expect_progress(struct flood *flood)
{
    uint64_t rounds = flood->rounds;

    for (unsigned i = 0; flood->rounds < rounds + REQUESTS; i++) {
        assert_true(i < 5000);
        co_sleep_ns(MS);
    }
}

static coroutine_fn void co_flood_end(struct flood *flood)
{
    atomic_store(&flood->stop, true);
    while (flood->running)
        co_sleep_ns(MS);
    for (unsigned i = 0; i < LOOPS; i++)
        loop_thread_stop(flood->loops[i]);
}

/* ---- replace ---- */

static void copy_content(struct blk_node *from, struct blk_node *to)
{
    memory_node_fill(to, memory_node(from)->data, memory_node(from)->capacity);
}

static int replace(void *arg)
{
    static struct flood flood;
    struct blk_node *nodes[2] = { co_node("driver=memory,size=64k,align=512,node-name=one"),
                                  co_node("driver=memory,size=64k,align=512,node-name=two") };
    struct blk_node *top = co_node("driver=blkdebug,image=one,node-name=top");
    struct blk_front *front = front_on(top, PERM_RW);

    blk_co_node_unref(top);
    flood_begin(&flood, front);
    for (unsigned i = 0; i < 40; i++) {
        struct blk_node *from = nodes[i % 2], *to = nodes[(i + 1) % 2];
        uint64_t before;
        co_expect_progress(&flood);
        blk_co_drain_begin(top);
        copy_content(from, to);
        before = memory_node(to)->writes;
        assert_int_equal(blk_co_replace(from, to, NULL), 0);
        assert_ptr_equal(top->file, to);
        blk_drain_end(top);
        for (unsigned n = 0; memory_node(to)->writes == before && n < 5000; n++)
            co_sleep_ns(MS);
        assert_true(memory_node(to)->writes > before);
        before = memory_node(from)->writes;
        co_sleep_ns(MS);
        assert_int_equal(memory_node(from)->writes, before);
    }
    co_flood_end(&flood);
    blk_co_front_free(front);
    blk_co_node_unref(nodes[0]);
    blk_co_node_unref(nodes[1]);
    assert_null(blk_node_find("one"));
    return 0;
}

static void test_nodes_are_replaced_under_requests(void **state) { run_co(state, replace, NULL); }

/* The root of a front end too; and its owner hears of it. */
static void note_change(void *arg) { ++*(unsigned *)arg; }

static int replace_root(void *arg)
{
    static const struct blk_front_events events = { .medium_changed = note_change };
    static struct flood flood;
    struct blk_node *one = co_node("driver=memory,size=64k"), *two = co_node("driver=memory,size=128k");
    struct blk_front *front = front_on(one, PERM_RW);
    unsigned changes = 0;

    blk_front_set_events(front, &events, &changes);
    flood_begin(&flood, front);
    co_expect_progress(&flood);
    blk_co_drain_begin(one);
    memcpy(memory_node(two)->data, memory_node(one)->data, memory_node(one)->capacity);
    assert_int_equal(blk_co_replace(one, two, NULL), 0);
    blk_drain_end(one);
    assert_ptr_equal(blk_front_node(front), two);
    assert_int_equal(blk_front_size(front), 128 * KIB);
    assert_int_equal(changes, 1);
    co_expect_progress(&flood);
    co_flood_end(&flood);
    blk_co_node_unref(one); /* nobody else has it */
    blk_co_front_free(front);
    blk_co_node_unref(two);
    return 0;
}

static void test_root_is_replaced(void **state) { run_co(state, replace_root, NULL); }

/* ---- filters ---- */

/* Whatever it does not say passes through: opening, size, limits, requests, block status. */
static const struct blk_driver plain_driver = { .name = "plain", .flags = BLK_DRIVER_FILTER };
BLK_DRIVER(plain_driver)

static int plain_filter(void *arg)
{
    static struct flood flood;
    struct blk_node *node = co_node("driver=plain,file.driver=memory,file.size=64k,file.align=512");
    struct blk_front *front = front_on(node, PERM_RW);
    struct blk_status status;

    assert_int_equal(blk_node_size(node), 64 * KIB);
    assert_int_equal(node->limits.request_alignment, 512);
    flood_begin(&flood, front);
    co_expect_progress(&flood);
    co_flood_end(&flood);
    assert_true(memory_node(node->file)->writes > 0);
    assert_int_equal(blk_co_status(node, NULL, 0, 64 * KIB, &status), 0);
    assert_true(status.data && status.offset_valid);
    assert_ptr_equal(status.file, node->file);
    assert_int_equal(blk_co_truncate(node->file, 128 * KIB, true, "off", NULL), 0);
    assert_int_equal(blk_node_size(node), 128 * KIB);
    blk_co_front_free(front);
    blk_co_node_unref(node);
    return 0;
}

static void test_filter_passes_all_through(void **state) { run_co(state, plain_filter, NULL); }

/* The same over a format, which has to act itself; and a resize. */
static int plain_filter_over_format(void *arg)
{
    struct blk_node *file = co_node("driver=memory,node-name=mem,size=0,max-size=4M");
    uint8_t data[100], found[100];

    co_create_qcow2(file, MIB, "512");
    struct blk_node *node = co_node_as("driver=plain,file.driver=qcow2,file.file=mem", BLK_O_RDWR | BLK_O_RESIZE);
    struct blk_front *front = front_on(node, PERM_RW);
    memset(data, 'x', sizeof(data));
    assert_int_equal(blk_front_co_write(front, 777, data, sizeof(data), 0), 0);
    assert_int_equal(blk_front_co_write_zeroes(front, 4096, 4096, 0), 0);
    assert_int_equal(blk_front_co_discard(front, 8192, 512), 0);
    assert_int_equal(blk_front_co_read(front, 777, found, sizeof(found)), 0);
    assert_memory_equal(data, found, sizeof(data));
    assert_int_equal(blk_front_co_truncate(front, 2 * MIB, true, "off", NULL), 0);
    assert_int_equal(blk_front_size(front), 2 * MIB);
    assert_int_equal(blk_front_co_flush(front), 0);
    blk_co_front_free(front);
    blk_co_node_unref(node);
    blk_co_node_unref(file);
    return 0;
}

static void test_filter_over_a_format(void **state) { run_co(state, plain_filter_over_format, NULL); }

/* A format with two files flushes both, and hears of a failure of either. */
static coroutine_fn int twofold_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    int ret = blk_co_open_child(node, "file", opts, NULL, flags, false, errp);

    if (ret == 0)
        ret = blk_co_open_child(node, "data-file", opts, NULL, flags, false, errp);
    atomic_store(&node->size, MIB);
    return ret;
}

static const struct blk_driver twofold_driver = { .name = "twofold",
                                                  .flags = BLK_DRIVER_FORMAT,
                                                  .co_open = twofold_co_open };
BLK_DRIVER(twofold_driver)

static int flush_of_two(void *arg)
{
    struct blk_node *node = co_node("driver=twofold,file.driver=memory,file.size=1M,data-file.driver=memory,"
                                    "data-file.size=1M");
    struct blk_node *data = blk_node_child(node, "data-file");

    assert_int_equal(blk_co_flush(node), 0);
    assert_int_equal(memory_node(node->file)->flushes, 1);
    assert_int_equal(memory_node(data)->flushes, 1);
    memory_node_fail(node->file, (struct memory_faults){ .fail_at = 1, .with = -EIO });
    assert_int_equal(blk_co_flush(node), -EIO);
    assert_int_equal(memory_node(data)->flushes, 2);
    /* At once: one that takes its time does not keep the other from beginning. */
    struct beside flush;
    memory_node_fail(node->file, (struct memory_faults){ 0 });
    memory_node_hold(node->file, 1u << BLK_OP_FLUSH, 0, MIB);
    memory_node_hold(data, 1u << BLK_OP_FLUSH, 0, MIB);
    beside_start(&flush, node, BLK_OP_FLUSH);
    memory_node_co_wait_held(node->file, 1);
    memory_node_co_wait_held(data, 1);
    memory_node_release(data);
    assert_false(flush.done);
    memory_node_release(node->file);
    assert_int_equal(beside_co_result(&flush), 0);
    blk_co_node_unref(node);
    return 0;
}

static void test_a_flush_is_of_all_children(void **state) { run_co(state, flush_of_two, NULL); }

static int filters(void *arg)
{
    static struct flood flood;
    struct blk_node *node = co_node("driver=memory,size=64k,align=512,node-name=disk");
    struct blk_front *front = front_on(node, PERM_RW);
    struct opts *opts = options("driver=blkdebug,node-name=filter,inject-error.0.event=none,inject-error.0.errno=5,"
                                "inject-error.0.sector=100");

    flood_begin(&flood, front);
    for (unsigned i = 0; i < 30; i++) {
        struct error *error = NULL;
        struct blk_node *filter = blk_co_insert_filter(node, opts, &error);
        if (!filter)
            fail_msg("%s", error_text(error));
        assert_ptr_equal(blk_front_node(front), filter);
        uint64_t passed = blkdebug_requests(filter);
        co_expect_progress(&flood);
        assert_true(blkdebug_requests(filter) > passed);
        assert_int_equal(blk_co_remove_filter(filter, NULL), 0);
        assert_ptr_equal(blk_front_node(front), node);
        assert_int_equal(blk_co_node_unref(filter), 0);
        assert_null(blk_node_find("filter"));
        co_expect_progress(&flood);
    }
    opts_free(opts);
    co_flood_end(&flood);
    blk_co_front_free(front);
    blk_co_node_unref(node);
    return 0;
}

static void test_filters_come_and_go(void **state) { run_co(state, filters, NULL); }

/* ---- backing ---- */

static int backing(void *arg)
{
    struct blk_node *base = co_node("driver=memory,size=1M,node-name=base"),
                    *file = co_node("driver=memory,size=0,node-name=f");
    struct blk_create create = { .size = MIB, .file = file };
    uint8_t data[4096], expected[4096];
    struct error *error = NULL;

    memset(memory_node(base)->data, 'b', MIB);
    assert_int_equal(blk_driver_find("qcow2")->co_create(&create, NULL), 0);
    struct blk_node *top = co_node("driver=qcow2,file=f,node-name=top");
    struct blk_front *front = front_on(top, PERM_RW);
    memset(data, 'w', sizeof(data));
    assert_int_equal(blk_front_co_write(front, 64 * KIB, data, sizeof(data), 0), 0);
    for (unsigned i = 0; i < 4; i++) {
        bool on = i % 2 == 0;
        assert_int_equal(blk_co_set_backing(top, on ? base : NULL, NULL), 0);
        assert_ptr_equal(top->backing, on ? base : NULL);
        assert_int_equal(blk_front_co_read(front, 512 * KIB, data, sizeof(data)), 0);
        memset(expected, on ? 'b' : 0, sizeof(expected));
        assert_memory_equal(data, expected, sizeof(data));
        assert_int_equal(blk_front_co_read(front, 64 * KIB, data, sizeof(data)), 0);
        memset(expected, 'w', sizeof(expected));
        assert_memory_equal(data, expected, sizeof(data));
    }
    assert_int_equal(blk_co_set_backing(base, top, &error), -ENOTSUP);
    assert_error(&error, "Driver 'memory' of node 'base' does not support backing files");
    assert_int_equal(blk_co_set_backing(top, top, &error), -ELOOP);
    assert_error(&error, "Making 'top' a backing child of 'top' would create a cycle");
    blk_co_front_free(front);
    blk_co_node_unref(top);
    blk_co_node_unref(base);
    blk_co_node_unref(file);
    return 0;
}

static void test_backing_is_added_and_dropped(void **state) { run_co(state, backing, NULL); }

/* ---- what fails changes nothing ---- */

static int refused(void *arg)
{
    struct blk_node *node = co_node("driver=memory,size=1M,node-name=disk");
    struct blk_node *top = co_node("driver=blkdebug,image=disk,node-name=top");
    struct blk_node *small = co_node("driver=memory,size=512k,node-name=small");
    struct blk_node *fixed = co_node_as("driver=memory,size=1M,node-name=fixed", 0);
    struct blk_node *used = co_node("driver=memory,size=1M,node-name=used");
    struct blk_front *front = front_on(top, PERM_RW);
    struct blk_front *user = blk_front_new("user", used, BLK_PERM_CONSISTENT_READ, BLK_PERM_CONSISTENT_READ, NULL);
    struct opts *opts = options("driver=memory");
    struct error *error = NULL;
    uint8_t data[512] = { 1 };

    assert_int_equal(blk_co_replace(node, small, &error), -EINVAL);
    assert_error(&error, "Node 'small' is smaller than 'disk', which it would replace below 'top'");
    assert_int_equal(blk_co_replace(node, fixed, &error), -EACCES);
    assert_error(&error, "Block node is read-only");
    assert_int_equal(blk_co_replace(node, used, &error), -EPERM);
    assert_error(&error, "Conflicts with use by a front end as 'root', which does not allow 'write' on used");
    assert_null(blk_co_insert_filter(node, opts, &error));
    assert_error(&error, "'memory' is not a filter driver");
    assert_int_equal(blk_co_remove_filter(node, &error), -EINVAL);
    assert_error(&error, "Node 'disk' is not a filter");
    opts_free(opts);

    assert_ptr_equal(top->file, node);
    assert_int_equal(blk_front_co_write(front, 0, data, sizeof(data), 0), 0);
    assert_int_equal(memory_node(node)->writes, 1);
    /* Permissions are those from before, too. */
    struct blk_front *other = blk_front_new("other", used, BLK_PERM_WRITE, BLK_PERM_ALL, NULL);
    assert_null(other);
    blk_co_front_free(user);
    other = blk_front_new("other", used, BLK_PERM_WRITE, BLK_PERM_ALL, NULL);
    assert_non_null(other);
    blk_co_front_free(other);
    blk_co_front_free(front);
    blk_co_node_unref(top);
    blk_co_node_unref(small);
    blk_co_node_unref(fixed);
    blk_co_node_unref(used);
    blk_co_node_unref(node);
    return 0;
}

static void test_refused_changes_leave_all_as_it_was(void **state) { run_co(state, refused, NULL); }

/* ---- a filter above a file that grows just then ---- */

struct insertion {
    struct blk_node *below, *filter;
    bool done;
};

static coroutine_fn void insert_co(void *arg)
{
    struct insertion *i = arg;
    struct opts *opts = options("driver=blkdebug,node-name=late");

    i->filter = blk_co_insert_filter(i->below, opts, NULL);
    i->done = true;
    opts_free(opts);
}

static coroutine_fn int filter_of_growing_file(void *arg)
{
    struct insertion insertion = { .below = co_node("driver=memory,size=64k,node-name=m") };
    struct blk_node *top = co_node("driver=raw,file=m");
    uint8_t data[512] = { 1 };

    /* The filter is open, the section's begin is under way. */
    testpoint_hold("block-drain-held");
    co_start(insert_co, &insertion);
    testpoint_co_wait_held("block-drain-held");
    assert_int_equal(blk_co_write(insertion.below, 64 * KIB, data, sizeof(data), 0), 0);
    testpoint_release("block-drain-held");
    while (!insertion.done)
        co_sleep_ns(MS);
    testpoint_reset();
    assert_non_null(insertion.filter);
    assert_ptr_equal(top->file, insertion.filter);
    assert_int_equal(blk_node_size(insertion.filter), 64 * KIB + 512);
    assert_int_equal(blk_co_node_unref(top), 0);
    assert_int_equal(blk_co_node_unref(insertion.filter), 0);
    return blk_co_node_unref(insertion.below);
}

static void test_a_filter_has_the_size_that_its_file_has_then(void **state)
{
    run_co(state, filter_of_growing_file, NULL);
}

/* ---- reopen ---- */

/* A protocol driver that counts the steps of a reopen, and fails where it is told. */
struct picky {
    uint64_t value, next; /* option `value`; the one that is not in force */
    unsigned prepared, switched, begun, cleaned;
};

static const char *const fail_words[] = { "never", "prepare", "begin", NULL };
static const struct opt_desc picky_options[] = {
    { .name = "value", .type = OPT_NUMBER, .def = "0", .flags = OPT_REOPEN },
    { .name = "fail", .type = OPT_ENUM, .values = fail_words, .def = "never", .flags = OPT_REOPEN },
    { .name = "fixed", .type = OPT_NUMBER, .def = "0" },
    { 0 },
};
static int picky_fails; /* 2: at begin */

static coroutine_fn int picky_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    struct picky *p = node->state;
    uint64_t fixed;

    atomic_store(&node->size, MIB);
    opts_number(opts, picky_options, "fixed", &fixed, errp);
    return opts_number(opts, picky_options, "value", &p->value, errp) < 0 ? -EINVAL : 0;
}

static coroutine_fn int picky_co_reopen_prepare(struct blk_node *node, struct opts *opts, unsigned flags,
                                                struct error **errp)
{
    struct picky *p = node->state;
    int fail = 0;

    if (opts_number(opts, picky_options, "value", &p->next, errp) < 0 ||
        opts_enum(opts, picky_options, "fail", &fail, errp) < 0)
        return -EINVAL;
    if (fail == 1)
        return error_set(errp, -EIO, "Node '%s' cannot prepare", node->name);
    if (fail == 2)
        picky_fails = 2;
    p->prepared++;
    return 0;
}

static void picky_reopen_switch(struct blk_node *node)
{
    struct picky *p = node->state;
    uint64_t value = p->value;

    p->value = p->next;
    p->next = value;
    p->switched++;
}

static coroutine_fn int picky_co_reopen_begin(struct blk_node *node, unsigned old_flags, struct error **errp)
{
    struct picky *p = node->state;

    p->begun++;
    return picky_fails == 2 ? error_set(errp, -EIO, "Node '%s' cannot begin", node->name) : 0;
}

static coroutine_fn void picky_co_reopen_clean(struct blk_node *node) { ((struct picky *)node->state)->cleaned++; }

static void picky_submit(struct blk_node *node, struct blk_io *io) { blk_io_complete(io, 0); }

static const struct blk_driver picky_driver = {
    .name = "picky",
    .flags = BLK_DRIVER_PROTOCOL,
    .state_size = sizeof(struct picky),
    .options = picky_options,
    .co_open = picky_co_open,
    .submit = picky_submit,
    .co_reopen_prepare = picky_co_reopen_prepare,
    .reopen_switch = picky_reopen_switch,
    .co_reopen_begin = picky_co_reopen_begin,
    .co_reopen_clean = picky_co_reopen_clean,
};
BLK_DRIVER(picky_driver)

static struct picky *picky(struct blk_node *node) { return node->state; }

static coroutine_fn int co_reopen_both(struct blk_node *a, const char *of_a, struct blk_node *b, const char *of_b,
                                       struct error **errp)
{
    struct opts *opts_a = options(of_a), *opts_b = options(of_b);
    struct blk_reopen items[2] = { { .node = a, .opts = opts_a }, { .node = b, .opts = opts_b } };
    int ret = blk_co_reopen(items, 2, errp);

    opts_free(opts_a);
    opts_free(opts_b);
    picky_fails = 0;
    return ret;
}

static int reopen_sets(void *arg)
{
    struct blk_node *a = co_node("driver=picky,node-name=a,value=1"),
                    *b = co_node("driver=picky,node-name=b,value=2,fixed=7");
    struct error *error = NULL;

    assert_int_equal(co_reopen_both(a, "value=3", b, "value=4", NULL), 0);
    assert_int_equal(picky(a)->value, 3);
    assert_int_equal(picky(b)->value, 4);
    assert_int_equal(picky(b)->cleaned, 1);

    assert_int_equal(co_reopen_both(a, "value=5", b, "value=6,fail=prepare", &error), -EIO);
    assert_error(&error, "Node 'b' cannot prepare");
    assert_int_equal(picky(a)->value, 3);
    assert_int_equal(picky(a)->switched, 1);
    assert_int_equal(picky(a)->cleaned, 2); /* it had prepared */
    assert_int_equal(picky(b)->cleaned, 1);

    assert_int_equal(co_reopen_both(a, "value=5,read-only=on", b, "value=6,fail=begin", &error), -EIO);
    assert_error(&error, "Node 'b' cannot begin");
    assert_int_equal(picky(a)->value, 3);
    assert_int_equal(picky(b)->value, 4);
    assert_int_equal(picky(a)->switched, 3); /* there and back */
    assert_true(blk_node_writable(a));

    assert_int_equal(co_reopen_both(a, "value=5", b, "fixed=8", &error), -EINVAL);
    assert_error(&error, "Cannot change the option 'fixed'");
    assert_int_equal(co_reopen_both(a, "value=5", b, "fixed=7", NULL), 0); /* it is that already */
    assert_int_equal(picky(a)->value, 5);
    assert_int_equal(picky(b)->value, 4); /* what is not given stays */
    assert_int_equal(co_reopen_both(a, "", a, "", &error), -EINVAL);
    assert_error(&error, "Node 'a' is given twice");
    blk_co_node_unref(a);
    blk_co_node_unref(b);
    return 0;
}

static void test_reopen_is_all_or_none(void **state) { run_co(state, reopen_sets, NULL); }

/* Another backing child by a reopen, alone and in a set that fails after all had switched. */
static int reopen_backing(void *arg)
{
    struct blk_node *base = co_node("driver=memory,size=1M,node-name=base"),
                    *file = co_node("driver=memory,size=0,node-name=f"), *b = co_node("driver=picky,node-name=b");
    struct error *error = NULL;
    uint8_t byte;

    memset(memory_node(base)->data, 'b', MIB);
    co_create_qcow2(file, MIB, "64k");
    struct blk_node *top = co_node("driver=qcow2,file=f,node-name=top");
    unsigned alone = base->references;
    assert_int_equal(co_reopen_both(top, "backing=base", b, "fail=begin", &error), -EIO);
    assert_error(&error, "Node 'b' cannot begin");
    assert_null(top->backing);
    assert_int_equal(base->references, alone);
    assert_int_equal(co_reopen_both(top, "backing=nobody", b, "value=1", &error), -ENODEV);
    assert_error(&error, "Cannot find device='nobody' nor node-name='nobody'");
    assert_int_equal(co_reopen_both(top, "backing=top", b, "value=1", &error), -ELOOP);
    assert_error(&error, "Making 'top' a backing child of 'top' would create a cycle");
    assert_int_equal(co_reopen_both(top, "backing=base", b, "value=1", NULL), 0);
    assert_ptr_equal(top->backing, base);
    assert_int_equal(blk_co_read(top, 1000, &byte, 1), 0);
    assert_int_equal(byte, 'b');
    assert_int_equal(co_reopen_both(top, "backing=base", b, "value=2", NULL), 0); /* it is so already */
    assert_int_equal(base->references, alone + 1);
    struct opts *null = opts_new();
    struct blk_reopen item = { .node = top, .opts = null };
    assert_int_equal(opts_parse_json(null, "{'backing': null}", NULL), 0);
    assert_int_equal(blk_co_reopen(&item, 1, NULL), 0);
    opts_free(null);
    assert_null(top->backing);
    assert_int_equal(blk_co_read(top, 1000, &byte, 1), 0);
    assert_int_equal(byte, 0);
    blk_co_node_unref(top);
    assert_int_equal(base->references, alone);
    blk_co_node_unref(base);
    blk_co_node_unref(b);
    blk_co_node_unref(file);
    return 0;
}

static void test_a_reopen_changes_backing(void **state) { run_co(state, reopen_backing, NULL); }

static int reopen_read_only(void *arg)
{
    struct blk_node *node = co_node("driver=blkdebug,node-name=top,image.driver=memory,image.size=1M");
    struct blk_front *front = front_on(node, PERM_RW);
    struct error *error = NULL;
    uint8_t data[512] = { 1 };

    assert_int_equal(blk_co_reopen(&(struct blk_reopen){ .node = node, .clear = BLK_O_RDWR }, 1, &error), -EACCES);
    assert_error(&error, "Block node is read-only"); /* the front end writes */
    assert_true(blk_node_writable(node) && blk_node_writable(node->file));
    assert_int_equal(blk_front_co_write(front, 0, data, sizeof(data), 0), 0);

    assert_int_equal(blk_front_set_perm(front, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, NULL), 0);
    assert_int_equal(blk_co_reopen(&(struct blk_reopen){ .node = node, .clear = BLK_O_RDWR }, 1, NULL), 0);
    assert_false(blk_node_writable(node) || blk_node_writable(node->file)); /* its own child followed */
    assert_false(blk_front_writable(front));
    assert_int_equal(blk_front_co_write(front, 0, data, sizeof(data), 0), -EPERM);
    assert_int_equal(blk_front_co_read(front, 0, data, sizeof(data)), 0);
    assert_int_equal(blk_co_reopen(&(struct blk_reopen){ .node = node, .set = BLK_O_RDWR }, 1, NULL), 0);
    assert_int_equal(blk_front_set_perm(front, PERM_RW, BLK_PERM_ALL, NULL), 0);
    assert_int_equal(blk_front_co_write(front, 0, data, sizeof(data), 0), 0);
    blk_co_front_free(front);
    blk_co_node_unref(node);
    return 0;
}

static void test_reopen_read_only_and_back(void **state) { run_co(state, reopen_read_only, NULL); }

struct late {
    struct blk_front *front;
    uint64_t offset;
    bool done;
    int result;
};

static void co_write_late(void *arg)
{
    struct late *late = arg;
    uint8_t data[512] = { 1 };

    late->result = blk_front_co_write(late->front, late->offset, data, sizeof(data), 0);
    late->done = true;
}

/* Requests that waited while the disk became smaller, and read-only, are refused for what it is then. */
static int late_requests(void *arg)
{
    struct blk_node *node = co_node("driver=plain,file.driver=memory,file.size=64k");
    struct blk_front *front = front_on(node, PERM_RW);
    struct late end = { .front = front, .offset = 63 * KIB }, begin = { .front = front };

    blk_co_drain_begin(node);
    co_start(co_write_late, &end);
    assert_int_equal(blk_co_truncate(node->file, 32 * KIB, true, "off", NULL), 0);
    blk_drain_end(node);
    while (!end.done)
        co_sleep_ns(MS);
    assert_int_equal(end.result, -EIO);

    blk_co_drain_begin(node);
    co_start(co_write_late, &begin);
    assert_int_equal(blk_front_set_perm(front, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, NULL), 0);
    assert_int_equal(blk_co_reopen(&(struct blk_reopen){ .node = node, .clear = BLK_O_RDWR }, 1, NULL), 0);
    blk_drain_end(node);
    while (!begin.done)
        co_sleep_ns(MS);
    assert_int_equal(begin.result, -EPERM);
    struct blk_stats stats;
    blk_front_stats(front, &stats);
    assert_int_equal(stats.invalid[BLK_OP_WRITE], 2); /* neither has failed: they were not let in */
    assert_int_equal(stats.failed[BLK_OP_WRITE], 0);
    assert_int_equal(memory_node(node->file)->writes, 0);
    blk_co_front_free(front);
    blk_co_node_unref(node);
    return 0;
}

static void test_late_requests_meet_the_disk_as_it_is(void **state) { run_co(state, late_requests, NULL); }

/* A front end that was refused more than it has keeps what it has, and no more. */
static int refused_permission(void *arg)
{
    struct blk_node *node = co_node("driver=plain,file.driver=memory");
    struct blk_front *reader = front_on(node, BLK_PERM_CONSISTENT_READ);
    struct blk_front *alone = blk_front_new("alone", node, BLK_PERM_WRITE, BLK_PERM_CONSISTENT_READ, NULL);

    assert_non_null(alone);
    assert_true(blk_front_set_perm(reader, PERM_RW, BLK_PERM_ALL, NULL) < 0);
    assert_int_equal(blk_co_front_free(alone), 0);
    alone = blk_front_new("alone", node, BLK_PERM_WRITE, BLK_PERM_CONSISTENT_READ, NULL);
    assert_non_null(alone); /* the reader is none that writes */
    blk_co_front_free(alone);
    blk_co_front_free(reader);
    blk_co_node_unref(node);
    return 0;
}

static void test_refused_permission_is_not_kept(void **state) { run_co(state, refused_permission, NULL); }

/* qcow2 between cache sizes, lazy refcounts and read-only while two loops write. */
static int reopen_qcow2(void *arg)
{
    static const char *const lines[] = { "l2-cache-entry-size=512,l2-cache-size=8k", "lazy-refcounts=on",
                                         "overlap-check=all", "lazy-refcounts=off,discard=unmap",
                                         "l2-cache-entry-size=4096,cache-size=1M" };
    static struct flood flood;
    struct blk_node *file = co_node("driver=memory,size=0,node-name=f");
    struct blk_create create = { .size = 64 * MIB, .file = file };
    struct blk_check check = { 0 };

    assert_int_equal(blk_driver_find("qcow2")->co_create(&create, NULL), 0);
    struct blk_node *node = co_node("driver=qcow2,file=f,node-name=disk");
    struct blk_front *front = front_on(node, PERM_RW);
    flood_begin(&flood, front);
    for (unsigned i = 0; i < 40; i++) {
        struct opts *opts = options(lines[i % ARRAY_SIZE(lines)]);
        struct error *error = NULL;
        co_expect_progress(&flood);
        if (blk_co_reopen(&(struct blk_reopen){ .node = node, .opts = opts }, 1, &error) < 0)
            fail_msg("%s", error_text(error));
        opts_free(opts);
    }
    co_flood_end(&flood);
    assert_int_equal(blk_front_set_perm(front, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, NULL), 0);
    /* Read-only leaves nothing behind: what is on the disk now is all there is, and clean. */
    assert_int_equal(blk_co_reopen(&(struct blk_reopen){ .node = node, .clear = BLK_O_RDWR }, 1, NULL), 0);
    struct blk_node *copy = co_node("driver=memory,size=0,node-name=c");
    copy_content(file, copy);
    struct blk_node *seen = co_node_as("driver=qcow2,file=c", 0);
    assert_int_equal(blk_co_check(seen, &check, 0, NULL), 0);
    assert_int_equal(check.corruptions + check.leaks + check.check_errors, 0);
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint8_t data[256];
        assert_int_equal(blk_co_read(seen, i * 512u, data, sizeof(data)), 0);
        for (size_t k = 0; k < sizeof(data); k++)
            assert_int_equal(data[k], flood.workers[i].value);
    }
    blk_co_node_unref(seen);
    blk_co_node_unref(copy);
    blk_co_front_free(front);
    blk_co_node_unref(node);
    blk_co_node_unref(file);
    return 0;
}

static void test_qcow2_is_reopened_under_requests(void **state) { run_co(state, reopen_qcow2, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(test_nodes_are_replaced_under_requests),
        LOOP_TEST(test_root_is_replaced),
        LOOP_TEST(test_filter_passes_all_through),
        LOOP_TEST(test_filter_over_a_format),
        LOOP_TEST(test_a_flush_is_of_all_children),
        LOOP_TEST(test_filters_come_and_go),
        LOOP_TEST(test_a_filter_has_the_size_that_its_file_has_then),
        LOOP_TEST(test_backing_is_added_and_dropped),
        LOOP_TEST(test_refused_changes_leave_all_as_it_was),
        LOOP_TEST(test_reopen_is_all_or_none),
        LOOP_TEST(test_a_reopen_changes_backing),
        LOOP_TEST(test_reopen_read_only_and_back),
        LOOP_TEST(test_late_requests_meet_the_disk_as_it_is),
        LOOP_TEST(test_refused_permission_is_not_kept),
        LOOP_TEST(test_qcow2_is_reopened_under_requests),
    };

    setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failure in a coroutine cannot jump out of it */
    return run_on_both_backends(tests);
}
