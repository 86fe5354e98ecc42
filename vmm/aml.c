/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ACPI Machine Language encoder: just the terms that the machine's description needs. A package's length is put in
 * front of its content when it is closed, in the shortest encoding (ACPI 6.4, 20.2.4).
 */
#include "aml.h"

#include <assert.h>
#include <base/compiler.h>
#include <base/endian.h>
#include <string.h>

enum {
    AML_NAME = 0x08,
    AML_BYTE = 0x0a,
    AML_WORD = 0x0b,
    AML_DWORD = 0x0c,
    AML_STRING = 0x0d,
    AML_QWORD = 0x0e,
    AML_SCOPE = 0x10,
    AML_BUFFER = 0x11,
    AML_PACKAGE = 0x12,
    AML_DUAL_NAME = 0x2e,
    AML_EXT = 0x5b,
    AML_EXT_DEVICE = 0x82,
};

static uint8_t *insert(struct aml *aml, size_t at, size_t count)
{
    if (aml->length + count > aml->room) {
        aml->room = (aml->length + count) * 2 + 1024;
        aml->data = xrealloc(aml->data, aml->room);
    }
    memmove(aml->data + at + count, aml->data + at, aml->length - at);
    aml->length += count;
    return aml->data + at;
}

void aml_bytes(struct aml *aml, const void *bytes, size_t count)
{
    memcpy(insert(aml, aml->length, count), bytes, count);
}

void aml_byte(struct aml *aml, uint8_t byte) { *insert(aml, aml->length, 1) = byte; }

static void put_le(struct aml *aml, uint64_t value, size_t count)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    aml_bytes(aml, bytes, count);
}

static void put_segment(struct aml *aml, const char *name, size_t length)
{
    char segment[4] = { '_', '_', '_', '_' };
    assert(length >= 1 && length <= 4);
    memcpy(segment, name, length);
    aml_bytes(aml, segment, 4);
}

void aml_path(struct aml *aml, const char *path)
{
    if (*path == '\\') {
        aml_byte(aml, '\\');
        path++;
    }
    const char *dot = strchr(path, '.');
    if (dot) {
        aml_byte(aml, AML_DUAL_NAME);
        put_segment(aml, path, (size_t)(dot - path));
        path = dot + 1;
    }
    put_segment(aml, path, strlen(path));
}

void aml_integer(struct aml *aml, uint64_t value)
{
    if (value <= 1) {
        aml_byte(aml, (uint8_t)value); /* ZeroOp, OneOp */
    } else if (value <= UINT8_MAX) {
        aml_byte(aml, AML_BYTE);
        put_le(aml, value, 1);
    } else if (value <= UINT16_MAX) {
        aml_byte(aml, AML_WORD);
        put_le(aml, value, 2);
    } else if (value <= UINT32_MAX) {
        aml_byte(aml, AML_DWORD);
        put_le(aml, value, 4);
    } else {
        aml_byte(aml, AML_QWORD);
        put_le(aml, value, 8);
    }
}

void aml_string(struct aml *aml, const char *text)
{
    aml_byte(aml, AML_STRING);
    aml_bytes(aml, text, strlen(text) + 1);
}

static unsigned hex_digit(char c) { return (unsigned)(c <= '9' ? c - '0' : c - 'A' + 10); }

void aml_eisa_id(struct aml *aml, const char *id)
{
    /* Three letters of five bits, four hexadecimal digits; most significant byte first. */
    uint32_t value = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 | (uint32_t)(id[2] - 0x40) << 16 |
                     hex_digit(id[3]) << 12 | hex_digit(id[4]) << 8 | hex_digit(id[5]) << 4 | hex_digit(id[6]);
    aml_byte(aml, AML_DWORD);
    put_le(aml, __builtin_bswap32(value), 4);
}

void aml_name(struct aml *aml, const char *name)
{
    aml_byte(aml, AML_NAME);
    aml_path(aml, name);
}

static void begin(struct aml *aml, bool buffer)
{
    assert(aml->depth < ARRAY_SIZE(aml->open));
    aml->open[aml->depth].length_at = aml->length;
    aml->open[aml->depth].buffer = buffer;
    aml->depth++;
}

void aml_begin_scope(struct aml *aml, const char *path)
{
    aml_byte(aml, AML_SCOPE);
    begin(aml, false);
    aml_path(aml, path);
}

void aml_begin_device(struct aml *aml, const char *name)
{
    aml_byte(aml, AML_EXT);
    aml_byte(aml, AML_EXT_DEVICE);
    begin(aml, false);
    aml_path(aml, name);
}

void aml_begin_package(struct aml *aml, uint8_t elements)
{
    aml_byte(aml, AML_PACKAGE);
    begin(aml, false);
    aml_byte(aml, elements);
}

void aml_begin_resources(struct aml *aml)
{
    aml_byte(aml, AML_BUFFER);
    begin(aml, true);
}

void aml_end(struct aml *aml)
{
    assert(aml->depth);
    aml->depth--;
    size_t at = aml->open[aml->depth].length_at;
    if (aml->open[aml->depth].buffer) {
        static const uint8_t end_tag[] = { 0x79, 0 };
        aml_bytes(aml, end_tag, sizeof(end_tag));
        size_t size = aml->length - at;
        uint8_t *word = insert(aml, at, 3);
        word[0] = AML_WORD;
        store_le16(word + 1, (uint16_t)size);
    }
    /* The length counts itself: one byte up to 63, else two or three with four bits in the first. */
    size_t content = aml->length - at;
    size_t bytes = content + 1 <= 0x3f ? 1 : content + 2 <= 0xfff ? 2 : 3;
    size_t total = content + bytes;
    uint8_t *field = insert(aml, at, bytes);
    if (bytes == 1) {
        field[0] = (uint8_t)total;
        return;
    }
    field[0] = (uint8_t)((bytes - 1) << 6 | (total & 0xf));
    for (size_t i = 1; i < bytes; i++)
        field[i] = (uint8_t)(total >> (4 + 8 * (i - 1)));
}

void aml_resource_io(struct aml *aml, uint16_t base, uint8_t length)
{
    aml_byte(aml, 0x47);
    aml_byte(aml, 1); /* decodes 16 bits */
    put_le(aml, base, 2);
    put_le(aml, base, 2);
    aml_byte(aml, 1);
    aml_byte(aml, length);
}

void aml_resource_irq(struct aml *aml, unsigned irq)
{
    aml_byte(aml, 0x22);
    put_le(aml, 1u << irq, 2);
}

static void window(struct aml *aml, uint8_t tag, size_t bytes, uint8_t type, uint8_t type_flags, uint64_t first,
                   uint64_t last)
{
    aml_byte(aml, tag);
    put_le(aml, 3 + 5 * bytes, 2);
    aml_byte(aml, type);
    aml_byte(aml, 0x0c); /* produced, both ends fixed */
    aml_byte(aml, type_flags);
    put_le(aml, 0, bytes);
    put_le(aml, first, bytes);
    put_le(aml, last, bytes);
    put_le(aml, 0, bytes);
    put_le(aml, last - first + 1, bytes);
}

void aml_resource_bus_window(struct aml *aml, uint16_t first, uint16_t last)
{
    window(aml, 0x88, 2, 2, 0, first, last);
}

void aml_resource_io_window(struct aml *aml, uint16_t first, uint16_t last) { window(aml, 0x88, 2, 1, 3, first, last); }

void aml_resource_memory_window(struct aml *aml, uint64_t first, uint64_t last)
{
    bool wide = last > UINT32_MAX;
    window(aml, wide ? 0x8a : 0x87, wide ? 8 : 4, 0, 1, first, last);
}
