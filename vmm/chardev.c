/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Character devices on file descriptors. The main loop reads when the user has room, and writes what is buffered when
 * the descriptor takes it; the descriptor stays blocking (it may be shared with other programs), so each write is
 * preceded by poll() and short. Invariant: a byte that chardev_put() took is written, in order, unless the reader is
 * gone.
 */
#include "chardev.h"

#include <base/compiler.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define OUTPUT_ROOM 65536u
#define WRITE_AT_ONCE 256u /* a terminal or pipe that is ready takes so much without blocking */

struct chardev {
    struct machine *machine;
    struct chardev_user *user;
    int in, out; /* -1: none */
    bool own_fds, regular;
    bool is_mux;
    struct mux mux;
    uint8_t buffer[OUTPUT_ROOM]; /* a ring: length bytes from head; device_lock */
    size_t head, length;
    bool was_full;
    uint8_t ahead[4096]; /* read from a mux, not yet taken by the guest; device_lock */
    size_t ahead_count;
    bool posted; /* device_lock */
    struct loop_post post;
    struct loop_fd in_watch, out_watch; /* main loop */
    bool in_watched, out_watched, in_ended;
    int pty_end; /* of a pseudo-terminal: the end that others open */
};

/* ---- output ---- */

static bool ready_to_write(const struct chardev *chardev)
{
    struct pollfd pfd = { .fd = chardev->out, .events = POLLOUT };
    return chardev->regular || poll(&pfd, 1, 0) > 0;
}

/* Writes until nothing is left (true) or the descriptor would block (false). Main loop; device_lock is held but not
 * while writing. */
static bool write_out(struct chardev *chardev)
{
    uint8_t chunk[WRITE_AT_ONCE];
    while (chardev->length) {
        size_t count = MIN(chardev->length, OUTPUT_ROOM - chardev->head);
        count = MIN(count, sizeof(chunk));
        memcpy(chunk, chardev->buffer + chardev->head, count);
        device_unlock(chardev->machine);
        ssize_t written = ready_to_write(chardev) ? write(chardev->out, chunk, count) : 0;
        bool gone = written < 0 && errno != EINTR && errno != EAGAIN;
        device_lock(chardev->machine);
        if (gone) {
            chardev->length = 0; /* nobody reads any more */
            return true;
        }
        if (written <= 0)
            return false;
        chardev->head = (chardev->head + (size_t)written) % OUTPUT_ROOM;
        chardev->length -= (size_t)written;
    }
    return true;
}

static void flush_output(struct chardev *chardev)
{
    bool done = write_out(chardev);
    if (chardev->was_full && chardev->length < OUTPUT_ROOM / 2) {
        chardev->was_full = false;
        if (chardev->user && chardev->user->sent)
            chardev->user->sent(chardev->user);
    }
    if (!done && !chardev->out_watched) {
        chardev->out_watched = true;
        chardev->out_watch.events = POLLOUT;
        loop_fd_add(chardev->machine->loop, &chardev->out_watch);
    } else if (chardev->out_watched) {
        loop_fd_modify(&chardev->out_watch, done ? 0 : POLLOUT);
    }
}

static void out_ready(struct loop_fd *watch, short revents)
{
    struct chardev *chardev = container_of(watch, struct chardev, out_watch);
    device_lock(chardev->machine);
    flush_output(chardev);
    device_unlock(chardev->machine);
}

bool chardev_can_put(const struct chardev *chardev) { return chardev->length < OUTPUT_ROOM; }

static void put_raw(struct chardev *chardev, uint8_t byte)
{
    chardev->buffer[(chardev->head + chardev->length++) % OUTPUT_ROOM] = byte;
}

/* On a console with time stamps (Ctrl-A T), each line begins with the time since then. */
static void put_timestamp(struct chardev *chardev, uint8_t byte)
{
    struct mux *mux = &chardev->mux;
    if (mux->timestamps && mux->line_start) {
        char text[32];
        uint64_t ms = (loop_now_ns() - mux->origin_ns) / 1000000;
        int length = snprintf(text, sizeof(text), "[%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64 "] ",
                              ms / 3600000, ms / 60000 % 60, ms / 1000 % 60, ms % 1000);
        for (int i = 0; i < length && chardev_can_put(chardev); i++)
            put_raw(chardev, (uint8_t)text[i]);
    }
    mux->line_start = byte == '\n';
}

