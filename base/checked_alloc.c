/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory for the program itself. These never return NULL: running out ends the process with a message, because there is
 * no state worth saving that a flush has not saved already. Sizes that an image or a guest chose never come here.
 */
#include <base/compiler.h>
#include <base/error.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *checked(void *pointer)
{
    if (unlikely(!pointer)) {
        /* No error_report(): it may allocate. */
        fputs("out of memory\n", stderr);
        abort();
    }
    return pointer;
}

void auto_free_cleanup(void *pointer)
{
    void *memory;
    memcpy(&memory, pointer, sizeof(memory));
    free(memory);
}

void *xmalloc(size_t size) { return checked(malloc(size ? size : 1)); }

void *xcalloc(size_t count, size_t size) { return checked(calloc(count ? count : 1, size ? size : 1)); }

void *xrealloc(void *pointer, size_t size) { return checked(realloc(pointer, size ? size : 1)); }

char *xstrdup(const char *text) { return checked(strdup(text)); }

char *xasprintf(const char *fmt, ...)
{
    va_list args;
    char *text = NULL;
    va_start(args, fmt);
    int length = vasprintf(&text, fmt, args);
    va_end(args);
    return checked(length < 0 ? NULL : text);
}
