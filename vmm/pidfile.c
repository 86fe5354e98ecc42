/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * -pidfile. The lock tells a running owner from a file that a crash left behind. Invariant: the file is removed only by
 * the process that holds its lock.
 */
#include "pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *ours;

void pidfile_remove(void)
{
    if (ours)
        unlink(ours);
}

/* Locks the file that has the name: its last owner may have removed the one that was opened. 1: open it again. */
static int lock(int fd, const char *path, struct error **errp)
{
    struct stat opened, named;

    if (lockf(fd, F_TLOCK, 0) < 0)
        return error_set_errno(errp, -errno, "cannot create PID file: Cannot lock pid file");
    if (fstat(fd, &opened) < 0)
        return error_set_errno(errp, -errno, "cannot create PID file: Cannot stat pid file");
    return stat(path, &named) < 0 || named.st_dev != opened.st_dev || named.st_ino != opened.st_ino;
}

static int open_and_lock(const char *path, struct error **errp)
{
    int fd, ret;

    do {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0)
            return error_set_errno(errp, -errno, "cannot create PID file: Could not create '%s'", path);
        ret = lock(fd, path, errp);
        if (ret != 0)
            close(fd);
    } while (ret > 0);
    return ret < 0 ? ret : fd;
}

int pidfile_write(const char *path, struct error **errp)
{
    char text[32];

    if (!path)
        return 0;
    int fd = open_and_lock(path, errp), length = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (fd < 0)
        return fd;
    if (ftruncate(fd, 0) < 0 || write(fd, text, (size_t)length) != length) {
        error_set_errno(errp, -errno, "cannot create PID file: Failed to write pid file");
        close(fd);
        return -EIO;
    }
    ours = path;
    atexit(pidfile_remove);
    return 0; /* fd stays open: it is the lock */
}