static void post_output(struct chardev *chardev)
{
    if (!chardev->posted) {
        chardev->posted = true;
        loop_post(chardev->machine->loop, &chardev->post);
    }
}

bool chardev_put(struct chardev *chardev, uint8_t byte)
{
    if (chardev->out < 0)
        return true;
    if (chardev->is_mux)
        put_timestamp(chardev, byte);
    bool room = chardev_can_put(chardev);
    if (room)
        put_raw(chardev, byte);
    if (!chardev_can_put(chardev))
        chardev->was_full = true;
    post_output(chardev);
    return room;
}

void chardev_print(struct chardev *chardev, const char *text)
{
    for (; *text && chardev_can_put(chardev); text++)
        put_raw(chardev, (uint8_t)*text);
    post_output(chardev);
}

/* ---- input ---- */

static size_t user_room(struct chardev *chardev) { return chardev->user ? chardev->user->room(chardev->user) : 0; }

/* With a mux we read ahead, so that its escapes work though the guest reads nothing. */
static size_t input_room(struct chardev *chardev)
{
    return chardev->is_mux ? sizeof(chardev->ahead) - chardev->ahead_count : user_room(chardev);
}

static void hand_over_ahead(struct chardev *chardev)
{
    size_t count = MIN(chardev->ahead_count, user_room(chardev));
    if (!count)
        return;
    chardev->user->receive(chardev->user, chardev->ahead, count);
    chardev->ahead_count -= count;
    memmove(chardev->ahead, chardev->ahead + count, chardev->ahead_count);
}

/* Watches the input exactly while there is room. Main loop, device_lock held. */
static void update_input(struct chardev *chardev)
{
    hand_over_ahead(chardev);
    if (chardev->in_watched)
        loop_fd_modify(&chardev->in_watch, !chardev->in_ended && input_room(chardev) ? POLLIN : 0);
}

static void posted(struct loop_post *post)
{
    struct chardev *chardev = container_of(post, struct chardev, post);
    device_lock(chardev->machine);
    chardev->posted = false;
    if (chardev->length || chardev->was_full)
        flush_output(chardev);
    update_input(chardev);
    device_unlock(chardev->machine);
}

void chardev_wants_input(struct chardev *chardev)
{
    if (chardev->in >= 0)
        post_output(chardev);
}

static void in_ready(struct loop_fd *watch, short revents)
{
    struct chardev *chardev = container_of(watch, struct chardev, in_watch);
    uint8_t bytes[64];
    device_lock(chardev->machine);
    size_t room = input_room(chardev);
    ssize_t count = room ? read(chardev->in, bytes, MIN(room, sizeof(bytes))) : 0;
    if (count > 0 && chardev->is_mux) {
        bool send_break = false;
        size_t length = mux_input(&chardev->mux, bytes, (size_t)count, &send_break);
        memcpy(chardev->ahead + chardev->ahead_count, bytes, length); /* an escape sequence only shrinks */
        chardev->ahead_count += length;
        if (send_break && chardev->user->send_break)
            chardev->user->send_break(chardev->user);
    } else if (count > 0) {
        chardev->user->receive(chardev->user, bytes, (size_t)count);
    } else if (room && (count == 0 || (errno != EINTR && errno != EAGAIN))) {
        chardev->in_ended = true;
    }
    update_input(chardev);
    device_unlock(chardev->machine);
}

void chardev_connect(struct chardev *chardev, struct chardev_user *user)
{
    chardev->user = user;
    if (chardev->in >= 0) {
        chardev->in_watched = true;
        chardev->in_watch = (struct loop_fd){ .fd = chardev->in, .events = POLLIN, .ready = in_ready };
        loop_fd_add(chardev->machine->loop, &chardev->in_watch);
    }
}

/* ---- back ends ---- */

static int open_file(struct chardev *chardev, const char *path, struct error **errp)
{
    chardev->out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    chardev->own_fds = true;
    return chardev->out < 0 ? error_set_errno(errp, -errno, "Could not open '%s'", path) : 0;
}

