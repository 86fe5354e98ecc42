/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Private to block/: cutting and filling scattered buffers. Inline, any thread. */
#pragma once

#include <base/compiler.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

/* The part [skip, skip + length) of iov as entries of its own in out (room for `room`). Returns how many, -1: too many. */
static inline int iov_slice(const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length, struct iovec *out, int room)
{
    int count = 0;

    for (int i = 0; i < iov_count && length > 0; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        if (count == room)
            return -1;
        size_t part = (size_t)MIN((uint64_t)iov[i].iov_len - skip, length);
        out[count++] = (struct iovec){ (char *)iov[i].iov_base + skip, part };
        skip = 0;
        length -= part;
    }
    return count;
}

enum iov_copy_way { IOV_FILL_ZERO, IOV_TO_BUFFER, IOV_FROM_BUFFER };

/* Zeroes, reads out or fills the part [skip, skip + length) of iov. */
static inline void iov_copy(const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length, void *buffer,
                            enum iov_copy_way way)
{
    char *cursor = buffer;

    for (int i = 0; i < iov_count && length > 0; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t part = (size_t)MIN((uint64_t)iov[i].iov_len - skip, length);
        char *at = (char *)iov[i].iov_base + skip;
        if (way == IOV_FILL_ZERO) {
            memset(at, 0, part);
        } else {
            memcpy(way == IOV_TO_BUFFER ? cursor : at, way == IOV_TO_BUFFER ? at : cursor, part);
            cursor += part;
        }
        skip = 0;
        length -= part;
    }
}

static inline bool buffer_is_zero(const void *buffer, size_t length)
{
    const char *p = buffer;

    return length == 0 || (p[0] == 0 && memcmp(p, p + 1, length - 1) == 0);
}
