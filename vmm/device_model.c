/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The list of device models, kept by name; filled before main() by DEVICE_MODEL, never changed afterwards. And
 * -device. */
#include "machine.h"

#include <base/compiler.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct device_model *models;

void device_model_register(struct device_model *model)
{
    struct device_model **at = &models;
    while (*at && strcmp((*at)->name, model->name) < 0)
        at = &(*at)->next;
    model->next = *at;
    *at = model;
}

struct device_model *device_model_find(const char *name)
{
    for (struct device_model *model = models; model; model = model->next)
        if (strcmp(model->name, name) == 0)
            return model;
    return NULL;
}

void device_model_each(void (*fn)(const struct device_model *model, void *arg), void *arg)
{
    for (const struct device_model *model = models; model; model = model->next)
        fn(model, arg);
}

/* ---- -device ---- */

struct unknown {
    const struct device_model *model;
    const char *key;
};

/* "list.0.name" belongs to the option "list". */
static void look_for_unknown(const char *key, const char *value, void *argument)
{
    struct unknown *unknown = argument;
    AUTO_FREE char *name = xstrdup(key);
    name[strcspn(name, ".")] = 0;
    if (!unknown->key && strcmp(key, "driver") != 0 && strcmp(key, "id") != 0 &&
        !opts_find(unknown->model->options, name))
        unknown->key = key;
}

/* Devices take their ids from here: the list of devices owns them. */
static void name_newest(struct machine *machine, struct opts *opts)
{
    struct device *device = list_last(&machine->devices, struct device, link);
    device->id = opts_take(opts, "id");
}

static bool id_is_taken(const struct machine *machine, const char *id)
{
    struct device *device;

    list_for_each(device, &machine->devices, link)
        if (device->id && !strcmp(device->id, id))
            return true;
    return false;
}

coroutine_fn int device_co_create(struct machine *machine, const struct opts *options, struct error **errp)
{
    struct opts *opts = opts_clone(options);
    char *name = opts_take(opts, "driver");
    struct unknown unknown = { 0 };
    int err = 0;
    if (name && strcmp(name, "virtio-blk") == 0) {
        free(name);
        name = xstrdup("virtio-blk-pci");
    }
    if (!name)
        err = error_set(errp, -EINVAL, "Parameter 'driver' is missing");
    else if (!(unknown.model = device_model_find(name)))
        err = error_set(errp, -EINVAL, "'%s' is not a valid device model name", name);
    if (!err)
        opts_each(opts, look_for_unknown, &unknown);
    if (unknown.key)
        err = error_set(errp, -EINVAL, "Property '%s.%s' not found", name, unknown.key);
    const char *id = opts_text(opts, "id");
    if (!err && id && id_is_taken(machine, id))
        err = error_set(errp, -EEXIST, "Duplicate ID '%s' for device", id);
    if (!err)
        err = unknown.model->co_create(machine, opts, errp);
    if (!err)
        name_newest(machine, opts);
    free(name);
    opts_free(opts);
    return err;
}
