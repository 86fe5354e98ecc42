/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Drivers in modules: shared objects that are loaded when one of their drivers is first named, so that a program starts
 * fast and runs without the libraries that they pull in. What names a driver (its name, its prefixes) is in a table
 * that the program has without loading anything.
 *
 * A module is built against one version of block/node.h and says which by BLK_MODULE(): another one is not used.
 */
#pragma once

#include <block/node.h>

/* Counts up with each change of what modules and the core share. */
#define BLK_MODULE_ABI 1u

struct blk_module_abi {
    uint32_t version, driver_size, node_size;
};
/* In one source of the module. */
#define BLK_MODULE() \
    const struct blk_module_abi blk_module_abi = { BLK_MODULE_ABI, (uint32_t)sizeof(struct blk_driver), \
                                                   (uint32_t)sizeof(struct blk_node) }

struct blk_module {
    const char *file;                             /* "block-rbd.so", in the folder of modules */
    const char *package;                          /* Debian's, which has what the module needs */
    const char *const *drivers, *const *prefixes; /* that are in it; NULL-terminated */
};
/* Adds one to the table; it stays valid. Before main, or on the main loop. */
void blk_module_register(const struct blk_module *module);
/* Calls fn for the name of each driver that is in a module, loaded or not. */
void blk_module_each_driver(void (*fn)(const char *name, void *arg), void *arg);
/* Loads the module that has this driver, or (prefix) the one for names that begin so, if there is one and it is not
 * loaded yet. 0: loaded, or none to load; -errno and *errp: it is there by the table, and cannot be used. Main loop. */
int blk_module_load(const char *driver, const char *prefix, struct error **errp);
