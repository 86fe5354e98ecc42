/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * vmm: reads the command line, builds the machine, runs the main loop, and ends in order: vCPUs paused, requests
 * finished, drives flushed as their cache mode says and closed (ending.c: in bounded time), terminal restored. Exit
 * status: 0 if the guest powered off (or reset with -no-reboot) or a signal ended us, 1 for an error, or what an
 * isa-debug-exit device was told.
 */
#include "cmdline.h"
#include "drive.h"
#include "ending.h"
#include "lifecycle.h"
#include "machine.h"
#include "object.h"
#include "pidfile.h"

#include <base/compiler.h>
#include <base/streams.h>
#include <objects/object.h>
#include <stdlib.h>

struct run {
    struct config config;
    struct machine machine;
    struct error *error;
};

static coroutine_fn int co_create_devices(struct machine *machine, struct error **errp)
{
    const struct config_items *devices = &machine->config->devices;
    for (unsigned i = 0; i < devices->count; i++) {
        int err = device_co_create(machine, devices->items[i].opts, errp);
        if (err) {
            error_prepend(errp, "-device %s: ", devices->items[i].text);
            return err;
        }
    }
    return drives_co_create_devices(machine, errp);
}

static coroutine_fn int co_build(void *argument)
{
    struct run *run = argument;
    int err = machine_init(&run->machine, &run->config, &run->error);
    if (!err)
        err = objects_create(&run->config, &run->error);
    if (!err)
        err = drives_co_open(&run->machine, &run->error);
    if (!err)
        err = co_create_devices(&run->machine, &run->error);
    if (!err)
        err = machine_start(&run->machine, &run->error);
    return err;
}

static coroutine_fn int co_stop(void *argument)
{
    struct run *run = argument;
    machine_co_stop(&run->machine);
    return 0;
}

static coroutine_fn int co_close(void *argument) { return drives_co_end(); }

/* Everything that was built so far, in reverse. Returns whether data was lost. */
static int take_down(struct run *run, struct loop *loop)
{
    ending_begin(&run->machine);
    co_run(loop, co_stop, run);
    machine_finish(&run->machine);
    int err = co_run(loop, co_close, NULL);
    objects_free();
    ending_finish();
    return err;
}

static int run_machine(struct run *run, struct loop *loop)
{
    int status = 1;
    if (co_run(loop, co_build, run) == 0) {
        signals_watch(&run->machine);
        loop_run(loop, &run->machine.ended);
        status = atomic_load(&run->machine.exit_status);
        status = status < 0 ? 0 : status;
    }
    if (run->error)
        error_report_free(run->error);
    if (take_down(run, loop) < 0)
        status = 1;
    signals_finish();
    return status;
}

int main(int argc, char **argv)
{
    error_set_program(argv[0]);
    streams_fill();
    static struct run run;
    struct error *error = NULL;
    if (cmdline_parse(&run.config, argc, argv, &error) < 0 || signals_block(&error) < 0 ||
        pidfile_write(run.config.pidfile, &error) < 0) {
        error_report_free(error);
        return 1;
    }
    struct loop *loop = loop_new(&error);
    if (!loop) {
        error_report_free(error);
        return 1;
    }
    int status = run_machine(&run, loop);
    loop_free(loop);
    config_finish(&run.config);
    return status;
}
