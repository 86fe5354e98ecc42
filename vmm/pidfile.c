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
#include <unistd.h>

static const char *ours;

static void remove_ours(void) { unlink(ours); }

int pidfile_write(const char *path, struct error **errp)
{
    char text[32];
    if (!path)
        return 0;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set_errno(errp, -errno, "cannot create PID file: Could not create '%s'", path);
    int length = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (lockf(fd, F_TLOCK, 0) < 0)
        error_set_errno(errp, -errno, "cannot create PID file: Cannot lock pid file");
    else if (ftruncate(fd, 0) < 0 || write(fd, text, (size_t)length) != length)
        error_set_errno(errp, -errno, "cannot create PID file: Failed to write pid file");
    else
        ours = path;
    if (!ours) {
        close(fd);
        return -EIO;
    }
    atexit(remove_ours);
    return 0; /* fd stays open: it is the lock */
}
