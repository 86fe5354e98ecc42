/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Big- and little-endian numbers in byte buffers, at any alignment. The plain forms are for buffers whose size the
 * caller has just checked; struct byte_reader carries the length and never reads past it. Inline, any thread.
 */
#pragma once

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ENDIAN_ACCESSORS(bits) \
    static inline uint##bits##_t load_be##bits(const void *p) \
    { \
        uint##bits##_t v; \
        memcpy(&v, p, sizeof(v)); \
        return be##bits##toh(v); \
    } \
    static inline uint##bits##_t load_le##bits(const void *p) \
    { \
        uint##bits##_t v; \
        memcpy(&v, p, sizeof(v)); \
        return le##bits##toh(v); \
    } \
    static inline void store_be##bits(void *p, uint##bits##_t v) \
    { \
        v = htobe##bits(v); \
        memcpy(p, &v, sizeof(v)); \
    } \
    static inline void store_le##bits(void *p, uint##bits##_t v) \
    { \
        v = htole##bits(v); \
        memcpy(p, &v, sizeof(v)); \
    }
ENDIAN_ACCESSORS(16)
ENDIAN_ACCESSORS(32)
ENDIAN_ACCESSORS(64)
#undef ENDIAN_ACCESSORS

/* A cursor over untrusted bytes. A read past the end returns 0 and sets `failed`, which stays set: read all fields,
 * then check once. */
struct byte_reader {
    const uint8_t *data;
    size_t length;
    size_t offset;
    bool failed;
};

static inline const void *byte_reader_take(struct byte_reader *r, size_t count)
{
    if (r->failed || count > r->length - r->offset) {
        r->failed = true;
        return NULL;
    }
    const void *p = r->data + r->offset;
    r->offset += count;
    return p;
}

#define READER(name, bits) \
    static inline uint##bits##_t byte_reader_##name(struct byte_reader *r) \
    { \
        const void *p = byte_reader_take(r, bits / 8); \
        return p ? load_##name(p) : 0; \
    }
READER(be16, 16)
READER(be32, 32)
READER(be64, 64)
READER(le16, 16)
READER(le32, 32)
READER(le64, 64)
#undef READER
