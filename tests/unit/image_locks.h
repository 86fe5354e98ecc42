/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* For unit tests that look at an image's locks on the host (QEMU's bytes: permissions from 100 on, what is not shared
 * from 200 on). */
#pragma once

#include "unit.h"

#include <fcntl.h>

/* Which bytes from `base` on are locked by others than this descriptor, as bits. */
static inline unsigned bytes_held(int fd, int base)
{
    unsigned held = 0;

    for (int bit = 0; bit < 4; bit++) {
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = base + bit, .l_len = 1 };
        assert_int_equal(fcntl(fd, F_OFD_GETLK, &lock), 0);
        if (lock.l_type != F_UNLCK)
            held |= 1u << bit;
    }
    return held;
}

#define assert_held(fd, perm, unshared) \
    do { \
        assert_int_equal(bytes_held(fd, 100), perm); \
        assert_int_equal(bytes_held(fd, 200), unshared); \
    } while (0)
