/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The machine's life. Whoever wants a change (a vCPU that wrote to a reset port, a signal, the monitor) sets a bit; the
 * main loop then pauses all vCPUs and carries it out in a coroutine, one change at a time.
 * Invariants: devices change state by reset only while no vCPU runs and no request is in flight; the main loop ends
 * only with vCPUs paused.
 */
#include "lifecycle.h"

#include "boot.h"
#include "cmdline.h"
#include "ending.h"
#include "pci.h"
#include "q35.h"
#include "vcpu.h"

#include <base/compiler.h>
#include <base/log.h>
#include <stdlib.h>

LOG_CATEGORY(machine);

/* ---- becoming quiet ---- */

void quiesce_hold(struct quiesce *quiesce) { atomic_fetch_add(&quiesce->pending, 1); }

void quiesce_release(struct quiesce *quiesce)
{
    struct co *waiter = quiesce->waiter; /* *quiesce may be gone once the count is down */
    if (atomic_fetch_sub(&quiesce->pending, 1) == 1)
        co_wake(waiter);
}

static coroutine_fn void co_quiesce_devices(struct machine *machine)
{
    struct quiesce quiesce = { .pending = 1, .waiter = co_self() };
    struct device *device;
    device_lock(machine);
    list_for_each(device, &machine->devices, link)
        if (device->ops->quiesce)
            device->ops->quiesce(device, &quiesce);
    device_unlock(machine);
    /* Always exactly one wake, which may be our own. */
    quiesce_release(&quiesce);
    co_yield();
}

struct stopping {
    struct machine *machine;
    struct co *waiter;
    unsigned left; /* devices */
};

struct stopping_device {
    struct stopping *stopping;
    struct device *device;
};

static coroutine_fn void co_stop_device(void *argument)
{
    struct stopping_device *one = argument;
    struct stopping *stopping = one->stopping;
    struct device *device = one->device;
    struct quiesce quiesce = { .pending = 1, .waiter = co_self() };

    free(one);
    device_lock(stopping->machine);
    if (device->ops->quiesce)
        device->ops->quiesce(device, &quiesce);
    device_unlock(stopping->machine);
    quiesce_release(&quiesce);
    co_yield();
    if (device->ops->detach)
        device->ops->detach(device);
    if (--stopping->left == 0)
        co_wake(stopping->waiter);
}

coroutine_fn void machine_co_stop(struct machine *machine)
{
    struct stopping stopping = { .machine = machine, .waiter = co_self(), .left = 1 };
    struct device *device;

    vcpus_co_pause(machine);
    list_for_each(device, &machine->devices, link) {
        struct stopping_device *one = xmalloc(sizeof(*one));
        *one = (struct stopping_device){ &stopping, device };
        stopping.left++;
        co_start(co_stop_device, one);
    }
    if (--stopping.left > 0)
        co_yield();
}

/* ---- reset ---- */

/* vCPUs are paused, devices quiet. Also the way to the first instruction. */
static int power_on(struct machine *machine, struct error **errp)
{
    struct device *device;
    device_lock(machine);
    list_for_each(device, &machine->devices, link)
        device->ops->reset(device);
    int err = kvm_chips_restore(&machine->kvm, &machine->chips);
    if (err)
        error_set_errno(errp, err, "kvm: cannot reset the interrupt controllers");
    q35_setup_for_direct_boot(machine);
    pci_assign(machine);
    device_unlock(machine);
    if (!err)
        err = boot_linux_load(machine, errp);
    if (!err)
        err = vcpus_reset(machine, errp);
    return err;
}

static coroutine_fn void co_reset(struct machine *machine)
{
    struct error *error = NULL;
    co_quiesce_devices(machine);
    if (power_on(machine, &error) < 0) {
        error_report_free(error);
        machine_event(machine, MACHINE_SHUTDOWN, 1);
    }
}

int machine_start(struct machine *machine, struct error **errp)
{
    int err = power_on(machine, errp);
    if (!err)
        err = vcpus_start(machine, errp);
    if (err)
        return err;
    machine->started = true;
    /* The console's monitor works already: it may have changed what -S said. */
    if (!machine->paused && !atomic_load(&machine->events))
        vcpus_resume(machine);
    return 0;
}

/* ---- events ---- */

static bool is_end(const struct machine *machine, unsigned events)
{
    return events & MACHINE_SHUTDOWN || (events & MACHINE_RESET && machine->config->no_reboot);
}

