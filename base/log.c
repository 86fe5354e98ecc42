/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Debug log: lines on standard error for the categories that VMM_LOG names.
 *
 * A category looks itself up once and remembers the answer; the environment is read when the first one asks. Two
 * threads that ask at the same time come to the same answer, so relaxed atomics do.
 */
#include <base/compiler.h>
#include <base/log.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STATE_UNKNOWN, STATE_OFF, STATE_ON };

static bool named_in(const char *list, const char *name)
{
    size_t length = strlen(name);
    while (list) {
        size_t word = strcspn(list, ",");
        if ((word == length && !strncmp(list, name, length)) || (word == 3 && !strncmp(list, "all", 3)))
            return true;
        list = list[word] ? list + word + 1 : NULL;
    }
    return false;
}

bool log_category_on(struct log_category *category)
{
    int state = __atomic_load_n(&category->state, __ATOMIC_RELAXED);
    if (unlikely(state == STATE_UNKNOWN)) {
        state = named_in(getenv("VMM_LOG"), category->name) ? STATE_ON : STATE_OFF;
        __atomic_store_n(&category->state, state, __ATOMIC_RELAXED);
    }
    return state == STATE_ON;
}

void log_print(struct log_category *category, const char *fmt, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, fmt);
    int length = vasprintf(&text, fmt, args);
    va_end(args);
    if (length < 0)
        return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char *line = xasprintf("%ld.%06ld [%d] %s: %s\n", (long)now.tv_sec, now.tv_nsec / 1000, (int)gettid(),
                           category->name, text);
    fputs(line, stderr);
    free(line);
    free(text);
}
