/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The terminal on standard input: raw while a guest's console is on it, and as it was found afterwards, also when the
 * process is stopped (Ctrl-Z) and goes on. Invariant: whatever way the process ends by exit(), the terminal is
 * restored.
 */
#include "chardev.h"

#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

static struct termios found, ours;
static bool is_raw;

void terminal_restore(void)
{
    if (is_raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &found);
    is_raw = false;
}

static void on_continue(int signal)
{
    if (is_raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &ours);
}

void terminal_raw(bool signals)
{
    if (is_raw || tcgetattr(STDIN_FILENO, &found) < 0)
        return;
    ours = found;
    ours.c_iflag &= (tcflag_t) ~(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    ours.c_oflag |= OPOST;
    ours.c_lflag &= (tcflag_t) ~(ECHO | ECHONL | ICANON | IEXTEN | (signals ? 0 : ISIG));
    ours.c_cflag &= (tcflag_t) ~(CSIZE | PARENB);
    ours.c_cflag |= CS8;
    ours.c_cc[VMIN] = 1;
    ours.c_cc[VTIME] = 0;
    if (tcsetattr(STDIN_FILENO, TCSANOW, &ours) < 0)
        return;
    is_raw = true;
    atexit(terminal_restore);
    struct sigaction action = { .sa_handler = on_continue };
    sigaction(SIGCONT, &action, NULL);
}
