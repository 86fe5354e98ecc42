/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Several who change the graph at a time: opens that fail, closes, drained sections and reopens, each in the middle of
 * another's. A filter stops where the test wants it to, and says what was done to it.
 */
#include "image.h"
#include "image_locks.h"
#include "memory_node.h"

#include <block/change.h>

/* ---- a filter that stops ---- */

enum place { OPENING, CLOSING, FLUSHING, REOPENING, PLACES };

/* Of all nodes of the driver. */
static struct {
    bool stop[PLACES], reached[PLACES];
    bool open_fails, reopen_fails;
    bool kept_to_itself; /* a write came, and no flush after it */
    unsigned closes;
} slow;
static struct co_cond changed; /* any of that, or a task is done */

static coroutine_fn void co_stop_at(enum place place)
{
    slow.reached[place] = true;
    co_cond_broadcast(&changed);
    while (slow.stop[place])
        co_cond_wait(&changed, NULL);
}

static coroutine_fn void co_wait_reached(enum place place)
{
    while (!slow.reached[place])
        co_cond_wait(&changed, NULL);
}

static void go_on(enum place place)
{
    slow.stop[place] = false;
    co_cond_broadcast(&changed);
}

static coroutine_fn int slow_co_open(struct blk_node *node, struct opts *opts, unsigned flags, struct error **errp)
{
    int ret = blk_co_open_child(node, "file", opts, NULL, flags, false, errp);

    if (ret < 0)
        return ret;
    co_stop_at(OPENING);
    atomic_store(&node->size, blk_node_size(node->file));
    return slow.open_fails ? error_set(errp, -EIO, "Node '%s' cannot be opened", node->name) : 0;
}

static coroutine_fn int slow_co_close(struct blk_node *node)
{
    slow.closes++;
    co_stop_at(CLOSING);
    assert_int_equal(blk_co_write(node->file, 0, "closed", 6, 0), 0);
    return 0;
}

static void slow_map(struct blk_node *node, enum blk_op op, unsigned flags, uint64_t offset, uint64_t length,
                     struct blk_extent *extent)
{
    *extent = (struct blk_extent){ .kind = BLK_SLOW, .length = length };
}

static coroutine_fn int slow_co_write(struct blk_node *node, uint64_t offset, uint64_t length, const struct iovec *iov,
                                      int iov_count, unsigned flags)
{
    slow.kept_to_itself = true;
    return blk_co_writev(node->file, offset, length, iov, iov_count, flags);
}

static coroutine_fn int slow_co_flush(struct blk_node *node)
{
    slow.kept_to_itself = false;
    co_stop_at(FLUSHING);
    return blk_co_flush(node->file);
}

static coroutine_fn int slow_co_reopen_prepare(struct blk_node *node, struct opts *opts, unsigned flags,
                                               struct error **errp)
{
    return 0;
}

static coroutine_fn int slow_co_reopen_begin(struct blk_node *node, unsigned old_flags, struct error **errp)
{
    co_stop_at(REOPENING);
    return slow.reopen_fails ? error_set(errp, -EIO, "Node '%s' cannot be reopened", node->name) : 0;
}

static const struct blk_driver slow_driver = {
    .name = "slow",
    .flags = BLK_DRIVER_FILTER,
    .co_open = slow_co_open,
    .co_close = slow_co_close,
    .map = slow_map,
    .co_write = slow_co_write,
    .co_flush = slow_co_flush,
    .co_reopen_prepare = slow_co_reopen_prepare,
    .co_reopen_begin = slow_co_reopen_begin,
};
BLK_DRIVER(slow_driver)

/* ---- helpers ---- */

static void begin(void) { memset(&slow, 0, sizeof(slow)); }

static coroutine_fn struct blk_node *co_node(const char *line)
{
    return co_open_words(line, BLK_O_RDWR | BLK_O_RESIZE | BLK_O_UNMAP);
}

/* Something that another coroutine does. */
struct task {
    coroutine_fn int (*co_fn)(struct task *task);
    const char *line;
    struct blk_node *node, *other;
    struct blk_front *front;
    int result;
    bool done;
};

static coroutine_fn void co_run_task(void *arg)
{
    struct task *task = arg;

    task->result = task->co_fn(task);
    task->done = true;
    co_cond_broadcast(&changed);
}

static coroutine_fn void co_wait_done(struct task *task)
{
    while (!task->done)
        co_cond_wait(&changed, NULL);
}

