/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Where a serial port's bytes come from and go to: terminal, file, pseudo-terminal, nowhere. Output is buffered and
 * written by the main loop, so that a vCPU never waits for a terminal; a full buffer holds the guest back instead.
 */
#pragma once

#include "machine.h"

struct chardev;

/* Who uses it. Called on the main loop with device_lock held. */
struct chardev_user {
    size_t (*room)(struct chardev_user *user); /* bytes that receive() would take now */
    void (*receive)(struct chardev_user *user, const uint8_t *bytes, size_t count);
    void (*sent)(struct chardev_user *user); /* there is room for output again */
    void (*send_break)(struct chardev_user *user);
};

/* `backend`: null, stdio, mon:stdio, file:PATH, pty; `label` names it in messages. Main thread. NULL and *errp if it
 * cannot be had. */
struct chardev *chardev_new(struct machine *machine, const char *backend, const char *label, struct error **errp);
void chardev_free(struct chardev *chardev); /* writes out what is left; takes NULL */
void chardev_connect(struct chardev *chardev, struct chardev_user *user);

/* With device_lock held. Takes one byte; false if the buffer is full (sent() follows). */
bool chardev_put(struct chardev *chardev, uint8_t byte);
bool chardev_can_put(const struct chardev *chardev);
/* The user has room again. */
void chardev_wants_input(struct chardev *chardev);
/* Text of our own on the same terminal (mux). Main loop, device_lock held. */
void chardev_print(struct chardev *chardev, const char *text);

/* terminal.c: standard input as it is needed for a console; `signals`: Ctrl-C still ends us. */
void terminal_raw(bool signals);
void terminal_restore(void);

/* mux.c: the escape keys of a console that it shares with a monitor (Ctrl-A X and others). Returns the number of bytes
 * that are for the guest, moved to the front of `bytes`. */
struct mux {
    struct machine *machine;
    struct chardev *chardev;
    bool escaped, in_monitor, timestamps, line_start;
    char line[128];
    size_t line_length;
    uint64_t origin_ns;
};
size_t mux_input(struct mux *mux, uint8_t *bytes, size_t count, bool *send_break);
