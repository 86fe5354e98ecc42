/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The drivers that this program was linked with. Each registers itself from a constructor, before main and before any
 * thread, so the table is constant afterwards and needs no lock. Kept in alphabetical order for --help.
 */
#include <block/node.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DRIVERS 64

static const struct blk_driver *drivers[MAX_DRIVERS];
static size_t driver_count;

void blk_driver_register(const struct blk_driver *driver)
{
    if (driver_count == MAX_DRIVERS)
        abort();
    size_t at = driver_count++;
    while (at > 0 && strcmp(drivers[at - 1]->name, driver->name) > 0) {
        drivers[at] = drivers[at - 1];
        at--;
    }
    drivers[at] = driver;
}

const struct blk_driver *blk_driver_find(const char *name)
{
    for (size_t i = 0; i < driver_count; i++) {
        if (strcmp(drivers[i]->name, name) == 0)
            return drivers[i];
    }
    return NULL;
}

void blk_driver_each(void (*fn)(const struct blk_driver *driver, void *arg), void *arg)
{
    for (size_t i = 0; i < driver_count; i++)
        fn(drivers[i], arg);
}