/* Others have had their turn, and would have gone on if nothing held them. */
static coroutine_fn void co_let_others_run(void)
{
    for (int i = 0; i < 20; i++)
        co_sleep_ns(200000);
}

static coroutine_fn int co_task_open(struct task *task)
{
    task->node = co_open_line(task->line, BLK_O_RDWR, NULL);
    return task->node ? 0 : -EIO;
}

static coroutine_fn int co_task_close(struct task *task) { return blk_co_node_unref(task->node); }

static coroutine_fn int co_task_write(struct task *task) { return blk_front_co_write(task->front, 512, "data", 4, 0); }

static coroutine_fn int co_task_drain(struct task *task)
{
    blk_co_drain_begin(task->node);
    co_let_others_run();
    blk_drain_end(task->node);
    return 0;
}

static coroutine_fn int co_task_drain_briefly(struct task *task)
{
    blk_co_drain_begin(task->node);
    blk_drain_end(task->node);
    return 0;
}

static coroutine_fn int co_task_replace(struct task *task) { return blk_co_replace(task->node, task->other, NULL); }

static coroutine_fn int co_task_remove(struct task *task) { return blk_co_remove_filter(task->node, NULL); }

/* ---- opens and closes inside sections ---- */

static int failed_open(void *arg)
{
    struct task open = { .co_fn = co_task_open, .line = "driver=slow,node-name=top,file=base" };

    begin();
    slow.stop[OPENING] = slow.open_fails = true;
    struct blk_node *base = co_node("driver=memory,node-name=base,size=1M");
    co_start(co_run_task, &open);
    co_wait_reached(OPENING);
    assert_null(blk_node_find("top")); /* nobody may use it yet */
    blk_co_drain_begin(base);
    go_on(OPENING);
    co_wait_done(&open);
    assert_int_equal(open.result, -EIO);
    blk_drain_end(base);
    blk_co_node_unref(base);
    return 0;
}

static void test_a_failed_open_is_forgotten_by_sections(void **state) { run_co(state, failed_open, NULL); }

static int close_begun(void *arg)
{
    struct task close = { .co_fn = co_task_close };
    struct task drain = { .co_fn = co_task_drain };

    begin();
    slow.stop[CLOSING] = true;
    struct blk_node *base = co_node("driver=memory,node-name=base,size=1M");
    close.node = co_node("driver=slow,node-name=top,file=base");
    drain.node = base;
    co_start(co_run_task, &close);
    co_wait_reached(CLOSING);
    assert_null(blk_node_find("top"));
    co_start(co_run_task, &drain);
    co_let_others_run();
    assert_false(drain.done); /* what the close writes comes before */
    go_on(CLOSING);
    co_wait_done(&close);
    co_wait_done(&drain);
    assert_int_equal(slow.closes, 1);
    blk_co_node_unref(base);
    return 0;
}

static void test_a_section_waits_for_a_close_that_has_begun(void **state) { run_co(state, close_begun, NULL); }

static int close_later(void *arg)
{
    struct task close = { .co_fn = co_task_close };

    begin();
    struct blk_node *base = co_node("driver=memory,node-name=base,size=1M");
    close.node = co_node("driver=slow,node-name=top,file=base");
    blk_co_drain_begin(base);
    co_start(co_run_task, &close);
    co_let_others_run();
    assert_int_equal(slow.closes, 0); /* what it writes would come in the middle of the section */
    assert_null(blk_node_find("top"));
    blk_co_drain_begin(base); /* nor does another section wait for it */
    blk_drain_end(base);
    blk_drain_end(base);
    co_wait_done(&close);
    assert_int_equal(slow.closes, 1);
    blk_co_node_unref(base);
    return 0;
}

static void test_a_close_waits_for_the_section_that_holds_it(void **state) { run_co(state, close_later, NULL); }

/* Its own section holds up nobody's close. */
static int close_inside(void *arg)
{
    begin();
    struct blk_node *base = co_node("driver=memory,node-name=base,size=1M");
    struct blk_node *top = co_node("driver=slow,node-name=top,file=base");
    blk_co_drain_begin(base);
    blk_co_node_unref(top);
    assert_int_equal(slow.closes, 1);
    blk_drain_end(base);
    blk_co_node_unref(base);
    return 0;
}

static void test_a_drainer_closes_inside_its_section(void **state) { run_co(state, close_inside, NULL); }

/* ---- sections of several ---- */

