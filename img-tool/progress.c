/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Progress on standard output: `    (12.34/100%)` and a carriage return, each time another step is done, or JSON, a
 * line each time. A terminal also gets the rate and the time left; what is no terminal gets the bytes that qemu-img
 * writes. On a terminal and in JSON a second without news ends too. Without -p, each SIGUSR1 prints the state as a line
 * on standard error, so that it does not get into the command's output. One operation at a time: the state is this
 * file's.
 */
#include "progress.h"

#include <base/error.h>
#include <base/loop.h>
#include <base/size.h>

#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PERCENT_DIGITS = 4, SECOND_NS = 1000 * 1000 * 1000 };

static struct {
    enum progress_mode mode;
    bool terminal;
    double current, printed, step;
    uint64_t done, total; /* bytes; total 0: not known */
    uint64_t started_ns, printed_ns;
    int width; /* of the last line on a terminal */
} state;
static volatile sig_atomic_t asked;

static void on_signal(int number) { asked = 1; }

void progress_catch_signal(void)
{
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

    sigaction(SIGUSR1, &action, NULL);
}

bool progress_arg(const char *text, enum progress_mode *mode)
{
    if (text && !strcmp(text, "json")) {
        *mode = PROGRESS_JSON;
    } else if (!text || !strcmp(text, "text")) {
        *mode = PROGRESS_TEXT;
    } else {
        error_report("--progress must be used with text or json as argument.");
        return false;
    }
    return true;
}

/* ---- how fast ---- */

/* Bytes a second since the start; 0 if that cannot be said yet. */
static uint64_t rate(void)
{
    uint64_t elapsed_ns = loop_now_ns() - state.started_ns;

    return elapsed_ns ? (uint64_t)((double)state.done * 1e9 / (double)elapsed_ns) : 0;
}

static uint64_t seconds_left(uint64_t bytes_per_second)
{
    uint64_t left = state.total > state.done ? state.total - state.done : 0;

    return left / bytes_per_second + (left % bytes_per_second != 0);
}

/* ---- printing ---- */

static int print_text(FILE *out) { return fprintf(out, "    (%3.2f/100%%)", state.current); }

static void print_terminal(void)
{
    uint64_t speed = rate();
    int width = print_text(stdout);

    if (speed && state.total) {
        char buf[32];
        uint64_t left = seconds_left(speed);
        width += printf("  %s/s, %" PRIu64 ":%02" PRIu64 ":%02" PRIu64 " left", size_format(speed, buf, sizeof(buf)),
                        left / 3600, left / 60 % 60, left % 60);
    }
    printf("%*s\r", state.width > width ? state.width - width : 0, "");
    state.width = width;
}

static void add_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void print_json(void)
{
    json_t *object = json_object();
    uint64_t speed = rate();

    json_object_set_new(object, "progress", json_real(state.current));
    if (state.total) {
        add_number(object, "done-bytes", state.done);
        add_number(object, "total-bytes", state.total);
        if (speed) {
            add_number(object, "rate-bytes-per-second", speed);
            add_number(object, "seconds-left", seconds_left(speed));
        }
    }
    json_dumpf(object, stdout, JSON_REAL_PRECISION(PERCENT_DIGITS));
    printf("\n");
    json_decref(object);
}

static void print_step(void)
{
    if (state.mode == PROGRESS_JSON) {
        print_json();
    } else if (state.terminal) {
        print_terminal();
    } else {
        print_text(stdout);
        printf("\r");
    }
    fflush(stdout);
    state.printed = state.current;
    state.printed_ns = loop_now_ns();
}

void progress_poll(void)
{
    if (asked && state.mode == PROGRESS_OFF) {
        print_text(stderr);
        fprintf(stderr, "\n");
    }
    asked = 0;
}

/* Is it time for another line? */
static bool is_due(bool whole)
{
    bool as_qemu = state.mode == PROGRESS_TEXT && !state.terminal;

    if (state.current > state.printed + state.step || (whole && as_qemu))
        return true;
    if (as_qemu)
        return false;
    return state.printed < 100 && (whole || loop_now_ns() - state.printed_ns >= SECOND_NS);
}

/* ---- the operation ---- */

void progress_start(enum progress_mode mode, double step)
{
    memset(&state, 0, sizeof(state));
    state.mode = mode;
    state.step = step;
    state.started_ns = loop_now_ns();
    state.terminal = mode == PROGRESS_TEXT && isatty(STDOUT_FILENO);
    if (mode != PROGRESS_OFF)
        print_step();
}

void progress_work_begins(void) { state.started_ns = loop_now_ns(); }

void progress_update(uint64_t done, uint64_t total)
{
    state.done = done;
    state.total = total;
    state.current = total ? (double)done * 100.0 / (double)total : 100.0;
    if (state.mode != PROGRESS_OFF && is_due(done >= total))
        print_step();
    progress_poll();
}

void progress_complete(void) { progress_update(state.total, state.total); }

void progress_end(void)
{
    if (state.mode == PROGRESS_TEXT)
        printf("\n");
    state.mode = PROGRESS_OFF;
}
