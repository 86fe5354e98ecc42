/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Loading modules (module.h). They are looked for in $VMM_MODULE_DIR, beside the program as it was built, and where
 * they are installed. A module's drivers register themselves while it is loaded; they count only once its ABI has been
 * found right.
 */
#include "driver.h"

#include <base/compiler.h>
#include <block/module.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_MODULES 32

static struct {
    const struct blk_module *module;
    bool loaded;
} modules[MAX_MODULES];
static size_t module_count;

void blk_module_register(const struct blk_module *module)
{
    if (module_count == MAX_MODULES)
        abort();
    modules[module_count++].module = module;
}

void blk_module_each_driver(void (*fn)(const char *name, void *arg), void *arg)
{
    for (size_t i = 0; i < module_count; i++) {
        for (const char *const *name = modules[i].module->drivers; *name; name++)
            fn(*name, arg);
    }
}

/* ---- where they are ---- */

/* The folder of drivers in the build that this program is in. The caller frees it. */
static char *beside_program(void)
{
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);

    for (int up = 0; up < 2 && length > 0; up++) {
        while (length > 0 && path[length - 1] != '/')
            length--;
        length--;
    }
    return length > 0 ? xasprintf("%.*s/drivers", (int)length, path) : NULL;
}

static void *open_in(const char *folder, const char *file)
{
    AUTO_FREE char *path = folder ? xasprintf("%s/%s", folder, file) : NULL;

    return path && access(path, R_OK) == 0 ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

static void *open_module(const char *file)
{
    AUTO_FREE char *beside = beside_program();
    const char *given = getenv("VMM_MODULE_DIR"), *folders[] = { given, beside, VMM_MODULE_DIR };
    void *handle = NULL;

    dlerror();
    for (size_t i = 0; i < ARRAY_SIZE(folders) && !handle; i++)
        handle = open_in(folders[i], file);
    return handle;
}

/* ---- loading ---- */

static bool fits(void *handle)
{
    const struct blk_module_abi *abi = dlsym(handle, "blk_module_abi");

    return abi && abi->version == BLK_MODULE_ABI && abi->driver_size == sizeof(struct blk_driver) &&
           abi->node_size == sizeof(struct blk_node);
}

static int load(const struct blk_module *module, struct error **errp)
{
    blk_drivers_hold();
    void *handle = open_module(module->file);
    if (!handle) {
        const char *why = dlerror();
        blk_drivers_release(false);
        error_set(errp, -ENOENT, "Driver '%s' is in a module that cannot be loaded: %s", module->drivers[0],
                  why ? why : module->file);
        error_hint(errp, "install the package '%s'", module->package);
        return -ENOENT;
    }
    bool good = fits(handle);
    blk_drivers_release(good);
    if (good)
        return 0;
    dlclose(handle);
    return error_set(errp, -ENOEXEC, "Module '%s' was built for another version of this program", module->file);
}

static bool has_name(const char *const *names, const char *name)
{
    for (; name && *names; names++) {
        if (strcmp(*names, name) == 0)
            return true;
    }
    return false;
}

int blk_module_load(const char *driver, const char *prefix, struct error **errp)
{
    for (size_t i = 0; i < module_count; i++) {
        const struct blk_module *module = modules[i].module;
        if (modules[i].loaded || (!has_name(module->drivers, driver) && !has_name(module->prefixes, prefix)))
            continue;
        int ret = load(module, errp);
        modules[i].loaded = ret == 0;
        return ret;
    }
    return 0;
}
