/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Base64 (RFC 4648, section 4), with what QEMU takes beyond it (base64.h). */
#include "base64.h"

#include <errno.h>
#include <string.h>

/* 0 … 63; 0 for the padding; -1 for anything else. */
static int digit(uint8_t c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : c == '=' ? 0 : -1;
}

static bool put_group(const uint8_t group[4], struct locked *out)
{
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++)
        bits = bits << 6 | (uint32_t)digit(group[i]);
    uint8_t bytes[3] = { (uint8_t)(bits >> 16), (uint8_t)(bits >> 8), (uint8_t)bits };
    size_t count = 1u + (group[2] != '=') + (group[3] != '=');
    /* "x==y" gives the first byte and the third. */
    if (group[2] == '=' && group[3] != '=')
        bytes[1] = bytes[2];
    bool ok = locked_append(out, bytes, count);
    explicit_bzero(bytes, sizeof(bytes));
    return ok;
}

int base64_decode(const uint8_t *text, size_t length, struct locked *out, struct error **errp)
{
    uint8_t group[4];
    unsigned filled = 0;
    if (memchr(text, 0, length))
        return error_set(errp, -EINVAL, "Base64 data contains embedded NUL characters");
    for (size_t i = 0; i < length; i++)
        if (text[i] != '\n' && digit(text[i]) < 0)
            return error_set(errp, -EINVAL, "Base64 data contains invalid characters");
    bool ok = locked_append(out, "", 0);
    for (size_t i = 0; ok && i < length; i++) {
        if (text[i] == '\n')
            continue;
        group[filled++] = text[i];
        if (filled == 4) {
            ok = put_group(group, out);
            filled = 0;
        }
    }
    explicit_bzero(group, sizeof(group));
    return ok ? 0 : error_set(errp, -ENOMEM, "not enough memory for a secret");
}
