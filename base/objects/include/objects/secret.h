/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Secrets, `-object secret,id=…`: the one way for a password or a key to reach a driver. Its bytes lie in locked
 * memory that no core dump shows, and are wiped when it goes; who copies them wipes his copy. Main thread; the bytes
 * stay valid until objects_free().
 */
#pragma once

#include <base/error.h>
#include <stddef.h>
#include <stdint.h>

struct secret;

/* NULL and *errp ("No secret with id 'x'") if there is none. */
const struct secret *secret_find(const char *id, struct error **errp);
/* The same for a password that must be text: an error also if it is not valid UTF-8. */
const struct secret *secret_find_text(const char *id, struct error **errp);
/* Not NULL, also if *length is 0; there is a zero byte behind the last one, which does not count. */
const uint8_t *secret_bytes(const struct secret *secret, size_t *length);
