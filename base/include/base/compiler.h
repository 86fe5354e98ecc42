/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What every file may need from the compiler: markers, container_of, scope cleanup. */
#pragma once

#include <stddef.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) \
    ({ \
        __typeof__(a) a_ = (a); \
        __typeof__(b) b_ = (b); \
        a_ < b_ ? a_ : b_; \
    })
#define MAX(a, b) \
    ({ \
        __typeof__(a) a_ = (a); \
        __typeof__(b) b_ = (b); \
        a_ > b_ ? a_ : b_; \
    })
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/*
 * Marks a function that may yield: it runs only in a coroutine, and only functions that carry the mark (or that start a
 * coroutine) may call it. Its name contains `co_`. tests/cli/coroutine-marks checks both rules over the whole tree.
 */
#define coroutine_fn

/* void *p AUTO_FREE = malloc(…): freed at the end of the scope. */
void auto_free_cleanup(void *pointer);
#define AUTO_FREE __attribute__((cleanup(auto_free_cleanup)))

/* Memory for the program itself: never returns NULL; running out ends the process with a message. Sizes that come from
 * an image or a guest use malloc()/calloc() and return -ENOMEM instead. */
void *xmalloc(size_t size) __attribute__((malloc, returns_nonnull));
void *xcalloc(size_t count, size_t size) __attribute__((malloc, returns_nonnull));
void *xrealloc(void *pointer, size_t size) __attribute__((returns_nonnull));
char *xstrdup(const char *text) __attribute__((malloc, returns_nonnull));
char *xasprintf(const char *fmt, ...) __attribute__((malloc, returns_nonnull, format(printf, 1, 2)));

/* Two objects of one type change places. Each argument is evaluated more than once. */
#define SWAP(a, b) \
    do { \
        __typeof__(a) swapped_ = (a); \
        (a) = (b); \
        (b) = swapped_; \
    } while (0)
