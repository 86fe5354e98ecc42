/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Stacks of coroutines: mapped with a guard page below, kept in the loop's own pool, beyond that in one shared pool,
 * beyond that given back to the kernel. An overflow hits the guard page and ends the process, never another stack.
 *
 * Valgrind is told of each stack for as long as it is mapped (it serves only loops without a ring, VMM_NO_URING=1,
 * where there are threads: 3.19 keeps them all stopped while one is in io_uring_enter). ASan's poison of a past run is
 * wiped before the next.
 */
#include "coroutine_internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef HAVE_VALGRIND
#include <valgrind/valgrind.h>
#endif
#ifdef CO_ASAN
#include <sanitizer/asan_interface.h>
#endif

enum {
#if defined(CO_ASAN) || defined(CO_TSAN)
    STACK_SIZE = 1024 * 1024, /* instrumented frames are several times as large */
#else
    STACK_SIZE = 256 * 1024,
#endif
    POOL_MAX = 64,
    SHARED_MAX = 256,
};

static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static struct list shared = { &shared, &shared };
static unsigned shared_count;

static struct co *stack_map(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t map_size = page + STACK_SIZE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK;
    char *map = mmap(NULL, map_size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (map == MAP_FAILED || mprotect(map, page, PROT_NONE) < 0) {
        /* As for any memory of the program itself (xmalloc()). */
        fprintf(stderr, "cannot map a coroutine's stack: %s\n", strerror(errno));
        abort();
    }
    size_t struct_size = (sizeof(struct co) + 63) & ~(size_t)63;
    struct co *co = (struct co *)(void *)(map + map_size - struct_size);
    co->map = map;
    co->map_size = map_size;
    co->stack = map + page;
    co->stack_size = (size_t)((char *)co - co->stack);
#ifdef HAVE_VALGRIND
    co->valgrind_id = VALGRIND_STACK_REGISTER(co->stack, co->stack + co->stack_size);
#endif
    return co;
}

static void stack_unmap(struct co *co)
{
#ifdef HAVE_VALGRIND
    VALGRIND_STACK_DEREGISTER(co->valgrind_id);
#endif
    munmap(co->map, co->map_size);
}

static bool put_shared(struct co *co)
{
    pthread_mutex_lock(&shared_lock);
    bool room = shared_count < SHARED_MAX;
    if (room) {
        list_prepend(&shared, &co->link);
        shared_count++;
    }
    pthread_mutex_unlock(&shared_lock);
    return room;
}

static struct co *take_shared(void)
{
    struct co *co = NULL;
    pthread_mutex_lock(&shared_lock);
    if (!list_empty(&shared)) {
        co = list_first(&shared, struct co, link);
        list_remove(&co->link);
        shared_count--;
    }
    pthread_mutex_unlock(&shared_lock);
    return co;
}

void co_pool_init(struct co_pool *pool)
{
    list_init(&pool->free);
    pool->count = 0;
}

void co_pool_finish(struct co_pool *pool)
{
    while (!list_empty(&pool->free)) {
        struct co *co = list_first(&pool->free, struct co, link);
        list_remove(&co->link);
        if (!put_shared(co))
            stack_unmap(co);
    }
    pool->count = 0;
}

struct co *co_stack_get(struct co_pool *pool)
{
    if (list_empty(&pool->free)) {
        struct co *co = take_shared();
        return co ? co : stack_map();
    }
    struct co *co = list_first(&pool->free, struct co, link);
    list_remove(&co->link);
    pool->count--;
    return co;
}

void co_stack_put(struct co_pool *pool, struct co *co)
{
#ifdef CO_ASAN
    /* The last frames were left, not returned from: their red zones are still poisoned. */
    __asan_unpoison_memory_region(co->stack, co->stack_size);
#endif
    if (pool->count < POOL_MAX) {
        list_prepend(&pool->free, &co->link); /* warm ones first */
        pool->count++;
    } else if (!put_shared(co)) {
        stack_unmap(co);
    }
}
