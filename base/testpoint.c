/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Test points (testpoint.h): a table by name, made when a test or the environment names the first point. `lock` guards
 * all of it; it is never held while a test's function runs or somebody sleeps.
 */
#include <base/checked.h>
#include <base/coroutine.h>
#include <base/sync.h>
#include <base/testpoint.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_POINTS 64u
#define MAX_NAME 48u

struct point {
    char name[MAX_NAME];
    void (*fn)(void *arg);
    void *arg;
    uint64_t sleep_ns;
    bool held;
    unsigned waiting, count;
};

atomic_bool testpoints_in_use;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct co_cond co_changed;
static struct point points[MAX_POINTS];
static unsigned point_count;

__attribute__((constructor)) static void init_cond(void) { co_cond_init(&co_changed); }

/* Lock held. */
static struct point *find(const char *name)
{
    for (unsigned i = 0; i < point_count; i++) {
        if (strcmp(points[i].name, name) == 0)
            return &points[i];
    }
    if (point_count == MAX_POINTS || strlen(name) >= MAX_NAME) {
        fprintf(stderr, "test points: no room for '%s'\n", name);
        abort();
    }
    struct point *point = &points[point_count++];
    *point = (struct point){ 0 };
    memcpy(point->name, name, strlen(name) + 1);
    return point;
}

/* Lock held. */
static void tell(void)
{
    pthread_cond_broadcast(&changed);
    co_cond_broadcast(&co_changed);
}

/* ---- at the point ---- */

/* What is to be done there, once it has been counted. */
static struct point come_by(const char *name)
{
    pthread_mutex_lock(&lock);
    struct point *point = find(name);
    point->count++;
    if (point->held) {
        point->waiting++;
        tell();
    }
    struct point now = *point;
    pthread_mutex_unlock(&lock);
    return now;
}

void testpoint_reached(const char *name)
{
    struct point now = come_by(name);

    if (now.sleep_ns) {
        struct timespec time = { .tv_sec = (time_t)(now.sleep_ns / 1000000000),
                                 .tv_nsec = (long)(now.sleep_ns % 1000000000) };
        nanosleep(&time, NULL);
    }
    if (now.fn)
        now.fn(now.arg);
    if (!now.held)
        return;
    pthread_mutex_lock(&lock);
    while (find(name)->held)
        pthread_cond_wait(&changed, &lock);
    find(name)->waiting--;
    pthread_mutex_unlock(&lock);
}

coroutine_fn void testpoint_co_reached(const char *name)
{
    struct point now = come_by(name);

    if (now.sleep_ns)
        co_sleep_ns(now.sleep_ns);
    if (now.fn)
        now.fn(now.arg);
    if (!now.held)
        return;
    pthread_mutex_lock(&lock);
    while (find(name)->held)
        co_cond_wait_pthread(&co_changed, &lock);
    find(name)->waiting--;
    pthread_mutex_unlock(&lock);
}

/* ---- setting ---- */

void testpoint_call(const char *name, void (*fn)(void *arg), void *arg)
{
    pthread_mutex_lock(&lock);
    struct point *point = find(name);
    point->fn = fn;
    point->arg = arg;
    atomic_store(&testpoints_in_use, true);
    pthread_mutex_unlock(&lock);
}

void testpoint_hold(const char *name)
{
    pthread_mutex_lock(&lock);
    find(name)->held = true;
    atomic_store(&testpoints_in_use, true);
    pthread_mutex_unlock(&lock);
}

void testpoint_release(const char *name)
{
    pthread_mutex_lock(&lock);
    find(name)->held = false;
    tell();
    pthread_mutex_unlock(&lock);
}

coroutine_fn void testpoint_co_wait_held(const char *name)
{
    pthread_mutex_lock(&lock);
    while (find(name)->waiting == 0)
        co_cond_wait_pthread(&co_changed, &lock);
    pthread_mutex_unlock(&lock);
}

unsigned testpoint_count(const char *name)
{
    pthread_mutex_lock(&lock);
    unsigned count = find(name)->count;
    pthread_mutex_unlock(&lock);
    return count;
}

void testpoint_reset(void)
{
    pthread_mutex_lock(&lock);
    point_count = 0;
    atomic_store(&testpoints_in_use, false);
    pthread_mutex_unlock(&lock);
}

/* ---- the environment ---- */

/* "NAME=sleep:20ms". A variable that is not understood would be a test that tests nothing: it ends the program. */
static bool set_from_word(const char *word)
{
    static const struct {
        const char *name;
        uint64_t ns;
    } units[] = { { "us", 1000 }, { "ms", 1000000 }, { "s", 1000000000 } };
    char name[MAX_NAME], unit[3], rest;
    unsigned number;

    if (sscanf(word, "%47[^=]=sleep:%8u%2[ums]%c", name, &number, unit, &rest) != 3)
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
        if (strcmp(unit, units[i].name) == 0) {
            find(name)->sleep_ns = number * units[i].ns;
            atomic_store(&testpoints_in_use, true);
            return true;
        }
    }
    return false;
}

__attribute__((constructor)) static void read_environment(void)
{
    const char *variable = getenv("VMM_TEST_POINTS");
    char *words = variable ? strdup(variable) : NULL, *rest = words;

    for (char *word; (word = strsep(&rest, ",")) != NULL;) {
        if (!set_from_word(word)) {
            fprintf(stderr, "VMM_TEST_POINTS: '%s' is not NAME=sleep:TIME, as in qcow2-link=sleep:20ms\n", word);
            exit(2);
        }
    }
    free(words);
}
