/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Image locks: every pair of users, each in every kind of use, ours against ours, ours against QEMU's, QEMU's against
 * ours. Who is refused follows from the permission bits, and the words are QEMU's.
 */
#include "image.h"
#include "image_locks.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* What qemu-io does with an image in each format and mode, as its lock bytes show (strace -e fcntl). */
static const struct use {
    const char *name;
    const char *format;
    bool writable;
    unsigned perm, shared;
} uses[] = {
    { "raw, writing", "raw", true, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE, BLK_PERM_ALL },
    { "raw, reading", "raw", false, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL },
    { "qcow2, writing", "qcow2", true, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE | BLK_PERM_RESIZE,
      BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE_UNCHANGED },
    { "qcow2, reading", "qcow2", false, BLK_PERM_CONSISTENT_READ, BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE_UNCHANGED },
};

static bool conflict(const struct use *a, const struct use *b)
{
    return (a->perm & ~b->shared) || (b->perm & ~a->shared);
}

/* What the one who comes second is told: first its own wish, then its own refusal to share. */
static char *expected_words(const struct use *first, const struct use *second, const char *path)
{
    const char *names[] = { "consistent read", "write", "write unchanged", "resize" };
    unsigned refused = second->perm & ~first->shared;
    const char *kind = "";

    if (!refused) {
        refused = first->perm & ~second->shared;
        kind = "shared ";
    }
    return xasprintf("Failed to get %s\"%s\" lock\nIs another process using the image [%s]?", kind,
                     names[__builtin_ctz(refused)], path);
}

/* ---- ours ---- */

struct holder {
    struct blk_node *node;
    struct blk_front *front;
};

static coroutine_fn int co_hold(const char *path, const struct use *use, struct holder *holder, struct error **errp)
{
    char *line = xasprintf("driver=file,filename=%s", path);

    *holder = (struct holder){ 0 };
    holder->node = co_open_line(line, use->writable ? BLK_O_RDWR : 0, errp);
    free(line);
    if (!holder->node)
        return -1;
    holder->front = blk_front_new("test", holder->node, use->perm, use->shared, errp);
    if (!holder->front) {
        blk_co_node_unref(holder->node);
        return -1;
    }
    return 0;
}

static coroutine_fn void co_release(struct holder *holder)
{
    assert_int_equal(blk_co_front_free(holder->front), 0);
    assert_int_equal(blk_co_node_unref(holder->node), 0);
}

static coroutine_fn void co_expect(const char *path, const struct use *first, const struct use *second,
                                   const char *hint)
{
    struct holder holder;
    struct error *error = NULL;
    int ret = co_hold(path, second, &holder, &error);

    if (!conflict(first, second)) {
        assert_int_equal(ret, 0);
        co_release(&holder);
        return;
    }
    assert_int_equal(ret, -1);
    char *words = expected_words(first, second, path);
    assert_string_equal(error_text(error), words);
    if (hint) {
        assert_non_null(error_hint_text(error));
        assert_non_null(strstr(error_hint_text(error), hint));
        assert_int_equal(strstr(error_hint_text(error), "add -U") != NULL, !second->writable);
    }
    error_free(error);
    free(words);
}

static int co_ours_test(void *arg)
{
    char *path = path_in(disk_folder, "locked");

    make_file(path, MIB);
    for (size_t a = 0; a < ARRAY_SIZE(uses); a++) {
        struct holder holder;
        assert_int_equal(co_hold(path, &uses[a], &holder, NULL), 0);
        for (size_t b = 0; b < ARRAY_SIZE(uses); b++) {
            co_expect(path, &uses[a], &uses[b], NULL);
            co_expect(path, &uses[a], &uses[b], NULL); /* a refusal leaves nothing locked */
        }
        co_release(&holder);
        for (size_t b = 0; b < ARRAY_SIZE(uses); b++) {
            assert_int_equal(co_hold(path, &uses[b], &holder, NULL), 0);
            co_release(&holder);
        }
    }
    unlink(path);
    free(path);
    return 0;
}

static void our_nodes_keep_each_other_out(void **state) { run_co(state, co_ours_test, NULL); }

