/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A program with the commands of qemu-io, with one image open through a log of writes. It is given one command at a
 * time: its prompt says when a command has ended. How much of the log there was at that moment is the clock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* How far the log was: `whole` has all entries that were written out then, `any` also those under way. */
struct program_time {
    uint64_t whole, any; /* bytes of the log */
};

struct program {
    pid_t pid;
    int in, out, log_fd; /* in: what it reads */
    char prompt[64];
    char output[4096]; /* of the last command; NUL-terminated, cut if it is longer */
    uint64_t scanned;  /* of the log */
};

/* `command`: a shell's, without the image. The log is an empty file that it will write. False: it does not start. */
bool program_start(struct program *p, const char *command, const char *image_opts, const char *log_path);
/* Returns when it has ended; false: the program has, or says nothing for a minute. */
bool program_run(struct program *p, const char *command);
/* While it runs no command. */
struct program_time program_now(struct program *p);
/* Its status; all of the log is there then. */
int program_end(struct program *p);
/* From then on a reader takes the log as what it is without a clock: one thing after the other. */
bool program_strip_clock(const char *log_path);
