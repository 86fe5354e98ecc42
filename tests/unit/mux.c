/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The console's escape keys and its monitor: what reaches the guest, what is shown, what is done. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm/chardev.h"
#include "../../vmm/q35.h"

#include <stdio.h>
#include <string.h>

static char shown[8192];
static unsigned shutdowns, resets, pauses, continues, buttons;

/* ---- in place of the machine ---- */

void chardev_print(struct chardev *chardev, const char *text)
{
    strncat(shown, text, sizeof(shown) - strlen(shown) - 1);
}

void machine_event(struct machine *machine, enum machine_event event, int status)
{
    assert_int_equal(0, status);
    shutdowns += event == MACHINE_SHUTDOWN;
    resets += event == MACHINE_RESET;
}

void machine_pause(struct machine *machine) { pauses++; }

void machine_continue(struct machine *machine) { continues++; }

const char *machine_status(const struct machine *machine) { return "running"; }

void acpi_pm_power_button(struct machine *machine) { buttons++; }

/* ---- tests ---- */

static struct mux mux;

static int setup(void **state)
{
    memset(&mux, 0, sizeof(mux));
    mux.line_start = true;
    shown[0] = 0;
    shutdowns = resets = pauses = continues = buttons = 0;
    return 0;
}

/* Types this; what the guest gets of it must be that. Returns whether a break was sent. */
static bool type(const char *keys, const char *guest)
{
    uint8_t bytes[512];
    bool send_break = false;
    size_t length = strlen(keys);
    memcpy(bytes, keys, length);
    length = mux_input(&mux, bytes, length, &send_break);
    assert_int_equal(strlen(guest), length);
    assert_memory_equal(guest, bytes, length);
    return send_break;
}

static void plain_keys_are_the_guests(void **state)
{
    assert_false(type("hello\r\n\x03\x7f", "hello\r\n\x03\x7f"));
    assert_string_equal("", shown);
    /* The escape itself, doubled; also over two reads. */
    type("a\x01\x01z", "a\x01z");
    type("a\x01", "a");
    type("\x01z", "\x01z");
    /* A key that means nothing is lost, and only that. */
    type("a\x01qz", "az");
}

static void escapes_do_what_they_say(void **state)
{
    type("\x01h", "");
    assert_non_null(strstr(shown, "C-a x"));
    assert_true(type("a\x01"
                     "bc",
                     "ac"));
    type("\x01t", "");
    assert_true(mux.timestamps);
    type("\x01t", "");
    assert_false(mux.timestamps);
    type("\x01s", "");
    assert_int_equal(0, shutdowns);
    type("\x01x", "");
    assert_int_equal(1, shutdowns);
}

static void the_monitor_takes_lines(void **state)
{
    type("a\x01"
         "cinfo status\rnosuch thing\r",
         "a");
    assert_non_null(strstr(shown, "VM status: running"));
    assert_non_null(strstr(shown, "unknown command: 'nosuch thing'"));
    /* Corrected with backspace, which goes no further than the line's beginning; spaces before it do not count. */
    type("\b\b\x7f  stoq\bp\r", "");
    assert_int_equal(1, pauses);
    type("cont\rc\rsystem_reset\rsystem_powerdown\r\r", "");
    assert_int_equal(2, continues);
    assert_int_equal(1, resets);
    assert_int_equal(1, buttons);
    type("quit\rq\r", "");
    assert_int_equal(2, shutdowns);
    /* Back to the guest; a line that was begun is gone. */
    type("stop\x01"
         "cx",
         "x");
    type("\x01"
         "c\r\x01"
         "c",
         "");
    assert_int_equal(1, pauses);
    type("y", "y");
}

static void a_long_line_is_cut(void **state)
{
    type("\x01"
         "c",
         "");
    for (int i = 0; i < 100; i++)
        type("0123456789", "");
    assert_int_equal(sizeof(mux.line) - 1, mux.line_length);
    shown[0] = 0;
    type("\r", "");
    assert_non_null(strstr(shown, "unknown command: '0123"));
    type("help\r", "");
    assert_non_null(strstr(shown, "system_powerdown -- "));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, setup)
    const struct CMUnitTest tests[] = {
        TEST(plain_keys_are_the_guests),
        TEST(escapes_do_what_they_say),
        TEST(the_monitor_takes_lines),
        TEST(a_long_line_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