/* A node whose users come and go holds what the present ones need. */
static int co_change_test(void *arg)
{
    char *path = path_in(disk_folder, "changing"), *line = xasprintf("driver=file,filename=%s", path);
    const struct use *writer = &uses[2], *reader = &uses[1];
    struct holder other;

    make_file(path, MIB);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR, NULL);
    assert_non_null(node);
    struct blk_front *front = blk_front_new("reader", node, reader->perm, reader->shared, NULL);
    assert_int_equal(co_hold(path, writer, &other, NULL), 0);
    struct error *error = NULL;
    assert_null(blk_front_new("writer", node, writer->perm, writer->shared, &error));
    error_free(error);
    error = NULL;
    co_release(&other);
    struct blk_front *second = blk_front_new("writer", node, writer->perm, writer->shared, &error);
    assert_non_null(second);
    assert_int_equal(co_hold(path, writer, &other, &error), -1);
    assert_string_equal(error_hint_text(error), ({
                            static char text[200];
                            snprintf(text, sizeof(text), "'%s' is already in use by this process", path);
                            text;
                        }));
    error_free(error);
    assert_int_equal(blk_co_front_free(second), 0);
    assert_int_equal(co_hold(path, writer, &other, NULL), 0);
    co_release(&other);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    free(line);
    return 0;
}

static void locks_follow_the_users(void **state) { run_co(state, co_change_test, NULL); }

/* What was refused on a node that stays open is not left locked: a third, who minds writers, still comes in. */
static int co_refused_test(void *arg)
{
    char *path = path_in(disk_folder, "refused"), *line = xasprintf("driver=file,filename=%s", path);
    const struct use *writer = &uses[2], *reader = &uses[3];
    struct holder first, third;

    make_file(path, MIB);
    assert_int_equal(co_hold(path, reader, &first, NULL), 0);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR, NULL);
    assert_non_null(node);
    assert_null(blk_front_new("writer", node, writer->perm, writer->shared, NULL));
    assert_int_equal(co_hold(path, reader, &third, NULL), 0);
    co_release(&third);
    co_release(&first);
    assert_int_equal(blk_co_node_unref(node), 0);
    unlink(path);
    free(path);
    free(line);
    return 0;
}

static void a_refusal_leaves_nothing_locked(void **state) { run_co(state, co_refused_test, NULL); }

/* ---- the three steps, as a transaction over many nodes takes them ---- */

static int co_steps_test(void *arg)
{
    const unsigned read = BLK_PERM_CONSISTENT_READ, write = BLK_PERM_WRITE, resize = BLK_PERM_RESIZE;
    char *path = path_in(disk_folder, "steps"), *line = xasprintf("driver=file,filename=%s", path);
    struct error *error = NULL;

    make_file(path, MIB);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR, NULL);
    assert_non_null(node);
    const struct blk_driver *driver = node->driver;

    assert_int_equal(driver->perm_prepare(node, read | write, BLK_PERM_ALL & ~resize, NULL), 0);
    driver->perm_commit(node);
    assert_held(fd, read | write, resize);

    /* Prepared: what was held and what is new. Then one of the two. */
    assert_int_equal(driver->perm_prepare(node, read | resize, BLK_PERM_ALL & ~write, NULL), 0);
    assert_held(fd, read | write | resize, resize | write);
    driver->perm_abort(node);
    assert_held(fd, read | write, resize);
    assert_int_equal(driver->perm_prepare(node, read | resize, BLK_PERM_ALL & ~write, NULL), 0);
    driver->perm_commit(node);
    assert_held(fd, read | resize, write);

    /* Refused: as before, and neither commit nor abort follows. */
    struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1 };
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    assert_true(driver->perm_prepare(node, write, BLK_PERM_ALL & ~resize, &error) < 0);
    error_free(error);
    assert_held(fd, read | resize, write);
    lock.l_type = F_UNLCK;
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);

    assert_int_equal(driver->perm_prepare(node, 0, BLK_PERM_ALL, NULL), 0);
    assert_held(fd, read | resize, write);
    driver->perm_commit(node);
    assert_held(fd, 0, 0);
    assert_int_equal(blk_co_node_unref(node), 0);
    close(fd);
    unlink(path);
    free(line);
    free(path);
    return 0;
}

static void a_change_is_prepared_then_committed_or_aborted(void **state) { run_co(state, co_steps_test, NULL); }

/* ---- those who are not seen: a process that was killed, until its ring is gone ---- */

/* A process whose locks nobody sees in /proc, as one that was killed: its first thread has ended, another holds the
 * lock for `hold_ms`. */
#define HEAVY (256ul * MIB)

static int unseen_hold_ms;

static void *unseen_thread(void *arg)
{
    usleep((useconds_t)unseen_hold_ms * 1000);
    _exit(0);
}

