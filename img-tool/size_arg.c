/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes and numbers on the command line: base/size.h's syntax, QEMU's words for what does not fit. */
#include "size_arg.h"

#include <base/error.h>
#include <base/size.h>

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

bool img_size_arg(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t value = 0;
    int ret = size_parse(text, 'B', &value);
    bool negative = text[strspn(text, " \t\n\v\f\r")] == '-';
    if (ret == -EINVAL || (ret < 0 && negative)) {
        error_report("Invalid %s specified. You may use k, M, G, T, P or E suffixes for", what);
        error_report("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.");
        return false;
    }
    if (ret < 0 || value < min || value > max) {
        error_report("Invalid %s specified. Must be between %" PRIu64 " and %" PRIu64 ".", what, min, max);
        return false;
    }
    *out = value;
    return true;
}

bool img_number_arg(const char *text, uint64_t max, uint64_t *out)
{
    char *end;
    while (isspace((unsigned char)*text))
        text++;
    if (*text == '-')
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 0);
    if (errno || end == text || *end || value > max)
        return false;
    *out = value;
    return true;
}
