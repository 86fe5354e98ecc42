/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Formats that other tools know and that have no driver here: what they look like, and nothing more.
 *
 * Such a file must not be taken for a raw disk: its user would get the container's bytes for the disk's. And a guest
 * that may write anything to a disk that was only guessed to be raw could make its disk into one of these, whose header
 * names a file of the host. So these probes rather ask for too little: a magic number is enough, even if some tool also
 * wants a version. Two marks are at the end of the file: the footer of a fixed VHD, which has nothing else, and the
 * trailer of a DMG.
 */
#include <base/compiler.h>
#include <base/endian.h>
#include <block/probe.h>
#include <string.h>
#include <strings.h>

/* ---- magic numbers at a fixed place ---- */

struct magic {
    const char *bytes;
    size_t length, offset;
};
#define MAGIC(text, at) \
    { \
        .bytes = (text), .length = sizeof(text) - 1, .offset = (at) \
    }

static bool has_magic(const struct blk_probe *probe, const struct magic *magic, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t end = magic[i].offset + magic[i].length;
        if (probe->head_length >= end && !memcmp(probe->head + magic[i].offset, magic[i].bytes, magic[i].length))
            return true;
    }
    return false;
}

#define PROBE_MAGIC(format, ...) \
    static int probe_##format(const struct blk_probe *probe) \
    { \
        static const struct magic magic[] = { __VA_ARGS__ }; \
        return has_magic(probe, magic, ARRAY_SIZE(magic)) ? BLK_PROBE_HEAD_FITS : 0; \
    }

PROBE_MAGIC(bochs, MAGIC("Bochs Virtual HD Image", 0))
PROBE_MAGIC(cloop, MAGIC("#!/bin/sh\n#V2.0 Format\n", 0))
PROBE_MAGIC(cow, MAGIC("OOOM", 0)) /* User Mode Linux */
PROBE_MAGIC(luks, MAGIC("LUKS\xba\xbe", 0))
PROBE_MAGIC(parallels, MAGIC("WithoutFreeSpace", 0), MAGIC("WithouFreSpacExt", 0))
PROBE_MAGIC(qed, MAGIC("QED\0", 0))
PROBE_MAGIC(vdi, MAGIC("\x7f\x10\xda\xbe", 64))
PROBE_MAGIC(vhdx, MAGIC("vhdxfile", 0))

/* Version 1, and what is none; from 2 on it is qcow2, whose driver is surer. */
static int probe_qcow(const struct blk_probe *probe)
{
    static const struct magic magic = MAGIC("QFI\xfb", 0);

    return has_magic(probe, &magic, 1) ? BLK_PROBE_HEAD_FITS - 1 : 0;
}

/* ---- VMDK: binary headers, or a descriptor of text that names the files with the data ---- */

static bool is_blank(uint8_t c) { return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f'; }

static const uint8_t *skip_blanks(const uint8_t *at, const uint8_t *end)
{
    while (at < end && is_blank(*at))
        at++;
    return at;
}

/* Past the word, in letters of either case, and the blanks behind it; NULL if something else is there. */
static const uint8_t *skip_word(const uint8_t *at, const uint8_t *end, const char *word)
{
    size_t length = strlen(word);

    if ((size_t)(end - at) < length || strncasecmp((const char *)at, word, length) != 0)
        return NULL;
    return skip_blanks(at + length, end);
}

/* "version=1", up to 4. */
static bool is_version_line(const uint8_t *at, const uint8_t *end)
{
    at = skip_word(at, end, "version");
    at = at ? skip_word(at, end, "=") : NULL;
    if (!at || at == end || *at < '1' || *at > '4')
        return false;
    at = skip_blanks(at + 1, end);
    return at == end || *at == '\n' || *at == '\0';
}

/* Comments and empty lines may come first: a comment that says what it is, or the version after them, is enough for
 * some tool. */
static bool is_descriptor(const uint8_t *at, const uint8_t *end)
{
    if (end - at >= 3 && !memcmp(at, "\xef\xbb\xbf", 3)) /* an editor's byte order mark */
        at += 3;
    for (;;) {
        at = skip_blanks(at, end);
        if (at == end)
            return false;
        if (*at == '#') {
            at = skip_blanks(at + 1, end);
            if (skip_word(at, end, "disk descriptorfile"))
                return true;
        } else if (*at != '\n') {
            return is_version_line(at, end);
        }
        at = memchr(at, '\n', (size_t)(end - at));
        if (!at)
            return false;
        at++;
    }
}

static int probe_vmdk(const struct blk_probe *probe)
{
    static const struct magic magic[] = { MAGIC("KDMV", 0), MAGIC("COWD", 0), MAGIC("\xbe\xba\xfe\xca\0\0\0\0", 0) };

    if (!probe->head_length)
        return 0;
    return has_magic(probe, magic, ARRAY_SIZE(magic)) || is_descriptor(probe->head, probe->head + probe->head_length)
               ? BLK_PROBE_HEAD_FITS
               : 0;
}

/* ---- marks at the end ---- */

/* A dynamic VHD begins with a copy of its footer. Old programs wrote 511 bytes; such a file's last sector is the
 * footer, too. */
static int probe_vpc(const struct blk_probe *probe)
{
    static const struct magic magic = MAGIC("conectix", 0);

    if (has_magic(probe, &magic, 1))
        return BLK_PROBE_HEAD_FITS;
    return probe->tail && !memcmp(probe->tail, magic.bytes, magic.length) ? BLK_PROBE_TAIL_FITS : 0;
}

/* The trailer's version and size count too: four letters alone are found by chance. */
static int probe_dmg(const struct blk_probe *probe)
{
    const uint8_t *tail = probe->tail;

    if (!tail || memcmp(tail, "koly", 4) != 0)
        return 0;
    return load_be32(tail + 4) == 4 && load_be32(tail + 8) == BLK_PROBE_TAIL ? BLK_PROBE_TAIL_FITS : 0;
}

static const struct blk_foreign_format foreign_formats[] = {
    { "bochs", probe_bochs }, { "cloop", probe_cloop },         { "cow", probe_cow },   { "dmg", probe_dmg },
    { "luks", probe_luks },   { "parallels", probe_parallels }, { "qcow", probe_qcow }, { "qed", probe_qed },
    { "vdi", probe_vdi },     { "vhdx", probe_vhdx },           { "vmdk", probe_vmdk }, { "vpc", probe_vpc },
};
BLK_FOREIGN_FORMATS(foreign_formats)
