/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Memory for the requests of io: aligned as the image likes it, or off by a little with -m; one piece, cut into
 * iovecs. */
#include "io.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MISALIGNMENT = 16 };

static bool allocate(struct io_buffer *buffer, struct io_session *session, uint64_t length, int iov_count, uint8_t fill)
{
    buffer->length = length;
    buffer->iov_count = iov_count;
    buffer->iov = calloc((size_t)iov_count, sizeof(*buffer->iov));
    buffer->memory = blk_buffer_alloc(blk_front_node(session->front), length + MISALIGNMENT);
    if (!buffer->memory || !buffer->iov) {
        error_report("Out of memory");
        io_buffer_finish(buffer);
        return false;
    }
    buffer->data = (uint8_t *)buffer->memory + (session->misalign ? MISALIGNMENT : 0);
    memset(buffer->data, fill, length);
    return true;
}

bool io_buffer_init_length(struct io_buffer *buffer, struct io_session *session, uint64_t length, uint8_t fill)
{
    if (!allocate(buffer, session, length, 1, fill))
        return false;
    buffer->iov[0] = (struct iovec){ .iov_base = buffer->data, .iov_len = length };
    return true;
}

bool io_buffer_init(struct io_buffer *buffer, struct io_session *session, char **lengths, int count, uint8_t fill)
{
    uint64_t total = 0, length;
    for (int i = 0; i < count; i++) {
        if (!io_length(lengths[i], &length))
            return false;
        total += length;
        if (total > IO_MAX_LENGTH) {
            printf("The total number of bytes exceed the maximum size %d\n", IO_MAX_LENGTH);
            return false;
        }
    }
    if (!allocate(buffer, session, total, count, fill))
        return false;
    uint8_t *at = buffer->data;
    for (int i = 0; i < count; i++) {
        io_number(lengths[i], &length); /* went well above */
        buffer->iov[i] = (struct iovec){ .iov_base = at, .iov_len = length };
        at += length;
    }
    return true;
}

bool io_buffer_load(struct io_buffer *buffer, const char *filename)
{
    FILE *file = fopen(filename, "r");
    if (!file) {
        fprintf(stderr, "%s: %s\n", filename, strerror(errno));
        return false;
    }
    uint64_t have = fread(buffer->data, 1, buffer->length, file);
    bool failed = ferror(file);
    fclose(file);
    if (failed || (!have && buffer->length)) {
        fprintf(stderr, failed ? "%s: could not read\n" : "%s: file is empty\n", filename);
        return false;
    }
    for (uint64_t at = have; at < buffer->length; at += have) /* what is there already, again and again */
        memcpy(buffer->data + at, buffer->data, MIN(have, buffer->length - at));
    return true;
}

void io_buffer_finish(struct io_buffer *buffer)
{
    free(buffer->memory);
    free(buffer->iov);
    memset(buffer, 0, sizeof(*buffer));
}
