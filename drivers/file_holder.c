/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which process holds a lock on an image? The kernel does not say for open-file-description locks (l_pid is -1), but
 * each descriptor's /proc/PID/fdinfo/FD lists the locks on its file. Runs only after a lock was refused; what we may
 * not look at, or what ends meanwhile, is passed over.
 */
#include "file.h"

#include <base/compiler.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

static bool descriptor_holds(int folder, const char *name, uint64_t inode, uint64_t byte)
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

static bool process_holds(int pid, int own_fd, uint64_t inode, uint64_t byte)
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
        holds = descriptor_holds(dirfd(folder), entry->d_name, inode, byte);
    }
    closedir(folder);
    return holds;
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

int file_find_holder(int fd, uint64_t byte, char *name, size_t name_size)
{
    struct stat st;
    int holder = 0;

    if (fstat(fd, &st) < 0)
        return 0;
    DIR *proc = opendir("/proc");
    if (!proc)
        return 0;
    for (struct dirent *entry; !holder && (entry = readdir(proc));) {
        int pid = isdigit((unsigned char)entry->d_name[0]) ? atoi(entry->d_name) : 0;
        if (pid > 0 && process_holds(pid, fd, st.st_ino, byte))
            holder = pid;
    }
    closedir(proc);
    if (holder)
        process_name(holder, name, name_size);
    return holder;
}
