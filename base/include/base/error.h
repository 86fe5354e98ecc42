/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Errors: a negative errno for the program, a sentence for the person.
 *
 * A function that a person's input can fail takes a trailing `struct error **errp`, returns a negative errno and fills
 * in the sentence: what failed, on which object, in QEMU's wording where QEMU has one. errp may be NULL (nobody is
 * waiting);
 * *errp must be NULL on entry; the caller that finally handles the error frees it. Never log and return.
 *
 * A hint says what to do about it. It is printed as a line of its own, `hint: …`, and left out where the program was
 * called by a link named `qemu-…` (error_set_hints()).
 *
 * All functions may be called from any thread and from coroutines; one struct error belongs to one owner at a time.
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>

struct error;

/* Fills *errp (if errp is not NULL) with the sentence. `err` is a negative errno and is returned, so that a caller can
 * write `return error_set(errp, -EINVAL, "…")`. If *errp already holds an error, that first one is kept. */
int error_set(struct error **errp, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same, followed by ": " and strerror(-err). */
int error_set_errno(struct error **errp, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts text in front of the sentence ("Could not open 'x': "). No effect where errp or *errp is NULL. */
void error_prepend(struct error **errp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The same for what each level of a chain says: not if the sentence begins with it already. */
void error_prepend_once(struct error **errp, const char *text);

/* Adds what to do about it. The last hint wins. No effect where errp or *errp is NULL. */
void error_hint(struct error **errp, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Moves src into *errp, or frees it where errp is NULL or already holds one. src may be NULL. */
void error_propagate(struct error **errp, struct error *src);

const char *error_text(const struct error *error);      /* the sentence; never NULL; valid while the error lives */
const char *error_hint_text(const struct error *error); /* NULL where there is none */
int error_code(const struct error *error);              /* the negative errno it was set with */
void error_free(struct error *error);                   /* takes NULL */

/* Prints "NAME: sentence\n" on standard error, and the hint if hints are on; frees the error. NULL prints nothing. */
void error_report_free(struct error *error);
/* Prints "NAME: text\n" on standard error, without an error object. */
void error_report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void warn_report(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* "NAME: warning: text\n" */

/* Name printed in front of each line: the last part of argv[0]. Hints are on unless the name begins with "qemu-".
 * Call once from main before other threads exist. */
void error_set_program(const char *argv0);
const char *error_program(void);
void error_set_hints(bool on);

/* struct error *error AUTO_ERROR = NULL; — freed at the end of the scope. */
void error_cleanup(struct error **error);
#define AUTO_ERROR __attribute__((cleanup(error_cleanup)))
