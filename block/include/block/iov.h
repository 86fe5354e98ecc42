/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Cutting, filling and emptying scattered buffers. The caller vouches that they hold what is asked for: skip + length
 * bytes. Inline, any thread.
 */
#pragma once

#include <base/compiler.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

/* The part [skip, skip + length) of iov as entries of its own in out (room for `room`). Returns how many, -1: too
 * many. */
static inline int iov_slice(const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length, struct iovec *out,
                            int room)
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

enum iov_way { IOV_WAY_ZERO, IOV_WAY_TO_BUFFER, IOV_WAY_FROM_BUFFER };

static inline void iov_each_part(const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length, char *buffer,
                                 enum iov_way way)
{
    for (int i = 0; i < iov_count && length > 0; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t part = (size_t)MIN((uint64_t)iov[i].iov_len - skip, length);
        char *at = (char *)iov[i].iov_base + skip;
        if (way == IOV_WAY_ZERO) {
            memset(at, 0, part);
        } else {
            memcpy(way == IOV_WAY_TO_BUFFER ? buffer : at, way == IOV_WAY_TO_BUFFER ? at : buffer, part);
            buffer += part;
        }
        skip = 0;
        length -= part;
    }
}

/* Zeroes, reads out or fills the part [skip, skip + length). */
static inline void iov_zero(const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length)
{
    iov_each_part(iov, iov_count, skip, length, NULL, IOV_WAY_ZERO);
}

static inline void iov_to_buffer(const struct iovec *iov, int iov_count, uint64_t skip, void *buffer, uint64_t length)
{
    iov_each_part(iov, iov_count, skip, length, buffer, IOV_WAY_TO_BUFFER);
}

static inline void iov_from_buffer(const struct iovec *iov, int iov_count, uint64_t skip, const void *buffer,
                                   uint64_t length)
{
    iov_each_part(iov, iov_count, skip, length, (char *)(uintptr_t)buffer, IOV_WAY_FROM_BUFFER);
}

static inline bool buffer_is_zero(const void *buffer, size_t length)
{
    const char *p = buffer;

    return length == 0 || (p[0] == 0 && memcmp(p, p + 1, length - 1) == 0);
}