/* Both wait for the same request; the one that is ready first ends its own section, not the other's. */
static int two_drainers(void *arg)
{
    begin();
    struct blk_node *base = co_node("driver=memory,node-name=base,size=1M");
    struct blk_front *front = test_front(base);
    struct task write = { .co_fn = co_task_write, .front = front };
    struct task drains[2] = { { .co_fn = co_task_drain_briefly, .node = base },
                              { .co_fn = co_task_drain, .node = base } };
    memory_node_hold(base, 1u << BLK_OP_WRITE, 0, MIB);
    co_start(co_run_task, &write);
    memory_node_co_wait_held(base, 1);
    co_start(co_run_task, &drains[0]);
    co_let_others_run();
    co_start(co_run_task, &drains[1]);
    co_let_others_run();
    assert_false(drains[0].done || drains[1].done);
    memory_node_release(base);
    co_wait_done(&drains[0]);
    co_wait_done(&drains[1]);
    co_wait_done(&write);
    blk_co_front_free(front);
    blk_co_node_unref(base);
    return 0;
}

static void test_two_drain_one_node(void **state) { run_co(state, two_drainers, NULL); }

/* A front end that is freed by who holds it: its requests that wait are done first, so nobody waits for ever. */
static int free_inside(void *arg)
{
    begin();
    struct blk_node *base = co_node("driver=memory,node-name=base,size=1M");
    struct blk_front *front = test_front(base);
    struct task write = { .co_fn = co_task_write, .front = front };
    uint8_t found[4];
    blk_co_drain_begin(base);
    co_start(co_run_task, &write);
    co_let_others_run();
    assert_false(write.done);
    assert_int_equal(blk_co_front_free(front), 0);
    co_wait_done(&write);
    assert_int_equal(write.result, 0);
    blk_drain_end(base);
    assert_int_equal(blk_co_read(base, 512, found, sizeof(found)), 0);
    assert_memory_equal(found, "data", 4);
    blk_co_node_unref(base);
    return 0;
}

static void test_a_drainer_frees_a_front_end_with_requests(void **state) { run_co(state, free_inside, NULL); }

/* ---- changes that meet ---- */

/* A write that comes while the filter is flushed for its removal goes to what is below, not into the filter. */
static int remove_filter(void *arg)
{
    begin();
    struct blk_node *base = co_node("driver=memory,node-name=base,size=1M");
    struct blk_front *front;
    struct task write = { .co_fn = co_task_write }, remove = { .co_fn = co_task_remove };
    remove.node = co_node("driver=slow,node-name=top,file=base");
    write.front = front = test_front(remove.node);
    slow.stop[FLUSHING] = true;
    co_start(co_run_task, &remove);
    co_wait_reached(FLUSHING);
    co_start(co_run_task, &write);
    co_let_others_run();
    go_on(FLUSHING);
    co_wait_done(&remove);
    co_wait_done(&write);
    assert_int_equal(remove.result, 0);
    assert_int_equal(write.result, 0);
    assert_false(slow.kept_to_itself);
    blk_co_node_unref(remove.node);
    blk_co_front_free(front);
    blk_co_node_unref(base);
    return 0;
}

static void test_nothing_stays_in_a_filter_that_is_removed(void **state) { run_co(state, remove_filter, NULL); }

/* A resize takes its turn: it is of the node that the front end has then. */
static int truncate_turn(void *arg)
{
    begin();
    struct blk_node *one = co_node("driver=memory,node-name=one,size=1M,max-size=4M");
    struct blk_node *two = co_node("driver=memory,node-name=two,size=1M,max-size=4M");
    struct blk_front *front = test_front(one);
    struct task write = { .co_fn = co_task_write, .front = front };
    struct task replace = { .co_fn = co_task_replace, .node = one, .other = two };
    struct error *error = NULL;
    memory_node_hold(one, 1u << BLK_OP_WRITE, 0, MIB);
    co_start(co_run_task, &write);
    memory_node_co_wait_held(one, 1);
    co_start(co_run_task, &replace); /* waits for the write, then moves the front end */
    co_let_others_run();
    memory_node_release(one);
    if (blk_front_co_truncate(front, 2 * MIB, true, "off", &error) < 0)
        fail_msg("%s", error_text(error));
    co_wait_done(&replace);
    co_wait_done(&write);
    assert_int_equal(blk_node_size(one), MIB);
    assert_int_equal(blk_node_size(two), 2 * MIB);
    blk_co_front_free(front);
    blk_co_node_unref(one);
    blk_co_node_unref(two);
    return 0;
}

