/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which process holds a lock on an image? The kernel does not say for open-file-description locks (l_pid is -1), but
 * each descriptor's /proc/PID/fdinfo/FD lists the locks on its file. Runs only after a lock was refused; what we may
 * not look at, or what ends meanwhile, is passed over.
 *
 * A process that was killed is dying until its descriptors are closed, and its locks may live longer still: requests in
 * its ring hold the file, and the kernel takes the ring down after the process is gone. Then nobody is found.
 */
#include "file.h"

#include <base/compiler.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* PF_EXITING in the kernel: field 9 of /proc/PID/stat has it. */
#define PROCESS_EXITING 0x4u

/* "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1081367 100 101": the kernel writes "EOF" for an open end. */
static bool line_covers(const char *line, uint64_t inode, uint64_t byte)
{
    unsigned major_number, minor_number;
    uint64_t line_inode, first, last;
    char end[24];

    if (sscanf(line, "lock: %*u: OFDLCK %*s %*s %*d %x:%x:%" SCNu64 " %" SCNu64 " %23s", &major_number, &minor_number,
               &line_inode, &first, end) != 5)
        return false;
    last = strcmp(end, "EOF") == 0 ? UINT64_MAX : strtoull(end, NULL, 10);
    return line_inode == inode && first <= byte && byte <= last;
}

static bool lists_lock(int folder, const char *name, uint64_t inode, uint64_t byte)
{
    char line[256];
    bool holds = false;
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
    FILE *f = fd >= 0 ? fdopen(fd, "r") : NULL;

    if (!f) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    while (!holds && fgets(line, sizeof(line), f))
        holds = line_covers(line, inode, byte);
    fclose(f);
    return holds;
}

/* Inodes of different file systems have the same numbers, and the device in the line is not always what stat() says. */
static bool is_same_file(int pid, const char *name, const struct stat *file)
{
    char path[64];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%d/fd/%.16s", pid, name);
    return stat(path, &st) == 0 && st.st_dev == file->st_dev && st.st_ino == file->st_ino;
}

static bool process_holds(int pid, int own_fd, const struct stat *file, uint64_t byte)
{
    char path[64];
    bool holds = false;

    snprintf(path, sizeof(path), "/proc/%d/fdinfo", pid);
    DIR *folder = opendir(path);
    if (!folder)
        return false;
    for (struct dirent *entry; !holds && (entry = readdir(folder));) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        if (pid == getpid() && atoi(entry->d_name) == own_fd)
            continue;
        holds = lists_lock(dirfd(folder), entry->d_name, file->st_ino, byte) && is_same_file(pid, entry->d_name, file);
    }
    closedir(folder);
    return holds;
}

/* Looks for a line of /proc/PID/status and reads the hexadecimal number in it. */
static uint64_t status_number(int pid, const char *key)
{
    char path[64], line[256];
    uint64_t value = 0;

    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, key, strlen(key)) == 0) {
            value = strtoull(line + strlen(key), NULL, 16);
            break;
        }
    }
    fclose(f);
    return value;
}

/* Was it killed, or is it ending by itself? */
static bool is_dying(int pid)
{
    char path[64], text[512] = "", state;
    unsigned flags;

    if (status_number(pid, "SigPnd:") & 1u << (SIGKILL - 1))
        return true;
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return true;
    size_t length = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[length] = '\0';
    const char *fields = strrchr(text, ')'); /* the name before it may have anything in it */
    if (!fields || sscanf(fields, ") %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
        return false;
    return (flags & PROCESS_EXITING) || state == 'Z' || state == 'X';
}

static void process_name(int pid, char *name, size_t size)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/comm", pid);
    snprintf(name, size, "unknown");
    FILE *f = fopen(path, "re");
    if (!f)
        return;
    if (fgets(name, (int)size, f))
        name[strcspn(name, "\n")] = '\0';
    fclose(f);
}

bool file_find_holder(int fd, uint64_t byte, struct file_holder *holder)
{
    struct stat st;

    *holder = (struct file_holder){ 0 };
    if (fstat(fd, &st) < 0)
        return false;
    DIR *proc = opendir("/proc");
    if (!proc)
        return false;
    for (struct dirent *entry; (!holder->pid || holder->dying) && (entry = readdir(proc));) {
        int pid = isdigit((unsigned char)entry->d_name[0]) ? atoi(entry->d_name) : 0;
        if (pid > 0 && process_holds(pid, fd, &st, byte)) {
            holder->pid = pid;
            holder->dying = is_dying(pid);
        }
    }
    closedir(proc);
    if (holder->pid)
        process_name(holder->pid, holder->name, sizeof(holder->name));
    return holder->pid;
}
