/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Running a qemu-io-like program command by command (program.h), through two pipes. */
#include "program.h"

#include <base/compiler.h>
#include <base/endian.h>
#include <block/logwrites.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SILENCE_MS 60000
#define SECTOR 512u /* of the log, by default */

/* ---- talking to it ---- */

/* Appends what comes; a part in the middle goes if there is too much. */
static bool read_more(struct program *p)
{
    size_t length = strlen(p->output);
    struct pollfd fd = { .fd = p->out, .events = POLLIN };

    if (length > sizeof(p->output) / 2) {
        size_t keep = sizeof(p->prompt);
        memmove(p->output + sizeof(p->output) / 4, p->output + length - keep, keep + 1);
        length = sizeof(p->output) / 4 + keep;
    }
    if (poll(&fd, 1, SILENCE_MS) <= 0)
        return false;
    ssize_t got = read(p->out, p->output + length, sizeof(p->output) / 4);
    if (got <= 0)
        return false;
    p->output[length + (size_t)got] = 0;
    return true;
}

/* A command prints lines, and then the prompt, once. What requests in the background print comes before the prompt of
 * a later command. */
static bool wait_for_prompt(struct program *p)
{
    while (!strstr(p->output, p->prompt)) {
        if (!read_more(p))
            return false;
    }
    return true;
}

/* The first thing that it prints, but for warnings. */
static bool learn_prompt(struct program *p)
{
    p->output[0] = 0;
    while (!strstr(p->output, "> ")) {
        if (!read_more(p))
            return false;
    }
    const char *line = strrchr(p->output, '\n');
    snprintf(p->prompt, sizeof(p->prompt), "%.63s", line ? line + 1 : p->output);
    return true;
}

bool program_run(struct program *p, const char *command)
{
    size_t length = strlen(command);

    p->output[0] = 0;
    return write(p->in, command, length) == (ssize_t)length && write(p->in, "\n", 1) == 1 && wait_for_prompt(p);
}

/* ---- life ---- */

static pid_t spawn(const char *line, int in, int out)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execl("/bin/sh", "sh", "-c", line, (char *)NULL);
    _exit(127);
}

bool program_start(struct program *p, const char *command, const char *image_opts, const char *log_path)
{
    int in[2], out[2];
    char *line = xasprintf("exec %s --image-opts '%s'", command, image_opts);

    signal(SIGPIPE, SIG_IGN);
    *p = (struct program){ .log_fd = open(log_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) };
    if (p->log_fd < 0 || pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
        abort();
    p->pid = spawn(line, in[0], out[1]);
    free(line);
    close(in[0]);
    close(out[1]);
    p->in = in[1];
    p->out = out[0];
    if (p->pid < 0)
        abort();
    return learn_prompt(p);
}

int program_end(struct program *p)
{
    int status = -1;

    close(p->in);
    while (read_more(p))
        p->output[0] = 0;
    waitpid(p->pid, &status, 0);
    close(p->out);
    close(p->log_fd);
    return status;
}

/* ---- the log ---- */

static bool is_zero(const uint8_t *data, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (data[i])
            return false;
    }
    return true;
}

struct program_time program_now(struct program *p)
{
    uint8_t sector[SECTOR];
    struct stat st;
    uint64_t size = fstat(p->log_fd, &st) == 0 ? (uint64_t)st.st_size : 0;

    p->scanned = MAX(p->scanned, (uint64_t)SECTOR);
    while (p->scanned < size) {
        if (pread(p->log_fd, sector, SECTOR, (off_t)p->scanned) != SECTOR || is_zero(sector, SECTOR))
            break;
        uint64_t flags = load_le64(sector + offsetof(struct log_entry, flags));
        uint64_t sectors = load_le64(sector + offsetof(struct log_entry, sectors));
        if (sectors > size / SECTOR)
            sectors = 0;
        p->scanned += SECTOR + (flags & LOGWRITES_DISCARD ? 0 : sectors * SECTOR);
    }
    return (struct program_time){ .whole = MIN(p->scanned, size), .any = size };
}

bool program_strip_clock(const char *log_path)
{
    static const uint8_t nothing[sizeof(struct log_clock)];
    int fd = open(log_path, O_RDWR | O_CLOEXEC);
    bool ok = fd >= 0 && pwrite(fd, nothing, sizeof(nothing), SECTOR - sizeof(nothing)) == sizeof(nothing);

    if (fd >= 0)
        close(fd);
    return ok;
}