static pid_t unseen_start(const char *path, int byte, int hold_ms)
{
    int ready[2];
    char c;

    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
        pthread_t thread;
        unseen_hold_ms = hold_ms;
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fcntl(fd, F_OFD_SETLK, &lock) < 0 || pthread_create(&thread, NULL, unseen_thread, NULL) != 0)
            _exit(1);
        if (write(ready[1], "x", 1) == 1)
            syscall(SYS_exit, 0); /* this thread alone */
        _exit(1);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    usleep(20000); /* the write is before the end of the thread */
    return pid;
}

/* A process that is killed while it holds the lock, and has so much memory that it is seen for a while yet. */
static pid_t heavy_start(const char *path, int byte)
{
    int ready[2];
    char c;

    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
        int fd = open(path, O_RDWR | O_CLOEXEC);
        void *memory = mmap(NULL, HEAVY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (memory != MAP_FAILED && fcntl(fd, F_OFD_SETLK, &lock) == 0 && write(ready[1], "x", 1) == 1)
            pause();
        _exit(1);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    return pid;
}

static coroutine_fn void co_open_dying(const char *path)
{
    struct holder holder;
    int status;
    pid_t pid = heavy_start(path, 201);

    assert_int_equal(co_hold(path, &uses[2], &holder, NULL), -1); /* it lives */
    kill(pid, SIGKILL);
    assert_int_equal(co_hold(path, &uses[2], &holder, NULL), 0);
    co_release(&holder);
    assert_int_equal(waitpid(pid, &status, 0), pid);
}

/* Opens while it is locked by the unseen one. Returns how long that took, in ms. */
static coroutine_fn int co_open_unseen(const char *path, int byte, int hold_ms, int expected, struct error **errp)
{
    struct holder holder;
    int status;
    pid_t pid = unseen_start(path, byte, hold_ms);
    uint64_t start = loop_now_ns();

    assert_int_equal(co_hold(path, &uses[2], &holder, errp), expected);
    int took = (int)((loop_now_ns() - start) / 1000000);
    if (expected == 0)
        co_release(&holder);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return took;
}

static int co_unseen_test(void *arg)
{
    char *path = path_in(disk_folder, "unseen");
    struct error *error = NULL;
    struct holder living, second;

    make_file(path, MIB);
    int took = co_open_unseen(path, 201, 200, 0, NULL); /* it does not let others write */
    assert_in_range(took, 100, 600);
    took = co_open_unseen(path, 101, 200, 0, NULL); /* it writes */
    assert_in_range(took, 100, 600);

    took = co_open_unseen(path, 201, 10000, -1, &error);
    assert_in_range(took, 480, 3000);
    char *words = xasprintf("Failed to get \"write\" lock\nIs another process using the image [%s]?", path);
    assert_error(&error, words);

    /* It is seen, but dying. */
    co_open_dying(path);

    /* What lives and is seen is not waited for. */
    assert_int_equal(co_hold(path, &uses[2], &living, NULL), 0);
    uint64_t start = loop_now_ns();
    assert_int_equal(co_hold(path, &uses[2], &second, NULL), -1);
    assert_true(loop_now_ns() - start < 400000000);
    co_release(&living);
    unlink(path);
    free(words);
    free(path);
    return 0;
}

static void a_lock_that_nobody_is_seen_to_hold_is_waited_for(void **state) { run_co(state, co_unseen_test, NULL); }

static int co_options_test(void *arg)
{
    char *path = path_in(disk_folder, "unlocked");
    struct holder holder;

    make_file(path, MIB);
    assert_int_equal(co_hold(path, &uses[2], &holder, NULL), 0);
    char *line = xasprintf("driver=file,filename=%s,locking=off", path);
    struct blk_node *node = co_open_line(line, BLK_O_RDWR, NULL);
    assert_non_null(node);
    struct blk_front *front = blk_front_new("unlocked", node, uses[2].perm, uses[2].shared, NULL);
    assert_non_null(front);
    assert_int_equal(blk_co_front_free(front), 0);
    assert_int_equal(blk_co_node_unref(node), 0);

    /* An image in use is not created anew, and keeps its bytes. */
    struct error *error = NULL;
    uint8_t buffer[512] = { 77 };
    assert_int_equal(blk_front_co_write(holder.front, 0, buffer, 512, 0), 0);
    assert_true(blk_co_create("file", path, NULL, MIB, &error) < 0);
    char *words = xasprintf("Failed to get \"write\" lock\nIs another process using the image [%s]?", path);
    assert_error(&error, words);
    assert_int_equal(blk_front_co_read(holder.front, 0, buffer, 512), 0);
    assert_int_equal(buffer[0], 77);
    co_release(&holder);
    assert_int_equal(blk_co_create("file", path, NULL, MIB, NULL), 0);
    free(words);
    free(line);
    unlink(path);
    free(path);
    return 0;
}

static void locking_off_and_creation(void **state) { run_co(state, co_options_test, NULL); }

/* ---- QEMU's ---- */

struct qemu {
    pid_t pid;
    int in, out;
};

static void qemu_start(struct qemu *q, const char *path, const struct use *use)
{
    int in[2], out[2];
    char seen[64] = "", c;
    size_t length = 0;

    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    q->pid = fork();
    if (q->pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        dup2(out[1], 2);
        if (use->writable)
            execlp("qemu-io", "qemu-io", "-f", use->format, path, (char *)NULL);
        else
            execlp("qemu-io", "qemu-io", "-r", "-f", use->format, path, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    q->in = in[1];
    q->out = out[0];
    while (!strstr(seen, "qemu-io>") && length < sizeof(seen) - 1 && read(q->out, &c, 1) == 1) {
        seen[length++] = c;
        seen[length] = '\0';
    }
    if (!strstr(seen, "qemu-io>"))
        fail_msg("qemu-io did not start: %s", seen);
}

static void qemu_stop(struct qemu *q)
{
    int status;

    close(q->in);
    assert_int_equal(waitpid(q->pid, &status, 0), q->pid);
    close(q->out);
}

static void make_qcow2(const char *path)
{
    char *command = xasprintf("qemu-img create -q -f qcow2 %s 1M", path);

    assert_int_equal(system(command), 0);
    free(command);
}

static int co_qemu_first_test(void *arg)
{
    char *path = path_in(disk_folder, "qemu-first");

    for (size_t a = 0; a < ARRAY_SIZE(uses); a++) {
        struct qemu qemu;
        make_qcow2(path);
        qemu_start(&qemu, path, &uses[a]);
        char *hint = xasprintf("is held by process %d (qemu-io)", qemu.pid);
        for (size_t b = 0; b < ARRAY_SIZE(uses); b++)
            co_expect(path, &uses[a], &uses[b], hint);
        free(hint);
        qemu_stop(&qemu);
    }
    unlink(path);
    free(path);
    return 0;
}

static int co_qemu_second_test(void *arg)
{
    char *path = path_in(disk_folder, "qemu-second");

    make_qcow2(path);
    for (size_t a = 0; a < ARRAY_SIZE(uses); a++) {
        struct holder holder;
        assert_int_equal(co_hold(path, &uses[a], &holder, NULL), 0);
        for (size_t b = 0; b < ARRAY_SIZE(uses); b++) {
            char output[1024];
            char *command = xasprintf("qemu-io %s -f %s -c quit %s 2>&1", uses[b].writable ? "" : "-r", uses[b].format,
                                      path);
            FILE *f = popen(command, "re");
            size_t got = fread(output, 1, sizeof(output) - 1, f);
            output[got] = '\0';
            int status = pclose(f);
            assert_int_equal(status != 0, conflict(&uses[a], &uses[b]));
            char *words = conflict(&uses[a], &uses[b]) ? expected_words(&uses[a], &uses[b], path) : xstrdup("");
            if (*words)
                assert_non_null(strstr(output, words));
            else
                assert_string_equal(output, "");
            free(words);
            free(command);
        }
        co_release(&holder);
    }
    unlink(path);
    free(path);
    return 0;
}

static void qemu_and_we_keep_each_other_out(void **state)
{
    if (system("command -v qemu-io >/dev/null && command -v qemu-img >/dev/null") != 0) {
        print_message("needs the programs 'qemu-io' and 'qemu-img'\n");
        skip();
    }
    run_co(state, co_qemu_first_test, NULL);
    run_co(state, co_qemu_second_test, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LOOP_TEST(our_nodes_keep_each_other_out),
        LOOP_TEST(locks_follow_the_users),
        LOOP_TEST(a_refusal_leaves_nothing_locked),
        LOOP_TEST(locking_off_and_creation),
        LOOP_TEST(a_lock_that_nobody_is_seen_to_hold_is_waited_for),
        LOOP_TEST(qemu_and_we_keep_each_other_out),
        LOOP_TEST(a_change_is_prepared_then_committed_or_aborted),
    };

    if (image_tests_begin() < 0)
        return 1;
    return image_tests_end(run_on_both_backends(tests));
}
