/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Parts of scattered buffers. The caller vouches that the buffers hold what is asked for: skip + length bytes. */
#include "qcow2.h"

#include <string.h>

int qcow2_iov_slice(const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length, struct iovec *out)
{
    int count = 0;

    for (int i = 0; i < iov_count && length > 0; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t part = (size_t)MIN((uint64_t)iov[i].iov_len - skip, length);
        out[count++] = (struct iovec){ (uint8_t *)iov[i].iov_base + skip, part };
        skip = 0;
        length -= part;
    }
    return count;
}

enum way { ZERO, FROM_BUFFER, TO_BUFFER };

static void each_part(const struct iovec *iov, int iov_count, uint64_t skip, uint8_t *buffer, uint64_t length,
                      enum way way)
{
    for (int i = 0; i < iov_count && length > 0; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t part = (size_t)MIN((uint64_t)iov[i].iov_len - skip, length);
        uint8_t *at = (uint8_t *)iov[i].iov_base + skip;
        if (way == ZERO)
            memset(at, 0, part);
        else if (way == FROM_BUFFER)
            memcpy(at, buffer, part);
        else
            memcpy(buffer, at, part);
        if (way != ZERO)
            buffer += part;
        skip = 0;
        length -= part;
    }
}

void qcow2_iov_zero(const struct iovec *iov, int iov_count, uint64_t skip, uint64_t length)
{
    each_part(iov, iov_count, skip, NULL, length, ZERO);
}

void qcow2_iov_from_buffer(const struct iovec *iov, int iov_count, uint64_t skip, const void *buffer, uint64_t length)
{
    each_part(iov, iov_count, skip, (uint8_t *)(uintptr_t)buffer, length, FROM_BUFFER);
}

void qcow2_iov_to_buffer(const struct iovec *iov, int iov_count, uint64_t skip, void *buffer, uint64_t length)
{
    each_part(iov, iov_count, skip, buffer, length, TO_BUFFER);
}
