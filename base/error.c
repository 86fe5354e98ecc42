/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Error objects, and how a program prints them.
 *
 * An error is a code, a sentence and maybe a hint, all on the heap. The first error wins: setting or propagating onto
 * an error that is already there changes nothing, so that the cause is told and not what came of it. A line is
 * printed with one write, so that lines of different threads do not mix.
 */
#include <base/compiler.h>
#include <base/error.h>

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct error {
    int code;
    char *text;
    char *hint; /* NULL: none */
};

static const char *program_name = "vmm";
static bool hints_on = true;

static char *format_text(const char *fmt, va_list args)
{
    char *text = NULL;
    if (vasprintf(&text, fmt, args) < 0)
        return xstrdup("out of memory");
    return text;
}

/* Takes ownership of text. */
static int set_text(struct error **errp, int err, char *text)
{
    if (!errp || *errp) {
        free(text);
        return err;
    }
    struct error *error = xcalloc(1, sizeof(*error));
    error->code = err;
    error->text = text;
    *errp = error;
    return err;
}

int error_set(struct error **errp, int err, const char *fmt, ...)
{
    assert(err < 0);
    if (!errp || *errp)
        return err;
    va_list args;
    va_start(args, fmt);
    char *text = format_text(fmt, args);
    va_end(args);
    return set_text(errp, err, text);
}

int error_set_errno(struct error **errp, int err, const char *fmt, ...)
{
    assert(err < 0);
    if (!errp || *errp)
        return err;
    va_list args;
    va_start(args, fmt);
    char *what = format_text(fmt, args);
    va_end(args);
    char buf[128];
    char *text = xasprintf("%s: %s", what, strerror_r(-err, buf, sizeof(buf)));
    free(what);
    return set_text(errp, err, text);
}

void error_prepend(struct error **errp, const char *fmt, ...)
{
    if (!errp || !*errp)
        return;
    va_list args;
    va_start(args, fmt);
    char *prefix = format_text(fmt, args);
    va_end(args);
    char *text = xasprintf("%s%s", prefix, (*errp)->text);
    free(prefix);
    free((*errp)->text);
    (*errp)->text = text;
}

void error_prepend_once(struct error **errp, const char *text)
{
    if (errp && *errp && strncmp((*errp)->text, text, strlen(text)) != 0)
        error_prepend(errp, "%s", text);
}

void error_hint(struct error **errp, const char *fmt, ...)
{
    if (!errp || !*errp)
        return;
    va_list args;
    va_start(args, fmt);
    char *hint = format_text(fmt, args);
    va_end(args);
    free((*errp)->hint);
    (*errp)->hint = hint;
}

void error_propagate(struct error **errp, struct error *src)
{
    if (errp && !*errp)
        *errp = src;
    else
        error_free(src);
}

const char *error_text(const struct error *error) { return error->text; }

const char *error_hint_text(const struct error *error) { return error->hint; }

int error_code(const struct error *error) { return error->code; }

void error_free(struct error *error)
{
    if (!error)
        return;
    free(error->text);
    free(error->hint);
    free(error);
}

void error_cleanup(struct error **error) { error_free(*error); }

/* Standard error is unbuffered: build the line first, so that it leaves in one piece. */
static void print_line(const char *kind, const char *text)
{
    char *line = xasprintf("%s: %s%s\n", program_name, kind, text);
    fputs(line, stderr);
    free(line);
}

void error_report_free(struct error *error)
{
    if (!error)
        return;
    print_line("", error->text);
    if (hints_on && error->hint) {
        char *line = xasprintf("hint: %s\n", error->hint);
        fputs(line, stderr);
        free(line);
    }
    error_free(error);
}

void error_report(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    char *text = format_text(fmt, args);
    va_end(args);
    print_line("", text);
    free(text);
}

void warn_report(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    char *text = format_text(fmt, args);
    va_end(args);
    print_line("warning: ", text);
    free(text);
}

void error_set_program(const char *argv0)
{
    const char *slash = strrchr(argv0, '/');
    program_name = slash ? slash + 1 : argv0;
    hints_on = strncmp(program_name, "qemu-", 5) != 0;
}

const char *error_program(void) { return program_name; }

void error_set_hints(bool on) { hints_on = on; }
