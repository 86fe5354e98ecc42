/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* header.c: the header, parsed, built, and changed in place. */
#pragma once

#include "state.h"

/* What the header extensions say. */
struct qcow2_extensions {
    char backing_format[16];
    const uint8_t *feature_table; /* points into the buffer that was parsed */
    size_t feature_table_length;
    bool crypto, bitmaps;
    const uint8_t *data_name; /* of the external data file, as feature_table; NULL: there is no such extension */
    size_t data_name_length;
    uint32_t bitmap_count;
    uint64_t bitmap_directory_size, bitmap_directory_offset;
};

/* Parses and checks what needs no more than the first bytes of the file. */
int qcow2_header_parse(const uint8_t *data, size_t length, struct qcow2_header *header, struct error **errp);
/* The rest of what can be checked without reading further. `for_check`: a missing refcount table is no reason to
 * refuse, as a check finds that and a repair builds a new one. */
int qcow2_header_validate(const struct qcow2_header *header, bool for_check, struct error **errp);
/* The extensions: data is the file's first `length` bytes (at most a cluster). */
int qcow2_extensions_parse(const struct qcow2_header *header, const uint8_t *data, size_t length,
                           struct qcow2_extensions *ext, struct error **errp);
/* Refuses unknown incompatible features by the names in the image's table. */
int qcow2_features_check(uint64_t unknown, const struct qcow2_extensions *ext, struct error **errp);
/* Names of other files that a header has; NULL: none. */
struct qcow2_names {
    const char *backing, *backing_format, *data;
};
/* Writes header, extensions and backing name into a zeroed buffer of one cluster. Sets header->backing_offset. */
int qcow2_header_build(struct qcow2_header *header, const struct qcow2_names *names, uint8_t *out, size_t out_size,
                       struct error **errp);
/* Changes fields of the first sector in memory; qcow2_co_header_write() makes it durable (write and host flush): the
 * lock is held, and given up meanwhile; one write at a time, each of what the sector holds when it begins. Where
 * that fails nobody knows which header is on disk: every commit writes it first, until it is the one in memory. */
void qcow2_header_set32(struct qcow2 *s, enum qcow2_header_field at, uint32_t value);
void qcow2_header_set64(struct qcow2 *s, enum qcow2_header_field at, uint64_t value);
coroutine_fn int qcow2_co_header_write(struct qcow2 *s);