static void test_a_resize_takes_its_turn(void **state) { run_co(state, truncate_turn, NULL); }

static coroutine_fn int co_task_reopen(struct task *task)
{
    struct blk_reopen item = { .node = task->node, .set = BLK_O_NO_FLUSH };

    return blk_co_reopen(&item, 1, NULL);
}

/* A reopen that is undone in the end, while others come to its file and go: who can wait does, who cannot is refused.
 * The undoing takes nobody's lock away, and keeps none that nobody needs. */
struct reopening {
    char *path;
    int fd;
    struct blk_node *file;
    struct task task;
};

static coroutine_fn void co_reopening_begin(struct reopening *r)
{
    begin();
    r->path = path_in(disk_folder, "x");
    AUTO_FREE char *line = xasprintf("driver=file,node-name=disk,filename=%s", r->path);
    assert_int_equal(blk_co_create("qcow2", r->path, NULL, MIB, NULL), 0);
    r->fd = open(r->path, O_RDWR);
    assert_true(r->fd >= 0);
    r->file = co_node(line);
    r->task = (struct task){ .co_fn = co_task_reopen, .node = co_node("driver=slow,node-name=top,file=disk") };
    slow.stop[REOPENING] = slow.reopen_fails = true;
}

static coroutine_fn void co_reopening_end(struct reopening *r)
{
    blk_co_node_unref(r->task.node);
    blk_co_node_unref(r->file);
    close(r->fd);
    unlink(r->path);
    free(r->path);
}

static int leave_meanwhile(void *arg)
{
    struct reopening r;
    struct error *error = NULL;

    co_reopening_begin(&r);
    struct blk_front *leaving = blk_front_new("leaving", r.file, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, NULL);
    assert_non_null(leaving);
    assert_held(r.fd, BLK_PERM_CONSISTENT_READ, 0);
    co_start(co_run_task, &r.task);
    co_wait_reached(REOPENING);
    assert_null(blk_front_new("early", r.file, BLK_PERM_WRITE, BLK_PERM_ALL, &error));
    assert_error(&error, "Node 'disk' is being reopened");
    blk_co_front_free(leaving);
    go_on(REOPENING);
    co_wait_done(&r.task);
    assert_int_equal(r.task.result, -EIO);
    assert_held(r.fd, 0, 0);
    co_reopening_end(&r);
    return 0;
}

static void test_who_goes_during_a_reopen_leaves_no_lock(void **state) { run_co(state, leave_meanwhile, NULL); }

static int come_meanwhile(void *arg)
{
    struct reopening r;
    struct task user = { .co_fn = co_task_open, .line = "driver=qcow2,node-name=user,file=disk" };

    co_reopening_begin(&r);
    co_start(co_run_task, &r.task);
    co_wait_reached(REOPENING);
    co_start(co_run_task, &user);
    co_let_others_run();
    assert_false(user.done);
    go_on(REOPENING);
    co_wait_done(&r.task);
    co_wait_done(&user);
    assert_int_equal(r.task.result, -EIO);
    assert_int_equal(user.result, 0);
    unsigned writes = BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE | BLK_PERM_RESIZE;
    assert_int_equal(bytes_held(r.fd, 100), writes);
    blk_co_node_unref(user.node);
    co_reopening_end(&r);
    return 0;
}

static void test_who_comes_during_a_reopen_keeps_its_locks(void **state) { run_co(state, come_meanwhile, NULL); }

int main(void)
{
    static const struct CMUnitTest tests[] = {
        LOOP_TEST(test_a_failed_open_is_forgotten_by_sections),
        LOOP_TEST(test_a_section_waits_for_a_close_that_has_begun),
        LOOP_TEST(test_a_close_waits_for_the_section_that_holds_it),
        LOOP_TEST(test_a_drainer_closes_inside_its_section),
        LOOP_TEST(test_two_drain_one_node),
        LOOP_TEST(test_a_drainer_frees_a_front_end_with_requests),
        LOOP_TEST(test_nothing_stays_in_a_filter_that_is_removed),
        LOOP_TEST(test_a_resize_takes_its_turn),
        LOOP_TEST(test_who_goes_during_a_reopen_leaves_no_lock),
        LOOP_TEST(test_who_comes_during_a_reopen_keeps_its_locks),
    };

    if (image_tests_begin() < 0)
        return 1;
    co_cond_init(&changed);
    return image_tests_end(cmocka_run_group_tests(tests, NULL, NULL));
}