static coroutine_fn void co_handle_events(void *argument)
{
    struct machine *machine = argument;
    unsigned events;
    while (!machine->ended && (events = atomic_exchange(&machine->events, 0))) {
        vcpus_co_pause(machine);
        if (is_end(machine, events)) {
            machine->ended = true;
            break;
        }
        /* MACHINE_PAUSE is of the main loop, which may have let the machine go on again since. */
        if (events & MACHINE_IO_ERROR)
            machine->paused = machine->io_error = true;
        if (events & MACHINE_RESET)
            co_reset(machine);
        if (!machine->paused && !atomic_load(&machine->events))
            vcpus_resume(machine);
    }
    machine->busy = false;
}

static void events_posted(struct loop_post *post)
{
    struct machine *machine = container_of(post, struct machine, event_post);
    atomic_store(&machine->event_posted, false);
    /* Not when its turn comes: what is done now may wait for a disk that hangs. */
    if (machine->started && is_end(machine, atomic_load(&machine->events)))
        ending_begin(machine);
    if (machine->busy || machine->ended)
        return;
    machine->busy = true;
    co_start(co_handle_events, machine);
}

void machine_event(struct machine *machine, enum machine_event event, int status)
{
    int none = -1;
    log_debug("machine event 0x%x, status %d", event, status);
    if (event == MACHINE_SHUTDOWN)
        atomic_compare_exchange_strong(&machine->exit_status, &none, status);
    atomic_fetch_or(&machine->events, event);
    atomic_store(&machine->cpus_pause, true);
    if (!atomic_exchange(&machine->event_posted, true))
        loop_post(machine->loop, &machine->event_post);
}

void machine_pause(struct machine *machine)
{
    machine->paused = true;
    machine_event(machine, MACHINE_PAUSE, 0);
}

void machine_continue(struct machine *machine)
{
    struct device *device;
    if (!machine->paused || machine->ended)
        return;
    machine->paused = machine->io_error = false;
    list_for_each(device, &machine->devices, link)
        if (device->ops->resume)
            device->ops->resume(device);
    if (!machine->busy && !atomic_load(&machine->events))
        vcpus_resume(machine);
}

const char *machine_status(const struct machine *machine)
{
    if (machine->io_error)
        return "paused (io-error)";
    return machine->paused ? "paused" : "running";
}

void lifecycle_init(struct machine *machine)
{
    machine->event_post.fn = events_posted;
    atomic_store(&machine->exit_status, -1);
    machine->paused = machine->config->start_paused;
}

void lifecycle_finish(struct machine *machine)
{
    while (atomic_load(&machine->event_posted) || machine->busy)
        loop_step(machine->loop, true);
}

/* ---- timers ---- */

static void timer_due(struct loop_timer *loop_timer)
{
    struct machine_timer *timer = container_of(loop_timer, struct machine_timer, timer);
    device_lock(timer->machine);
    if (timer->deadline_ns && loop_now_ns() >= timer->deadline_ns) {
        timer->deadline_ns = 0;
        timer->fn(timer);
    }
    device_unlock(timer->machine);
}

static void timer_posted(struct loop_post *post)
{
    struct machine_timer *timer = container_of(post, struct machine_timer, post);
    device_lock(timer->machine);
    timer->posted = false;
    if (timer->deadline_ns)
        loop_timer_arm(timer->machine->loop, &timer->timer, timer->deadline_ns);
    else
        loop_timer_disarm(&timer->timer);
    device_unlock(timer->machine);
}

void machine_timer_init(struct machine_timer *timer, struct machine *machine, void (*fn)(struct machine_timer *timer))
{
    *timer = (struct machine_timer){
        .machine = machine, .fn = fn, .post = { .fn = timer_posted }, .timer = { .fn = timer_due }
    };
}

void machine_timer_set(struct machine_timer *timer, uint64_t deadline_ns)
{
    if (timer->deadline_ns == deadline_ns)
        return;
    timer->deadline_ns = deadline_ns;
    if (timer->posted)
        return;
    timer->posted = true;
    loop_post(timer->machine->loop, &timer->post);
}

void machine_timer_finish(struct machine_timer *timer)
{
    timer->deadline_ns = 0; /* no vCPU runs any more: nobody else looks */
    while (timer->posted)
        loop_step(timer->machine->loop, true);
    loop_timer_disarm(&timer->timer);
}
