/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* VMM_LOG: which categories print, and what a line looks like. */
#include "unit.h"

#include <base/log.h>
#include <fcntl.h>
#include <pthread.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

LOG_CATEGORY(testing);

static bool is_on(const char *list, const char *name)
{
    struct log_category category = { .name = name };
    if (list)
        setenv("VMM_LOG", list, 1);
    else
        unsetenv("VMM_LOG");
    bool on = log_category_on(&category);
    /* Asked once: a change of the environment changes nothing any more. */
    setenv("VMM_LOG", on ? "" : "all", 1);
    assert_int_equal(on, log_category_on(&category));
    return on;
}

static void categories_are_named(void **state)
{
    assert_false(is_on(NULL, "qcow2"));
    assert_false(is_on("", "qcow2"));
    assert_true(is_on("qcow2", "qcow2"));
    assert_true(is_on("all", "qcow2"));
    assert_true(is_on("machine,qcow2", "qcow2"));
    assert_true(is_on("qcow2,machine", "qcow2"));
    assert_true(is_on("machine,all", "qcow2"));
    assert_true(is_on(",,qcow2,", "qcow2"));
    assert_false(is_on("qcow", "qcow2"));
    assert_false(is_on("qcow22", "qcow2"));
    assert_false(is_on("machine,allx", "qcow2"));
    assert_false(is_on("al", "qcow2"));
    assert_false(is_on("machine", "qcow2"));
}

/* Standard error goes to a file meanwhile; what was written there. */
static char *captured(void (*fn)(void))
{
    char path[PATH_MAX], *text = calloc(1, 65536);
    test_template(path, false);
    int file = mkstemp(path), before = dup(STDERR_FILENO);
    assert_true(file >= 0 && before >= 0);
    unlink(path);
    fflush(stderr);
    dup2(file, STDERR_FILENO);
    fn();
    fflush(stderr);
    dup2(before, STDERR_FILENO);
    assert_true(pread(file, text, 65535, 0) >= 0);
    close(before);
    close(file);
    return text;
}

static unsigned evaluated;

static int evaluate(void) { return (int)++evaluated; }

static void say_one(void) { log_debug("%d of %s", evaluate(), "them"); }

static void lines_have_time_thread_and_category(void **state)
{
    regex_t form;
    evaluated = 0;
    log_category_.state = 0;
    setenv("VMM_LOG", "testing", 1);
    char *text = captured(say_one), expected[128];
    snprintf(expected, sizeof(expected), "^[0-9]+\\.[0-9]{6} \\[%d\\] testing: 1 of them\n$", (int)gettid());
    assert_int_equal(0, regcomp(&form, expected, REG_EXTENDED | REG_NOSUB));
    if (regexec(&form, text, 0, NULL, 0) != 0)
        fail_msg("the line is '%s'", text);
    regfree(&form);
    free(text);
    /* Off: nothing is printed, and the arguments are not even worked out. */
    log_category_.state = 0;
    setenv("VMM_LOG", "other", 1);
    text = captured(say_one);
    assert_string_equal("", text);
    assert_int_equal(1, evaluated);
    free(text);
}

static void *say_many(void *argument)
{
    for (int i = 0; i < 100; i++)
        log_debug("thread %s, number %d", (const char *)argument, i);
    return NULL;
}

static void say_from_threads(void)
{
    pthread_t one, two;
    pthread_create(&one, NULL, say_many, "one");
    pthread_create(&two, NULL, say_many, "two");
    pthread_join(one, NULL);
    pthread_join(two, NULL);
}

/* Lines of several threads come whole. */
static void lines_are_whole(void **state)
{
    log_category_.state = 0;
    setenv("VMM_LOG", "all", 1);
    char *text = captured(say_from_threads);
    unsigned lines = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"), lines++) {
        const char *rest = strstr(line, "] testing: thread ");
        assert_non_null(rest);
        assert_null(strstr(rest + 1, "] testing"));
    }
    assert_int_equal(200, lines);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(categories_are_named),
        cmocka_unit_test(lines_have_time_thread_and_category),
        cmocka_unit_test(lines_are_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
