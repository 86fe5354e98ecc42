/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The drivers that this program was linked with, and those of modules that it has loaded. Each registers itself from a
 * constructor: before main and before any thread or, in a module, on the main loop, which alone looks for drivers by
 * name. Kept in alphabetical order for --help.
 */
#include "driver.h"

#include <block/node.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DRIVERS 64

static const struct blk_driver *drivers[MAX_DRIVERS], *held[MAX_DRIVERS];
static size_t driver_count, held_count;
static bool holding;

void blk_drivers_hold(void) { holding = true; }

void blk_drivers_release(bool good)
{
    holding = false;
    for (size_t i = 0; good && i < held_count; i++)
        blk_driver_register(held[i]);
    held_count = 0;
}

void blk_driver_register(const struct blk_driver *driver)
{
    if (holding && held_count < MAX_DRIVERS) {
        held[held_count++] = driver;
        return;
    }
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
