/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The image's metadata contradicts itself: it is said once, the corrupt bit is set, durably, and no write follows.
 */
#include "corrupt.h"

#include "header.h"

#include <stdarg.h>
#include <stdio.h>

coroutine_fn int qcow2_co_mark_corrupt(struct qcow2 *s, const char *fmt, ...)
{
    bool writable = blk_node_writable(s->node);
    char text[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (!s->corruption_signalled || (writable && !atomic_load(&s->corrupt))) {
        if (writable)
            fprintf(stderr, "qcow2: Marking image as corrupt: %s; further corruption events will be suppressed\n",
                    text);
        else
            fprintf(stderr, "qcow2: Image is corrupt: %s; further non-fatal corruption events will be suppressed\n",
                    text);
        s->corruption_signalled = true;
    }
    if (!writable || atomic_exchange(&s->corrupt, true))
        return -EIO;
    if (s->header.version >= 3) {
        s->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
        qcow2_header_set64(s, QCOW2_AT_INCOMPATIBLE, s->header.incompatible);
        qcow2_co_header_write(s); /* that it failed changes nothing: writes are refused all the same */
    }
    return -EIO;
}
