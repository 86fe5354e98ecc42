/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Base64 as QEMU's secrets take it. */
#pragma once

#include "locked.h"

#include <base/error.h>

/* Appends what `text` stands for. Line feeds are skipped; an incomplete group of four at the end is dropped, and what
 * follows a '=' is read on, as QEMU does. */
int base64_decode(const uint8_t *text, size_t length, struct locked *out, struct error **errp);
