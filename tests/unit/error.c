/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Error objects: the first error is kept, text is built up, and the printed form is what scripts match.
 * Standard error is redirected into a file around what prints.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <base/compiler.h>
#include <base/error.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static FILE *capture;
static int saved_stderr;

static void capture_start(void)
{
    capture = tmpfile();
    assert_non_null(capture);
    fflush(stderr);
    saved_stderr = dup(STDERR_FILENO);
    assert_true(saved_stderr >= 0);
    assert_int_equal(dup2(fileno(capture), STDERR_FILENO), STDERR_FILENO);
}

static void capture_expect(const char *expected)
{
    char text[1024];
    fflush(stderr);
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    rewind(capture);
    size_t length = fread(text, 1, sizeof(text) - 1, capture);
    text[length] = '\0';
    fclose(capture);
    assert_string_equal(text, expected);
}

static void sets_code_and_sentence(void **state)
{
    struct error *error AUTO_ERROR = NULL;
    assert_int_equal(error_set(&error, -EINVAL, "Bad %s %d", "thing", 7), -EINVAL);
    assert_string_equal(error_text(error), "Bad thing 7");
    assert_int_equal(error_code(error), -EINVAL);
    assert_null(error_hint_text(error));
}

static void adds_errno_text(void **state)
{
    struct error *error AUTO_ERROR = NULL;
    assert_int_equal(error_set_errno(&error, -ENOENT, "Could not open '%s'", "x"), -ENOENT);
    assert_string_equal(error_text(error), "Could not open 'x': No such file or directory");
}

static void keeps_first_error(void **state)
{
    struct error *error AUTO_ERROR = NULL;
    error_set(&error, -EINVAL, "first");
    assert_int_equal(error_set(&error, -EIO, "second"), -EIO);
    assert_int_equal(error_set_errno(&error, -ENOSPC, "third"), -ENOSPC);
    assert_string_equal(error_text(error), "first");
    assert_int_equal(error_code(error), -EINVAL);
}

static void nobody_waiting_is_fine(void **state)
{
    struct error *none = NULL;
    assert_int_equal(error_set(NULL, -EPERM, "lost"), -EPERM);
    assert_int_equal(error_set_errno(NULL, -EPERM, "lost"), -EPERM);
    error_prepend(NULL, "x");
    error_prepend(&none, "x");
    error_hint(NULL, "x");
    error_hint(&none, "x");
    assert_null(none);
    error_free(NULL);
    error_report_free(NULL);
    error_propagate(NULL, NULL);
}

static void prepends_and_hints(void **state)
{
    struct error *error AUTO_ERROR = NULL;
    error_set(&error, -EAGAIN, "Failed to get \"write\" lock");
    error_prepend(&error, "Could not open '%s': ", "a.img");
    error_hint(&error, "first");
    error_hint(&error, "add %s", "-U");
    assert_string_equal(error_text(error), "Could not open 'a.img': Failed to get \"write\" lock");
    assert_string_equal(error_hint_text(error), "add -U");
}

static void propagates_into_empty_only(void **state)
{
    struct error *target AUTO_ERROR = NULL, *source = NULL;
    error_set(&source, -EIO, "one");
    error_propagate(&target, source);
    assert_ptr_equal(target, source);
    source = NULL;
    error_set(&source, -EIO, "two");
    error_propagate(&target, source); /* frees it; the leak checker sees to that */
    assert_string_equal(error_text(target), "one");
    source = NULL;
    error_set(&source, -EIO, "three");
    error_propagate(NULL, source);
    error_propagate(&target, NULL);
    assert_string_equal(error_text(target), "one");
}

static struct error *make_hinted(void)
{
    struct error *error = NULL;
    error_set(&error, -EIO, "it broke");
    error_hint(&error, "mend it");
    return error;
}

static void prints_program_name_and_hint(void **state)
{
    error_set_program("/usr/local/bin/img-tool");
    assert_string_equal(error_program(), "img-tool");
    capture_start();
    error_report_free(make_hinted());
    error_report("plain %d", 1);
    warn_report("careful %s", "now");
    capture_expect("img-tool: it broke\nhint: mend it\nimg-tool: plain 1\nimg-tool: warning: careful now\n");
}

static void prints_no_hint_as_qemu(void **state)
{
    error_set_program("./qemu-img");
    capture_start();
    error_report_free(make_hinted());
    capture_expect("qemu-img: it broke\n");
    error_set_hints(true);
    capture_start();
    error_report_free(make_hinted());
    capture_expect("qemu-img: it broke\nhint: mend it\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sets_code_and_sentence),
        cmocka_unit_test(adds_errno_text),
        cmocka_unit_test(keeps_first_error),
        cmocka_unit_test(nobody_waiting_is_fine),
        cmocka_unit_test(prepends_and_hints),
        cmocka_unit_test(propagates_into_empty_only),
        cmocka_unit_test(prints_program_name_and_hint),
        cmocka_unit_test(prints_no_hint_as_qemu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