static int open_pty(struct chardev *chardev, const char *label, struct error **errp)
{
    int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    char name[64];
    struct termios raw;
    chardev->own_fds = true;
    chardev->in = chardev->out = fd;
    if (fd < 0 || grantpt(fd) < 0 || unlockpt(fd) < 0 || ptsname_r(fd, name, sizeof(name)) != 0)
        return error_set_errno(errp, -errno, "Failed to create PTY");
    /* Our own open end keeps it from hanging up while nobody else has it open. */
    chardev->pty_end = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (chardev->pty_end >= 0 && tcgetattr(chardev->pty_end, &raw) == 0) {
        cfmakeraw(&raw);
        tcsetattr(chardev->pty_end, TCSANOW, &raw);
    }
    fprintf(stderr, "char device redirected to %s (label %s)\n", name, label);
    return 0;
}

static int open_stdio(struct chardev *chardev, bool mux, struct error **errp)
{
    static bool taken;
    if (taken)
        return error_set(errp, -EBUSY, "cannot use stdio by multiple character devices");
    taken = true;
    chardev->in = STDIN_FILENO;
    chardev->out = STDOUT_FILENO;
    chardev->is_mux = mux;
    terminal_raw(!mux);
    return 0;
}

struct chardev *chardev_new(struct machine *machine, const char *backend, const char *label, struct error **errp)
{
    struct chardev *chardev = xcalloc(1, sizeof(*chardev));
    chardev->machine = machine;
    chardev->in = chardev->out = chardev->pty_end = -1;
    chardev->mux = (struct mux){ .machine = machine, .chardev = chardev, .line_start = true };
    chardev->post.fn = posted;
    chardev->out_watch.ready = out_ready;
    int err = 0;
    if (strcmp(backend, "stdio") == 0 || strcmp(backend, "mon:stdio") == 0)
        err = open_stdio(chardev, *backend == 'm', errp);
    else if (strncmp(backend, "file:", 5) == 0)
        err = open_file(chardev, backend + 5, errp);
    else if (strcmp(backend, "pty") == 0)
        err = open_pty(chardev, label, errp);
    else if (strcmp(backend, "null") != 0)
        err = error_set(errp, -EINVAL, "'%s' is not a valid char driver", backend);
    if (err) {
        chardev_free(chardev);
        return NULL;
    }
    struct stat st;
    chardev->regular = chardev->out >= 0 && fstat(chardev->out, &st) == 0 && S_ISREG(st.st_mode);
    chardev->out_watch.fd = chardev->out;
    return chardev;
}

static void in_removed(struct loop_fd *watch) { container_of(watch, struct chardev, in_watch)->in_watched = false; }

static void out_removed(struct loop_fd *watch) { container_of(watch, struct chardev, out_watch)->out_watched = false; }

/* Waits for a slow reader, but not for one that does not read at all. */
static void write_rest(struct chardev *chardev)
{
    uint64_t patience = loop_now_ns() + 1000000000ull;
    while (chardev->length && loop_now_ns() < patience) {
        struct pollfd pfd = { .fd = chardev->out, .events = POLLOUT };
        device_lock(chardev->machine);
        bool done = write_out(chardev);
        device_unlock(chardev->machine);
        if (!done)
            poll(&pfd, 1, 100);
    }
}

/* What nobody has read when a pseudo-terminal closes is lost. Waits while somebody reads, a fifth of a second if nobody
 * does. */
static void wait_for_reader(const struct chardev *chardev)
{
    int unread = 0, before = INT_MAX;
    for (unsigned idle = 0; idle < 20; idle++) {
        poll(NULL, 0, 10);
        if (ioctl(chardev->pty_end, FIONREAD, &unread) < 0 || !unread)
            return;
        if (unread < before)
            idle = 0;
        before = unread;
    }
}

void chardev_free(struct chardev *chardev)
{
    if (!chardev)
        return;
    if (chardev->length)
        write_rest(chardev);
    if (chardev->pty_end >= 0)
        wait_for_reader(chardev);
    if (chardev->in_watched)
        loop_fd_remove(&chardev->in_watch, in_removed);
    if (chardev->out_watched)
        loop_fd_remove(&chardev->out_watch, out_removed);
    while (chardev->posted || chardev->in_watched || chardev->out_watched)
        loop_step(chardev->machine->loop, true);
    if (chardev->in == STDIN_FILENO)
        terminal_restore();
    if (chardev->own_fds && chardev->out >= 0)
        close(chardev->out);
    if (chardev->pty_end >= 0)
        close(chardev->pty_end);
    free(chardev);
}
