/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* UTF-8, strictly; which bytes one U+FFFD stands for is as in QEMU's JSON, so that the two print the same. */
#include <base/compiler.h>
#include <base/utf8.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* The length that a lead byte announces (up to 6, as in the first UTF-8); 0 for what leads nothing. */
static unsigned announced_length(uint8_t lead)
{
    unsigned ones = 0;

    while (ones < 8 && lead & (0x80u >> ones))
        ones++;
    return ones == 0 ? 1 : ones == 1 || ones > 6 ? 0 : ones;
}

static bool is_character(uint32_t code, unsigned length)
{
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };

    if (length > 4 || code < least[length] || code > 0x10ffff)
        return false;
    if (code >= 0xd800 && code <= 0xdfff)
        return false;
    return (code < 0xfdd0 || code > 0xfdef) && (code & 0xfffe) != 0xfffe;
}

uint32_t utf8_decode(const char *text, const char **next)
{
    uint8_t lead = (uint8_t)*text;
    unsigned length = announced_length(lead), have = 1;
    uint32_t code = length > 1 ? lead & (0x7fu >> length) : lead;

    for (text++; have < length && ((uint8_t)*text & 0xc0) == 0x80; text++, have++)
        code = code << 6 | ((uint8_t)*text & 0x3f);
    *next = text;
    return length && have == length && is_character(code, length) ? code : UTF8_REPLACEMENT;
}

char *utf8_clean(const char *text)
{
    static const char replacement[] = "\xef\xbf\xbd";
    char *clean = xmalloc(3 * strlen(text) + 1), *to = clean;

    for (const char *next; *text; text = next) {
        bool valid = utf8_decode(text, &next) != UTF8_REPLACEMENT;
        const char *from = valid ? text : replacement;
        size_t length = valid ? (size_t)(next - text) : sizeof(replacement) - 1;
        memcpy(to, from, length);
        to += length;
    }
    *to = '\0';
    return clean;
}
