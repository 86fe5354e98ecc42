/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Progress on standard output: `    (12.34/100%)` and a carriage return, each time another step is done. Without -p,
 * SIGUSR1 prints the state as a line. One operation at a time: the state is this file's.
 */
#include "progress.h"

#include <signal.h>
#include <stdio.h>

static struct {
    bool enabled;
    double current, printed, step;
} state;
static volatile sig_atomic_t print_once;

static void on_signal(int number) { print_once = 1; }

static void print(char end)
{
    printf("    (%3.2f/100%%)%c", state.current, end);
    fflush(stdout);
    state.printed = state.current;
}

void progress_start(bool enabled, double step)
{
    state.enabled = enabled;
    state.step = step;
    state.current = state.printed = 0;
    if (enabled) {
        print('\r');
    } else {
        struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
        sigaction(SIGUSR1, &action, NULL);
    }
}

void progress_update(uint64_t done, uint64_t total)
{
    state.current = total ? (double)done * 100.0 / (double)total : 100.0;
    if (print_once) {
        print_once = 0;
        print('\n');
    }
    if (state.enabled && (state.current > state.printed + state.step || done >= total))
        print('\r');
}

void progress_end(void)
{
    if (state.enabled)
        printf("\n");
    state.enabled = false;
}
