/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The machine: what its parts share, and its life (running, paused, reset, shut down).
 *
 * Threads: the main loop; one thread a vCPU; one loop an iothread. Lock order: device_lock, then a device's own locks,
 * then the locks of pci.c (interrupt lines) and kvm.c (routes). Whoever holds device_lock never waits for a loop,
 * except in pthread_cond_wait() on device_lock itself, which releases it.
 */
#pragma once

#include "address_space.h"
#include "kvm.h"
#include "memory.h"

#include <base/coroutine.h>
#include <base/list.h>
#include <base/loop.h>
#include <base/opts.h>
#include <pthread.h>
#include <stdatomic.h>

struct aml;
struct config;
struct device;
struct machine;
struct acpi_pm;
struct pci_bus;
struct q35;
struct vcpu;

/* Counts those who still have to become quiet; the coroutine that waits is woken by the last. */
struct quiesce {
    atomic_uint pending;
    struct co *waiter;
};
void quiesce_hold(struct quiesce *quiesce);    /* any thread */
void quiesce_release(struct quiesce *quiesce); /* any thread; *quiesce may be gone afterwards */

struct device_ops {
    /* Back to power-on state. vCPUs are paused, the device is quiet, device_lock is held. */
    void (*reset)(struct device *device);
    /* Stops taking requests and lets those in flight finish: holds *quiesce until then. vCPUs are paused. NULL:
     * nothing to wait for. */
    void (*quiesce)(struct device *device, struct quiesce *quiesce);
    /* The machine ends; the device is quiet and stays so: it gives back what others lent it (a drive). Main loop, vCPUs
     * are paused. NULL: it has nothing. */
    void (*detach)(struct device *device);
    /* Goes on after quiesce if no reset followed. */
    void (*resume)(struct device *device);
    /* Describes the device in the ACPI DSDT, below the ISA bridge. NULL: it is found by other means. */
    void (*describe)(struct device *device, struct aml *aml);
    /* The machine ends: vCPU threads and iothreads are gone, the device is quiet. */
    void (*free)(struct device *device);
};

struct device {
    const struct device_ops *ops;
    struct machine *machine;
    const char *id; /* given by the user, or NULL; owned */
    struct list link;
};

/* A device that the user can name: `-device NAME,…`. One file each; registers itself with DEVICE_MODEL. */
struct device_model {
    const char *name;
    const char *description;
    const struct opt_desc *options;
    /* Takes what it needs from opts. The device is on machine->devices afterwards. */
    coroutine_fn int (*co_create)(struct machine *machine, struct opts *opts, struct error **errp);
    struct device_model *next;
};
void device_model_register(struct device_model *model);
struct device_model *device_model_find(const char *name);
void device_model_each(void (*fn)(const struct device_model *model, void *arg), void *arg); /* by name */
/* -device: checks the options' names, finds the model and makes the device. */
coroutine_fn int device_co_create(struct machine *machine, const struct opts *options, struct error **errp);
#define DEVICE_MODEL(model) \
    __attribute__((constructor)) static void register_##model(void) { device_model_register(&model); }

enum machine_event {
    MACHINE_SHUTDOWN = 1u << 0, /* the guest powered off, or somebody ends us */
    MACHINE_RESET = 1u << 1,
    MACHINE_PAUSE = 1u << 2,
    MACHINE_IO_ERROR = 1u << 3, /* pauses too: a drive's werror= or rerror= says stop */
};

struct machine {
    struct kvm kvm;
    struct guest_memory memory;
    const struct config *config;
    struct loop *loop; /* the main loop */

    pthread_mutex_t device_lock; /* the devices, both spaces, the list of devices */
    struct address_space ports, mmio;
    struct list devices;
    struct pci_bus *pci;
    struct q35 *q35;
    struct acpi_pm *pm;

    /* vcpu.c */
    struct vcpu *cpus;
    unsigned cpu_count;
    pthread_mutex_t cpus_lock; /* the four below */
    pthread_cond_t cpus_changed;
    bool cpus_quit;
    unsigned cpus_running;
    struct co *cpus_waiter;
    atomic_bool cpus_pause;

    /* lifecycle.c */
    atomic_uint events; /* enum machine_event that the main loop has not seen */
    struct loop_post event_post;
    atomic_bool event_posted;
    _Atomic int exit_status;
    bool started;           /* all that was asked for is there */
    bool busy;              /* a coroutine is changing the machine's state */
    bool ended;             /* stops the main loop */
    bool paused;            /* until machine_continue() */
    bool io_error;          /* why */
    struct kvm_chips chips; /* as made */
    struct boot_file {
        bool open;
        int fd;
        uint64_t size;
    } kernel_file, initrd_file;  /* boot_linux.c */
    uint64_t entry, boot_params; /* of the kernel in guest memory; the boot processor starts there (boot_linux.c) */
    bool entry_32bit;
};

/* Main thread: KVM, memory, chipset. */
int machine_init(struct machine *machine, const struct config *config, struct error **errp);
void machine_add_device(struct machine *machine, struct device *device, const struct device_ops *ops);
/* After all devices are there: loads what boots, starts the vCPU threads. */
int machine_start(struct machine *machine, struct error **errp);
/* Pauses, finishes all requests; devices are quiet afterwards, and have given back their drives. For the end. */
coroutine_fn void machine_co_stop(struct machine *machine);
void machine_finish(struct machine *machine);

/* Any thread: asks the main loop for a change of state. A vCPU that asks stops before its next instruction. `status` is
 * the process's exit status for MACHINE_SHUTDOWN; the first one counts. */
void machine_event(struct machine *machine, enum machine_event event, int status);
/* Main loop: monitor commands. */
void machine_pause(struct machine *machine);
void machine_continue(struct machine *machine);
/* "running", "paused", "paused (io-error)" */
const char *machine_status(const struct machine *machine);

static inline void device_lock(struct machine *machine) { pthread_mutex_lock(&machine->device_lock); }
static inline void device_unlock(struct machine *machine) { pthread_mutex_unlock(&machine->device_lock); }

/* A timer that may be set on any thread that holds device_lock; fn runs on the main loop with device_lock held. */
struct machine_timer {
    struct machine *machine;
    void (*fn)(struct machine_timer *timer);
    uint64_t deadline_ns; /* 0: not set */
    bool posted;
    struct loop_post post;
    struct loop_timer timer;
};
void machine_timer_init(struct machine_timer *timer, struct machine *machine, void (*fn)(struct machine_timer *timer));
void machine_timer_set(struct machine_timer *timer, uint64_t deadline_ns); /* 0 disarms */
void machine_timer_finish(struct machine_timer *timer);                    /* main loop, before the memory goes */
