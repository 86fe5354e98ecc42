/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* --version, and what `-device help` and `-device NAME,help` print, from the devices' own tables. */
#include "cmdline.h"
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>

void cmdline_print_version(void)
{
    printf("vmm version " VMM_VERSION "\nA KVM virtual machine monitor. Licence: LGPL-2.1-or-later\n");
}

static void print_model(const struct device_model *model, void *argument)
{
    printf("name \"%s\", desc \"%s\"\n", model->name, model->description);
}

void cmdline_print_device_help(const char *name)
{
    const struct device_model *model = name ? device_model_find(name) : NULL;
    if (!name) {
        device_model_each(print_model, NULL);
    } else if (!model) {
        error_report("-device %s,help: '%s' is not a valid device model name", name, name);
        exit(1);
    } else {
        printf("%s options:\n", model->name);
        opts_print_help(model->options, stdout);
    }
}
