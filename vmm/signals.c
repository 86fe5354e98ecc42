/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Signals that end us, taken by the main loop through a signalfd: all threads block them, so nothing is ever
 * interrupted half way; the machine is shut down in order and the exit status is 0, as QEMU's. Once it is, ending.c
 * takes those that follow.
 */
#include "lifecycle.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static struct {
    struct loop_fd watch;
    struct machine *machine;
    bool watched, leaving;
    bool asked; /* SIGTERM or SIGINT has come; whoever takes signals */
} signals = { .watch = { .fd = -1 } };

int signals_block(struct error **errp)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signals.watch.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return signals.watch.fd < 0 ? error_set_errno(errp, -errno, "cannot watch signals") : 0;
}

static void read_command(uint32_t pid, char *name, size_t size)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%u/comm", pid);
    FILE *file = fopen(path, "re");
    if (!file || !fgets(name, (int)size, file))
        snprintf(name, size, "<unknown process>");
    if (file)
        fclose(file);
    name[strcspn(name, "\n")] = 0;
}

static void report(const struct signalfd_siginfo *info, bool again)
{
    const char *what = again ? "waiting no longer" : "terminating";
    char name[32] = "";

    if (info->ssi_pid) {
        read_command(info->ssi_pid, name, sizeof(name));
        error_report("%s on signal %u from pid %u (%s)", what, info->ssi_signo, info->ssi_pid, name);
    } else {
        error_report("%s on signal %u", what, info->ssi_signo);
    }
}

bool signals_take(bool *again)
{
    struct signalfd_siginfo info;

    if (read(signals.watch.fd, &info, sizeof(info)) != sizeof(info))
        return false;
    /* A terminal that goes away sends SIGHUP beside what a person or a service manager sends. */
    bool asks = info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT;
    *again = asks && signals.asked;
    signals.asked |= asks;
    report(&info, *again);
    return true;
}

static void ready(struct loop_fd *watch, short revents)
{
    bool again;
    if (signals_take(&again))
        machine_event(signals.machine, MACHINE_SHUTDOWN, 0);
}

void signals_watch(struct machine *machine)
{
    signals.machine = machine;
    signals.watched = true;
    signals.watch.events = POLLIN;
    signals.watch.ready = ready;
    loop_fd_add(machine->loop, &signals.watch);
}

int signals_fd(void) { return signals.watch.fd; }

static void removed(struct loop_fd *watch) { signals.watched = false; }

void signals_unwatch(void)
{
    if (signals.watched && !signals.leaving)
        loop_fd_remove(&signals.watch, removed);
    signals.leaving = true;
}

void signals_finish(void)
{
    signals_unwatch();
    while (signals.watched)
        loop_step(loop_current(), true);
    if (signals.watch.fd >= 0)
        close(signals.watch.fd);
    signals.watch.fd = -1;
}
