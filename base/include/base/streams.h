/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The three standard streams. */
#pragma once

/*
 * Opens /dev/null in the place of each standard stream that the caller closed: the next image opened would get its
 * descriptor, and messages would be written into it. First thing in main(), before anything is opened. Exits with
 * status 1 if that fails.
 */
void streams_fill(void);
