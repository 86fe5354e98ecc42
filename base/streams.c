/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The three standard streams. Invariant: once streams_fill() has returned, no open file has descriptor 0, 1 or 2 but
 * they.
 */
#include <base/streams.h>

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

void streams_fill(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd < 0)
        exit(1); /* nobody could be told why */
    close(fd);
}
