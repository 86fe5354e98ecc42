/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Progress on standard output: `    (12.34/100%)` and a carriage return, each time another step is done. Without -p,
 * each SIGUSR1 prints the state as a line on standard error, so that it does not get into the command's output. One
 * operation at a time: the state is this file's.
 */
#include "progress.h"

#include <signal.h>
#include <stdio.h>

static struct {
    bool enabled;
    double current, printed, step;
} state;
static volatile sig_atomic_t asked;

static void on_signal(int number) { asked = 1; }

void progress_catch_signal(void)
{
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

    sigaction(SIGUSR1, &action, NULL);
}

static void print(FILE *out, char end)
{
    fprintf(out, "    (%3.2f/100%%)%c", state.current, end);
    fflush(out);
}

static void print_step(void)
{
    print(stdout, '\r');
    state.printed = state.current;
}

void progress_start(bool enabled, double step)
{
    state.enabled = enabled;
    state.step = step;
    state.current = state.printed = 0;
    if (enabled)
        print_step();
}

void progress_update(uint64_t done, uint64_t total)
{
    state.current = total ? (double)done * 100.0 / (double)total : 100.0;
    if (state.enabled) {
        if (state.current > state.printed + state.step || done >= total)
            print_step();
    } else if (asked) {
        print(stderr, '\n');
    }
    asked = 0;
}

void progress_end(void)
{
    if (state.enabled)
        printf("\n");
    state.enabled = false;
}
